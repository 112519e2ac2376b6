// Products with weights: out = a * transpose(w). See GemmArgs for shapes and modes.
//
// | kernel    | tile      | threads | grid                                               | dynamic shared memory |
// |-----------|-----------|---------|----------------------------------------------------|-----------------------|
// | skinny_16 | 16 x 32   | 256     | (ceil(n / 32), splits, experts or 1)               | 0                     |
// | skinny_32 | 32 x 64   | 256     | (ceil(n / 64), splits, experts or 1)               | 0                     |
// | skinny_64 | 64 x 64   | 128     | (ceil(n / 64), splits, experts or 1)               | 48 KiB                |
// | gemm_64   | 64 x 128  | 256     | (ceil(n / 128), tiles of rows, splits, or experts) | 48 KiB                |
// | gemm_128  | 128 x 128 | 256     | the same                                           | 48 KiB                |
//
// `skinny` kernels take as many rows as their tile, of a product or of every expert. The others take any number: a
// block begins with the rows of tile blockIdx.y and goes on in strides of gridDim.y tiles. A grid of fewer tiles than
// there are is correct, and right for experts, of which most have few rows.
//
// A split is worth it where tiles alone are fewer than what the device holds at once: on every multiprocessor three
// blocks of skinny_16, two of skinny_32, four of skinny_64, and two of the others.
#pragma once

#include "gemm_output.cuh"

namespace product {

// The rows of the product and the steps of k that belong to a block.
struct Share {
    u32 first_row, end_row;
    u32 first_unit, end_unit;  // of 64 values of k
};

__device__ __forceinline__ Share share_of(const GemmArgs& args, u32 expert, u32 part) {
    Share share = {0, args.m, 0, 0};
    if (args.bounds) {
        share.first_row = args.bounds[expert];
        share.end_row = args.bounds[expert + 1];
    }
    u32 units = args.k / 64;
    share.first_unit = units * part / args.splits;
    share.end_unit = units * (part + 1) / args.splits;
    return share;
}

__device__ __forceinline__ u32 row_of_a(const GemmArgs& args, u32 row) { return args.rows ? args.rows[row] : row; }

// ---------------------------------------------------------------------------------------------------------------
// Few rows: weights go straight from memory into the registers of the lanes that multiply them.
//
// A product of 16 x 8 x 16 takes from lane (g, t) of a warp, g = lane / 4 and t = lane % 4, four values of row g of w.
// Which places of k they are does not matter as long as `a` has the same: a lane loads the 8 values from 8 t on at
// once, and two products use 4 each.
//
//   k of a step    0..7      8..15     16..23    24..31
//   lane           (g, 0)    (g, 1)    (g, 2)    (g, 3)
//
// Warps share k in units of 64, which are two steps and a line of memory of each row, and add up what they have at the
// end.
// ---------------------------------------------------------------------------------------------------------------

template <int M_TILES_, int WARPS_N_, int WARPS_K_>
struct Skinny {
    static constexpr int M_TILES = M_TILES_;
    static constexpr int WARPS_N = WARPS_N_;
    static constexpr int WARPS_K = WARPS_K_;
    static constexpr int ROWS = 16 * M_TILES;
    static constexpr int OUTPUTS = PANEL * WARPS_N;
    static constexpr int THREADS = 32 * WARPS_N * WARPS_K;
    // 8 more than the outputs, so that rows g = 0..3 of a store lie in different banks.
    static constexpr int SUM_STRIDE = OUTPUTS + 8;
    static constexpr int N_TILES = PANEL / 8;
};

// What a lane holds of one step.
template <class Shape>
struct SkinnyStep {
    u128 a[Shape::M_TILES][2];  // rows g and g + 8 of a tile; zero where there is no row
    u128 w[Shape::N_TILES];
};

// Where a lane reads next, in values; 32 bits are enough for matrices of 8 GB.
template <class Shape>
struct SkinnySource {
    const bf16* a;
    const bf16* w;
    u32 rows[Shape::M_TILES][2];  // places in `a`
    bool live[Shape::M_TILES][2];
    u32 output;  // place in w of the first tile of 8 outputs
    u32 tile;    // from one tile to the next

