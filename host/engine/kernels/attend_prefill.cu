// Attention of several tokens of a row at once; see args.cuh. Source: FlashAttention-2, arXiv 2307.08691.
//
// The tokens of an item times the heads of a KV head's group are the queries: query i is head i % group of token
// i / group. Each of four warps has a quarter of them, and all share tiles of keys and values, of which one is copied
// from its pages while the one before is computed.
//
// Tiles start at multiples of their size, so that a token's result does not depend on how a prompt is cut.
#pragma once

#include "attend_tiles.cuh"

namespace attend {

// A warp with 32 queries reads half as many keys from shared memory for each product as one with 16; of 256 dimensions
// its sums would not fit in registers. 96 KiB fit on every device.
template <u32 HD>
struct PrefillShape {
    static constexpr u32 TILES = HD == 256 ? 1 : 2;
    static constexpr u32 KEYS = HD == 256 ? 32 : 64;
    static constexpr u32 KEYS_AT_ONCE = HD == 64 ? 64 : 32;
    static constexpr u32 WARP_QUERIES = TILES * 16;
    // Queries computed together. An item may have more, which are computed one after the other.
    static constexpr u32 BLOCK_QUERIES = WARPS * WARP_QUERIES;
    static constexpr u32 STAGES = 2;
    static constexpr u32 QUERIES_BYTES = BLOCK_QUERIES * HD * 2;
    static constexpr u32 TILE_BYTES = KEYS * HD * 2;
    // Dynamic shared memory of a block: queries, then keys and values of each stage.
    static constexpr u32 BYTES = QUERIES_BYTES + STAGES * 2 * TILE_BYTES;
    static constexpr u32 BLOCKS = 2;
};

// What a block computes, in shared memory: the queries of one item and KV head.
struct PrefillWork {
    PrefillItem item;
    u32 kv_head;
    u32 group;
    u32 queries;

    __device__ __forceinline__ u32 position(u32 query) const { return item.position + query / group; }

    // Where a query stands in rows of `stride` values a token.
    __device__ __forceinline__ Place place(u32 query, u32 stride, u32 head_dim) const {
        if (query >= queries) {
            return NOWHERE;
        }
        const u32 token = query / group;
        return (u64)(item.first_token + token) * stride + (kv_head * group + query - token * group) * head_dim;
    }
};

// Forgets scores of keys that a query does not see. `positions`, in shared memory, are those of 16 queries.
template <u32 KEYS>
__device__ __forceinline__ void mask(float (&scores)[KEYS / 8][4], const u32* positions, u32 first_key, u32 window) {
    const u32 position[2] = {positions[lane_index() / 4], positions[lane_index() / 4 + 8]};
#pragma unroll
    for (u32 i = 0; i < KEYS / 8; i++) {
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            const u32 key = first_key + i * 8 + lane_index() % 4 * 2 + e % 2;
            const bool live = key <= position[e / 2] && position[e / 2] - key < window;
            scores[i][e] = live ? scores[i][e] : minus_infinity();
        }
    }
}

// Adds some keys and values of a tile, in shared memory, to this warp's queries.
template <u32 HD, u32 KEYS>
__device__ __forceinline__ void add_keys(Softmax<HD> (&softmax)[PrefillShape<HD>::TILES], u32 queries, u32 keys, u32 values,
                                         const u32* positions, u32 first_key, bool masked, u32 window, float factor) {
    constexpr u32 TILES = PrefillShape<HD>::TILES;
    float scores[TILES][KEYS / 8][4] = {};
#pragma unroll
    for (u32 step = 0; step < HD / 16; step++) {
        u32 left[TILES][4];
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
            ldmatrix_x4(left[tile], column_address(queries, step) + tile * 16 * HD * 2);
        }
        add_scores<HD, KEYS, TILES>(scores, left, keys, step);
    }
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
        if (masked) {
            mask<KEYS>(scores[tile], positions + tile * 16, first_key, window);
        }
        softmax[tile].template weigh<KEYS>(scores[tile], factor);
    }
    add_values<HD, KEYS, TILES>(softmax, scores, values);
}

