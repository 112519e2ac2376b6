// The calls themselves, by name as the driver exports them: devices, contexts, memory and copies.
#pragma once

#include "driver_kernels.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Calls that need no context, calls that need one that works, and those that name a stream of it.
#define CALL()                                                                     \
    std::lock_guard<std::mutex> guard(standin::lock);                              \
    if (!standin::settings.initialised) {                                          \
        return standin::NOT_INITIALIZED;                                           \
    }                                                                              \
    if (standin::Result due = standin::begin_call(__func__)) {                     \
        return due;                                                                \
    }
#define CALL_IN_CONTEXT()                                                          \
    CALL()                                                                         \
    if (!standin::current_context()) {                                             \
        return standin::INVALID_CONTEXT;                                           \
    }                                                                              \
    standin::Context& context = *standin::current_context();                       \
    if (context.broken) {                                                          \
        return context.broken;                                                     \
    }
#define CALL_ON(handle)                                                            \
    CALL_IN_CONTEXT()                                                              \
    auto stream = standin::find_stream(context, handle);                           \
    if (!stream) {                                                                 \
        return standin::INVALID_HANDLE;                                            \
    }

using standin::Result;

// ---------------------------------------------------------------------------------------------------------------
// The driver and devices
// ---------------------------------------------------------------------------------------------------------------

EXPORT int cuInit(unsigned) {
    std::lock_guard<std::mutex> guard(standin::lock);
    standin::know_settings();
    if (Result due = standin::begin_call(__func__)) {
        return due;
    }
    if (!standin::settings.devices) {
        return standin::NO_DEVICE;
    }
    standin::settings.initialised = true;
    return standin::SUCCESS;
}

EXPORT int cuDriverGetVersion(int* version) {
    *version = 13000;
    return standin::SUCCESS;
}

EXPORT int cuGetErrorName(int code, const char** name) {
    const standin::ResultName* result = standin::find_result(code);
    *name = result ? result->name : nullptr;
    return result ? standin::SUCCESS : standin::INVALID_VALUE;
}

EXPORT int cuGetErrorString(int code, const char** text) {
    const standin::ResultName* result = standin::find_result(code);
    *text = result ? result->text : nullptr;
    return result ? standin::SUCCESS : standin::INVALID_VALUE;
}

EXPORT int cuDeviceGetCount(int* count) {
    CALL()
    *count = standin::settings.devices;
    return standin::SUCCESS;
}

EXPORT int cuDeviceGet(int* device, int ordinal) {
    CALL()
    *device = ordinal;
    return ordinal >= 0 && ordinal < standin::settings.devices ? standin::SUCCESS : standin::INVALID_DEVICE;
}

EXPORT int cuDeviceGetName(char* name, int length, int) {
    CALL()
    snprintf(name, (size_t)length, "stand-in");
    return standin::SUCCESS;
}

EXPORT int cuDeviceGetUuid_v2(char* uuid, int device) {
    CALL()
    memset(uuid, 0, 16);
    uuid[15] = (char)(device + 1);
    return standin::SUCCESS;
}

EXPORT int cuDeviceGetUuid(char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

EXPORT int cuDeviceGetPCIBusId(char* id, int length, int device) {
    CALL()
    snprintf(id, (size_t)length, "0000:%02x:00.0", device + 1);
    return standin::SUCCESS;
}

EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
    CALL()
    *bytes = standin::settings.memory_bytes;
    return standin::SUCCESS;
}

// Numbers of CUdevice_attribute that the host asks for; the rest is zero.
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
    CALL()
    static const std::map<int, int> fixed = {
        {1, 1024},          // threads of a block
        {2, 1024},          // .. in x
        {3, 1024},          // .. in y
        {4, 64},            // .. in z
        {5, 0x7fffffff},    // blocks in x
        {6, 65535},         // .. in y
        {7, 65535},         // .. in z
        {8, 48 * 1024},     // shared memory of a block
        {10, 32},           // warp
        {12, 65536},        // registers of a block
        {13, 1980000},      // clock, kHz
        {15, 1},            // copies and kernels overlap
        {16, 4},            // multiprocessors
        {19, 1},            // host memory can be mapped
        {31, 1},            // kernels run at the same time
        {36, 2619000},      // memory clock, kHz
        {37, 6144},         // memory bus, bits
        {38, 50 << 20},     // L2 cache
        {39, 2048},         // threads of a multiprocessor
        {40, 3},            // copy engines
        {41, 1},            // unified addresses
        {82, 65536},        // registers of a multiprocessor
        {89, 0},            // concurrent managed access
        {95, 1},            // cooperative launch
        {106, 32},          // blocks of a multiprocessor
        {115, 1},           // memory pools
    };
    int capability = standin::settings.capability;
    auto found = fixed.find(attribute);
    switch (attribute) {
        case 33:  // PCI bus
            *value = device + 1;
            break;
        case 75:
            *value = capability / 10;
            break;
        case 76:
            *value = capability % 10;
            break;
        case 81:  // shared memory of a multiprocessor
            *value = standin::shared_optin(capability) + 1024;
            break;
        case 97:
            *value = standin::shared_optin(capability);
            break;
        default:
            *value = found == fixed.end() ? 0 : found->second;
    }
    return standin::SUCCESS;
}

