// Which experts compute which token, and what becomes of their results.

#include "row.cuh"

constexpr u32 EXPERTS_MAX = 512;
constexpr u32 ACTIVE_MAX = 16;
constexpr u32 EXPERT_NONE = 0xffffffff;

// ---------------------------------------------------------------------------------------------------------------
// Scores
// ---------------------------------------------------------------------------------------------------------------

// Sums over all lanes of N values, a power of two up to 32: lane i receives that of value i % N. Each step halves what
// is left to exchange, so that all take N - 1 + log2(32 / N) exchanges and not 5 N.
template <int N>
__device__ __forceinline__ float scatter_sums(float (&values)[N]) {
#pragma unroll
    for (int half = N / 2; half > 0; half /= 2) {
        bool upper = lane_id() & half;
#pragma unroll
        for (int i = 0; i < half; i++) {
            float given = upper ? values[i] : values[i + half];
            float kept = upper ? values[i + half] : values[i];
            values[i] = kept + __shfl_xor_sync(ALL_LANES, given, half);
        }
    }
    float sum = values[0];
#pragma unroll
    for (int lanes = N; lanes < 32; lanes *= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    }
    return sum;
}

// Scores of TOKENS tokens and EXPERTS experts, by one warp whose lanes take columns in turn. What was loaded of a token
// serves all of these experts, and the other way round.
template <int TOKENS, int EXPERTS>
__device__ __forceinline__ void score_tile(const RouteArgs& args, u32 first_token, u32 first_expert) {
    float scores[TOKENS * EXPERTS] = {}, squares[TOKENS] = {};
    const float* x[TOKENS];
    const float* router[EXPERTS];
    // Rows beyond the last are the last once more, and their scores are not written.
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
        x[i] = args.x + (u64)min(first_token + i, args.cap - 1) * args.x_stride;
    }
#pragma unroll
    for (int j = 0; j < EXPERTS; j++) {
        router[j] = args.router + (u64)min(first_expert + j, args.experts - 1) * args.width;
    }
    for (u32 quad = lane_id(); quad < args.width / 4; quad += 32) {
        float4 weights[EXPERTS];
#pragma unroll
        for (int j = 0; j < EXPERTS; j++) {
            weights[j] = load_quad(router[j], quad, args.width);
        }
        float4 norm = args.norm ? load_quad(args.norm, quad, args.width) : splat(1.0f);
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            float4 values = load_quad(x[i], quad, args.width);
            squares[i] += dot(values, values);
            values = values * norm;
#pragma unroll
            for (int j = 0; j < EXPERTS; j++) {
                scores[i * EXPERTS + j] += dot(values, weights[j]);
            }
        }
    }
    float scale = 1.0f;
    u32 own = lane_id() % (TOKENS * EXPERTS);
    if (args.norm) {
        // The scale of a token is a factor of all its scores.
        float sum = scatter_sums(squares);
        scale = inverse_rms(__shfl_sync(ALL_LANES, sum, own / EXPERTS), args.width, args.eps);
    }
    float score = scatter_sums(scores) * scale;
    u32 token = first_token + own / EXPERTS, expert = first_expert + own % EXPERTS;
    if (lane_id() < TOKENS * EXPERTS && token < args.cap && expert < args.experts) {
        args.scores[(u64)token * args.experts + expert] = score + (args.bias ? args.bias[expert] : 0.0f);
    }
}

// Tiles of one token where there is one, so that as many warps as there are experts read the router side by side.
constexpr u32 SCORE_TOKENS = 8;
constexpr u32 SCORE_EXPERTS = 4;
// Tokens from which on blocks are many enough with more experts a warp.
constexpr u32 SCORE_WIDE_MIN = 64;

template <int TOKENS, int EXPERTS>
__device__ __forceinline__ void score_tiles(const RouteArgs& args) {
    u32 warps = blockDim.x / 32;
    for (u32 token = blockIdx.x * TOKENS; token < args.cap; token += gridDim.x * TOKENS) {
        for (u32 expert = (blockIdx.y * warps + warp_id()) * EXPERTS; expert < args.experts;
             expert += gridDim.y * warps * EXPERTS) {
            score_tile<TOKENS, EXPERTS>(args, token, expert);
        }
    }
}

// One block at least: the compiler otherwise keeps to registers for three, which are too few for the widest tile.
extern "C" __global__ void __launch_bounds__(256, 1) score(const __grid_constant__ RouteArgs args) {
    if (args.cap == 1) {
        score_tiles<1, 1>(args);
    } else if (args.cap < SCORE_WIDE_MIN) {
        score_tiles<SCORE_TOKENS, 1>(args);
    } else {
        score_tiles<SCORE_TOKENS, SCORE_EXPERTS>(args);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Choice
// ---------------------------------------------------------------------------------------------------------------

// An expert, and what decides about it.
struct Scored {
    float score;
    u32 expert;
};

// Of equal experts the first is better.
__device__ __forceinline__ bool is_better(Scored a, Scored b) {
    return a.score > b.score || (a.score == b.score && a.expert < b.expert);
}

__device__ __forceinline__ Scored warp_best(Scored best) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        Scored other = {__shfl_xor_sync(ALL_LANES, best.score, lanes), __shfl_xor_sync(ALL_LANES, best.expert, lanes)};
        best = is_better(other, best) ? other : best;
    }
    return best;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, lanes));
    }
    return value;
}

