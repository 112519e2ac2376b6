// Mistakes in kernels for any device.
#pragma once

namespace checks {

constexpr u32 THREADS = 128;

template <class Kernel>
bool runs(u32 threads, size_t shared_bytes, const Kernel& kernel) {
    return emu::try_launch(dim3(2), dim3(threads), shared_bytes, kernel) == nullptr;
}

// Each round every thread writes its value and reads that of the thread opposite.
bool exchange_through_shared(int mistake) {
    constexpr u32 ROUNDS = 4;
    u32 wrong = 0;
    bool ran = runs(THREADS, 0, [&] {
        __shared__ u32 values[THREADS];
        for (u32 round = 0; round < ROUNDS; round++) {
            values[threadIdx.x] = round * 1000 + threadIdx.x;
            if (mistake != 1) {
                __syncthreads();
            }
            u32 opposite = THREADS - 1 - threadIdx.x;
            wrong += values[opposite] != round * 1000 + opposite;
            if (mistake != 2) {
                __syncthreads();
            }
        }
    });
    return ran && !wrong;
}

// Two halves of a block that each have a barrier of their own.
bool named_barriers(int mistake) {
    u32 wrong = 0;
    bool ran = runs(THREADS, 0, [&] {
        __shared__ u32 values[THREADS];
        u32 half = threadIdx.x / (THREADS / 2);
        values[threadIdx.x] = threadIdx.x;
        int id = mistake == 1 ? 1 : 1 + (int)half;
        bar_sync(id, mistake == 2 ? 32 : mistake == 3 ? THREADS : THREADS / 2);
        u32 opposite = threadIdx.x ^ 63;
        wrong += values[opposite] != opposite;
    });
    return ran && !wrong;
}

void check_barriers() {
    mistakes({"barriers", "no barrier after a write", "no barrier before the next write"}, exchange_through_shared);
    mistakes({"named barriers", "one name for two barriers", "too few threads", "too many threads"}, named_barriers);
    expect(!runs(THREADS, 0, [] {
        if (threadIdx.x % 2) {
            __syncthreads();
        } else {
            bar_sync(1, 64);
        }
    }), "a warp at two barriers is refused");
    always_right("threads that have returned are not waited for", [] {
        return runs(THREADS, 0, [] {
            if (threadIdx.x >= 64) {
                return;
            }
            __syncthreads();
        });
    });
    always_right("threads with a predicate are counted", [] {
        u32 wrong = 0;
        bool ran = runs(THREADS, 0, [&] {
            wrong += __syncthreads_count(threadIdx.x < 5) != 5;
            wrong += __syncthreads_or(threadIdx.x == 77) != 1;
            wrong += __syncthreads_and(threadIdx.x < 100) != 0;
        });
        return ran && !wrong;
    });
}

void check_shared_memory() {
    u32 numbers = 0;
    bool ran = runs(THREADS, THREADS * 4, [&] {
        DYN_SMEM(float, dynamic);
        __shared__ float fixed[THREADS];
        numbers += dynamic[threadIdx.x] == dynamic[threadIdx.x];
        numbers += fixed[threadIdx.x] == fixed[threadIdx.x];
        __syncthreads();
        dynamic[threadIdx.x] = fixed[threadIdx.x] = 1.0f;
    });
    expect(ran && !numbers, "shared memory that was not written is NaN in every block");
    expect(!runs(THREADS, THREADS * 4, [] {
        DYN_SMEM(float, dynamic);
        dynamic[threadIdx.x + 1] = 1.0f;
    }), "a write beyond dynamic shared memory is refused");
    expect(!runs(32, 256, [] {
        DYN_SMEM(u8, dynamic);
        u32 r[4];
        ldmatrix_x4(r, smem_address(dynamic) + threadIdx.x * 16);
    }), "a matrix beyond dynamic shared memory is refused");
    expect(!runs(32, 1024, [] {
        DYN_SMEM(u8, dynamic);
        u32 r[4];
        ldmatrix_x4(r, smem_address(dynamic) + threadIdx.x * 16 + 8);
    }), "a matrix at a crooked address is refused");
    u32 elsewhere = 0;
    expect(!runs(32, 0, [&] { elsewhere = smem_address(&elsewhere); }), "memory that is not shared is refused");
}

// A warp's lanes hand values on through shared memory.
bool warp_through_shared(int mistake) {
    u32 wrong = 0;
    bool ran = runs(THREADS, 0, [&] {
        __shared__ u32 values[THREADS];
        values[threadIdx.x] = threadIdx.x;
        if (mistake != 1) {
            __syncwarp();
        }
        wrong += values[threadIdx.x ^ 31] != (threadIdx.x ^ 31);
    });
    return ran && !wrong;
}

void check_warps() {
    mistakes({"warps", "no __syncwarp"}, warp_through_shared);
    always_right("shuffles and votes", [] {
        u32 wrong = 0;
        bool ran = runs(64, 0, [&] {
            u32 lane = threadIdx.x % 32, base = threadIdx.x - lane, value = 3 * threadIdx.x;
            wrong += __shfl_sync(~0u, value, 5) != 3 * (base + 5);
            wrong += __shfl_sync(~0u, value, 5, 8) != 3 * (base + lane / 8 * 8 + 5);
            wrong += __shfl_xor_sync(~0u, value, 9) != 3 * (base + (lane ^ 9));
            wrong += __shfl_up_sync(~0u, value, 2) != 3 * (base + (lane < 2 ? lane : lane - 2));
            wrong += __shfl_down_sync(~0u, value, 3) != 3 * (base + (lane > 28 ? lane : lane + 3));
            wrong += __shfl_xor_sync(~0u, (double)lane, 1) != (double)(lane ^ 1);
            wrong += __ballot_sync(~0u, lane % 3 == 0) != 0x49249249;
            wrong += !__any_sync(~0u, lane == 7) || __all_sync(~0u, lane != 7);
            wrong += __reduce_add_sync(~0u, lane) != 496 || __reduce_max_sync(~0u, (int)lane - 40) != -9;
            wrong += __match_any_sync(~0u, lane % 4) != 0x11111111u << lane % 4;
        });
        return ran && !wrong;
    });
    expect(!runs(32, 0, [] {
        if (threadIdx.x < 16) {
            __syncwarp();
        } else {
            __shfl_sync(~0u, 1, 0);
        }
    }), "lanes at two operations are refused");
    expect(!runs(32, 0, [] {
        if (threadIdx.x) {
            __syncwarp();
        }
    }), "an operation that lacks a lane is refused");
    expect(!runs(48, 0, [] { __syncwarp(); }), "half a warp has no operations");
    expect(!runs(32, 0, [] { __ballot_sync(0xff, 1); }), "a mask of some lanes is refused");
}

// Tiles of 16 bytes a thread, fetched in a pipeline of two.
bool pipeline(int mistake) {
    constexpr u32 TILES = 6, STAGES = 2;
    static u32 source[TILES][THREADS][4];
    for (u32 i = 0; i < TILES * THREADS; i++) {
        source[i / THREADS][i % THREADS][0] = i;
    }
    u32 wrong = 0;
    bool ran = runs(THREADS, STAGES * THREADS * 16, [&] {
        DYN_SMEM(u32, stages);
        auto fetch = [&](u32 tile) {
            u32* to = stages + (tile % STAGES * THREADS + threadIdx.x) * 4;
            if (tile < TILES) {
                cp_async16(smem_address(to), source[tile][threadIdx.x], true);
            }
            cp_commit();
        };
        fetch(0);
        for (u32 tile = 0; tile < TILES; tile++) {
            fetch(tile + 1);
            if (mistake == 1) {
                cp_wait<2>();
            } else if (mistake != 2) {
                cp_wait<1>();
            }
            if (mistake != 3) {
                __syncthreads();
            }
            u32 opposite = THREADS - 1 - threadIdx.x;
            wrong += stages[(tile % STAGES * THREADS + opposite) * 4] != source[tile][opposite][0];
            if (mistake != 4) {
                __syncthreads();
            }
        }
    });
    return ran && !wrong;
}

void check_copies() {
    mistakes({"copies", "a wait for one group too few", "no wait", "no barrier after the wait",
              "a stage is filled while others read it"},
             pipeline);
    u32 wrong = 0;
    bool ran = runs(32, 512, [&] {
        DYN_SMEM(u32, to);
        cp_async16(smem_address(to + threadIdx.x * 4), nullptr, false);
        cp_commit();
        cp_wait<0>();
        wrong += to[threadIdx.x * 4 + 3] != 0;
    });
    expect(ran && !wrong, "a copy of nothing is zeros");
}

// d = a * b of 16 x 16 x 8 whole numbers, whose sums are exact. The mistake is in which rows a lane loads.
bool product(int mistake) {
    float expected[16][8] = {};
    float got[16][8] = {};
    auto a_of = [](u32 row, u32 k) { return (float)((row * 7 + k * 3) % 11) - 5.0f; };
    auto b_of = [](u32 k, u32 column) { return (float)((k * 5 + column) % 9) - 4.0f; };
    for (u32 row = 0; row < 16; row++) {
        for (u32 column = 0; column < 8; column++) {
            for (u32 k = 0; k < 16; k++) {
                expected[row][column] += a_of(row, k) * b_of(k, column);
            }
        }
    }
    bool ran = emu::try_launch(dim3(1), dim3(32), 1024, [&] {
        DYN_SMEM(bf16, a);
        bf16* b = a + 256;
        u32 lane = threadIdx.x;
        for (u32 i = lane; i < 256; i += 32) {
            a[i] = narrow(a_of(i / 16, i % 16));
            b[i] = narrow(i % 16 < 8 ? b_of(i / 16, i % 16) : 0.0f);
        }
        __syncwarp();
        u32 a_part[4], b_part[4];
        u32 row = mistake == 1 ? lane % 8 : lane % 16;
        ldmatrix_x4(a_part, smem_address(a + row * 16 + lane / 16 * 8));
        // Rows of b are of k, so that its pairs come from a transposed load.
        ldmatrix_x4_trans(b_part, smem_address(b + lane % 16 * 16 + lane / 16 * 8));
        float d[4] = {};
        mma_bf16(d, a_part, b_part[0], mistake == 2 ? b_part[2] : b_part[1]);
        for (u32 i = 0; i < 4; i++) {
            got[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = d[i];
        }
    }) == nullptr;
    return ran && !memcmp(got, expected, sizeof got);
}

void check_products() {
    mistakes({"products", "a lane loads another row", "the wrong half of b"}, product);
    expect(narrow_pair(1.0f, -2.0f) == 0xc0003f80, "two values are rounded to one word");
    expect(narrow(1.00390625f).bits == 0x3f80 && narrow(1.01171875f).bits == 0x3f82, "ties are rounded to even");
}

u32 reaches_down(u32 depth) {
    volatile u8 frame[4096];
    frame[depth % sizeof frame] = 1;
    return depth ? reaches_down(depth - 1) + frame[0] : 0;
}

void check_memory() {
    u32 out = 0;
    expect(!runs(32, 0, [&] { *(volatile u32*)(u64)out = 1; }), "an address that is nowhere is refused");
    expect(!runs(32, 0, [&] { out += reaches_down(1000); }), "a stack that is too small is refused");
    expect(runs(32, 0, [&] { atomicAdd(&out, 1u); }), "the next launch runs");
    expect(__umul64hi(1ull << 63, 6) == 3 && __clz(1) == 31 && __ffs(8) == 4 && __popc(255) == 8, "whole numbers");
}

}  // namespace checks
