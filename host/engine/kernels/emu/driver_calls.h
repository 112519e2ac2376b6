// The calls themselves, by name as the driver exports them.
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

// ---------------------------------------------------------------------------------------------------------------
// Streams and events
// ---------------------------------------------------------------------------------------------------------------

EXPORT int cuStreamCreateWithPriority(void** out, unsigned flags, int priority) {
    CALL_IN_CONTEXT()
    constexpr unsigned NON_BLOCKING = 1;
    standin::default_stream(context);
    standin::forget_streams(context);
    auto stream = std::make_shared<standin::Stream>();
    stream->context = &context;
    stream->blocking = !(flags & NON_BLOCKING);
    stream->priority = priority;
    context.queues.push_back(stream);
    *out = context.streams.add(stream);
    return standin::SUCCESS;
}

EXPORT int cuStreamCreate(void** out, unsigned flags) {
    {
        CALL()
    }
    return cuStreamCreateWithPriority(out, flags, 0);
}

EXPORT int cuStreamGetPriority(void* handle, int* priority) {
    CALL_ON(handle)
    *priority = stream->priority;
    return standin::SUCCESS;
}

EXPORT int cuStreamDestroy_v2(void* handle) {
    CALL_IN_CONTEXT()
    return context.streams.all.erase(handle) ? standin::SUCCESS : standin::INVALID_HANDLE;
}

EXPORT int cuStreamSynchronize(void* handle) {
    CALL_ON(handle)
    if (stream->capture || standin::capture_forbids(context)) {
        if (stream->capture) {
            stream->capture->invalid = true;
        }
        return standin::CAPTURE_UNSUPPORTED;
    }
    standin::drain(*stream);
    return context.broken;
}

EXPORT int cuStreamQuery(void* handle) {
    CALL_ON(handle)
    if (stream->capture) {
        return standin::CAPTURE_UNSUPPORTED;
    }
    standin::step();
    return context.broken ? context.broken : stream->queue.empty() ? standin::SUCCESS : standin::NOT_READY;
}

EXPORT int cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    CALL_ON(handle)
    auto event = context.events.find(event_handle);
    return event ? standin::wait_for(stream, event) : standin::INVALID_HANDLE;
}

EXPORT int cuLaunchHostFunc(void* handle, void (*call)(void*), void* data) {
    CALL_ON(handle)
    return standin::submit(stream, [call, data] { call(data); });
}

EXPORT int cuEventCreate(void** out, unsigned flags) {
    CALL_IN_CONTEXT()
    constexpr unsigned DISABLE_TIMING = 2;
    auto event = std::make_shared<standin::Event>();
    event->timed = !(flags & DISABLE_TIMING);
    *out = context.events.add(event);
    return standin::SUCCESS;
}

EXPORT int cuEventDestroy_v2(void* handle) {
    CALL_IN_CONTEXT()
    return context.events.all.erase(handle) ? standin::SUCCESS : standin::INVALID_HANDLE;
}

EXPORT int cuEventRecord(void* event_handle, void* handle) {
    CALL_ON(handle)
    auto event = context.events.find(event_handle);
    return event ? standin::record(event, stream) : standin::INVALID_HANDLE;
}

EXPORT int cuEventQuery(void* handle) {
    CALL_IN_CONTEXT()
    auto event = context.events.find(handle);
    if (!event) {
        return standin::INVALID_HANDLE;
    }
    if (event->capture) {
        return standin::CAPTURED_EVENT;
    }
    if (event->reached < event->recorded) {
        standin::step();
    }
    bool reached = event->reached >= event->recorded;
    return context.broken ? context.broken : reached ? standin::SUCCESS : standin::NOT_READY;
}

EXPORT int cuEventSynchronize(void* handle) {
    CALL_IN_CONTEXT()
    auto event = context.events.find(handle);
    if (!event) {
        return standin::INVALID_HANDLE;
    }
    if (event->capture) {
        return standin::CAPTURED_EVENT;
    }
    while (event->reached < event->recorded && standin::step()) {
    }
    return context.broken;
}

