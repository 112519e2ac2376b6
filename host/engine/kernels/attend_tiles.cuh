// What attention kernels share: tiles of keys and values from pages, and the online softmax over them.
//
// A warp computes 16 queries (or a few times 16) as rows of m16n8k16 products. A lane holds, of each 16 x 8 result, row
// lane / 4 (values 0 and 1) and row lane / 4 + 8 (values 2 and 3), in columns lane % 4 * 2 and the one after.
//
// Scores stay as products of queries and keys; their factor, times log2 e, is applied inside of exp2.
#pragma once

namespace attend {

constexpr u32 LANES = 32;
constexpr u32 WARPS = 4;
constexpr u32 THREADS = WARPS * LANES;
constexpr u32 ALL_LANES = 0xffffffffu;
// Rows of one product of a warp.
constexpr u32 QUERIES = 16;
// Values of one 16-byte access.
constexpr u32 CHUNK = 8;
constexpr float LOG2_E = 1.44269504088896341f;

// Where a vector of head_dim values stands, in values from a base; or that there is none.
typedef u64 Place;
constexpr Place NOWHERE = ~0ull;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ u32 warp_index() { return threadIdx.x / LANES; }
__device__ __forceinline__ u32 lane_index() { return threadIdx.x % LANES; }

// The oldest position that a token sees.
__device__ __forceinline__ u32 oldest_key(u32 position, u32 window) {
    return position < window ? 0 : position - window + 1;
}

// Bytes from the start of a tile in shared memory, whose rows are HD values. The chunks of a row are permuted by the row's
// low bits, so that ldmatrix, which reads one chunk of eight rows, meets every bank once.
template <u32 HD>
__device__ __forceinline__ u32 chunk_offset(u32 row, u32 chunk) {
    return (row * (HD / CHUNK) + (chunk ^ (row % 8))) * 16;
}

// Keys and values of one KV head, of one row of the batch.
struct Pages {
    const bf16* keys;   // of page 0
    u32 values_after;   // how far values stand behind keys
    const u32* table;
    u64 page_stride;
    u32 block_tokens;
    u32 head_dim;

    __device__ __forceinline__ Pages(const AttendArgs& args, u32 kv_head) {
        const u32 vectors = args.block_tokens * args.head_dim;
        keys = args.kv + (u64)kv_head * vectors;
        values_after = args.kv_heads * vectors;
        page_stride = args.page_stride;
        block_tokens = args.block_tokens;
        head_dim = args.head_dim;
    }

    __device__ __forceinline__ void open(const AttendArgs& args, u32 first_table_entry) {
        table = step_array<u32>(args.step, args.step->tables_at) + first_table_entry;
    }

    __device__ __forceinline__ const bf16* vectors(u32 value) const { return value ? keys + values_after : keys; }

    // Where `key` stands, if it is before `end`.
    __device__ __forceinline__ Place place(u32 key, u32 end) const {
        if (key >= end) {
            return NOWHERE;
        }
        const u32 block = key / block_tokens;
        return table[block] * page_stride + (key - block * block_tokens) * head_dim;
    }
};

// Begins to copy ROWS vectors to a tile, from its row `first_row` on; `places`, in shared memory, says from where. Vectors
// that are nowhere and dimensions from head_dim on become zero: their products count, with weights that are zero.
//
// A lane writes at fixed distances and follows the permutation in what it reads: that costs no register for each row.
template <u32 HD, u32 ROWS>
__device__ __forceinline__ void copy_vectors(u32 tile, u32 first_row, const bf16* base, const Place* places, u32 head_dim) {
    constexpr u32 CHUNKS = HD / CHUNK;
    constexpr u32 AT_ONCE = LANES / CHUNKS;
    static_assert(ROWS % 8 == 0, "rows are permuted in eights");
    const u32 to = tile + first_row * HD * 2 + lane_index() * 16;
    places += lane_index() / CHUNKS;
#pragma unroll
    for (u32 i = 0; i < ROWS; i += AT_ONCE) {
        const u32 row = i + lane_index() / CHUNKS;
        const u32 dimension = (lane_index() % CHUNKS ^ row % 8) * CHUNK;
        const Place from = places[i];
        const bool live = dimension < head_dim && from != NOWHERE;
        cp_async16(to + i * HD * 2, base + (live ? from + dimension : 0), live);
    }
}

// Where this lane's row begins for ldmatrix of 16 x 16 values at rows 0 to 15, first 8 columns before last 8: what a left
// operand takes, and (transposed) values as a right operand.
template <u32 HD>
__device__ __forceinline__ u32 left_address(u32 tile) {
    return tile + chunk_offset<HD>(lane_index() % 16, lane_index() / 16);
}

// The same with columns before rows: what keys take as a right operand.
template <u32 HD>
__device__ __forceinline__ u32 right_address(u32 tile) {
    return tile + chunk_offset<HD>(lane_index() % 8 + lane_index() / 16 * 8, lane_index() / 8 % 2);
}

// From such an address, that of chunk 2 * i of its row. What permutes a row are the low three bits of chunks alone.
__device__ __forceinline__ u32 column_address(u32 address, u32 i) { return (address ^ (i % 4 * 32)) + i / 4 * 128; }

// Adds the products of 16 * TILES queries, of dimensions 16 * step on, with KEYS keys.
template <u32 HD, u32 KEYS, u32 TILES>
__device__ __forceinline__ void add_scores(float (&scores)[TILES][KEYS / 8][4], const u32 (&queries)[TILES][4], u32 keys,
                                           u32 step) {
#pragma unroll
    for (u32 key = 0; key < KEYS; key += 16) {
        u32 right[4];
        ldmatrix_x4(right, column_address(keys, step) + key * HD * 2);
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
            mma_bf16(scores[tile][key / 8], queries[tile], right[0], right[1]);
            mma_bf16(scores[tile][key / 8 + 1], queries[tile], right[2], right[3]);
        }
    }
}

