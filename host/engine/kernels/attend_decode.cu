// Attention of single tokens, each over a range of its keys; see args.cuh.
//
// The heads of a KV head's group are the queries, 16 at a time. Four warps take tiles of keys in turn, each with its own
// ring of tiles in shared memory that is filled some tiles ahead, so that they meet only to add their results:
//
//   ring of a warp:  keys of tile i | values of tile i | keys of tile i + 1 | values of tile i + 1
//
// Cost: reads each live KV byte once for every 16 heads of a group.
#pragma once

#include "attend_tiles.cuh"

namespace attend {

// AHEAD is how many tiles a ring holds. 4 KiB for each slot of a ring (8 of 256 dimensions) leave room for three blocks on a
// multiprocessor of an H200, with 12 warps that each wait for 12 KiB; its bandwidth times its latency is about 40 KiB.
template <u32 HD>
struct DecodeShape {
    static constexpr u32 KEYS = HD == 64 ? 32 : 16;
    static constexpr u32 AHEAD = HD == 256 ? 1 : 2;
    static constexpr u32 SLOT_BYTES = KEYS * HD * 2;
    static constexpr u32 RING_BYTES = AHEAD * 2 * SLOT_BYTES;
    // Dynamic shared memory of a block.
    static constexpr u32 BYTES = WARPS * RING_BYTES;
    static constexpr u32 BLOCKS = HD == 256 ? 2 : 3;
    static_assert(QUERIES * HD * sizeof(float) <= RING_BYTES, "sums reuse the ring");
};

// Where warps put their sums, in rows of HD values; four neighbouring columns stay together. Rows are permuted so that
// lanes of four of them, which write at once, do not meet in a bank.
template <u32 HD>
__device__ __forceinline__ u32 sum_place(u32 head, u32 column) {
    return head * HD + (column ^ (head % 4 * 8));
}

// What one block computes at a time.
struct DecodeWork {
    const DecodeItem* item;
    u32 kv_head;
    u32 first_head;  // in the batch's order of heads
    u32 heads;       // at most 16
    u32 first_key;
    u32 end_key;
    float factor;    // of scores, as exponents of 2
};

// Left operands of all dimensions; heads and dimensions that do not exist are zero.
template <u32 HD>
__device__ __forceinline__ void load_queries(u32 (&queries)[HD / 16][1][4], const AttendArgs& args, const DecodeWork& work) {
    const bf16* first = args.q + ((u64)work.item->token * args.heads + work.first_head) * args.head_dim;
#pragma unroll
    for (u32 step = 0; step < HD / 16; step++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 head = lane_index() / 4 + i % 2 * 8;
            const u32 dimension = step * 16 + i / 2 * 8 + lane_index() % 4 * 2;
            const bool live = head < work.heads && dimension < args.head_dim;
            queries[step][0][i] = live ? *(const u32*)(first + head * args.head_dim + dimension) : 0;
        }
    }
}

// The softmax of this warp's tiles. `ring` is its own.
template <u32 HD>
__device__ __forceinline__ void add_keys(Softmax<HD> (&softmax)[1], const AttendArgs& args, const DecodeWork& work, u32 ring) {
    using Shape = DecodeShape<HD>;
    constexpr u32 KEYS = Shape::KEYS, AHEAD = Shape::AHEAD;
    const Pages pages(args, work.item->table, work.kv_head);
    const u32 stride = WARPS * KEYS;
    const u32 first = work.first_key + warp_index() * KEYS;
    const u32 tiles = first < work.end_key ? ceil_div(work.end_key - first, stride) : 0;
    const auto place = [&](u32 tile) {
        return pages.place(first + tile * stride + lane_index() % KEYS, first, work.end_key);
    };
    const auto slot = [&](u32 tile, u32 value) { return ring + (tile % AHEAD * 2 + value) * Shape::SLOT_BYTES; };
    const auto copy = [&](u32 tile, u32 value, Place at) {
        copy_vectors<HD, KEYS>(slot(tile, value), 0, value ? pages.values : pages.keys, at, args.head_dim);
        cp_commit();
    };

    // Places are looked up one tile before they are needed, keys of a tile are asked for one step before values.
    Place at = place(0);
#pragma unroll
    for (u32 tile = 0; tile < AHEAD; tile++) {
        copy(tile, 0, at);
        if (tile + 1 < AHEAD) {
            copy(tile, 1, at);
            at = place(tile + 1);
        }
    }
    Place next = place(AHEAD);
    u32 queries[HD / 16][1][4];
    load_queries<HD>(queries, args, work);
    constexpr int FLYING = AHEAD * 2 - 2;
#pragma unroll 1
    for (u32 tile = 0; tile < tiles; tile++) {
        cp_wait<FLYING>();
        __syncwarp();
        copy(tile + AHEAD - 1, 1, at);
        float scores[1][KEYS / 8][4] = {};
        const u32 keys = right_address<HD>(slot(tile, 0));
#pragma unroll
        for (u32 step = 0; step < HD / 16; step++) {
            add_scores<HD, KEYS, 1>(scores, queries[step], keys, step);
        }
        const u32 left = work.end_key - (first + tile * stride);
        if (left < KEYS) {
#pragma unroll
            for (u32 i = 0; i < KEYS / 8 * 4; i++) {
                const u32 key = i / 4 * 8 + lane_index() % 4 * 2 + i % 2;
                scores[0][i / 4][i % 4] = key < left ? scores[0][i / 4][i % 4] : minus_infinity();
            }
        }
        softmax[0].template weigh<KEYS>(scores[0], work.factor);
        cp_wait<FLYING>();
        __syncwarp();
        at = next;
        copy(tile + AHEAD, 0, at);
        next = place(tile + AHEAD + 1);
        add_values<HD, KEYS, 1>(softmax, scores, left_address<HD>(slot(tile, 1)));
    }
    // What was asked for beyond the last tile must not land in what follows.
    cp_wait<0>();
    __syncwarp();
}