    // Goes on by so many values of k.
    __device__ __forceinline__ void advance(u32 k) {
#pragma unroll
        for (int i = 0; i < Shape::M_TILES; i++) {
            rows[i][0] += k;
            rows[i][1] += k;
        }
        output += k;
    }
};

// Loads what is `k` values on.
template <class Shape>
__device__ __forceinline__ void load_step(const SkinnySource<Shape>& from, u32 k, SkinnyStep<Shape>& out) {
#pragma unroll
    for (int j = 0; j < Shape::N_TILES; j++) {
        out.w[j] = load_stream(from.w + (from.output + j * from.tile + k));
    }
#pragma unroll
    for (int i = 0; i < Shape::M_TILES; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Other blocks of the multiprocessor want the same values: an ordinary load, which the L1 cache keeps.
            if (from.live[i][half]) {
                out.a[i][half] = *(const u128*)(from.a + (from.rows[i][half] + k));
            }
        }
    }
}

template <class Shape>
__device__ __forceinline__ void multiply_step(const SkinnyStep<Shape>& step,
                                              float (&sums)[Shape::M_TILES][Shape::N_TILES][4]) {
#pragma unroll
    for (int i = 0; i < Shape::M_TILES; i++) {
        const u128 &low = step.a[i][0], &high = step.a[i][1];
        const u32 first[4] = {low.x, high.x, low.y, high.y};
#pragma unroll
        for (int j = 0; j < Shape::N_TILES; j++) {
            mma_bf16(sums[i][j], first, step.w[j].x, step.w[j].y);
        }
        const u32 second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int j = 0; j < Shape::N_TILES; j++) {
            mma_bf16(sums[i][j], second, step.w[j].z, step.w[j].w);
        }
    }
}

// Multiplies `units` units, in strides of those that the other warps have. As soon as a step is used, the same of the
// next unit is on its way: at least one step of each lane always is.
template <class Shape>
__device__ __forceinline__ void stream(SkinnySource<Shape>& from, u32 units,
                                       float (&sums)[Shape::M_TILES][Shape::N_TILES][4]) {
    SkinnyStep<Shape> flying[2] = {};
    if (units) {
        load_step(from, 0, flying[0]);
        load_step(from, 32, flying[1]);
    }
#pragma unroll 1
    for (; units > 1; units--) {
        from.advance(64 * Shape::WARPS_K);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            multiply_step(flying[s], sums);
            load_step(from, 32 * s, flying[s]);
        }
    }
    // A warp without units multiplies zeros.
    multiply_step(flying[0], sums);
    multiply_step(flying[1], sums);
}

// Adds what the warps have, in their order; four threads put a panel of a row.
template <class Shape>
__device__ __forceinline__ void add_warps(const GemmArgs& args, u32 expert, u32 part, u32 column,
                                          const float (&sums)[Shape::WARPS_K][Shape::ROWS][Shape::SUM_STRIDE]) {
    Output output(args, expert, part);
    Share share = share_of(args, expert, part);
    u32 rows = share.end_row - share.first_row;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < rows * Shape::WARPS_N * 4; i += Shape::THREADS) {
        u32 t = i % 4, panel = i / 4 % Shape::WARPS_N, of_tile = i / 4 / Shape::WARPS_N;
        if (column + panel * PANEL < output.n) {
            float total[8] = {};
#pragma unroll
            for (int w = 0; w < Shape::WARPS_K; w++) {
                const float* from = &sums[w][of_tile][panel * PANEL + 2 * t];
#pragma unroll
                for (int j = 0; j < Shape::N_TILES; j++) {
                    float2 pair = *(const float2*)(from + 8 * j);
                    total[2 * j] += pair.x;
                    total[2 * j + 1] += pair.y;
                }
            }
            output.put(share.first_row + of_tile, column + panel * PANEL, t, total);
        }
    }
}

