// What a block or a warp does with one row: loads and stores of four columns, sums, and RMSNorm.
#pragma once

namespace row {

constexpr u32 ALL_LANES = 0xffffffff;

__device__ __forceinline__ float f32_infinity() { return __uint_as_float(0x7f800000u); }

__device__ __forceinline__ u32 lane_id() { return threadIdx.x % 32; }
__device__ __forceinline__ u32 warp_id() { return threadIdx.x / 32; }

// ---------------------------------------------------------------------------------------------------------------
// Four columns at once
// ---------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float4 splat(float value) { return make_float4(value, value, value, value); }

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

__device__ __forceinline__ float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// Columns 4 quad .. of a row that has `width` of them, a multiple of 4; those beyond are zero and not read.
__device__ __forceinline__ float4 load_quad(const float* row, u32 quad, u32 width) {
    return 4 * quad < width ? *reinterpret_cast<const float4*>(row + 4 * quad) : splat(0.0f);
}

__device__ __forceinline__ void store_quad(float* row, u32 quad, float4 values) {
    *reinterpret_cast<float4*>(row + 4 * quad) = values;
}

__device__ __forceinline__ void store_quad(bf16* row, u32 quad, float4 values) {
    *reinterpret_cast<uint2*>(row + 4 * quad) =
        make_uint2(narrow_pair(values.x, values.y), narrow_pair(values.z, values.w));
}

// ---------------------------------------------------------------------------------------------------------------
// Sums, the same in every thread
// ---------------------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, lanes);
    }
    return value;
}

// All threads of the block call it. `parts` [32] is shared memory that nothing else uses between two barriers.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* parts) {
    value = warp_sum(value);
    // A sum before this one may still be read.
    __syncthreads();
    if (lane_id() == 0) {
        parts[warp_id()] = value;
    }
    __syncthreads();
    return warp_sum(lane_id() < blockDim.x / 32 ? parts[lane_id()] : T(0));
}

// The sum of the values of this thread and all before it. As block_sum; of integers alone, which any order adds alike.
template <class T>
__device__ __forceinline__ T block_prefix(T value, T* parts) {
#pragma unroll
    for (u32 lanes = 1; lanes < 32; lanes *= 2) {
        T before = __shfl_up_sync(ALL_LANES, value, lanes);
        value += lane_id() >= lanes ? before : T(0);
    }
    __syncthreads();
    if (lane_id() == 31) {
        parts[warp_id()] = value;
    }
    __syncthreads();
    return value + warp_sum(lane_id() < warp_id() ? parts[lane_id()] : T(0));
}

// ---------------------------------------------------------------------------------------------------------------
// RMSNorm. Source: arXiv 1910.07467, equation 4
// ---------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float inverse_rms(float squares, u32 width, float eps) {
    return rsqrtf(squares / (float)width + eps);
}

// Quads of a row that a thread keeps in registers: 4,096 columns in a block of 256 threads.
constexpr u32 QUADS_HELD = 4;

// Whether a row of so many quads is kept in registers; else it is read again for every pass.
__device__ __forceinline__ bool row_fits(u32 quads) { return quads <= QUADS_HELD * blockDim.x; }

// Calls visit(place, quad) for every quad of this thread. HELD: there are at most QUADS_HELD, at places that are known
// when the code is compiled, as registers need it.
template <bool HELD, class Visit>
__device__ __forceinline__ void each_quad(u32 quads, const Visit& visit) {
    if (HELD) {
#pragma unroll
        for (u32 place = 0; place < QUADS_HELD; place++) {
            u32 quad = threadIdx.x + place * blockDim.x;
            if (quad < quads) {
                visit(place, quad);
            }
        }
    } else {
#pragma unroll 2
        for (u32 quad = threadIdx.x; quad < quads; quad += blockDim.x) {
            visit(0u, quad);
        }
    }
}

// A thread's quads of a row. What is held is loaded side by side before it is needed, so that a row costs one wait for
// memory and not one for each quad; what is not held is loaded where it is used.
template <bool HELD>
struct Quads {
    float4 held[HELD ? QUADS_HELD : 1];

    template <class Load>
    __device__ __forceinline__ void hold(u32 quads, const Load& load) {
        if (HELD) {
            each_quad<HELD>(quads, [&](u32 place, u32 quad) { held[place] = load(quad); });
        }
    }

    template <class Load>
    __device__ __forceinline__ void add(u32 quads, const Load& load) {
        each_quad<HELD>(quads, [&](u32 place, u32 quad) { held[place] = held[place] + load(quad); });
    }

    template <class Load>
    __device__ __forceinline__ float4 at(u32 place, u32 quad, const Load& load) const {
        return HELD ? held[place] : load(quad);
    }
};

// What a norm writes.
struct NormOut {
    const float* weight;  // [width] or null
    bf16* out;
    u32 out_stride;
    u32 width;
    float eps;
};

// out = bf16(rmsnorm(row) * weight), or bf16(row) without weights; zero from `width` on. `squares` is the thread's part
// of their sum; load(quad) gives the row where it is not held. All threads of the block call it.
template <bool HELD, class Load>
__device__ __forceinline__ void write_norm(const NormOut& norm, const Quads<HELD>& row, float squares, float* parts,
                                           const Load& load) {
    u32 quads = norm.out_stride / 4;
    auto load_weight = [&](u32 quad) { return norm.weight ? load_quad(norm.weight, quad, norm.width) : splat(1.0f); };
    Quads<HELD> weights;
    weights.hold(quads, load_weight);
    float scale = norm.weight ? inverse_rms(block_sum(squares, parts), norm.width, norm.eps) : 1.0f;
    each_quad<HELD>(quads, [&](u32 place, u32 quad) {
        float4 x = 4 * quad < norm.width ? row.at(place, quad, load) : splat(0.0f);
        store_quad(norm.out, quad, x * splat(scale) * weights.at(place, quad, load_weight));
    });
}

}  // namespace row

using namespace row;