// Scales each warp's sums to the maximum of all, and writes them to its ring. Of a token that is whole they are
// divided by the weight of all, else the first warp writes maximum and weight of the part.
template <u32 HD>
__device__ __forceinline__ void put_sums(Softmax<HD>& softmax, const AttendArgs& args, const DecodeWork& work, float* sums) {
    __shared__ float maxima[WARPS][QUERIES];
    __shared__ float weights[WARPS][QUERIES];
    softmax.add_weights_of_lanes();
    if (lane_index() % 4 == 0) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 head = lane_index() / 4 + half * 8;
            maxima[warp_index()][head] = softmax.maximum[half] * work.factor;
            weights[warp_index()][head] = softmax.weight[half];
        }
    }
    __syncthreads();
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 head = lane_index() / 4 + half * 8;
        float maximum = maxima[0][head];
        for (u32 warp = 1; warp < WARPS; warp++) {
            maximum = fmaxf(maximum, maxima[warp][head]);
        }
        const float base = maximum == minus_infinity() ? 0.0f : maximum;
        float weight = 0.0f;
        for (u32 warp = 0; warp < WARPS; warp++) {
            weight += weights[warp][head] * exp2_fast(maxima[warp][head] - base);
        }
        const float share = exp2_fast(maxima[warp_index()][head] - base);
        softmax.scale(half, work.item->parts == 1 ? share / weight : share);
        if (head >= work.heads) {
            continue;
        }
#pragma unroll
        for (u32 i = 0; i < HD / 8; i++) {
            float* to = sums + sum_place<HD>(head, i * 8 + lane_index() % 4 * 2);
            to[0] = softmax.sums[i][half * 2];
            to[1] = softmax.sums[i][half * 2 + 1];
        }
        if (work.item->parts != 1 && warp_index() == 0 && lane_index() % 4 == 0) {
            const u64 part = (u64)work.item->partial * args.heads + work.first_head + head;
            float* to = args.partials + part * (args.head_dim + 2) + args.head_dim;
            to[0] = maximum;
            to[1] = weight;
        }
    }
}

// Adds the sums of all warps, and writes the result or the part.
template <u32 HD>
__device__ __forceinline__ void add_warps(const AttendArgs& args, const DecodeWork& work, const u8* rings) {
    constexpr u32 COLUMNS = 4;
    const u32 groups = args.head_dim / COLUMNS;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < work.heads * groups; i += THREADS) {
        const u32 head = i / groups, column = i % groups * COLUMNS;
        float total[COLUMNS] = {};
#pragma unroll
        for (u32 warp = 0; warp < WARPS; warp++) {
            const float* sums = (const float*)(rings + warp * DecodeShape<HD>::RING_BYTES);
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                total[c] += sums[sum_place<HD>(head, column) + c];
            }
        }
        if (work.item->parts == 1) {
            const u64 at = (u64)work.item->token * args.out_stride + (work.first_head + head) * args.head_dim + column;
            u32* to = (u32*)(args.out + at);
            to[0] = narrow_pair(total[0], total[1]);
            to[1] = narrow_pair(total[2], total[3]);
        } else {
            const u64 part = (u64)work.item->partial * args.heads + work.first_head + head;
            float* to = args.partials + part * (args.head_dim + 2) + column;
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                to[c] = total[c];
            }
        }
    }
    if (work.item->parts == 1 && work.first_head + work.heads == args.heads) {
        clear_tail(args, work.item->token, threadIdx.x, THREADS);
    }
}

