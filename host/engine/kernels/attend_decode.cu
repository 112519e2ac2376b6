// Attention of single tokens, each over a range of its keys; see args.cuh.
//
// The heads of a KV head's group are the queries, 16 at a time. Four warps take tiles of keys in turn, each with its own
// ring of tiles in shared memory that is filled some tiles ahead, so that they meet only to add their results:
//
//   ring of a warp:  keys of tile i | values of tile i | keys of tile i + 1 | values of tile i + 1
//
// The first tiles of a block's next item are asked for before the results of this one are added: items may be short, and
// memory should not wait for that.
//
// Cost: reads each live KV byte once for every 16 heads of a group.
#pragma once

#include "attend_tiles.cuh"

namespace attend {

// AHEAD is how many tiles a ring holds, of 4 KiB each for keys and for values (8 of 256 dimensions). Two or three blocks fit
// on a multiprocessor of an H200, whose warps then wait for at least 64 KiB; its bandwidth times its latency is about 40.
template <u32 HD>
struct DecodeShape {
    static constexpr u32 KEYS = HD == 64 ? 32 : 16;
    static constexpr u32 AHEAD = HD == 256 ? 1 : 2;
    static constexpr u32 SLOT_BYTES = KEYS * HD * 2;
    static constexpr u32 RING_BYTES = AHEAD * 2 * SLOT_BYTES;
    // Each warp's queries, and when it is done with them its sums of half of them.
    static constexpr u32 QUERIES_BYTES = QUERIES * HD * 2;
    static_assert(QUERIES / 2 * HD * sizeof(float) <= QUERIES_BYTES, "sums fit in the place of queries");
    // Dynamic shared memory of a block: rings of all warps, then queries of all warps.
    static constexpr u32 BYTES = WARPS * (RING_BYTES + QUERIES_BYTES);
    static constexpr u32 BLOCKS = HD == 64 ? 3 : 2;
};

// This warp's tiles of keys and values, and the copies of them that are under way.
template <u32 HD>
struct TileStream {
    using Shape = DecodeShape<HD>;
    static constexpr u32 KEYS = Shape::KEYS, AHEAD = Shape::AHEAD;
    // Copies under way that a tile's keys, and then its values, do not wait for.
    static constexpr int FLYING = AHEAD * 2 - 2;

    Pages pages;
    u32 ring;
    Place* places;  // of the keys of two tiles, in shared memory
    u32 first;
    u32 end;
    u32 tiles;
    Place next;     // of this lane's key two tiles behind those that are asked for

    __device__ __forceinline__ TileStream(const AttendArgs& args, u32 ring, Place* places)
        : pages(args, blockIdx.y), ring(ring), places(places) {}

    __device__ __forceinline__ Place place(u32 tile) const {
        return pages.place(first + tile * WARPS * KEYS + lane_index() % KEYS, end);
    }

    __device__ __forceinline__ void put_places(u32 tile, Place place) const {
        places[tile % 2 * KEYS + lane_index() % KEYS] = place;
    }

    __device__ __forceinline__ u32 slot(u32 tile, u32 value) const {
        return ring + (tile % AHEAD * 2 + value) * Shape::SLOT_BYTES;
    }

    // A tile beyond the last is an empty group, so that groups can be counted.
    __device__ __forceinline__ void copy(u32 tile, u32 value) const {
        if (tile < tiles) {
            copy_vectors<HD, KEYS>(slot(tile, value), 0, pages.vectors(value), places + tile % 2 * KEYS, pages.head_dim);
        }
        cp_commit();
    }

    // Asks for the first tiles of an item. Those of the item before have been computed.
    __device__ __forceinline__ void begin(const AttendArgs& args, const DecodeItem& item) {
        pages.open(args, item.table);
        const u32 oldest = oldest_key(item.position, args.window);
        first = (item.first_key < oldest ? oldest : item.first_key) + warp_index() * KEYS;
        end = item.end_key;
        tiles = first < end ? ceil_div(end - first, WARPS * KEYS) : 0;
        __syncwarp();
        put_places(0, place(0));
        put_places(1, place(1));
        __syncwarp();
        copy(0, 0);
        if (AHEAD == 2) {
            copy(0, 1);
            copy(1, 0);
            // Tile 2 takes the places of tile 0.
            __syncwarp();
            put_places(2, place(2));
        }
        next = place(AHEAD + 1);
    }

