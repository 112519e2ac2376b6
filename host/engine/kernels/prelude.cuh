// Types and helpers that every kernel uses. No kernel includes anything but the files of this folder, so that NVRTC
// compiles them without an include path.
//
// Three compilers read these files: NVRTC (cubins and PTX), nvcc (for tools), and a host C++ compiler with
// `emu/emu.h`, which runs the same source on the processor. All inline PTX is in `intrin.cuh`; `emu/intrin.h` has the
// same names for the host.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

#ifdef EMU
#include "emu/emu.h"
#include "emu/intrin.h"
#else
#include "intrin.cuh"
#endif

// A bf16 value, as bits.
struct __align__(2) bf16 {
    u16 bits;
};

__device__ __forceinline__ float widen(bf16 value) { return __uint_as_float((u32)value.bits << 16); }

// Two bf16 values of one word, the low half first.
__device__ __forceinline__ float widen_low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float widen_high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// To the nearest, ties to even.
__device__ __forceinline__ bf16 narrow(float value) {
    bf16 out;
    out.bits = (u16)narrow_pair(value, 0.0f);
    return out;
}

__device__ __forceinline__ u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// What the driver's `cuTensorMapEncodeTiled` writes: a view of a matrix for the copy engine.
struct __align__(64) TensorMap {
    u8 opaque[128];
};

#include "args.cuh"

// An array of a step's inputs.
template <class T>
__device__ __forceinline__ const T* step_array(const Step* step, u32 at) {
    return reinterpret_cast<const T*>(reinterpret_cast<const u8*>(step) + at);
}