// ---------------------------------------------------------------------------------------------------------------
// Contexts
// ---------------------------------------------------------------------------------------------------------------

EXPORT int cuDevicePrimaryCtxRetain(void** out, int device) {
    CALL()
    if (device < 0 || device >= standin::settings.devices) {
        return standin::INVALID_DEVICE;
    }
    standin::Context& context = standin::contexts[device];
    context.references++;
    *out = &context;
    return standin::SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    CALL()
    if (device < 0 || device >= standin::settings.devices || !standin::contexts[device].references) {
        return standin::INVALID_CONTEXT;
    }
    standin::Context& context = standin::contexts[device];
    if (--context.references == 0) {
        if (!context.broken) {
            standin::drain_all(context);
        }
        standin::free_everything(context);
        context = standin::Context();
        context.device = device;
    }
    return standin::SUCCESS;
}

EXPORT int cuCtxSetCurrent(void* context) {
    CALL()
    standin::current_contexts[pthread_self()] = (standin::Context*)context;
    return standin::SUCCESS;
}

EXPORT int cuCtxGetCurrent(void** context) {
    CALL()
    *context = standin::current_context();
    return standin::SUCCESS;
}

EXPORT int cuCtxGetDevice(int* device) {
    CALL()
    if (!standin::current_context()) {
        return standin::INVALID_CONTEXT;
    }
    *device = standin::current_context()->device;
    return standin::SUCCESS;
}

EXPORT int cuCtxSynchronize() {
    CALL_IN_CONTEXT()
    if (standin::capture_forbids(context)) {
        return standin::CAPTURE_UNSUPPORTED;
    }
    standin::drain_all(context);
    return context.broken;
}

EXPORT int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    CALL_IN_CONTEXT()
    *least = 0;
    *greatest = -5;
    return standin::SUCCESS;
}

EXPORT int cuCtxGetLimit(size_t* value, int) {
    CALL_IN_CONTEXT()
    *value = 0;
    return standin::SUCCESS;
}

EXPORT int cuCtxSetLimit(int, size_t) {
    CALL_IN_CONTEXT()
    return standin::SUCCESS;
}

EXPORT int cuCtxSetFlags(unsigned) {
    CALL_IN_CONTEXT()
    return standin::SUCCESS;
}

// ---------------------------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------------------------

EXPORT int cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
    CALL_IN_CONTEXT()
    *free_bytes = standin::free_bytes(context);
    *total_bytes = standin::settings.memory_bytes;
    return standin::SUCCESS;
}

EXPORT int cuMemAlloc_v2(u64* memory, size_t bytes) {
    CALL_IN_CONTEXT()
    if (standin::capture_forbids(context)) {
        return standin::CAPTURE_UNSUPPORTED;
    }
    return standin::allocate(context, memory, bytes);
}

EXPORT int cuMemAllocAsync(u64* memory, size_t bytes, void* handle) {
    CALL_ON(handle)
    if (standin::capture_forbids(context) || stream->capture) {
        return standin::CAPTURE_UNSUPPORTED;
    }
    Result result = standin::allocate(context, memory, bytes);
    if (result == standin::OUT_OF_MEMORY) {
        // What other work is about to free.
        standin::drain_all(context);
        result = standin::allocate(context, memory, bytes);
    }
    return result;
}

EXPORT int cuMemFree_v2(u64 memory) {
    CALL_IN_CONTEXT()
    if (standin::capture_forbids(context)) {
        return standin::CAPTURE_UNSUPPORTED;
    }
    standin::drain_all(context);
    Result result = standin::free_memory(context, memory);
    return context.broken ? context.broken : result;
}

EXPORT int cuMemFreeAsync(u64 memory, void* handle) {
    CALL_ON(handle)
    if (!context.memory.count(memory)) {
        return standin::INVALID_VALUE;
    }
    if (stream->capture) {
        return standin::CAPTURE_UNSUPPORTED;
    }
    return standin::submit(stream, [&context, memory] { standin::free_memory(context, memory); });
}

