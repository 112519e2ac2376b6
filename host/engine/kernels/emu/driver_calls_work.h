// Calls that queue work: streams, events, launches and graphs; and what tests say to the stand-in.
#pragma once

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

// The nth next call of this name gives `code`; "kernel NAME" is the nth next run of a kernel, and "call@1" concerns
// device 1 alone.
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

// The size of a kernel's struct; 0 for a name that is none.
EXPORT size_t emu_argument_bytes(const char* name) {
    for (const standin::Kernel& kernel : standin::kernels()) {
        if (!strcmp(kernel.name, name)) {
            return kernel.argument_bytes;
        }
    }
    return 0;
}