// The softmax of 16 queries so far. Of rows lane / 4 and lane / 4 + 8, a lane has the maximum of all scores, and the weight
// of the keys in its own columns: four lanes have the whole.
template <u32 HD>
struct Softmax {
    float sums[HD / 8][4];
    float maximum[2];
    float weight[2];

    __device__ __forceinline__ void begin() {
#pragma unroll
        for (u32 i = 0; i < HD / 8; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                sums[i][e] = 0.0f;
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            maximum[half] = minus_infinity();
            weight[half] = 0.0f;
        }
    }

    // A sink is a first key of weight 1 whose value is zero. `sink` is in the unit of scores.
    __device__ __forceinline__ void begin_with_sink(u32 half, float sink) {
        maximum[half] = sink;
        weight[half] = lane_index() % 4 == 0 ? 1.0f : 0.0f;
    }

    __device__ __forceinline__ void scale(u32 half, float factor) {
#pragma unroll
        for (u32 i = 0; i < HD / 8; i++) {
            sums[i][half * 2] *= factor;
            sums[i][half * 2 + 1] *= factor;
        }
    }

    // Turns scores to weights, and scales what came before to their maximum; arXiv 1805.02867. A score of minus infinity
    // has no weight.
    template <u32 KEYS>
    __device__ __forceinline__ void weigh(float (&scores)[KEYS / 8][4], float factor) {
        float before[2];
        bool risen = false;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            before[half] = maximum[half];
            float most = maximum[half];
#pragma unroll
            for (u32 i = 0; i < KEYS / 8; i++) {
                most = fmaxf(most, fmaxf(scores[i][half * 2], scores[i][half * 2 + 1]));
            }
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            risen |= most != before[half];
            maximum[half] = most;
        }
        const float base[2] = {exponent_base(0, factor), exponent_base(1, factor)};
        // After the first tiles a maximum seldom rises, and this is the dearer half of the work.
        if (__ballot_sync(ALL_LANES, risen)) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const float keep = exp2_fast(fmaf(before[half], factor, -base[half]));
                weight[half] *= keep;
                scale(half, keep);
            }
        }
#pragma unroll
        for (u32 i = 0; i < KEYS / 8; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                scores[i][e] = exp2_fast(fmaf(scores[i][e], factor, -base[e / 2]));
                weight[e / 2] += scores[i][e];
            }
        }
    }

    // The maximum as an exponent of 2. It is 0 before the first key, so that no infinities are subtracted.
    __device__ __forceinline__ float exponent_base(u32 half, float factor) const {
        return maximum[half] == minus_infinity() ? 0.0f : maximum[half] * factor;
    }

    // Gives each lane the weight of all keys.
    __device__ __forceinline__ void add_weights_of_lanes() {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            weight[half] += __shfl_xor_sync(ALL_LANES, weight[half], 1);
            weight[half] += __shfl_xor_sync(ALL_LANES, weight[half], 2);
        }
    }
};

// Adds KEYS values times their weights to the sums of 16 * TILES queries.
template <u32 HD, u32 KEYS, u32 TILES>
__device__ __forceinline__ void add_values(Softmax<HD> (&softmax)[TILES], const float (&weights)[TILES][KEYS / 8][4],
                                           u32 values) {
#pragma unroll
    for (u32 key = 0; key < KEYS; key += 16) {
        u32 left[TILES][4];
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float(&pair)[4] = weights[tile][key / 8 + i / 2];
                left[tile][i] = narrow_pair(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < HD / 16; i++) {
            u32 right[4];
            ldmatrix_x4_trans(right, column_address(values, i) + key * HD * 2);
#pragma unroll
            for (u32 tile = 0; tile < TILES; tile++) {
                mma_bf16(softmax[tile].sums[i * 2], left[tile], right[0], right[1]);
                mma_bf16(softmax[tile].sums[i * 2 + 1], left[tile], right[2], right[3]);
            }
        }
    }
}

// Makes the columns behind the last head zero.
__device__ __forceinline__ void clear_tail(const AttendArgs& args, u32 token, u32 thread, u32 threads) {
    for (u32 column = args.heads * args.head_dim + thread; column < args.out_stride; column += threads) {
        args.out[(u64)token * args.out_stride + column] = narrow(0.0f);
    }
}

}  // namespace attend