    // Waits for the keys of a tile, and asks for values that are needed later.
    __device__ __forceinline__ u32 keys(u32 tile) {
        cp_wait<FLYING>();
        __syncwarp();
        copy(tile + AHEAD - 1, 1);
        return slot(tile, 0);
    }

    // Waits for the values of a tile whose keys have been used, and asks for keys that are needed later.
    __device__ __forceinline__ u32 values(u32 tile) {
        cp_wait<FLYING>();
        __syncwarp();
        // Values of tile + AHEAD - 1 have been asked for: its places are free.
        put_places(tile + AHEAD + 1, next);
        copy(tile + AHEAD, 0);
        next = place(tile + AHEAD + 2);
        return slot(tile, 1);
    }
};

// Up to 16 heads of an item.
struct DecodeHeads {
    u32 first;  // in the batch's order of heads
    u32 count;
};

// Puts this warp's queries in shared memory; heads and dimensions that do not exist are zero.
template <u32 HD>
__device__ __forceinline__ void put_queries(const AttendArgs& args, u32 token, DecodeHeads heads, u8* queries) {
    constexpr u32 CHUNKS = HD / CHUNK, AT_ONCE = LANES / CHUNKS;
    const bf16* first = args.q + ((u64)token * args.heads + heads.first) * args.head_dim;
#pragma unroll
    for (u32 i = 0; i < QUERIES; i += AT_ONCE) {
        const u32 row = i + lane_index() / CHUNKS;
        const u32 chunk = lane_index() % CHUNKS;
        const bool live = row < heads.count && chunk * CHUNK < args.head_dim;
        const u128 nothing = {0, 0, 0, 0};
        *(u128*)(queries + chunk_offset<HD>(row, chunk)) =
            live ? *(const u128*)(first + row * args.head_dim + chunk * CHUNK) : nothing;
    }
    __syncwarp();
}

// Adds this warp's tiles. `queries` is a left address.
template <u32 HD>
__device__ __forceinline__ void add_tiles(Softmax<HD> (&softmax)[1], TileStream<HD>& stream, u32 queries, float factor) {
    constexpr u32 KEYS = DecodeShape<HD>::KEYS;
#pragma unroll 1
    for (u32 tile = 0; tile < stream.tiles; tile++) {
        float scores[1][KEYS / 8][4] = {};
        const u32 keys = right_address<HD>(stream.keys(tile));
#pragma unroll
        for (u32 step = 0; step < HD / 16; step++) {
            u32 left[1][4];
            ldmatrix_x4(left[0], column_address(queries, step));
            add_scores<HD, KEYS, 1>(scores, left, keys, step);
        }
        const u32 live = stream.end - (stream.first + tile * WARPS * KEYS);
        if (live < KEYS) {
#pragma unroll
            for (u32 i = 0; i < KEYS / 8 * 4; i++) {
                const u32 key = i / 4 * 8 + lane_index() % 4 * 2 + i % 2;
                scores[0][i / 4][i % 4] = key < live ? scores[0][i / 4][i % 4] : minus_infinity();
            }
        }
        softmax[0].template weigh<KEYS>(scores[0], factor);
        add_values<HD, KEYS, 1>(softmax, scores, left_address<HD>(stream.values(tile)));
    }
}

// Where warps put their sums, in rows of HD values; four neighbouring columns stay together. Rows are permuted so that
// lanes of four of them, which write at once, do not meet in a bank.
template <u32 HD>
__device__ __forceinline__ u32 sum_place(u32 row, u32 column) {
    return row * HD + (column ^ (row % 4 * 8));
}

// Writes the sums of all warps, which are in the place of their queries, for heads from `first` on.
template <u32 HD>
__device__ __forceinline__ void write_sums(const AttendArgs& args, const DecodeItem& item, u32 first, u32 count,
                                           const u8* all_sums) {
    constexpr u32 COLUMNS = 4;
    const u32 groups = args.head_dim / COLUMNS;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < count * groups; i += THREADS) {
        const u32 row = i / groups, column = i % groups * COLUMNS;
        float total[COLUMNS] = {};
#pragma unroll
        for (u32 warp = 0; warp < WARPS; warp++) {
            const float* sums = (const float*)(all_sums + warp * DecodeShape<HD>::QUERIES_BYTES);
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                total[c] += sums[sum_place<HD>(row, column) + c];
            }
        }
        if (item.parts == 1) {
            u32* to = (u32*)(args.out + (u64)item.token * args.out_stride + (first + row) * args.head_dim + column);
            to[0] = narrow_pair(total[0], total[1]);
            to[1] = narrow_pair(total[2], total[3]);
        } else {
            const u64 part = (u64)item.partial * args.heads + first + row;
            float* to = args.partials + part * (args.head_dim + 2) + column;
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                to[c] = total[c];
            }
        }
    }
}