EXPORT int cuMemHostAlloc(void** host, size_t bytes, unsigned) {
    CALL_IN_CONTEXT()
    if (standin::capture_forbids(context)) {
        return standin::CAPTURE_UNSUPPORTED;
    }
    return standin::allocate_host(context, host, bytes);
}

EXPORT int cuMemFreeHost(void* host) {
    CALL_IN_CONTEXT()
    standin::drain_all(context);
    return standin::free_host(context, host);
}

EXPORT int cuMemHostRegister_v2(void* host, size_t bytes, unsigned) {
    CALL_IN_CONTEXT()
    return standin::register_host(context, host, bytes);
}

EXPORT int cuMemHostUnregister(void* host) {
    CALL_IN_CONTEXT()
    return standin::unregister_host(context, host);
}

EXPORT int cuMemHostGetDevicePointer_v2(u64* memory, void* host, unsigned) {
    CALL_IN_CONTEXT()
    *memory = (u64)host;
    return standin::is_pinned(context, host, 1) ? standin::SUCCESS : standin::INVALID_VALUE;
}

// ---------------------------------------------------------------------------------------------------------------
// Copies
// ---------------------------------------------------------------------------------------------------------------

EXPORT int cuMemcpyHtoDAsync_v2(u64 to, const void* host, size_t bytes, void* handle) {
    CALL_ON(handle)
    return bytes ? standin::copy_in(stream, "cuMemcpyHtoDAsync_v2", to, host, bytes) : standin::SUCCESS;
}

EXPORT int cuMemcpyDtoHAsync_v2(void* host, u64 from, size_t bytes, void* handle) {
    CALL_ON(handle)
    return bytes ? standin::copy_out(stream, "cuMemcpyDtoHAsync_v2", host, from, bytes) : standin::SUCCESS;
}

EXPORT int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void* handle) {
    CALL_ON(handle)
    return bytes ? standin::copy_within(stream, "cuMemcpyDtoDAsync_v2", to, from, bytes) : standin::SUCCESS;
}

// Copies of the default stream that the call waits for.
#define WAIT_FOR_COPY(copy)                                                        \
    if (standin::capture_forbids(context)) {                                       \
        return standin::CAPTURE_UNSUPPORTED;                                       \
    }                                                                              \
    Result result = bytes ? (copy) : standin::SUCCESS;                             \
    standin::drain(*stream);                                                       \
    return result ? result : context.broken;

EXPORT int cuMemcpyHtoD_v2(u64 to, const void* host, size_t bytes) {
    CALL_ON(nullptr)
    WAIT_FOR_COPY(standin::copy_in(stream, "cuMemcpyHtoD_v2", to, host, bytes))
}

EXPORT int cuMemcpyDtoH_v2(void* host, u64 from, size_t bytes) {
    CALL_ON(nullptr)
    WAIT_FOR_COPY(standin::copy_out(stream, "cuMemcpyDtoH_v2", host, from, bytes))
}

EXPORT int cuMemcpyDtoD_v2(u64 to, u64 from, size_t bytes) {
    CALL_ON(nullptr)
    WAIT_FOR_COPY(standin::copy_within(stream, "cuMemcpyDtoD_v2", to, from, bytes))
}

EXPORT int cuMemcpyPeerAsync(u64 to, void*, u64 from, void*, size_t bytes, void* handle) {
    CALL_ON(handle)
    return bytes ? standin::copy_within(stream, "cuMemcpyPeerAsync", to, from, bytes) : standin::SUCCESS;
}

EXPORT int cuMemsetD8Async(u64 to, unsigned char value, size_t bytes, void* handle) {
    CALL_ON(handle)
    return bytes ? standin::fill(stream, "cuMemsetD8Async", to, value, 1, bytes) : standin::SUCCESS;
}

EXPORT int cuMemsetD16Async(u64 to, unsigned short value, size_t count, void* handle) {
    CALL_ON(handle)
    return count ? standin::fill(stream, "cuMemsetD16Async", to, value, 2, count) : standin::SUCCESS;
}

EXPORT int cuMemsetD32Async(u64 to, unsigned value, size_t count, void* handle) {
    CALL_ON(handle)
    return count ? standin::fill(stream, "cuMemsetD32Async", to, value, 4, count) : standin::SUCCESS;
}

EXPORT int cuMemsetD8_v2(u64 to, unsigned char value, size_t bytes) {
    CALL_ON(nullptr)
    WAIT_FOR_COPY(standin::fill(stream, "cuMemsetD8_v2", to, value, 1, bytes))
}

#include "driver_calls_work.h"