// Writes this warp's results, through the place of its queries in shared memory so that stores are whole chunks.
template <u32 HD>
__device__ __forceinline__ void put_results(Softmax<HD> (&softmax)[PrefillShape<HD>::TILES], const AttendArgs& args,
                                            const PrefillWork& work, u32 first_query, u8* queries,
                                            Place* places) {
    constexpr u32 ROWS = PrefillShape<HD>::WARP_QUERIES;
    constexpr u32 CHUNKS = HD / CHUNK, AT_ONCE = LANES / CHUNKS;
    const u32 first_row = warp_index() * ROWS;
    __syncwarp();
#pragma unroll
    for (u32 tile = 0; tile < PrefillShape<HD>::TILES; tile++) {
        softmax[tile].add_weights_of_lanes();
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            softmax[tile].scale(half, 1.0f / softmax[tile].weight[half]);
            const u32 row = first_row + tile * 16 + half * 8 + lane_index() / 4;
#pragma unroll
            for (u32 i = 0; i < HD / 8; i++) {
                const float(&sums)[4] = softmax[tile].sums[i];
                u32* to = (u32*)(queries + chunk_offset<HD>(row, i)) + lane_index() % 4;
                *to = narrow_pair(sums[half * 2], sums[half * 2 + 1]);
            }
        }
    }
    if (lane_index() < ROWS) {
        places[lane_index()] = work.place(first_query + lane_index(), args.out_stride, args.head_dim);
    }
    __syncwarp();
    const u32 chunk = lane_index() % CHUNKS;
    places += lane_index() / CHUNKS;
#pragma unroll
    for (u32 i = 0; i < ROWS; i += AT_ONCE) {
        const u32 row = first_row + i + lane_index() / CHUNKS;
        if (places[i] != NOWHERE && chunk * CHUNK < args.head_dim) {
            *(u128*)(args.out + places[i] + chunk * CHUNK) = *(const u128*)(queries + chunk_offset<HD>(row, chunk));
        }
    }
}

// The queries of an item from `block_query` on, as many as a block computes.
template <u32 HD>
__device__ __forceinline__ void prefill_queries(const AttendArgs& args, const PrefillWork& work, u32 block_query, u8* shared) {
    using Shape = PrefillShape<HD>;
    constexpr u32 TILES = Shape::TILES, KEYS = Shape::KEYS, ROWS = Shape::WARP_QUERIES, AT_ONCE = Shape::KEYS_AT_ONCE;
    const u32 queries = smem_address(shared), tiles = queries + Shape::QUERIES_BYTES;
    const u32 first_row = warp_index() * ROWS, first_query = block_query + first_row;
    Pages pages(args, work.kv_head);
    pages.open(args, work.item.table);
    const u32 last_query = min(work.queries, block_query + Shape::BLOCK_QUERIES) - 1;
    const u32 end = work.position(last_query) + 1;
    const u32 oldest = oldest_key(work.position(block_query), args.window);
    const u32 first_tile = oldest / KEYS * KEYS;

    // Each warp copies a quarter of a tile. It keeps the places of two tiles, and first those of its queries.
    constexpr u32 COPIED = KEYS / WARPS;
    static_assert(2 * COPIED == ROWS, "places of queries and of keys share memory");
    __shared__ Place all_places[WARPS][ROWS];
    __shared__ u32 positions[WARPS][ROWS];
    Place* places = all_places[warp_index()];
    const u32 first_copied = warp_index() * COPIED, lane_copied = lane_index() % COPIED;
    const auto copy = [&](u32 stage) {
        const u32 keys = tiles + stage * 2 * Shape::TILE_BYTES;
        const Place* from = places + stage * COPIED;
        copy_vectors<HD, COPIED>(keys, first_copied, pages.vectors(0), from, args.head_dim);
        copy_vectors<HD, COPIED>(keys + Shape::TILE_BYTES, first_copied, pages.vectors(1), from, args.head_dim);
        cp_commit();
    };
    const auto place = [&](u32 first_key) { return pages.place(first_key + first_copied + lane_copied, end); };

    places[lane_index() % ROWS] = work.place(first_query + lane_index() % ROWS, args.heads * args.head_dim, args.head_dim);
    positions[warp_index()][lane_index() % ROWS] = work.position(first_query + lane_index() % ROWS);
    __syncwarp();
    copy_vectors<HD, ROWS>(queries, first_row, args.q, places, args.head_dim);
    __syncwarp();
    // Pages behind the window may be gone.
    places[lane_copied] = first_tile + first_copied + lane_copied < oldest ? NOWHERE : place(first_tile);
    places[COPIED + lane_copied] = place(first_tile + KEYS);
    __syncwarp();
    copy(0);

    Softmax<HD> softmax[TILES];
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
        softmax[tile].begin();
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            if (args.sinks) {
                const u32 query = first_query + tile * 16 + half * 8 + lane_index() / 4;
                const float sink = args.sinks[work.kv_head * work.group + query % work.group];
                softmax[tile].begin_with_sink(half, sink / args.scale);
            }
        }
    }
    // Tiles from here on this warp need not compute. It sees all of the keys from `masked_until` on, up to `masked_from`.
    const bool used = first_query < work.queries;
    const u32 warp_end = used ? work.position(min(work.queries, first_query + ROWS) - 1) + 1 : 0;
    const u32 masked_until = used ? oldest_key(warp_end - 1, args.window) : 0;
    const u32 masked_from = work.position(first_query) + 1;
    u32 stage = 0;