EXPORT int cuEventElapsedTime_v2(float* ms, void* start_handle, void* end_handle) {
    CALL_IN_CONTEXT()
    auto start = context.events.find(start_handle), end = context.events.find(end_handle);
    if (!start || !end || !start->timed || !end->timed || !start->recorded || !end->recorded) {
        return standin::INVALID_HANDLE;
    }
    if (start->reached < start->recorded || end->reached < end->recorded) {
        return standin::NOT_READY;
    }
    *ms = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return standin::SUCCESS;
}

EXPORT int cuEventElapsedTime(float* ms, void* start, void* end) { return cuEventElapsedTime_v2(ms, start, end); }

// ---------------------------------------------------------------------------------------------------------------
// Modules and launches
// ---------------------------------------------------------------------------------------------------------------

EXPORT int cuModuleLoadData(void** module, const void* image) {
    CALL_IN_CONTEXT()
    return standin::load_module(context, module, image);
}

EXPORT int cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
    CALL_IN_CONTEXT()
    return standin::load_module(context, module, image);
}

EXPORT int cuModuleUnload(void* module) {
    CALL_IN_CONTEXT()
    return context.modules.all.erase(module) ? standin::SUCCESS : standin::INVALID_HANDLE;
}

EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
    CALL_IN_CONTEXT()
    return standin::get_function(context, function, module, standin::kernels(), name);
}

EXPORT int cuModuleGetGlobal_v2(u64*, size_t*, void*, const char*) {
    CALL_IN_CONTEXT()
    return standin::NOT_FOUND;
}

constexpr int FUNCTION_MAX_DYNAMIC_SHARED = 8;

EXPORT int cuFuncSetAttribute(void* handle, int attribute, int value) {
    CALL_IN_CONTEXT()
    auto function = context.functions.find(handle);
    if (!function) {
        return standin::INVALID_HANDLE;
    }
    if (attribute == FUNCTION_MAX_DYNAMIC_SHARED) {
        if (value < 0 || value > standin::shared_optin(standin::settings.capability)) {
            return standin::INVALID_VALUE;
        }
        function->dynamic_shared_max = value;
    }
    return standin::SUCCESS;
}

EXPORT int cuFuncGetAttribute(int* value, int attribute, void* handle) {
    CALL_IN_CONTEXT()
    auto function = context.functions.find(handle);
    if (!function) {
        return standin::INVALID_HANDLE;
    }
    constexpr int MAX_THREADS = 0, REGISTERS = 4;
    *value = attribute == MAX_THREADS                   ? 1024
             : attribute == REGISTERS                   ? 64
             : attribute == FUNCTION_MAX_DYNAMIC_SHARED ? function->dynamic_shared_max
                                                        : 0;
    return standin::SUCCESS;
}

EXPORT int cuFuncSetCacheConfig(void*, int) {
    CALL_IN_CONTEXT()
    return standin::SUCCESS;
}

EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void*, int threads, size_t shared,
                                                                unsigned) {
    CALL_IN_CONTEXT()
    size_t by_shared = (size_t)(standin::shared_optin(standin::settings.capability) + 1024) / (shared + 1024);
    size_t by_threads = threads > 0 ? 2048 / (size_t)threads : 0;
    *blocks = (int)(by_shared < by_threads ? by_shared : by_threads);
    return standin::SUCCESS;
}

EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t shared) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}

EXPORT int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared_bytes, void* handle, void** parameters,
                          void**) {
    CALL_ON(handle)
    standin::Launch launch = {dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), shared_bytes};
    return standin::launch_kernel(stream, function, launch, parameters);
}

// CUlaunchConfig; attributes change no result here.
struct LaunchConfig {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};

EXPORT int cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void**) {
    CALL_ON(config->stream)
    standin::Launch launch = {dim3(config->grid_x, config->grid_y, config->grid_z),
                              dim3(config->block_x, config->block_y, config->block_z), config->shared_bytes};
    return standin::launch_kernel(stream, function, launch, parameters);
}

