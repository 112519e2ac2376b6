// Products of many rows on compute capability 9.0: out = a * transpose(w), tiles of 128 rows.
//
// | kernel         | tile      | threads | grid                                 | dynamic shared memory |
// |----------------|-----------|---------|--------------------------------------|-----------------------|
// | gemm_wgmma_128 | 128 x 128 | 384     | min(tiles * splits, multiprocessors) | 193 KiB               |
// | gemm_wgmma_256 | 128 x 256 | 384     | the same                             | 193 KiB               |
//
// A block computes tiles blockIdx.x, blockIdx.x + gridDim.x, .. in the order of tile_at(). Its first warpgroup has one
// thread at work, which keeps the copy engine ahead by as many steps of 64 values of k as there are stages, across
// tiles; the other two have 64 rows each, and multiply without a pause:
//
//   thread 0     wait empty[s] -> copy a, w ....... full[s]
//   warpgroups                          wait full[s] -> multiply; when the step before it is done, empty[s - 1]
//
// The wide tile reads a third less for each product, and its products take less of the bandwidth of shared memory; the
// narrow one is for matrices that have too few wide ones for all multiprocessors.
#pragma once

#include "gemm_output.cuh"

namespace product {

template <int TILE_N_, int STAGES_>
struct WgmmaShape {
    static constexpr int TILE_M = 128;
    static constexpr int TILE_N = TILE_N_;
    static constexpr int STAGES = STAGES_;
    static constexpr int STEP_K = 64;
    static constexpr int BOX_ROWS = 128;
    static constexpr int SUMS = TILE_N / 2;  // of a thread: 64 rows over 128 threads
    static constexpr u32 STAGE_BYTES = (TILE_M + TILE_N) * STEP_K * sizeof(bf16);
    static constexpr u32 SHARED_BYTES = STAGES * STAGE_BYTES + 1024;

    struct Shared {
        bf16 a[STAGES][TILE_M * STEP_K];
        bf16 w[STAGES][TILE_N * STEP_K];
        u64 full[STAGES];   // copies are there
        u64 empty[STAGES];  // every warp has multiplied them
    };
    static_assert(sizeof(Shared) <= SHARED_BYTES, "room for the barriers");
};

using WgmmaNarrow = WgmmaShape<128, 6>;
using WgmmaWide = WgmmaShape<256, 4>;

constexpr u32 CONSUMER_WARPS = 8;

// A place in the ring of stages, and the parity of its phases.
template <class Shape>
struct Ring {
    u32 stage = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == Shape::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// A tile, and the part of k that is multiplied for it.
struct WgmmaWork {
    Tile at;  // rows and columns that come before it
    u32 part;
    u32 first_step, end_step;
};

// All of them.
template <class Shape>
struct WgmmaTiles {
    u32 rows, columns;  // tiles
    u32 steps;          // of k
    u32 splits;

    __device__ __forceinline__ explicit WgmmaTiles(const GemmArgs& args)
        : rows(ceil_div(args.m, Shape::TILE_M)), columns(ceil_div(args.n, Shape::TILE_N)),
          steps(args.k / Shape::STEP_K), splits(args.splits) {}

    __device__ __forceinline__ u32 count() const { return rows * columns * splits; }

