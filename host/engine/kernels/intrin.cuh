// Instructions that CUDA C++ has no name for: all inline PTX of the kernels is here. `emu/intrin.h` has the same names
// for the host; a name that is added here is added there.
//
// Asm that reads or writes memory, or that all lanes of a warp execute together, is volatile, so that the compiler
// keeps its order. What makes other threads' writes visible also clobbers memory.
#pragma once

struct TensorMap;

// 16 bytes that are loaded and stored at once.
struct __align__(16) u128 {
    u32 x, y, z, w;
};

// Dynamic shared memory of the launch, as `name`. 1,024 bytes are what a 128-byte swizzle repeats after.
#define DYN_SMEM(type, name)                                                  \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];  \
    type* name = reinterpret_cast<type*>(dynamic_shared_memory)

// ---------------------------------------------------------------------------------------------------------------
// Numbers
// ---------------------------------------------------------------------------------------------------------------

// Two values rounded to bf16, to the nearest and ties to even: `lo` in the low half.
__device__ __forceinline__ u32 narrow_pair(float lo, float hi) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
    return pair;
}

// 2^x to about 2 units in the last place; results below the normal range are zero.
__device__ __forceinline__ float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// ---------------------------------------------------------------------------------------------------------------
// Loads and copies
// ---------------------------------------------------------------------------------------------------------------

// 16 bytes that are read once in a launch, as weights are: they do not displace what the L1 cache holds. Nothing may
// write them during the launch.
__device__ __forceinline__ u128 load_stream(const void* from) {
    u128 out;
    asm("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
        : "l"(from));
    return out;
}

// The address in shared memory that instructions take.
__device__ __forceinline__ u32 smem_address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// Starts a copy of 16 bytes to shared memory; of zeros when not `live`, and `global` is then not read.
__device__ __forceinline__ void cp_async16(u32 smem, const void* global, bool live) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(smem), "l"(global), "r"(live ? 16 : 0)
                 : "memory");
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the N latest groups of this thread are under way. Other threads see the data after a barrier.
template <int N>
__device__ __forceinline__ void cp_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---------------------------------------------------------------------------------------------------------------
// Tensor cores
// ---------------------------------------------------------------------------------------------------------------

// Four matrices of 8x8 bf16. Lane 8i + j gives the address of row j of matrix i (16 bytes, aligned) and receives in
// r[i] the columns 2 (lane % 4) and the next of row lane / 4.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem));
}

// The same of transposed matrices: r[i] has rows 2 (lane % 4) and the next of column lane / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem));
}

// d[16 x 8] += a[16 x 16] * b[16 x 8]. With g = lane / 4 and t = 2 (lane % 4), a lane holds
//   d: (g, t) (g, t + 1) (g + 8, t) (g + 8, t + 1)
//   a: pairs of columns from (g, t) (g + 8, t) (g, t + 8) (g + 8, t + 8) on
//   b: pairs of rows from (t, g) (t + 8, g) on
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---------------------------------------------------------------------------------------------------------------
// Barriers
// ---------------------------------------------------------------------------------------------------------------

// A barrier of `threads` threads, whole warps. Number 0 is that of __syncthreads(); there are 16.
__device__ __forceinline__ void bar_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#ifdef KERNELS_SM90A

// Instructions of compute capability 9.0 alone: barriers in shared memory that count bytes, the copy engine, and
// products of four warps that read their operands from shared memory.

// ---------------------------------------------------------------------------------------------------------------
// Barriers in shared memory: 8 bytes that one thread initialises. A barrier alternates between phases of parity 0
// and 1, beginning with 0; a phase ends when all arrivals and all expected bytes are there.
// ---------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mbar_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(arrivals) : "memory");
}

// After mbar_init and before the __syncthreads() that tells other threads: the copy engine sees the barrier, too.
__device__ __forceinline__ void mbar_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Arrives, and makes the phase wait for `bytes` of copies as well.
__device__ __forceinline__ void mbar_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void mbar_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
}

