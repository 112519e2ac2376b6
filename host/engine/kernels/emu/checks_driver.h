// Mistakes in the use of the driver, with a kernel that adds one to values.
#pragma once

#include "driver_kernels.h"

struct AddOneArgs {
    u32* values;
    u32 count;
};

inline void add_one(AddOneArgs args) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < args.count) {
        args.values[i]++;
    }
}

namespace standin {

inline const std::vector<Kernel>& kernels() {
    static const std::vector<Kernel> all = {
        {"add_one", sizeof(AddOneArgs), call_kernel<AddOneArgs, add_one>, false},
        {"add_one_hopper", sizeof(AddOneArgs), call_kernel<AddOneArgs, add_one>, true},
    };
    return all;
}

}  // namespace standin

#include "driver_calls.h"

namespace checks {

constexpr u32 COUNT = 1000;
constexpr size_t BYTES = COUNT * 4;
constexpr unsigned NON_BLOCKING = 1;
constexpr int MAX_DYNAMIC_SHARED = 8;

// A device with two streams, some memory and a kernel.
struct Bench {
    void *context, *module, *function, *one, *two, *event;
    u64 a, b;
    u32* pinned;

    Bench() {
        cuInit(0);
        cuDevicePrimaryCtxRetain(&context, 0);
        cuCtxSetCurrent(context);
        cuModuleLoadData(&module, standin::ANY_IMAGE);
        expect(cuModuleGetFunction(&function, module, "add_one") == 0, "a kernel is found by its name");
        cuStreamCreate(&one, NON_BLOCKING);
        cuStreamCreate(&two, NON_BLOCKING);
        cuEventCreate(&event, 2);
        cuMemAlloc_v2(&a, BYTES);
        cuMemAlloc_v2(&b, BYTES);
        cuMemHostAlloc((void**)&pinned, BYTES, 0);
        for (u32 i = 0; i < COUNT; i++) {
            pinned[i] = i;
        }
    }
    ~Bench() { cuDevicePrimaryCtxRelease_v2(0); }

    int add_one(void* stream, u64 values, u32 count = COUNT) const {
        AddOneArgs args = {(u32*)values, count};
        void* parameters[] = {&args};
        return cuLaunchKernel(function, (count + 127) / 128, 1, 1, 128, 1, 1, 0, stream, parameters, nullptr);
    }

