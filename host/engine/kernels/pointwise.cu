// Everything that takes each token by itself between products and attention, and moves of KV blocks and weights.
// Almost all of it is bound by memory and by how long a launch takes: loads are of 16 bytes, rows are read once.

#include "gate.cuh"
#include "row.cuh"

// ---------------------------------------------------------------------------------------------------------------
// Embeddings
// ---------------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(128) embed(const __grid_constant__ EmbedArgs args) {
    u32 t = blockIdx.x;
    float* x = args.x + (u64)t * args.stride;
    if (t >= args.step->tokens) {
        for (u32 quad = threadIdx.x; quad < args.stride / 4; quad += blockDim.x) {
            store_quad(x, quad, splat(0.0f));
        }
        return;
    }
    u32 id = step_array<u32>(args.step, args.step->ids_at)[t];
    if (id & TOKEN_DRAWN) {
        id = args.drawn[id & ~TOKEN_DRAWN];
    }
    const bf16* from = args.table + (u64)id * args.stride;
    float4 scale = splat(args.scale);
    for (u32 eight = threadIdx.x; eight < args.stride / 8; eight += blockDim.x) {
        u128 values = *reinterpret_cast<const u128*>(from + 8 * eight);
        float4 low = make_float4(widen_low(values.x), widen_high(values.x), widen_low(values.y), widen_high(values.y));
        float4 high = make_float4(widen_low(values.z), widen_high(values.z), widen_low(values.w), widen_high(values.w));
        store_quad(x, 2 * eight, low * scale);
        store_quad(x, 2 * eight + 1, high * scale);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Angles
// ---------------------------------------------------------------------------------------------------------------

struct SinCos {
    float sin, cos;
};

// Both within 2e-7 for angles up to 2^30. The angle minus whole quarter turns is taken in f64, whose 53 bits hold both;
// then polynomials on -pi/4 .. pi/4 (Taylor's, whose remainders are below 2e-9 and 3e-8 there).
__device__ __forceinline__ SinCos sin_cos(float angle) {
    const double quarters_of_radian = 0.63661977236758134308;
    const double quarter = 1.57079632679489661923;
    double exact = (double)angle;
    int turns = (int)(exact * quarters_of_radian + (angle < 0.0f ? -0.5 : 0.5));
    float r = (float)(exact - (double)turns * quarter);
    float r2 = r * r;
    float sin = r + r * r2 * (-1.0f / 6 + r2 * (1.0f / 120 + r2 * (-1.0f / 5040 + r2 * (1.0f / 362880))));
    float cos = 1.0f + r2 * (-0.5f + r2 * (1.0f / 24 + r2 * (-1.0f / 720 + r2 * (1.0f / 40320))));
    SinCos out = {turns & 1 ? cos : sin, turns & 1 ? sin : cos};
    out.sin = turns & 2 ? -out.sin : out.sin;
    out.cos = (turns + 1) & 2 ? -out.cos : out.cos;
    return out;
}

extern "C" __global__ void __launch_bounds__(64) angles(const __grid_constant__ AnglesArgs args) {
    u32 t = blockIdx.x, rope = blockIdx.y;
    u32 half = args.head_dim / 2;
    if (t >= args.step->tokens) {
        return;
    }
    float position = (float)step_array<u32>(args.step, args.step->positions_at)[t];
    float magnitude = args.magnitudes[rope];
    float* out = args.angles + ((u64)rope * args.cap + t) * args.head_dim;
    for (u32 pair = threadIdx.x; pair < half; pair += blockDim.x) {
        SinCos turned = sin_cos(position * args.frequencies[rope * half + pair]);
        out[pair] = turned.cos * magnitude;
        out[half + pair] = turned.sin * magnitude;
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Norms
// ---------------------------------------------------------------------------------------------------------------

template <bool HELD>
__device__ __forceinline__ void norm_row(const NormArgs& args, u32 from, u32 to, float* parts) {
    const float* x = args.x + (u64)from * args.x_stride;
    u32 quads = args.out_stride / 4;
    auto load = [&](u32 quad) { return load_quad(x, quad, args.width); };
    Quads<HELD> row;
    row.hold(quads, load);
    float squares = 0.0f;
    each_quad<HELD>(quads, [&](u32 place, u32 quad) {
        float4 values = row.at(place, quad, load);
        squares += dot(values, values);
    });
    bf16* out = args.out + (u64)to * args.out_stride;
    write_norm<HELD>({args.weight, out, args.out_stride, args.width, args.eps}, row, squares, parts, load);
}

__device__ __forceinline__ void norm_row(const NormArgs& args, u32 from, u32 to) {
    __shared__ float parts[32];
    if (row_fits(args.out_stride / 4)) {
        norm_row<true>(args, from, to, parts);
    } else {
        norm_row<false>(args, from, to, parts);
    }
}

extern "C" __global__ void __launch_bounds__(512) row_norm(const __grid_constant__ NormArgs args) {
    norm_row(args, blockIdx.x, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(512) pick_norm(const __grid_constant__ NormArgs args) {
    u32 sample = blockIdx.x;
    if (sample < args.step->samples) {
        norm_row(args, step_array<u32>(args.step, args.step->sample_tokens_at)[sample], sample);
        return;
    }
    bf16* out = args.out + (u64)sample * args.out_stride;
    for (u32 quad = threadIdx.x; quad < args.out_stride / 4; quad += blockDim.x) {
        store_quad(out, quad, splat(0.0f));
    }
}

// The branch's columns of a quad: the sum of its parts, and the bias.
__device__ __forceinline__ float4 load_branch(const AddNormArgs& args, const float* branch, u32 quad) {
    float4 sum = load_quad(branch, quad, args.width);
    for (u32 part = 1; part < args.parts; part++) {
        sum = sum + load_quad(branch + (u64)part * args.part_stride, quad, args.width);
    }
    return args.bias ? sum + load_quad(args.bias, quad, args.width) : sum;
}

// The same of all quads: those of one part are loaded side by side.
__device__ __forceinline__ void hold_branch(const AddNormArgs& args, const float* branch, u32 quads, Quads<true>& sum) {
    sum.hold(quads, [&](u32 quad) { return load_quad(branch, quad, args.width); });
#pragma unroll 2
    for (u32 part = 1; part < args.parts; part++) {
        const float* from = branch + (u64)part * args.part_stride;
        sum.add(quads, [&](u32 quad) { return load_quad(from, quad, args.width); });
    }
    if (args.bias) {
        sum.add(quads, [&](u32 quad) { return load_quad(args.bias, quad, args.width); });
    }
}
__device__ __forceinline__ void hold_branch(const AddNormArgs&, const float*, u32, Quads<false>&) {}

template <bool HELD>
__device__ __forceinline__ void add_norm_row(const AddNormArgs& args, float* parts) {
    u32 t = blockIdx.x;
    u32 quads = args.x_stride / 4;
    float* x = args.x + (u64)t * args.x_stride;
    const float* branch = args.branch + (u64)t * args.x_stride;
    auto load_x = [&](u32 quad) { return load_quad(x, quad, args.width); };
    auto load_sum = [&](u32 quad) { return load_branch(args, branch, quad); };
    auto load_norm = [&](u32 quad) {
        return args.branch_norm ? load_quad(args.branch_norm, quad, args.width) : splat(1.0f);
    };
    Quads<HELD> row, sum, branch_norm;
    row.hold(quads, load_x);
    hold_branch(args, branch, quads, sum);
    float scale = 1.0f;
    if (args.branch_norm) {
        branch_norm.hold(quads, load_norm);
        float squares = 0.0f;
        each_quad<HELD>(quads, [&](u32 place, u32 quad) {
            float4 values = sum.at(place, quad, load_sum);
            squares += dot(values, values);
        });
        scale = inverse_rms(block_sum(squares, parts), args.width, args.eps);
    }
    float squares = 0.0f;
    each_quad<HELD>(quads, [&](u32 place, u32 quad) {
        float4 added = sum.at(place, quad, load_sum);
        if (args.branch_norm) {
            added = added * splat(scale) * branch_norm.at(place, quad, load_norm);
        }
        float4 values = row.at(place, quad, load_x) + added;
        store_quad(x, quad, values);
        squares += dot(values, values);
        row.held[HELD ? place : 0] = values;
    });
    if (args.out) {
        bf16* out = args.out + (u64)t * args.out_stride;
        // Without registers a thread reads again what it wrote itself.
        write_norm<HELD>({args.weight, out, args.out_stride, args.width, args.eps}, row, squares, parts, load_x);
    }
}

// One block at least: the compiler otherwise keeps to registers for two, which are too few.
extern "C" __global__ void __launch_bounds__(512, 1) add_norm(const __grid_constant__ AddNormArgs args) {
    __shared__ float parts[32];
    if (row_fits(max(args.x_stride, args.out_stride) / 4)) {
        add_norm_row<true>(args, parts);
    } else {
        add_norm_row<false>(args, parts);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Queries, keys and values
// ---------------------------------------------------------------------------------------------------------------

// Pairs of columns (i, i + head_dim / 2) that a lane turns, two neighbours at once: heads of up to 256 values.
constexpr u32 PAIRS_HELD = 2;

// One head in the registers of a warp: columns i, i + 1, and the two that they turn with.
struct Head {
    float2 low[PAIRS_HELD], high[PAIRS_HELD];
};

__device__ __forceinline__ float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ float2 operator*(float2 a, float2 b) { return make_float2(a.x * b.x, a.y * b.y); }

__device__ __forceinline__ float2 load_two(const float* from) { return *reinterpret_cast<const float2*>(from); }

// Calls visit(place, column) for the columns i of this lane, two apart.
template <class Visit>
__device__ __forceinline__ void each_pair(u32 half, const Visit& visit) {
#pragma unroll
    for (u32 place = 0; place < PAIRS_HELD; place++) {
        u32 column = 2 * lane_id() + 64 * place;
        if (column < half) {
            visit(place, column);
        }
    }
}

// Columns `at` .. of a token's queries, keys and values: the sum of the parts, and the bias.
__device__ __forceinline__ float2 load_qkv(const RopeKvArgs& args, const float* row, u32 at) {
    float2 sum = load_two(row + at);
    for (u32 part = 1; part < args.parts; part++) {
        sum = sum + load_two(row + (u64)part * args.part_stride + at);
    }
    return args.bias ? sum + load_two(args.bias + at) : sum;
}

__device__ __forceinline__ void load_head(const RopeKvArgs& args, const float* row, u32 head, Head& out) {
    u32 half = args.head_dim / 2;
    each_pair(half, [&](u32 place, u32 column) {
        out.low[place] = load_qkv(args, row, head * args.head_dim + column);
        out.high[place] = load_qkv(args, row, head * args.head_dim + half + column);
    });
}

__device__ __forceinline__ float head_squares(const Head& head, u32 half) {
    float squares = 0.0f;
    each_pair(half, [&](u32 place, u32) {
        float2 low = head.low[place], high = head.high[place];
        squares += low.x * low.x + low.y * low.y + high.x * high.x + high.y * high.y;
    });
    return warp_sum(squares);
}

__device__ __forceinline__ void scale_head(Head& head, u32 half, float scale, const float* weight) {
    float2 scales = make_float2(scale, scale);
    each_pair(half, [&](u32 place, u32 column) {
        head.low[place] = head.low[place] * scales * load_two(weight + column);
        head.high[place] = head.high[place] * scales * load_two(weight + half + column);
    });
}

// Source: RoFormer, arXiv 2104.09864, section 3.4.2. `turns` has cosines below and sines above.
__device__ __forceinline__ void turn_head(Head& head, u32 half, const Head& turns) {
    each_pair(half, [&](u32 place, u32) {
        float2 cos = turns.low[place], sin = turns.high[place];
        float2 low = head.low[place], high = head.high[place];
        head.low[place] = make_float2(low.x * cos.x - high.x * sin.x, low.y * cos.y - high.y * sin.y);
        head.high[place] = make_float2(high.x * cos.x + low.x * sin.x, high.y * cos.y + low.y * sin.y);
    });
}

// The scale of queries and that of keys, where each is normed as one row.
__device__ __forceinline__ float2 whole_scales(const RopeKvArgs& args, const float* row, float* parts) {
    float q_squares = 0.0f, k_squares = 0.0f;
    for (u32 index = warp_id(); index < args.heads + args.kv_heads; index += blockDim.x / 32) {
        Head head;
        load_head(args, row, index, head);
        // All lanes have the head's sum: one of them counts it.
        float squares = head_squares(head, args.head_dim / 2);
        squares = lane_id() == 0 ? squares : 0.0f;
        q_squares += index < args.heads ? squares : 0.0f;
        k_squares += index < args.heads ? 0.0f : squares;
    }
    q_squares = block_sum(q_squares, parts);
    k_squares = block_sum(k_squares, parts);
    return make_float2(inverse_rms(q_squares, args.heads * args.head_dim, args.eps),
                       inverse_rms(k_squares, args.kv_heads * args.head_dim, args.eps));
}

// Norms queries and keys by their weights: of each head alone, or with the scales of whole rows.
__device__ __forceinline__ void norm_head(const RopeKvArgs& args, u32 index, float2 whole, Head& head) {
    u32 half = args.head_dim / 2;
    bool is_query = index < args.heads;
    const float* weight = is_query ? args.q_norm : args.k_norm;
    if (!weight) {
        return;
    }
    if (args.norm_whole) {
        u32 own = is_query ? index : index - args.heads;
        scale_head(head, half, is_query ? whole.x : whole.y, weight + own * args.head_dim);
    } else {
        scale_head(head, half, inverse_rms(head_squares(head, half), args.head_dim, args.eps), weight);
    }
}

extern "C" __global__ void __launch_bounds__(256) rope_kv(const __grid_constant__ RopeKvArgs args) {
    __shared__ float parts[32];
    u32 t = blockIdx.x;
    u32 half = args.head_dim / 2;
    u32 page = PAGE_NONE, position = 0;
    if (t < args.step->tokens) {
        page = step_array<u32>(args.step, args.step->token_pages_at)[t];
        position = step_array<u32>(args.step, args.step->positions_at)[t];
    }
    const float* row = args.qkv + (u64)t * args.qkv_stride;
    Head turns;
    each_pair(half, [&](u32 place, u32 column) {
        const float* angles = args.angles + (u64)t * args.head_dim + column;
        turns.low[place] = load_two(angles);
        turns.high[place] = load_two(angles + half);
    });
    bf16* kv = args.kv + (u64)page * args.page_stride + (u64)(position % args.block_tokens) * args.head_dim;
    float2 whole = make_float2(1.0f, 1.0f);
    if (args.norm_whole && args.q_norm) {
        whole = whole_scales(args, row, parts);
    }
    u32 warps = blockDim.x / 32;
    for (u32 index = blockIdx.y * warps + warp_id(); index < args.heads + 2 * args.kv_heads;
         index += gridDim.y * warps) {
        Head head;
        load_head(args, row, index, head);
        if (index < args.heads + args.kv_heads) {
            norm_head(args, index, whole, head);
            turn_head(head, half, turns);
        }
        bool is_query = index < args.heads;
        if (page == PAGE_NONE && !is_query) {
            continue;
        }
        // Pages have all keys first, head after head, then all values in the same way.
        bf16* out = is_query ? args.q + ((u64)t * args.heads + index) * args.head_dim
                             : kv + (u64)(index - args.heads) * args.block_tokens * args.head_dim;
        each_pair(half, [&](u32 place, u32 column) {
            float2 low = head.low[place], high = head.high[place];
            bool live = page != PAGE_NONE;
            *reinterpret_cast<u32*>(out + column) = live ? narrow_pair(low.x, low.y) : 0;
            *reinterpret_cast<u32*>(out + half + column) = live ? narrow_pair(high.x, high.y) : 0;
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Gates of stored products
// ---------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float4 gate_quad(const product::Gate& gate, float4 x, float4 up) {
    return make_float4(gate.of(x.x, up.x), gate.of(x.y, up.y), gate.of(x.z, up.z), gate.of(x.w, up.w));
}

extern "C" __global__ void __launch_bounds__(256) gate(const __grid_constant__ GateArgs args) {
    const product::Gate kind(args.gate);
    u32 t = blockIdx.x;
    const float* row = args.gate_up + (u64)t * args.gate_up_stride;
    bf16* out = args.out + (u64)t * args.out_stride;
    for (u32 quad = blockIdx.y * blockDim.x + threadIdx.x; quad < args.out_stride / 4;
         quad += gridDim.y * blockDim.x) {
        if (4 * quad >= args.width) {
            store_quad(out, quad, splat(0.0f));
            continue;
        }
        // 16 columns of gate, and the 16 of up that belong to them.
        u32 gate_quads = quad / 4 * 8 + quad % 4, up_quads = gate_quads + 4;
        float4 gate = load_quad(row, gate_quads, 2 * args.width);
        float4 up = load_quad(row, up_quads, 2 * args.width);
        if (args.bias) {
            gate = gate + load_quad(args.bias, gate_quads, 2 * args.width);
            up = up + load_quad(args.bias, up_quads, 2 * args.width);
        }
        store_quad(out, quad, gate_quad(kind, gate, up));
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Moves
// ---------------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) copy_blocks(const __grid_constant__ CopyArgs args) {
    const u128* from = reinterpret_cast<const u128*>(args.from + args.pairs[2 * blockIdx.x]);
    u128* to = reinterpret_cast<u128*>(args.to + args.pairs[2 * blockIdx.x + 1]);
    u64 units = args.bytes / sizeof(u128);
    u64 stride = (u64)gridDim.y * blockDim.x;
    u64 at = (u64)blockIdx.y * blockDim.x + threadIdx.x;
    // Loads that are under way together, so that a thread waits for memory once for four.
    for (; at + 3 * stride < units; at += 4 * stride) {
        u128 values[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            values[i] = from[at + i * stride];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[at + i * stride] = values[i];
        }
    }
    for (; at < units; at += stride) {
        to[at] = from[at];
    }
}

extern "C" __global__ void __launch_bounds__(256) unpack(const __grid_constant__ UnpackArgs args) {
    // A line of the panel has a pair of columns of each of the 32 rows. One more pair a line, so that the lanes that
    // read a row find it in different banks.
    __shared__ u32 tile[32][33];
    const u32* panel = reinterpret_cast<const u32*>(args.packed) + (u64)blockIdx.x * args.cols / 2 * 32;
    bf16* out = args.out + (u64)blockIdx.x * 32 * args.stride;
    u32 lane = lane_id(), warps = blockDim.x / 32;
    for (u32 first = 0; first < args.stride / 2; first += 32) {
        for (u32 line = warp_id(); line < 32; line += warps) {
            bool live = first + line < args.cols / 2;
            tile[line][lane] = live ? panel[(u64)(first + line) * 32 + lane] : 0;
        }
        __syncthreads();
        for (u32 row = warp_id(); row < 32; row += warps) {
            reinterpret_cast<u32*>(out + (u64)row * args.stride)[first + lane] = tile[lane][row];
        }
        __syncthreads();
    }
}