EXPORT int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* base, const u64* sizes, const u64* strides,
                                  const unsigned* box, const unsigned* steps, int interleave, int swizzle, int,
                                  int fill) {
    CALL()
    return standin::encode_map(
        map, {type, rank, (u64)base, sizes, strides, box, steps, interleave, swizzle, fill});
}

// ---------------------------------------------------------------------------------------------------------------
// Graphs
// ---------------------------------------------------------------------------------------------------------------

EXPORT int cuStreamBeginCapture_v2(void* handle, int mode) {
    CALL_ON(handle)
    return standin::begin_capture(stream, mode);
}

EXPORT int cuStreamEndCapture(void* handle, void** graph) {
    CALL_ON(handle)
    return standin::end_capture(stream, (standin::Graph**)graph);
}

EXPORT int cuStreamIsCapturing(void* handle, int* status) {
    CALL_ON(handle)
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return standin::SUCCESS;
}

EXPORT int cuGraphInstantiateWithFlags(void** executable, void* handle, u64) {
    CALL_IN_CONTEXT()
    auto graph = context.graphs.find(handle);
    if (!graph) {
        return standin::INVALID_VALUE;
    }
    *executable = context.executables.add(std::make_shared<standin::Graph>(*graph));
    return standin::SUCCESS;
}

EXPORT int cuGraphInstantiateWithParams(void** executable, void* handle, void*) {
    return cuGraphInstantiateWithFlags(executable, handle, 0);
}

EXPORT int cuGraphUpload(void* executable, void* handle) {
    CALL_ON(handle)
    return context.executables.find(executable) ? standin::SUCCESS : standin::INVALID_VALUE;
}

EXPORT int cuGraphLaunch(void* executable, void* handle) {
    CALL_ON(handle)
    auto graph = context.executables.find(executable);
    return graph ? standin::launch_graph(stream, graph) : standin::INVALID_VALUE;
}

EXPORT int cuGraphExecDestroy(void* executable) {
    CALL_IN_CONTEXT()
    return context.executables.all.erase(executable) ? standin::SUCCESS : standin::INVALID_VALUE;
}

EXPORT int cuGraphDestroy(void* graph) {
    CALL_IN_CONTEXT()
    return context.graphs.all.erase(graph) ? standin::SUCCESS : standin::INVALID_VALUE;
}

// ---------------------------------------------------------------------------------------------------------------
// For tests
// ---------------------------------------------------------------------------------------------------------------

// The nth next call of this name gives `code`; "kernel NAME" is the nth next run of a kernel.
EXPORT void standin_fail(const char* call, int nth, int code) {
    std::lock_guard<std::mutex> guard(standin::lock);
    standin::know_settings();
    standin::planned[call].push_back({nth, code});
}

// Forgets planned faults, and reads the environment anew. Contexts stay as they are.
EXPORT void standin_reset() {
    std::lock_guard<std::mutex> guard(standin::lock);
    standin::read_environment();
}

// Changes a setting from now on: "seed", "devices", "capability" (90 for 9.0), "memory_mib". False for other names.
EXPORT bool standin_set(const char* name, long long value) {
    std::lock_guard<std::mutex> guard(standin::lock);
    standin::know_settings();
    if (!strcmp(name, "seed")) {
        emu::seed((u32)value);
    } else if (!strcmp(name, "devices")) {
        standin::settings.devices = value > standin::DEVICES_MAX ? standin::DEVICES_MAX : (int)value;
    } else if (!strcmp(name, "capability")) {
        standin::settings.capability = (int)value;
    } else if (!strcmp(name, "memory_mib")) {
        standin::settings.memory_bytes = (size_t)value << 20;
    } else {
        return false;
    }
    return true;
}

// What was said last about what went wrong; empty at first. Valid until the next call that says something.
EXPORT const char* standin_message() {
    std::lock_guard<std::mutex> guard(standin::lock);
    return standin::last_message.c_str();
}

// The size of a kernel's struct; 0 for a name that is none.
EXPORT size_t emu_argument_bytes(const char* name) {
    for (const standin::Kernel& kernel : standin::kernels()) {
        if (!strcmp(kernel.name, name)) {
            return kernel.argument_bytes;
        }
    }
    return 0;
}