// Chooses for one token, by one warp: lane l holds the weights of experts l, l + 32, ..
__device__ __forceinline__ void choose(const RouteArgs& args, u32 t) {
    const float log2_e = 1.44269504f, chosen_before = -1.0f;
    // Experts beyond the last weigh nothing, and are worse than all others that do.
    float weights[EXPERTS_MAX / 32];
    float highest = -f32_infinity();
#pragma unroll
    for (u32 i = 0; i < EXPERTS_MAX / 32; i++) {
        u32 expert = lane_id() + 32 * i;
        weights[i] = expert < args.experts ? args.scores[(u64)t * args.experts + expert] : -f32_infinity();
        highest = fmaxf(highest, weights[i]);
    }
    highest = warp_max(highest);
    float all = 0.0f;
#pragma unroll
    for (u32 i = 0; i < EXPERTS_MAX / 32; i++) {
        // A broken score weighs nothing, so that each choice is another expert; their shares are broken then.
        weights[i] = fmaxf(exp2_fast((weights[i] - highest) * log2_e), 0.0f);
        all += weights[i];
    }
    all = warp_sum(all);
    // Lane i keeps choice i.
    Scored own = {0.0f, EXPERT_NONE};
    float sum = 0.0f;
    for (u32 choice = 0; choice < args.active; choice++) {
        Scored best = {chosen_before, EXPERT_NONE};
#pragma unroll
        for (u32 i = 0; i < EXPERTS_MAX / 32; i++) {
            Scored here = {weights[i], lane_id() + 32 * i};
            best = here.score > best.score ? here : best;
        }
        best = warp_best(best);
#pragma unroll
        for (u32 i = 0; i < EXPERTS_MAX / 32; i++) {
            weights[i] = lane_id() + 32 * i == best.expert ? chosen_before : weights[i];
        }
        sum += best.score;
        own = lane_id() == choice ? best : own;
    }
    u32 place = 0;
    for (u32 choice = 0; choice < args.active; choice++) {
        place += __shfl_sync(ALL_LANES, own.expert, choice) < own.expert;
    }
    if (lane_id() < args.active) {
        args.chosen[t * args.active + place] = own.expert;
        args.shares[t * args.active + place] = own.score / (args.normalized ? sum : all);
    }
}

