// What becomes of the sums of a product, and which block computes which tile: shared by all kernels of products.
#pragma once

#include "gate.cuh"

namespace product {

// Outputs that one thread finishes together with three others: as many as a gate needs, 16 of gate and 16 of up.
constexpr int PANEL = 32;

struct Output {
    void* out;
    const float* bias;  // null in all parts but the first
    u64 first;          // where this part begins, in values
    u32 n, stride, mode;
    Gate gate;

    __device__ __forceinline__ Output(const GemmArgs& args, u32 expert, u32 part)
        : out(args.out), bias(nullptr), first((u64)part * args.split_stride), n(args.n), stride(args.out_stride),
          mode(args.mode), gate(args.gate) {
        if (args.bias && part == 0) {
            bias = args.bias + (u64)expert * args.n;
        }
    }

    // Finishes 8 of the 32 outputs from `column` on in one row: 8 j + 2 t and the next for j = 0..3, as they lie in the
    // accumulators of a lane; t = lane % 4.
    __device__ __forceinline__ void put(u32 row, u32 column, u32 t, float (&sums)[8]) const {
        if (bias) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 pair = *(const float2*)(bias + column + 8 * j + 2 * t);
                sums[2 * j] += pair.x;
                sums[2 * j + 1] += pair.y;
            }
        }
        if (mode == GEMM_GATE) {
            put_gated(row, column, t, sums);
        } else {
            put_sums(row, column, t, sums);
        }
    }

    __device__ __forceinline__ void put_sums(u32 row, u32 column, u32 t, float (&sums)[8]) const {
        float* to = (float*)out + first + (u64)row * stride + column + 2 * t;
        if (mode == GEMM_ADD) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 pair = *(const float2*)(to + 8 * j);
                sums[2 * j] += pair.x;
                sums[2 * j + 1] += pair.y;
            }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            *(float2*)(to + 8 * j) = make_float2(sums[2 * j], sums[2 * j + 1]);
        }
    }

    __device__ __forceinline__ void put_gated(u32 row, u32 column, u32 t, const float (&sums)[8]) const {
        bf16* of_row = (bf16*)out + (u64)row * stride;
        bf16* to = of_row + column / 2 + 2 * t;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float even = gate.of(sums[2 * j], sums[2 * j + 4]);
            float odd = gate.of(sums[2 * j + 1], sums[2 * j + 5]);
            *(u32*)(to + 8 * j) = narrow_pair(even, odd);
        }
        if (column + PANEL == n) {
            // Columns that no weights are for.
#pragma unroll 1
            for (u32 zero = n / 2 + 2 * t; zero < stride; zero += 8) {
                *(u32*)(of_row + zero) = 0;
            }
        }
    }
};

// A tile of the result, by number of tiles.
struct Tile {
    u32 row, column;
};

// In which order `rows` by `columns` tiles are computed: down a group of rows, then the next column of it, so that
// tiles which are computed at the same time share rows and weights in the L2 cache.
__device__ __forceinline__ Tile tile_at(u32 index, u32 rows, u32 columns, u32 group) {
    u32 first = index / (group * columns) * group;
    u32 within = index % (group * columns);
    u32 height = min(rows - first, group);
    return {first + within % height, within / height};
}

}  // namespace product
