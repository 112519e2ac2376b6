// The names of `intrin.cuh` for the host; it says what each one does.
//
// What is asynchronous on a GPU lands as late as it may, or at once: both are drawn, so that a missing wait shows, and
// so does a buffer that is filled while others still read it.
#pragma once

#include "emu.h"

struct __align__(16) u128 {
    u32 x, y, z, w;
};

#define DYN_SMEM(type, name) type* name = reinterpret_cast<type*>(emu::block.shared)

// ---------------------------------------------------------------------------------------------------------------
// Numbers
// ---------------------------------------------------------------------------------------------------------------

inline u32 narrow_bits(float value) {
    u32 bits = __float_as_uint(value);
    if (value != value) {
        return 0x7fff;
    }
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline u32 narrow_pair(float lo, float hi) { return narrow_bits(hi) << 16 | narrow_bits(lo); }

inline float exp2_fast(float x) {
    float out = exp2f(x);
    return out < 1.17549435e-38f ? 0.0f : out;
}

// ---------------------------------------------------------------------------------------------------------------
// Loads and copies
// ---------------------------------------------------------------------------------------------------------------

namespace emu {

inline void check_aligned(const void* pointer, size_t bytes, const char* name) {
    if ((uintptr_t)pointer % bytes) {
        emu::fault("%s with an address that is no multiple of %zu", name, bytes);
    }
}

inline void land(const Copy& copy) {
    if (copy.live) {
        memcpy(copy.to, copy.from, 16);
    } else {
        memset(copy.to, 0, 16);
    }
}

}  // namespace emu

inline u128 load_stream(const void* from) {
    emu::check_aligned(from, 16, "load_stream");
    return *(const u128*)from;
}

inline u32 smem_address(const void* shared) { return emu::shared_address(shared); }

inline void cp_async16(u32 smem, const void* global, bool live) {
    emu::Copy copy = {emu::shared_at(smem, 16, "cp_async16"), global, live};
    emu::check_aligned(copy.to, 16, "cp_async16");
    if (live) {
        emu::check_aligned(global, 16, "cp_async16");
    }
    if (emu::draw() & 1) {
        emu::land(copy);
    } else {
        emu::current->copies.push_back(copy);
    }
}

inline void cp_commit() { emu::current->copy_groups.push_back(emu::current->copies.size()); }

template <int N>
void cp_wait() {
    auto& groups = emu::current->copy_groups;
    auto& copies = emu::current->copies;
    if (groups.size() <= (size_t)N) {
        return;
    }
    size_t ended = groups.size() - N;
    size_t landed = groups[ended - 1];
    for (size_t i = 0; i < landed; i++) {
        emu::land(copies[i]);
    }
    copies.erase(copies.begin(), copies.begin() + landed);
    groups.erase(groups.begin(), groups.begin() + ended);
    for (size_t& end : groups) {
        end -= landed;
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Tensor cores
// ---------------------------------------------------------------------------------------------------------------

namespace emu {

struct MatrixLoad {
    u32* r;
    const u8* row;
};

inline void perform_ldmatrix(Lane* lanes) {
    for (u32 l = 0; l < LANES; l++) {
        u32* r = ((MatrixLoad*)lanes[l].request)->r;
        for (u32 i = 0; i < 4; i++) {
            memcpy(&r[i], ((MatrixLoad*)lanes[8 * i + l / 4].request)->row + l % 4 * 4, 4);
        }
    }
}

inline void perform_ldmatrix_trans(Lane* lanes) {
    for (u32 l = 0; l < LANES; l++) {
        u32* r = ((MatrixLoad*)lanes[l].request)->r;
        for (u32 i = 0; i < 4; i++) {
            u16 pair[2];
            for (u32 j = 0; j < 2; j++) {
                memcpy(&pair[j], ((MatrixLoad*)lanes[8 * i + l % 4 * 2 + j].request)->row + l / 4 * 2, 2);
            }
            memcpy(&r[i], pair, 4);
        }
    }
}

inline void load_matrix(u32* r, u32 smem, const char* name, void (*perform)(Lane*)) {
    MatrixLoad request = {r, shared_at(smem, 16, name)};
    check_aligned(request.row, 16, name);
    together(name, &request, perform);
}

// Eight f32 that the compiler works on at once where it can.
typedef float Row8 __attribute__((vector_size(32)));

inline float low_half(u32 pair) { return __uint_as_float(pair << 16); }
inline float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

struct Mma {
    float* d;
    const u32* a;
    u32 b[2];
};

inline void perform_mma(Lane* lanes) {
    float a[16][16];
    Row8 b[16];
    for (u32 l = 0; l < LANES; l++) {
        const Mma& mma = *(Mma*)lanes[l].request;
        u32 g = l / 4, t = l % 4 * 2;
        for (u32 i = 0; i < 4; i++) {
            u32 row = g + i % 2 * 8, column = t + i / 2 * 8;
            a[row][column] = low_half(mma.a[i]);
            a[row][column + 1] = high_half(mma.a[i]);
        }
        for (u32 i = 0; i < 2; i++) {
            b[t + 8 * i][g] = low_half(mma.b[i]);
            b[t + 8 * i + 1][g] = high_half(mma.b[i]);
        }
    }
    for (u32 row = 0; row < 16; row++) {
        Row8 sum = {};
        for (u32 k = 0; k < 16; k++) {
            sum += a[row][k] * b[k];
        }
        for (u32 t = 0; t < 4; t++) {
            float* d = ((Mma*)lanes[row % 8 * 4 + t].request)->d + row / 8 * 2;
            d[0] += sum[2 * t];
            d[1] += sum[2 * t + 1];
        }
    }
}

}  // namespace emu

inline void ldmatrix_x4(u32 (&r)[4], u32 smem) { emu::load_matrix(r, smem, "ldmatrix_x4", emu::perform_ldmatrix); }

inline void ldmatrix_x4_trans(u32 (&r)[4], u32 smem) {
    emu::load_matrix(r, smem, "ldmatrix_x4_trans", emu::perform_ldmatrix_trans);
}

inline void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emu::Mma request = {d, a, {b0, b1}};
    emu::together("mma_bf16", &request, emu::perform_mma);
}

// ---------------------------------------------------------------------------------------------------------------
// Barriers
// ---------------------------------------------------------------------------------------------------------------

inline void bar_sync(int id, int threads) {
    if (threads <= 0) {
        emu::fault("bar_sync of %d threads", threads);
    }
    emu::arrive((u32)id, (u32)threads, "bar_sync");
}

#ifdef KERNELS_SM90A
#include "hopper.h"
#endif