template <class Shape>
__device__ __forceinline__ void skinny(const GemmArgs& args) {
    __shared__ float shared_sums[Shape::WARPS_K][Shape::ROWS][Shape::SUM_STRIDE];
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 warp_n = warp % Shape::WARPS_N, warp_k = warp / Shape::WARPS_N;
    u32 g = lane / 4, t = lane % 4;
    u32 expert = blockIdx.z, part = blockIdx.y;
    Share share = share_of(args, expert, part);
    if (share.first_row == share.end_row) {
        return;
    }
    u32 column = blockIdx.x * Shape::OUTPUTS;
    u32 own_column = column + warp_n * PANEL;
    u32 units = share.end_unit - share.first_unit;
    u32 own_units = own_column < args.n && warp_k < units ? ceil_div(units - warp_k, Shape::WARPS_K) : 0;

    // Where the warp begins in a row, and the lane in its part.
    u32 first_k = (share.first_unit + warp_k) * 64 + 8 * t;
    SkinnySource<Shape> from;
    from.a = args.a;
    from.w = args.w + expert * args.w_stride;
    from.output = (own_column + g) * args.k + first_k;
    from.tile = 8 * args.k;
#pragma unroll
    for (int i = 0; i < Shape::M_TILES; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 row = share.first_row + 16 * i + 8 * half + g;
            from.live[i][half] = row < share.end_row;
            from.rows[i][half] = from.live[i][half] ? row_of_a(args, row) * args.k + first_k : 0;
        }
    }
    float sums[Shape::M_TILES][Shape::N_TILES][4] = {};
    stream(from, own_units, sums);
#pragma unroll
    for (int i = 0; i < Shape::M_TILES; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (from.live[i][half]) {
                float* to = &shared_sums[warp_k][16 * i + 8 * half + g][warp_n * PANEL + 2 * t];
#pragma unroll
                for (int j = 0; j < Shape::N_TILES; j++) {
                    *(float2*)(to + 8 * j) = make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
                }
            }
        }
    }
    __syncthreads();
    add_warps<Shape>(args, expert, part, column, shared_sums);
}

// ---------------------------------------------------------------------------------------------------------------
// Tiles: rows and weights come through shared memory, in a pipeline of stages of 32 values of k.
//
// A row of a stage is 64 bytes, two rows are a line of all banks. Part c of row r (16 bytes, c = 0..3) lies at part
// c ^ (r / 2 % 4), so that the 8 rows of a matrix that ldmatrix reads lie in different banks.
// ---------------------------------------------------------------------------------------------------------------

template <int TILE_M_, int TILE_N_, int STAGES_>
struct Tiles {
    static constexpr int TILE_M = TILE_M_;
    static constexpr int TILE_N = TILE_N_;
    static constexpr int STAGES = STAGES_;
    // A warp has half of the rows and one panel.
    static constexpr int WARPS_N = TILE_N / PANEL;
    static constexpr int THREADS = 2 * WARPS_N * 32;
    static constexpr int M_TILES = TILE_M / 2 / 16;
    static constexpr int N_TILES = PANEL / 8;
    static constexpr int STEP_K = 32;
    static constexpr int ROW_BYTES = STEP_K * 2;
    static constexpr int W_AT = TILE_M * ROW_BYTES;  // of a stage: rows of `a` come first
    static constexpr int STAGE_BYTES = (TILE_M + TILE_N) * ROW_BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;
    // Rows that all threads copy at once, four threads a row, and how often they do for a stage.
    static constexpr int COPY_ROWS = THREADS / 4;
    static constexpr int A_COPIES = TILE_M / COPY_ROWS;
    static constexpr int W_COPIES = TILE_N / COPY_ROWS;
    static_assert(SHARED_BYTES == 48 * 1024, "what a launch may have without asking");
    static_assert(TILE_M % COPY_ROWS == 0 && TILE_N % COPY_ROWS == 0, "whole copies");
};

// Where part `part` of row `row` lies in its operand.
__device__ __forceinline__ u32 place_of(u32 row, u32 part) { return row * 64 + (part ^ row / 2 % 4) * 16; }