// Adds the results of all warps and writes them: divided by the weight of all keys, or as a part with its maximum (as an
// exponent of 2) and weight. `all_sums` is the place of all warps' queries.
template <u32 HD>
__device__ __forceinline__ void write_result(Softmax<HD>& softmax, const AttendArgs& args, const DecodeItem& item,
                                             DecodeHeads heads, float factor, u8* all_sums) {
    __shared__ float maxima[WARPS][QUERIES];
    __shared__ float weights[WARPS][QUERIES];
    const u32 warp = warp_index(), lane_row = lane_index() / 4, lane_column = lane_index() % 4;
    softmax.add_weights_of_lanes();
    if (lane_column == 0) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            maxima[warp][half * 8 + lane_row] = softmax.maximum[half] * factor;
            weights[warp][half * 8 + lane_row] = softmax.weight[half];
        }
    }
    __syncthreads();
    float* sums = (float*)(all_sums + warp * DecodeShape<HD>::QUERIES_BYTES);
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 first = half * 8;
        if (first >= heads.count) {
            break;
        }
        const u32 row = first + lane_row;
        float maximum = maxima[0][row];
#pragma unroll
        for (u32 other = 1; other < WARPS; other++) {
            maximum = fmaxf(maximum, maxima[other][row]);
        }
        const float base = maximum == minus_infinity() ? 0.0f : maximum;
        float weight = 0.0f;
#pragma unroll
        for (u32 other = 0; other < WARPS; other++) {
            weight += weights[other][row] * exp2_fast(maxima[other][row] - base);
        }
        const float share = exp2_fast(maxima[warp][row] - base);
        softmax.scale(half, item.parts == 1 ? share / weight : share);
        if (item.parts != 1 && warp == 0 && lane_column == 0 && row < heads.count) {
            float* to = args.partials + ((u64)item.partial * args.heads + heads.first + row) * (args.head_dim + 2);
            to[args.head_dim] = maximum;
            to[args.head_dim + 1] = weight;
        }
        if (half) {
            // Sums of the first half have been read.
            __syncthreads();
        }
#pragma unroll
        for (u32 i = 0; i < HD / 8; i++) {
            float* to = sums + sum_place<HD>(lane_row, i * 8 + lane_column * 2);
            to[0] = softmax.sums[i][half * 2];
            to[1] = softmax.sums[i][half * 2 + 1];
        }
        __syncthreads();
        write_sums<HD>(args, item, heads.first + first, min(heads.count - first, 8), all_sums);
    }
    if (item.parts == 1 && heads.first + heads.count == args.heads) {
        clear_tail(args, item.token, threadIdx.x, THREADS);
    }
    // The next queries overwrite the sums.
    __syncthreads();
}