    // Whether device memory holds `plus`, `plus` + 1, ..
    bool counts_from(u64 values, u32 plus) const {
        std::vector<u32> got(COUNT);
        cuCtxSynchronize();
        cuMemcpyDtoH_v2(got.data(), values, BYTES);
        for (u32 i = 0; i < COUNT; i++) {
            if (got[i] != i + plus) {
                return false;
            }
        }
        return true;
    }
};

// Upload in one stream, a kernel in the other, download in the first.
bool two_streams(int mistake) {
    Bench bench;
    cuMemcpyHtoDAsync_v2(bench.a, bench.pinned, BYTES, bench.one);
    if (mistake == 1) {
        // The buffer is used again before the copy has ended.
        bench.pinned[3] = 0;
    }
    if (mistake != 3) {
        cuEventRecord(bench.event, bench.one);
    }
    if (mistake != 2) {
        cuStreamWaitEvent(bench.two, bench.event, 0);
    }
    bench.add_one(bench.two, bench.a);
    cuEventRecord(bench.event, bench.two);
    if (mistake != 4) {
        cuStreamWaitEvent(bench.one, bench.event, 0);
    }
    std::vector<u32> got(COUNT);
    u32* out = nullptr;
    cuMemHostAlloc((void**)&out, BYTES, 0);
    memset(out, 0, BYTES);
    cuMemcpyDtoHAsync_v2(out, bench.a, BYTES, bench.one);
    if (mistake != 5) {
        cuStreamSynchronize(bench.one);
    }
    bool right = true;
    for (u32 i = 0; i < COUNT; i++) {
        right &= out[i] == i + 1;
    }
    return right;
}

void check_streams() {
    mistakes({"two streams", "a pinned buffer is used again too early", "no wait for the upload",
              "no event after the upload", "no wait for the kernel", "no wait for the download"},
             two_streams);
    always_right("a buffer that is not pinned is read at once", [] {
        Bench bench;
        std::vector<u32> values(bench.pinned, bench.pinned + COUNT);
        cuMemcpyHtoDAsync_v2(bench.a, values.data(), BYTES, bench.one);
        memset(values.data(), 0, BYTES);
        cuStreamSynchronize(bench.one);
        return bench.counts_from(bench.a, 0);
    });
    always_right("the default stream and blocking streams wait for each other", [] {
        Bench bench;
        void* blocking;
        cuStreamCreate(&blocking, 0);
        cuMemcpyHtoDAsync_v2(bench.a, bench.pinned, BYTES, blocking);
        bench.add_one(nullptr, bench.a);
        bench.add_one(blocking, bench.a);
        return bench.counts_from(bench.a, 2);
    });
    sometimes_wrong("the default stream and non-blocking streams do not", [] {
        Bench bench;
        cuMemcpyHtoDAsync_v2(bench.a, bench.pinned, BYTES, bench.one);
        bench.add_one(nullptr, bench.a);
        return bench.counts_from(bench.a, 1);
    });
    always_right("an event is reached while it is asked for", [] {
        Bench bench;
        bench.add_one(bench.one, bench.a);
        cuEventRecord(bench.event, bench.one);
        int asked = 0;
        while (cuEventQuery(bench.event) == standin::NOT_READY && asked < 100) {
            asked++;
        }
        return asked < 100;
    });
}

// A graph in which a second stream adds one and a copy follows.
bool captured(int mistake) {
    Bench bench;
    void *forked, *graph = nullptr, *executable = nullptr;
    cuEventCreate(&forked, 2);
    cuStreamBeginCapture_v2(bench.one, 1);
    bool refused = false;
    if (mistake == 1) {
        u64 memory;
        refused = cuMemAlloc_v2(&memory, 4) == standin::CAPTURE_UNSUPPORTED;
    }
    cuMemcpyHtoDAsync_v2(bench.a, bench.pinned, BYTES, bench.one);
    cuEventRecord(forked, bench.one);
    cuStreamWaitEvent(bench.two, forked, 0);
    bench.add_one(bench.two, bench.a);
    if (mistake != 2) {
        cuEventRecord(bench.event, bench.two);
        cuStreamWaitEvent(bench.one, bench.event, 0);
    }
    cuMemcpyDtoDAsync_v2(bench.b, bench.a, BYTES, bench.one);
    int ended = cuStreamEndCapture(bench.one, &graph);
    if (mistake) {
        expect(mistake != 1 || refused, "no memory is given out during a capture");
        return ended == 0;
    }
    cuGraphInstantiateWithFlags(&executable, graph, 0);
    cuGraphDestroy(graph);
    bool right = true;
    for (u32 round = 0; round < 3; round++) {
        for (u32 i = 0; i < COUNT; i++) {
            bench.pinned[i] = i + round;
        }
        cuGraphLaunch(executable, bench.one);
        right &= bench.counts_from(bench.b, 1 + round);
    }
    return right;
}

void check_graphs() {
    mistakes({"graphs", "an allocation during a capture", "a stream that is not joined"}, captured);
}

void check_driver_memory() {
    Bench bench;
    std::vector<u32> got(COUNT);
    cuMemcpyDtoH_v2(got.data(), bench.a, BYTES);
    expect(got[0] == 0xffffffff && got[COUNT - 1] == 0xffffffff, "memory is poisoned");
    size_t free_bytes, total;
    cuMemGetInfo_v2(&free_bytes, &total);
    u64 large = 0, more = 0;
    expect(cuMemAlloc_v2(&more, free_bytes + 1) == standin::OUT_OF_MEMORY, "there is a limit to memory");
    expect(cuMemAlloc_v2(&large, free_bytes / 2) == 0, "large memory is given out");
    u32 last = 0;
    cuMemcpyDtoH_v2(&last, large + free_bytes / 2 / 4 * 4 - 4, 4);
    expect(last == 0xffffffff, "large memory is poisoned");
    expect(cuMemFree_v2(large) == 0 && cuMemFree_v2(large) != 0, "memory is freed once");
    std::vector<u8> page(8192);
    expect(cuMemHostRegister_v2(page.data(), 8192, 0) == 0, "memory of the host is registered");
    expect(cuMemHostRegister_v2(page.data() + 4096, 100, 0) == standin::HOST_MEMORY_ALREADY_REGISTERED, "but once");
    expect(cuMemHostUnregister(page.data()) == 0, "and unregistered");
}

// The first bytes of an image, as compilers of CUDA 12 and 13 write them.
std::vector<u8> image(u8 format, u32 flags) {
    std::vector<u8> bytes(64);
    memcpy(bytes.data(), "\x7f" "ELF", 4);
    u16 machine = 190;
    bytes[8] = format;
    memcpy(&bytes[18], &machine, 2);
    memcpy(&bytes[48], &flags, 4);
    return bytes;
}

void check_images() {
    Bench bench;
    void *module, *function;
    auto load = [&](u8 format, u32 flags) { return cuModuleLoadData(&module, image(format, flags).data()); };
    standin_set("capability", 90);
    expect(load(7, 0x5a0d5a) == 0 && load(8, 0x6005a04) == 0, "images for 9.0 are loaded");
    expect(cuModuleGetFunction(&function, module, "add_one_hopper") == 0, "with the kernels for it");
    expect(load(7, 0x500550) == standin::NO_BINARY_FOR_GPU, "an image for 8.0 does not run on 9.0");
    standin_set("capability", 86);
    expect(load(8, 0x6005004) == 0, "an image for 8.0 runs on 8.6");
    expect(cuModuleGetFunction(&function, module, "add_one_hopper") == standin::NOT_FOUND, "and lacks others");
    expect(load(8, 0x6005904) == standin::NO_BINARY_FOR_GPU, "an image for 8.9 does not");
    const char* ptx = ".version 7.0\n.target sm_80\n";
    expect(cuModuleLoadData(&module, ptx) == 0, "PTX for 8.0 is compiled");
    expect(cuModuleLoadData(&module, "nothing") == standin::INVALID_IMAGE, "nothing is no image");
    expect(cuFuncSetAttribute(bench.function, MAX_DYNAMIC_SHARED, 100 * 1024) != 0, "shared memory has a limit");
    standin_set("capability", 90);
    expect(cuFuncSetAttribute(bench.function, MAX_DYNAMIC_SHARED, 100 * 1024) == 0, "which depends on the device");
}

void check_faults() {
    {
        Bench bench;
        standin_fail("cuMemAlloc_v2", 2, standin::OUT_OF_MEMORY);
        u64 memory;
        expect(cuMemAlloc_v2(&memory, 4) == 0 && cuMemAlloc_v2(&memory, 4) == standin::OUT_OF_MEMORY &&
                   cuMemAlloc_v2(&memory, 4) == 0,
               "the call that was planned fails");
        standin_fail("cuMemAlloc_v2@0", 1, standin::OUT_OF_MEMORY);
        standin_fail("cuMemAlloc_v2@1", 1, standin::OUT_OF_MEMORY);
        expect(cuMemAlloc_v2(&memory, 4) != 0 && cuMemAlloc_v2(&memory, 4) == 0, "or that of a device");
        standin_fail("kernel add_one", 1, standin::LAUNCH_FAILED);
        bench.add_one(bench.one, bench.a);
        expect(cuStreamSynchronize(bench.one) == standin::LAUNCH_FAILED, "a kernel that fails shows in the wait");
        expect(cuMemAlloc_v2(&memory, 4) == standin::LAUNCH_FAILED, "and in every call from then on");
    }
    {
        Bench bench;
        expect(bench.add_one(bench.one, bench.a) == 0, "a new context works");
        bench.add_one(bench.one, bench.a, COUNT + 1000);
        expect(cuCtxSynchronize() == standin::ILLEGAL_ADDRESS, "a kernel beyond its memory fails");
    }
    {
        Bench bench;
        int result = cuMemcpyDtoDAsync_v2(bench.b, bench.a + 4, BYTES, bench.one);
        expect(result == standin::ILLEGAL_ADDRESS, "a copy beyond its memory fails");
        expect(cuCtxSynchronize() == standin::ILLEGAL_ADDRESS, "for good");
    }
    Bench bench;
    expect(cuStreamSynchronize(&bench) == standin::INVALID_HANDLE, "a handle that is none is refused");
    expect(cuStreamDestroy_v2(bench.two) == 0 && cuStreamSynchronize(bench.two) == standin::INVALID_HANDLE,
           "and so is one that was destroyed");
}

}  // namespace checks