// What a thread copies: 16 bytes of some rows of `a` and of some of w.
template <class Shape>
struct TileSource {
    const bf16* a[Shape::A_COPIES];  // null: no such row, which is zero
    const bf16* w;
    u32 w_copy;     // values from a row of w to that of the next copy
    u32 w_live;     // copies of w that have a row
    u32 place;      // of the first copy in its operand; the next is COPY_ROWS rows on
};

template <class Shape>
__device__ __forceinline__ TileSource<Shape> source_of(const GemmArgs& args, u32 expert, u32 row, u32 end_row,
                                                       u32 column) {
    TileSource<Shape> from;
    u32 own_row = threadIdx.x / 4, part = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < Shape::A_COPIES; i++) {
        u32 r = row + own_row + i * Shape::COPY_ROWS;
        from.a[i] = r < end_row ? args.a + (u64)row_of_a(args, r) * args.k + part * 8 : nullptr;
    }
    from.w = args.w + expert * args.w_stride + (u64)(column + own_row) * args.k + part * 8;
    from.w_copy = Shape::COPY_ROWS * args.k;
    from.w_live = column + own_row < args.n ? ceil_div(args.n - column - own_row, Shape::COPY_ROWS) : 0;
    from.place = place_of(own_row, part);
    return from;
}

template <class Shape>
__device__ __forceinline__ void copy_stage(const TileSource<Shape>& from, u32 k, u32 stage) {
    constexpr u32 copy_bytes = Shape::COPY_ROWS * Shape::ROW_BYTES;
    u32 to = stage + from.place;
#pragma unroll
    for (int i = 0; i < Shape::A_COPIES; i++) {
        cp_async16(to + i * copy_bytes, from.a[i] + k, from.a[i] != nullptr);
    }
#pragma unroll
    for (int i = 0; i < Shape::W_COPIES; i++) {
        cp_async16(to + Shape::W_AT + i * copy_bytes, from.w + (i * from.w_copy + k), i < from.w_live);
    }
}

