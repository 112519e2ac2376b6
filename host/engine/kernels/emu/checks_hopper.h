// Mistakes in kernels for compute capability 9.0.
#pragma once

namespace checks {

// Threads 0 .. 63 fill a slot, the others read it, in rounds.
bool hand_over(int mistake) {
    constexpr u32 ROUNDS = 4;
    u32 wrong = 0;
    bool ran = runs(THREADS, 0, [&] {
        __shared__ u64 full, empty;
        __shared__ u32 slot[64];
        if (threadIdx.x == 0) {
            mbar_init(&full, mistake == 1 ? 63 : 64);
            mbar_init(&empty, 64);
            if (mistake != 2) {
                mbar_init_fence();
            }
        }
        __syncthreads();
        u32 place = threadIdx.x % 64;
        for (u32 round = 0; round < ROUNDS; round++) {
            u32 parity = mistake == 3 ? 0 : round & 1;
            if (threadIdx.x < 64) {
                if (mistake != 4) {
                    mbar_wait(&empty, parity ^ 1);
                }
                slot[place] = round * 64 + place;
                mbar_arrive(&full);
            } else {
                if (mistake != 5) {
                    mbar_wait(&full, parity);
                }
                wrong += slot[63 - place] != round * 64 + 63 - place;
                if (mistake != 6) {
                    mbar_arrive(&empty);
                }
            }
        }
    });
    return ran && !wrong;
}

void check_mbarriers() {
    mistakes({"barriers in shared memory", "too few arrivals", "no fence after the initialisation", "a wrong parity",
              "no wait for an empty slot", "no wait for a full slot", "no arrival"},
             hand_over);
    expect(!runs(32, 0, [] {
        __shared__ u64 barrier;
        mbar_arrive(&barrier);
    }), "a barrier that was not initialised is refused");
}

constexpr u32 BOX_BYTES = 64 * 128;

TensorMap map_of(const bf16* base, u64 columns, u64 rows, u32 box_rows) {
    emu::MatrixMap view = {emu::MatrixMap::MARK, (const u8*)base, columns, rows, columns * 2, box_rows};
    TensorMap map = {};
    memcpy(&map, &view, sizeof view);
    return map;
}

// A box of 64 rows, the last of which are outside, read through the swizzle.
bool box(int mistake) {
    static bf16 matrix[80][128];
    for (u32 i = 0; i < 80 * 128; i++) {
        matrix[i / 128][i % 128].bits = (u16)i;
    }
    TensorMap map = map_of(matrix[0], 128, 80, 64);
    u32 wrong = 0;
    bool ran = runs(THREADS, BOX_BYTES + 1024, [&] {
        DYN_SMEM(u8, smem);
        u64* full = (u64*)(smem + BOX_BYTES);
        if (threadIdx.x == 0) {
            mbar_init(full, 1);
            mbar_init_fence();
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            mbar_expect(full, mistake == 1 ? BOX_BYTES / 2 : mistake == 2 ? BOX_BYTES * 2 : BOX_BYTES);
            tma_load_2d(smem, &map, full, 64, 32);
        }
        if (mistake != 3) {
            mbar_wait(full, 0);
        }
        for (u32 i = threadIdx.x; i < 64 * 64; i += THREADS) {
            u32 row = i / 64, column = i % 64;
            u32 part = mistake == 4 ? column / 8 : column / 8 ^ row % 8;
            u16 value = ((bf16*)(smem + row * 128))[part * 8 + column % 8].bits;
            wrong += value != (row + 32 < 80 ? matrix[row + 32][column + 64].bits : 0);
        }
    });
    return ran && !wrong;
}

void check_copy_engine() {
    mistakes({"boxes", "too few bytes are expected", "too many bytes are expected", "no wait for a box",
              "the swizzle is forgotten"},
             box);
}

// d = a * transpose(b) of 64 x 64 by 128 x 64 whole numbers by one warpgroup, k in four parts of 16.
template <u32 COLUMNS>
bool warpgroup_product(int mistake) {
    static bf16 a[64][64], b[COLUMNS][64];
    static float got[64][COLUMNS];
    for (u32 k = 0; k < 64; k++) {
        for (u32 row = 0; row < 64; row++) {
            a[row][k] = narrow((float)((row * 5 + k) % 7) - 3.0f);
        }
        for (u32 column = 0; column < COLUMNS; column++) {
            b[column][k] = narrow((float)((column * 3 + k * 2) % 5) - 2.0f);
        }
    }
    memset(got, 0xff, sizeof got);
    bool ran = emu::try_launch(dim3(1), dim3(128), (64 + COLUMNS) * 128, [&] {
        DYN_SMEM(u8, smem);
        u8* b_smem = smem + BOX_BYTES;
        auto store = [&](u8* to, u32 row, u32 k, bf16 value) {
            u32 part = (k / 8) ^ (row % 8);
            ((bf16*)(to + row * 128))[part * 8 + k % 8] = value;
        };
        for (u32 i = threadIdx.x; i < 64 * 64; i += 128) {
            store(smem, i / 64, i % 64, a[i / 64][i % 64]);
        }
        for (u32 i = threadIdx.x; i < COLUMNS * 64; i += 128) {
            store(b_smem, i / 64, i % 64, b[i / 64][i % 64]);
        }
        async_fence();
        __syncthreads();
        float d[COLUMNS / 2] = {};
        if (mistake != 1) {
            wgmma_fence();
        }
        for (u32 k = 0; k < 64; k += 16) {
            u32 step = mistake == 2 ? 16 : 32;
            u64 a_part = wgmma_descriptor(smem + k / 16 * step), b_part = wgmma_descriptor(b_smem + k / 16 * step);
            if constexpr (COLUMNS == 128) {
                wgmma_m64n128k16(d, a_part, b_part);
            } else {
                wgmma_m64n256k16(d, a_part, b_part);
            }
            wgmma_commit();
        }
        if (mistake == 3) {
            wgmma_wait<1>();
        } else if (mistake != 4) {
            wgmma_wait<0>();
        }
        if (mistake == 5) {
            wgmma_m64n128k16((float(&)[64])d, wgmma_descriptor(smem), threadIdx.x / 32);
        }
        u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (u32 i = 0; i < COLUMNS / 2; i++) {
            got[warp * 16 + lane / 4 + i % 4 / 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
        }
    }) == nullptr;
    bool right = ran;
    for (u32 row = 0; row < 64; row++) {
        for (u32 column = 0; column < COLUMNS; column++) {
            float expected = 0;
            for (u32 k = 0; k < 64; k++) {
                expected += widen(a[row][k]) * widen(b[column][k]);
            }
            right &= got[row][column] == expected;
        }
    }
    return right;
}

void check_warpgroups() {
    mistakes({"products of a warpgroup", "no fence before products", "wrong steps along k",
              "a wait for too few products", "no wait for products", "a descriptor that differs between warps"},
             warpgroup_product<128>);
    always_right("products of 256 columns", [] { return warpgroup_product<256>(0); });
}

}  // namespace checks
