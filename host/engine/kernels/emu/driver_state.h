// What the stand-in driver knows at any time: its settings, faults that a test has planned, and a context for each
// device. One lock guards everything; work of all devices runs on the threads that call.
#pragma once

#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "emu.h"

namespace standin {

// Results of the CUDA driver that calls here give.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_MERGE = 902,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
};

struct ResultName {
    int code;
    const char *name, *text;
};

constexpr ResultName RESULT_NAMES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate captures"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the stream it began in"},
    {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capture"},
    {CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "capture was begun by another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

inline const ResultName* find_result(int code) {
    for (const ResultName& result : RESULT_NAMES) {
        if (result.code == code) {
            return &result;
        }
    }
    return nullptr;
}

// Whether a context is of no use after this result.
inline bool breaks_context(int code) {
    bool of_memory_or_launch = code >= 700 && code < 720;
    bool of_host_calls = code == LAUNCH_OUT_OF_RESOURCES || (code >= 704 && code <= 709) ||
                         code == HOST_MEMORY_ALREADY_REGISTERED || code == HOST_MEMORY_NOT_REGISTERED;
    return code == 214 || code == 999 || (of_memory_or_launch && !of_host_calls);
}

// From the environment, and from tests in the same process.
struct Settings {
    bool known = false;
    bool initialised = false;  // by cuInit
    int devices = 1;
    int capability = 90;  // 10 times the number, as in sm_90
    size_t memory_bytes = 0;
};

// The call of this name that comes `nth` from now fails.
struct PlannedFault {
    int nth;
    int code;
};

struct Allocation {
    size_t bytes;
    size_t mapped_bytes;  // with the pages before and after
    u8* mapping;
};

struct Stream;
struct Event;
struct Module;
struct Function;
struct Graph;

// Things by their handles, which are their addresses.
template <class T>
struct Handles {
    std::map<void*, std::shared_ptr<T>> all;

    T* add(std::shared_ptr<T> thing) {
        T* handle = thing.get();
        all[handle] = std::move(thing);
        return handle;
    }
    std::shared_ptr<T> find(void* handle) const {
        auto found = all.find(handle);
        return found == all.end() ? nullptr : found->second;
    }
};

// The primary context of a device.
struct Context {
    int device = 0;
    int references = 0;
    Result broken = SUCCESS;  // what every call gives until the context is released
    size_t used_bytes = 0;
    std::map<u64, Allocation> memory;
    std::map<u64, size_t> pinned;  // of the host, page-locked: start and bytes
    std::set<u64> pinned_here;     // of those, what the driver allocated
    std::vector<std::shared_ptr<Stream>> queues;  // all with work, the default stream first
    Handles<Stream> streams;
    Handles<Event> events;
    Handles<Module> modules;
    Handles<Function> functions;
    Handles<Graph> graphs;
    Handles<Graph> executables;
};

constexpr int DEVICES_MAX = 8;

inline std::mutex lock;
inline Settings settings;
inline Context contexts[DEVICES_MAX];
inline std::map<pthread_t, Context*> current_contexts;
inline std::map<std::string, std::vector<PlannedFault>> planned;

inline void say(const std::string& message) {
    fprintf(stderr, "stand-in: %s\n", message.c_str());
}

inline void break_context(Context& context, Result code, const std::string& message) {
    if (context.broken == SUCCESS) {
        context.broken = code;
        say(message);
    }
}

inline const char* environment(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

// "cuMemAlloc_v2:3:2,..": call, which one from now, result. See `standin_fail`.
inline void plan_faults(const std::string& text) {
    for (size_t at = 0; at < text.size();) {
        size_t end = text.find(',', at);
        end = end == std::string::npos ? text.size() : end;
        std::string entry = text.substr(at, end - at);
        size_t last = entry.rfind(':');
        size_t middle = last == std::string::npos || !last ? std::string::npos : entry.rfind(':', last - 1);
        if (middle == std::string::npos) {
            say("no fault: " + entry);
        } else {
            PlannedFault fault = {atoi(entry.c_str() + middle + 1), atoi(entry.c_str() + last + 1)};
            planned[entry.substr(0, middle)].push_back(fault);
        }
        at = end + 1;
    }
}

inline void read_environment() {
    emu::seed((u32)atoi(environment("STANDIN_SEED", "1")));
    settings.devices = atoi(environment("STANDIN_DEVICES", "1"));
    settings.devices = settings.devices < 0 ? 0 : settings.devices > DEVICES_MAX ? DEVICES_MAX : settings.devices;
    settings.capability = (int)(atof(environment("STANDIN_CC", "9.0")) * 10 + 0.5);
    settings.memory_bytes = (size_t)atoll(environment("STANDIN_MEMORY_MIB", "4096")) << 20;
    planned.clear();
    plan_faults(environment("STANDIN_FAIL", ""));
    for (int i = 0; i < DEVICES_MAX; i++) {
        contexts[i].device = i;
    }
    settings.known = true;
}

inline void know_settings() {
    if (!settings.known) {
        read_environment();
    }
}

inline Context* current_context() {
    auto found = current_contexts.find(pthread_self());
    bool usable = found != current_contexts.end() && found->second && found->second->references;
    return usable ? found->second : nullptr;
}

// The result of a fault of this name that is due, or SUCCESS.
inline Result due_fault(const std::string& name) {
    auto found = planned.find(name);
    if (found == planned.end()) {
        return SUCCESS;
    }
    Result due = SUCCESS;
    auto& faults = found->second;
    for (size_t i = 0; i < faults.size();) {
        if (--faults[i].nth <= 0 && due == SUCCESS) {
            due = (Result)faults[i].code;
            faults.erase(faults.begin() + i);
        } else {
            i++;
        }
    }
    return due;
}

// The same of a call in any context, and of "call@device" in that of one device.
inline Result planned_fault(const std::string& call, const Context* context) {
    if (planned.empty()) {
        return SUCCESS;
    }
    Result due = due_fault(call);
    if (!due && context) {
        due = due_fault(call + "@" + std::to_string(context->device));
    }
    return due;
}

// What every call begins with.
inline Result begin_call(const char* call) {
    Context* context = current_context();
    Result due = planned_fault(call, context);
    if (breaks_context(due) && context) {
        break_context(*context, due, std::string("planned fault at ") + call);
    }
    return due;
}

inline bool holds(u64 start, size_t size, u64 at, size_t bytes) {
    return at >= start && at - start <= size && bytes <= size - (at - start);
}

}  // namespace standin