// Multiplies what is in a stage.
template <class Shape>
__device__ __forceinline__ void multiply_stage(u32 stage, u32 warp_m, u32 warp_n,
                                               float (&sums)[Shape::M_TILES][Shape::N_TILES][4]) {
    u32 lane = threadIdx.x % 32;
    // Which row and which 16 bytes a lane addresses for ldmatrix: of `a`, matrices go down and then right; of w, right
    // and then down.
    u32 a_row = warp_m * Shape::M_TILES * 16 + lane % 16, a_part = lane / 16;
    u32 w_row = warp_n * PANEL + lane / 16 * 8 + lane % 8, w_part = lane / 8 % 2;
#pragma unroll
    for (int half = 0; half < Shape::STEP_K / 16; half++) {
        u32 a[Shape::M_TILES][4], w[Shape::N_TILES / 2][4];
#pragma unroll
        for (int i = 0; i < Shape::M_TILES; i++) {
            ldmatrix_x4(a[i], stage + place_of(a_row + 16 * i, 2 * half + a_part));
        }
#pragma unroll
        for (int j = 0; j < Shape::N_TILES / 2; j++) {
            ldmatrix_x4(w[j], stage + Shape::W_AT + place_of(w_row + 16 * j, 2 * half + w_part));
        }
#pragma unroll
        for (int i = 0; i < Shape::M_TILES; i++) {
#pragma unroll
            for (int j = 0; j < Shape::N_TILES; j++) {
                mma_bf16(sums[i][j], a[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
}

// All steps of k of one tile.
template <class Shape>
__device__ __forceinline__ void multiply_tile(const TileSource<Shape>& from, u32 first_k, u32 steps, u32 shared,
                                              float (&sums)[Shape::M_TILES][Shape::N_TILES][4]) {
    u32 warp = threadIdx.x / 32;
    u32 warp_m = warp / Shape::WARPS_N, warp_n = warp % Shape::WARPS_N;
    u32 filled = 0;  // the stage that is filled next
#pragma unroll
    for (int s = 0; s < Shape::STAGES - 1; s++) {
        if (s < steps) {
            copy_stage(from, first_k + s * Shape::STEP_K, shared + s * Shape::STAGE_BYTES);
        }
        cp_commit();
    }
    filled = Shape::STAGES - 1;
    u32 used = 0;
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        cp_wait<Shape::STAGES - 2>();
        // Everyone's copies of this step are there, and everyone is done with the stage that is filled next.
        __syncthreads();
        u32 next = step + Shape::STAGES - 1;
        if (next < steps) {
            copy_stage(from, first_k + next * Shape::STEP_K, shared + filled * Shape::STAGE_BYTES);
        }
        cp_commit();
        multiply_stage<Shape>(shared + used * Shape::STAGE_BYTES, warp_m, warp_n, sums);
        filled = filled + 1 == Shape::STAGES ? 0 : filled + 1;
        used = used + 1 == Shape::STAGES ? 0 : used + 1;
    }
}

// One tile, or what of it there is.
template <class Shape>
__device__ __forceinline__ void tile(const GemmArgs& args, const Share& share, u32 expert, u32 part, u32 row,
                                     u32 column) {
    DYN_SMEM(unsigned char, stages);
    float sums[Shape::M_TILES][Shape::N_TILES][4] = {};
    u32 steps = (share.end_unit - share.first_unit) * (64 / Shape::STEP_K);
    TileSource<Shape> from = source_of<Shape>(args, expert, row, share.end_row, column);
    multiply_tile(from, share.first_unit * 64, steps, smem_address(stages), sums);

    u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 panel = column + warp % Shape::WARPS_N * PANEL;
    u32 own_row = row + warp / Shape::WARPS_N * Shape::M_TILES * 16 + g;
    if (panel < args.n) {
        Output output(args, expert, part);
#pragma unroll
        for (int i = 0; i < Shape::M_TILES; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float of_row[8];
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    of_row[j] = sums[i][j / 2][2 * half + j % 2];
                }
                if (own_row + 16 * i + 8 * half < share.end_row) {
                    output.put(own_row + 16 * i + 8 * half, panel, t, of_row);
                }
            }
        }
    }
}

// Tiles from rows that `first` tiles precede on, in strides of so many tiles.
template <class Shape>
__device__ void tiles(const GemmArgs& args, u32 expert, u32 part, u32 column, u32 first, u32 stride) {
    Share share = share_of(args, expert, part);
    u32 row = share.first_row + first * Shape::TILE_M;
#pragma unroll 1
    for (; row < share.end_row; row += stride * Shape::TILE_M) {
        tile<Shape>(args, share, expert, part, row, column * Shape::TILE_N);
        // The stages are filled again.
        __syncthreads();
    }
}

template <class Shape>
__device__ __forceinline__ void gemm(const GemmArgs& args) {
    // 16 tiles of rows by as many of outputs are about what 132 multiprocessors compute at once.
    Tile at = tile_at(blockIdx.y * gridDim.x + blockIdx.x, gridDim.y, gridDim.x, 16);
    u32 expert = args.bounds ? blockIdx.z : 0, part = args.bounds ? 0 : blockIdx.z;
    tiles<Shape>(args, expert, part, at.column, at.row, gridDim.y);
}

}  // namespace product

extern "C" __global__ void __launch_bounds__(256, 3) skinny_16(const __grid_constant__ GemmArgs args) {
    product::skinny<product::Skinny<1, 1, 8>>(args);
}

extern "C" __global__ void __launch_bounds__(256, 2) skinny_32(const __grid_constant__ GemmArgs args) {
    product::skinny<product::Skinny<2, 2, 4>>(args);
}

extern "C" __global__ void __launch_bounds__(128, 4) skinny_64(const __grid_constant__ GemmArgs args) {
    product::tiles<product::Tiles<64, 64, 6>>(args, blockIdx.z, blockIdx.y, blockIdx.x, 0, 1);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_64(const __grid_constant__ GemmArgs args) {
    product::gemm<product::Tiles<64, 128, 4>>(args);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_128(const __grid_constant__ GemmArgs args) {
    product::gemm<product::Tiles<128, 128, 3>>(args);
}