    __device__ __forceinline__ WgmmaWork work(u32 index) const {
        // 2,048 rows by as many columns are about what 132 multiprocessors compute at once.
        Tile at = tile_at(index / splits, rows, columns, 2048 / Shape::TILE_M);
        u32 part = index % splits;
        return {{at.row * Shape::TILE_M, at.column * Shape::TILE_N}, part, steps * part / splits,
                steps * (part + 1) / splits};
    }
};

// One thread: fills stages as they become empty.
template <class Shape>
__device__ __forceinline__ void produce(const WgmmaArgs& args, typename Shape::Shared& shared) {
    WgmmaTiles<Shape> tiles(args.gemm);
    Ring<Shape> ring;
#pragma unroll 1
    for (u32 index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
        WgmmaWork work = tiles.work(index);
#pragma unroll 1
        for (u32 step = work.first_step; step < work.end_step; step++) {
            u64* full = &shared.full[ring.stage];
            int k = step * Shape::STEP_K;
            mbar_wait(&shared.empty[ring.stage], ring.parity ^ 1);
            // Boxes count whole, also where they reach beyond the matrix.
            mbar_expect(full, Shape::STAGE_BYTES);
            tma_load_2d(shared.a[ring.stage], &args.a_map, full, k, work.at.row);
#pragma unroll
            for (int row = 0; row < Shape::TILE_N; row += Shape::BOX_ROWS) {
                tma_load_2d(shared.w[ring.stage] + row * Shape::STEP_K, &args.w_map, full, k, work.at.column + row);
            }
            ring.advance();
        }
    }
}

__device__ __forceinline__ void wgmma_tile(float (&sums)[64], u64 a, u64 w) { wgmma_m64n128k16(sums, a, w); }
__device__ __forceinline__ void wgmma_tile(float (&sums)[128], u64 a, u64 w) { wgmma_m64n256k16(sums, a, w); }

// All steps of one tile. Two steps are under way at a time, so that the tensor cores go from one to the next by
// themselves.
template <class Shape>
__device__ __forceinline__ void multiply_steps(typename Shape::Shared& shared, u32 group, u32 steps, Ring<Shape>& ring,
                                               float (&sums)[Shape::SUMS]) {
    bool speaks = threadIdx.x % 32 == 0;  // for its warp
    u64* used = nullptr;
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        mbar_wait(&shared.full[ring.stage], ring.parity);
        u64 a = wgmma_descriptor(shared.a[ring.stage] + group * 64 * Shape::STEP_K);
        u64 w = wgmma_descriptor(shared.w[ring.stage]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < Shape::STEP_K / 16; k++) {
            // Addresses are in units of 16 bytes: 16 values of k are two of them.
            wgmma_tile(sums, a + 2 * k, w + 2 * k);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (speaks && used) {
            mbar_arrive(used);
        }
        used = &shared.empty[ring.stage];
        ring.advance();
    }
    wgmma_wait<0>();
    wgmma_hold(sums);
    if (speaks && used) {
        mbar_arrive(used);
    }
}

// The rows of one warpgroup: finishes what it has of them.
template <class Shape>
__device__ __forceinline__ void put_tile(const GemmArgs& args, const WgmmaWork& work, u32 group,
                                         const float (&sums)[Shape::SUMS]) {
    Output output(args, 0, work.part);
    u32 warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 row = work.at.row + group * 64 + warp * 16 + g;
#pragma unroll
    for (int panel = 0; panel < Shape::TILE_N / PANEL; panel++) {
        u32 column = work.at.column + panel * PANEL;
        if (column < args.n) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float of_row[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    of_row[i] = sums[16 * panel + i / 2 * 4 + 2 * half + i % 2];
                }
                if (row + 8 * half < args.m) {
                    output.put(row + 8 * half, column, t, of_row);
                }
            }
        }
    }
}

template <class Shape>
__device__ __forceinline__ void consume(const GemmArgs& args, typename Shape::Shared& shared, u32 group) {
    WgmmaTiles<Shape> tiles(args);
    Ring<Shape> ring;
#pragma unroll 1
    for (u32 index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
        float sums[Shape::SUMS] = {};
        WgmmaWork work = tiles.work(index);
        multiply_steps<Shape>(shared, group, work.end_step - work.first_step, ring, sums);
        put_tile<Shape>(args, work, group, sums);
    }
}

template <class Shape>
__device__ __forceinline__ void gemm_wgmma(const WgmmaArgs& args) {
    DYN_SMEM(typename Shape::Shared, shared);
    u32 warpgroup = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        tma_prefetch(&args.a_map);
        tma_prefetch(&args.w_map);
        for (int s = 0; s < Shape::STAGES; s++) {
            mbar_init(&shared->full[s], 1);
            mbar_init(&shared->empty[s], CONSUMER_WARPS);
        }
        mbar_init_fence();
    }
    __syncthreads();
    // 128 x (40 + 2 x 232) registers are what a multiprocessor has, less 1,024.
    if (warpgroup == 0) {
        reg_dec<40>();
        if (threadIdx.x == 0) {
            produce<Shape>(args, *shared);
        }
    } else {
        reg_inc<232>();
        consume<Shape>(args.gemm, *shared, warpgroup - 1);
    }
}

}  // namespace product

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_128(const __grid_constant__ WgmmaArgs args) {
    product::gemm_wgmma<product::WgmmaNarrow>(args);
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_256(const __grid_constant__ WgmmaArgs args) {
    product::gemm_wgmma<product::WgmmaWide>(args);
}