// Up to 16 heads of an item.
template <u32 HD>
__device__ __forceinline__ void decode_heads(const AttendArgs& args, const DecodeWork& work, u8* rings) {
    u8* ring = rings + warp_index() * DecodeShape<HD>::RING_BYTES;
    Softmax<HD> softmax[1];
    softmax[0].begin();
    // The part that holds the oldest key that the token sees has the sink, in its first warp.
    const u32 oldest = oldest_key(work.item->position, args.window);
    if (args.sinks && warp_index() == 0 && work.item->first_key <= oldest && oldest < work.item->end_key) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 head = lane_index() / 4 + half * 8;
            if (head < work.heads) {
                softmax[0].begin_with_sink(half, args.sinks[work.first_head + head] / args.scale);
            }
        }
    }
    add_keys<HD>(softmax, args, work, smem_address(ring));
    put_sums<HD>(softmax[0], args, work, (float*)ring);
    __syncthreads();
    add_warps<HD>(args, work, rings);
    // The next keys overwrite the sums.
    __syncthreads();
}

template <u32 HD>
__device__ __forceinline__ void decode(const AttendArgs& args) {
    DYN_SMEM(u8, rings);
    const Step* step = args.step;
    const DecodeItem* items = step_array<DecodeItem>(step, step->decode_at[args.list]);
    const u32 group = args.heads / args.kv_heads;
#pragma unroll 1
    for (u32 i = blockIdx.x; i < step->decode_items[args.list]; i += gridDim.x) {
        DecodeWork work;
        work.item = items + i;
        work.kv_head = blockIdx.y;
        work.factor = args.scale * LOG2_E;
        const u32 oldest = oldest_key(work.item->position, args.window);
        work.first_key = work.item->first_key < oldest ? oldest : work.item->first_key;
        work.end_key = work.item->end_key;
#pragma unroll 1
        for (u32 head = 0; head < group; head += QUERIES) {
            work.first_head = work.kv_head * group + head;
            work.heads = group - head < QUERIES ? group - head : QUERIES;
            decode_heads<HD>(args, work, rings);
        }
    }
}

// Adds the parts of one head of a token. A warp's work.
__device__ __forceinline__ void combine(const AttendArgs& args, const CombineItem& item, u32 head) {
    const u64 stride = (u64)args.heads * (args.head_dim + 2);
    const float* parts = args.partials + item.partial * stride + head * (args.head_dim + 2);
    const float* states = parts + args.head_dim;
    float maximum = minus_infinity();
    for (u32 part = 0; part < item.parts; part++) {
        maximum = fmaxf(maximum, states[part * stride]);
    }
    float weight = 0.0f;
    for (u32 part = 0; part < item.parts; part++) {
        weight += states[part * stride + 1] * exp2_fast(states[part * stride] - maximum);
    }
    const float share = 1.0f / weight;
    u32* out = (u32*)(args.out + (u64)item.token * args.out_stride + head * args.head_dim);
    for (u32 column = lane_index() * 2; column < args.head_dim; column += LANES * 2) {
        float low = 0.0f, high = 0.0f;
#pragma unroll 4
        for (u32 part = 0; part < item.parts; part++) {
            const float factor = exp2_fast(states[part * stride] - maximum) * share;
            low = fmaf(parts[part * stride + column], factor, low);
            high = fmaf(parts[part * stride + column + 1], factor, high);
        }
        out[column / 2] = narrow_pair(low, high);
    }
    if (head + 1 == args.heads) {
        clear_tail(args, item.token, lane_index(), LANES);
    }
}

}  // namespace attend

extern "C" __global__ void __launch_bounds__(attend::THREADS, attend::DecodeShape<64>::BLOCKS)
    attend_decode_64(const __grid_constant__ AttendArgs args) {
    attend::decode<64>(args);
}

extern "C" __global__ void __launch_bounds__(attend::THREADS, attend::DecodeShape<128>::BLOCKS)
    attend_decode_128(const __grid_constant__ AttendArgs args) {
    attend::decode<128>(args);
}

extern "C" __global__ void __launch_bounds__(attend::THREADS, attend::DecodeShape<256>::BLOCKS)
    attend_decode_256(const __grid_constant__ AttendArgs args) {
    attend::decode<256>(args);
}

extern "C" __global__ void __launch_bounds__(attend::THREADS) attend_combine(const __grid_constant__ AttendArgs args) {
    const Step* step = args.step;
    const CombineItem* items = attend::step_array<CombineItem>(step, step->combine_at[args.list]);
    const u32 count = step->combines * args.heads;
    for (u32 i = blockIdx.x * attend::WARPS + attend::warp_index(); i < count; i += gridDim.x * attend::WARPS) {
        const CombineItem item = items[i / args.heads];
        // Of one part the result is there already.
        if (item.parts > 1) {
            attend::combine(args, item, i % args.heads);
        }
    }
}