extern "C" __global__ void __launch_bounds__(128) route(const __grid_constant__ RouteArgs args) {
    u32 warps = blockDim.x / 32;
    for (u32 t = blockIdx.x * warps + warp_id(); t < args.cap; t += gridDim.x * warps) {
        if (t < args.step->tokens) {
            choose(args, t);
        } else if (lane_id() < args.active) {
            args.chosen[t * args.active + lane_id()] = EXPERT_NONE;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Tokens of each expert
// ---------------------------------------------------------------------------------------------------------------

constexpr u32 SORT_WARPS = 32;

// Each warp has its own range of pairs and walks it twice, in order: to count, and to place.
struct SortState {
    // Pairs of each warp and expert; then how many of the expert come before the warp's next one. Fewer than 2^16,
    // since a token chooses an expert once.
    u16 counts[SORT_WARPS][EXPERTS_MAX];
    u32 firsts[EXPERTS_MAX];
    u32 warp_totals[SORT_WARPS];
};

// Calls visit(pair, expert, equals) for 32 pairs at once: `equals` are the lanes with the same expert. Pairs beyond the
// end have no expert.
template <class Visit>
__device__ __forceinline__ void each_pair_of_warp(const SortArgs& args, u32 pairs, const Visit& visit) {
    u32 range = ceil_div(ceil_div(pairs, SORT_WARPS), 32) * 32;
    u32 first = warp_id() * range;
    u32 end = min(first + range, pairs);
    auto load = [&](u32 pair) { return pair < end ? args.chosen[pair] : EXPERT_NONE; };
    u32 next = load(first + lane_id());
#pragma unroll 1
    for (u32 pair = first + lane_id(); pair - lane_id() < end; pair += 32) {
        u32 expert = next;
        next = load(pair + 32);
        visit(pair, expert, __match_any_sync(ALL_LANES, expert));
        __syncwarp();
    }
}

// Turns counts into places: where each expert's pairs begin, and how many of them are before each warp's.
__device__ __forceinline__ void place_experts(const SortArgs& args, SortState& state) {
    u32 expert = threadIdx.x;
    u32 own = 0;
    if (expert < args.experts) {
        for (u32 warp = 0; warp < SORT_WARPS; warp++) {
            u32 count = state.counts[warp][expert];
            state.counts[warp][expert] = (u16)own;
            own += count;
        }
    }
    u32 through = block_prefix(own, state.warp_totals);
    if (expert < args.experts) {
        state.firsts[expert] = through - own;
        args.bounds[expert + 1] = through;
    }
    if (expert == 0) {
        args.bounds[0] = 0;
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(1024) sort_experts(const __grid_constant__ SortArgs args) {
    __shared__ SortState state;
    u32 pairs = args.step->tokens * args.active;
    for (u32 i = threadIdx.x; i < SORT_WARPS * EXPERTS_MAX; i += blockDim.x) {
        state.counts[i / EXPERTS_MAX][i % EXPERTS_MAX] = 0;
    }
    __syncthreads();
    u16* counts = state.counts[warp_id()];
    u32 lanes_before = (1u << lane_id()) - 1;
    each_pair_of_warp(args, pairs, [&](u32, u32 expert, u32 equals) {
        // The first of equals counts for all.
        if (expert != EXPERT_NONE && !(equals & lanes_before)) {
            counts[expert] = (u16)(counts[expert] + __popc(equals));
        }
    });
    __syncthreads();
    place_experts(args, state);
    each_pair_of_warp(args, pairs, [&](u32 pair, u32 expert, u32 equals) {
        u32 place = expert != EXPERT_NONE ? state.firsts[expert] + counts[expert] + __popc(equals & lanes_before) : 0;
        // All have read where the expert's next pair goes.
        __syncwarp();
        if (expert != EXPERT_NONE) {
            args.rows[place] = pair / args.active;
            args.places[pair] = place;
            if (!(equals & lanes_before)) {
                counts[expert] = (u16)(counts[expert] + __popc(equals));
            }
        }
    });
}

// ---------------------------------------------------------------------------------------------------------------
// Results
// ---------------------------------------------------------------------------------------------------------------

// What one choice adds.
struct Chosen {
    const float* down;
    const float* bias;  // or null
    float share;
};

// A quad of what a choice adds.
__device__ __forceinline__ float4 load_result(const AddExpertsArgs& args, const Chosen& choice, u32 quad) {
    float4 result = load_quad(choice.down, quad, args.width);
    if (choice.bias) {
        result = result + load_quad(choice.bias, quad, args.width);
    }
    return splat(choice.share) * result;
}

template <bool HELD>
__device__ __forceinline__ void add_experts_row(const AddExpertsArgs& args, const Chosen* chosen, u32 count,
                                                float* parts) {
    u32 quads = args.x_stride / 4;
    float* x = args.x + (u64)blockIdx.x * args.x_stride;
    auto load_x = [&](u32 quad) { return load_quad(x, quad, args.width); };
    Quads<HELD> row;
    row.hold(quads, load_x);
    if (HELD) {
#pragma unroll 2
        for (u32 i = 0; i < count; i++) {
            row.add(quads, [&](u32 quad) { return load_result(args, chosen[i], quad); });
        }
    }
    float squares = 0.0f;
    each_quad<HELD>(quads, [&](u32 place, u32 quad) {
        float4 sum = row.at(place, quad, load_x);
        for (u32 i = 0; i < count && !HELD; i++) {
            sum = sum + load_result(args, chosen[i], quad);
        }
        store_quad(x, quad, sum);
        squares += dot(sum, sum);
    });
    if (args.out) {
        bf16* out = args.out + (u64)blockIdx.x * args.out_stride;
        write_norm<HELD>({args.weight, out, args.out_stride, args.width, args.eps}, row, squares, parts, load_x);
    }
}

extern "C" __global__ void __launch_bounds__(512) add_experts(const __grid_constant__ AddExpertsArgs args) {
    __shared__ Chosen chosen[ACTIVE_MAX];
    __shared__ float parts[32];
    u32 t = blockIdx.x;
    // Padding chose no expert: its row stays as it is.
    u32 count = args.chosen[t * args.active] == EXPERT_NONE ? 0 : args.active;
    if (threadIdx.x < count) {
        u32 pair = t * args.active + threadIdx.x;
        chosen[threadIdx.x] = {args.down + (u64)args.places[pair] * args.x_stride,
                               args.bias ? args.bias + (u64)args.chosen[pair] * args.bias_stride : nullptr,
                               args.shares[pair]};
    }
    __syncthreads();
    if (row_fits(max(args.x_stride, args.out_stride) / 4)) {
        add_experts_row<true>(args, chosen, count, parts);
    } else {
        add_experts_row<false>(args, chosen, count, parts);
    }
}