// The part that holds the oldest key that its token sees has the sink, in its first warp.
template <u32 HD>
__device__ __forceinline__ void begin_softmax(Softmax<HD>& softmax, const AttendArgs& args, const DecodeItem& item,
                                              DecodeHeads heads) {
    softmax.begin();
    const u32 oldest = oldest_key(item.position, args.window);
    if (args.sinks && warp_index() == 0 && item.first_key <= oldest && oldest < item.end_key) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 head = lane_index() / 4 + half * 8;
            if (head < heads.count) {
                softmax.begin_with_sink(half, args.sinks[heads.first + head] / args.scale);
            }
        }
    }
}

template <u32 HD>
__device__ __forceinline__ void decode(const AttendArgs& args) {
    using Shape = DecodeShape<HD>;
    DYN_SMEM(u8, shared);
    u8* all_queries = shared + WARPS * Shape::RING_BYTES;
    u8* queries = all_queries + warp_index() * Shape::QUERIES_BYTES;
    const DecodeItem* items = step_array<DecodeItem>(args.step, args.step->decode_at[args.list]);
    const u32 group = args.heads / args.kv_heads, sets = ceil_div(group, QUERIES);
    const u32 units = args.step->decode_items[args.list] * sets;
    const float factor = args.scale * LOG2_E;
    __shared__ Place places[WARPS][2 * Shape::KEYS];
    TileStream<HD> stream(args, smem_address(shared) + warp_index() * Shape::RING_BYTES, places[warp_index()]);
    Softmax<HD> softmax[1];
    DecodeItem item, before;
    DecodeHeads heads = {0, 0};
    for (u32 unit = blockIdx.x;; unit += gridDim.x) {
        const bool more = unit < units;
        if (more) {
            item = items[unit / sets];
            stream.begin(args, item);
        }
        // The unit before, whose heads these are.
        if (heads.count) {
            write_result<HD>(softmax[0], args, before, heads, factor, all_queries);
        }
        if (!more) {
            return;
        }
        const u32 first = unit % sets * QUERIES;
        heads = {blockIdx.y * group + first, min(group - first, QUERIES)};
        put_queries<HD>(args, item.token, heads, queries);
        begin_softmax<HD>(softmax[0], args, item, heads);
        add_tiles<HD>(softmax, stream, left_address<HD>(smem_address(queries)), factor);
        before = item;
    }
}

// Adds the parts of one head of a token. A warp's work: lanes share parts, then columns.
__device__ __forceinline__ void combine(const AttendArgs& args, const CombineItem& item, u32 head) {
    const u64 stride = (u64)args.heads * (args.head_dim + 2);
    const float* parts = args.partials + item.partial * stride + head * (args.head_dim + 2);
    const float* states = parts + args.head_dim;
    float maximum = minus_infinity();
    for (u32 part = lane_index(); part < item.parts; part += LANES) {
        maximum = fmaxf(maximum, states[part * stride]);
    }
#pragma unroll
    for (u32 distance = LANES / 2; distance > 0; distance /= 2) {
        maximum = fmaxf(maximum, __shfl_xor_sync(ALL_LANES, maximum, distance));
    }
    float weight = 0.0f;
    for (u32 part = lane_index(); part < item.parts; part += LANES) {
        weight += states[part * stride + 1] * exp2_fast(states[part * stride] - maximum);
    }
#pragma unroll
    for (u32 distance = LANES / 2; distance > 0; distance /= 2) {
        weight += __shfl_xor_sync(ALL_LANES, weight, distance);
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
    const CombineItem* items = step_array<CombineItem>(step, step->combine_at[args.list]);
    const u32 count = step->combines * args.heads;
    for (u32 i = blockIdx.x * attend::WARPS + attend::warp_index(); i < count; i += gridDim.x * attend::WARPS) {
        const CombineItem item = items[i / args.heads];
        // Of one part the result is there already.
        if (item.parts > 1) {
            attend::combine(args, item, i % args.heads);
        }
    }
}