// Waits until the phase of this parity has ended. Before the first phase ended, that of parity 1 counts as ended.
__device__ __forceinline__ void mbar_wait(u64* barrier, u32 parity) {
    u32 ended;
    do {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}"
            : "=r"(ended)
            : "r"(smem_address(barrier)), "r"(parity)
            : "memory");
    } while (!ended);
}

// ---------------------------------------------------------------------------------------------------------------
// Copy engine
// ---------------------------------------------------------------------------------------------------------------

// Starts a copy of the map's box at (c0, c1) to shared memory, c0 along a row; what lies outside the matrix is zero.
// The bytes of the whole box count at the barrier. One thread starts it; `smem` is aligned to 1,024 bytes.
__device__ __forceinline__ void tma_load_2d(void* smem, const TensorMap* map, u64* barrier, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
        :
        : "r"(smem_address(smem)), "l"(map), "r"(smem_address(barrier)), "r"(c0), "r"(c1)
        : "memory");
}

// Fetches the map itself ahead of the first copy.
__device__ __forceinline__ void tma_prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Makes this thread's ordinary writes to shared memory visible to the copy engine and to wgmma.
__device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---------------------------------------------------------------------------------------------------------------
// Products of a warpgroup (four warps, 128 threads), asynchronous
// ---------------------------------------------------------------------------------------------------------------

// How wgmma finds an operand in shared memory: rows of 64 values of k, 128 bytes, in the 128-byte swizzle that the copy
// engine writes; 8 rows are 1,024 bytes. The next 16 values of k are 32 bytes on.
__device__ __forceinline__ u64 wgmma_descriptor(const void* smem) {
    const u64 swizzle_128_bytes = 1ull << 62;
    const u64 stride_of_8_rows = (u64)(1024 >> 4) << 32;
    const u64 leading_offset_unused = 1ull << 16;
    return swizzle_128_bytes | stride_of_8_rows | leading_offset_unused | ((smem_address(smem) & 0x3ffff) >> 4);
}

// Before the first product, and after other code touched its accumulators.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most the N latest groups are under way: until then accumulators and operands are not to be touched.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keeps the compiler from moving uses of accumulators over this line, such as to before a wait.
template <int N>
__device__ __forceinline__ void wgmma_hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(d[i])::"memory");
    }
}

// Lists of accumulators in asm operands.
#define KERNELS_D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define KERNELS_D16(d, i) KERNELS_D4(d, i), KERNELS_D4(d, i + 4), KERNELS_D4(d, i + 8), KERNELS_D4(d, i + 12)
#define KERNELS_D64(d, i) KERNELS_D16(d, i), KERNELS_D16(d, i + 16), KERNELS_D16(d, i + 32), KERNELS_D16(d, i + 48)

// d[64 x 128] += a[64 x 16] * transpose(b[128 x 16]). With g = lane / 4 and t = 2 (lane % 4), a lane of warp w of the
// warpgroup holds in d[4 j ..] of its rows 16 w + g and 16 w + g + 8 the columns 8 j + t and the next.
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], u64 a, u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, 1, 1, 1, 0, 0;"
        : KERNELS_D64(d, 0)
        : "l"(a), "l"(b));
}

// The same with 256 rows of b.
__device__ __forceinline__ void wgmma_m64n256k16(float (&d)[128], u64 a, u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, 1, 1, 1, 0, 0;"
        : KERNELS_D64(d, 0), KERNELS_D64(d, 64)
        : "l"(a), "l"(b));
}

#undef KERNELS_D4
#undef KERNELS_D16
#undef KERNELS_D64

// ---------------------------------------------------------------------------------------------------------------
// Registers: a warpgroup that only copies gives up what those that multiply take. All threads of the warpgroup call it.
// ---------------------------------------------------------------------------------------------------------------

template <int N>
__device__ __forceinline__ void reg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ __forceinline__ void reg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#endif  // KERNELS_SM90A