#pragma unroll 1
    for (u32 first_key = first_tile; first_key < end; first_key += KEYS) {
        cp_wait<0>();
        __syncthreads();
        copy(stage ^ 1);
        const Place next = place(first_key + 2 * KEYS);
        if (first_key < warp_end) {
            const u32 keys = tiles + stage * 2 * Shape::TILE_BYTES;
            const bool masked = first_key + KEYS > masked_from || first_key < masked_until;
#pragma unroll 1
            for (u32 key = 0; key < KEYS; key += AT_ONCE) {
                add_keys<HD, AT_ONCE>(softmax, left_address<HD>(queries + first_row * HD * 2),
                                      right_address<HD>(keys) + key * HD * 2,
                                      left_address<HD>(keys + Shape::TILE_BYTES) + key * HD * 2, positions[warp_index()],
                                      first_key + key, masked, args.window, args.scale * LOG2_E);
            }
        }
        places[stage * COPIED + lane_copied] = next;
        stage ^= 1;
    }
    cp_wait<0>();
    put_results<HD>(softmax, args, work, first_query, shared, places);
    // The next queries overwrite these.
    __syncthreads();
}

template <u32 HD>
__device__ __forceinline__ void prefill(const AttendArgs& args) {
    DYN_SMEM(u8, shared);
    const Step* step = args.step;
    const PrefillItem* items = step_array<PrefillItem>(step, step->prefill_at);
    __shared__ PrefillWork work;
#pragma unroll 1
    for (u32 i = blockIdx.x; i < step->prefill_items; i += gridDim.x) {
        __syncthreads();
        if (threadIdx.x == 0) {
            // A row's last tokens see the most keys: longest first, so that no block is late.
            work.item = items[step->prefill_items - 1 - i];
            work.kv_head = blockIdx.y;
            work.group = args.heads / args.kv_heads;
            work.queries = work.item.tokens * work.group;
        }
        __syncthreads();
#pragma unroll 1
        for (u32 query = 0; query < work.queries; query += PrefillShape<HD>::BLOCK_QUERIES) {
            prefill_queries<HD>(args, work, query, shared);
        }
        if (blockIdx.y + 1 == gridDim.y) {
            for (u32 token = 0; token < work.item.tokens; token++) {
                clear_tail(args, work.item.first_token + token, threadIdx.x, THREADS);
            }
        }
    }
}

}  // namespace attend

extern "C" __global__ void __launch_bounds__(attend::THREADS, attend::PrefillShape<64>::BLOCKS)
    attend_prefill_64(const __grid_constant__ AttendArgs args) {
    attend::prefill<64>(args);
}

extern "C" __global__ void __launch_bounds__(attend::THREADS, attend::PrefillShape<128>::BLOCKS)
    attend_prefill_128(const __grid_constant__ AttendArgs args) {
    attend::prefill<128>(args);
}

extern "C" __global__ void __launch_bounds__(attend::THREADS, attend::PrefillShape<256>::BLOCKS)
    attend_prefill_256(const __grid_constant__ AttendArgs args) {
    attend::prefill<256>(args);
}
