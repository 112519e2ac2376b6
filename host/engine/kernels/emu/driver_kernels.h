// Kernels by name, the modules they come in, and their launches.
#pragma once

#include "driver_streams.h"

namespace standin {

// A kernel takes one struct by value; this calls it with the struct at an address.
struct Kernel {
    const char* name;
    size_t argument_bytes;
    void (*call)(const void* argument);
    bool hopper;  // for compute capability 9.0 alone
};

template <class Argument, void (*kernel)(Argument)>
void call_kernel(const void* argument) {
    kernel(*(const Argument*)argument);
}

struct Module {
    int image;  // the architecture it was compiled for, 80 as in sm_80; 0 for PTX
};

struct Function {
    const Kernel* kernel;
    int dynamic_shared_max = 48 * 1024;
};

// Most dynamic shared memory of a block that a device allows on request.
inline int shared_optin(int capability) {
    switch (capability) {
        case 80:
        case 87:
            return 163 * 1024;
        case 86:
        case 89:
        case 120:
        case 121:
            return 99 * 1024;
        default:
            return 227 * 1024;
    }
}

// Which architecture an ELF image is for. Where the number lies depends on the version of its format.
inline int elf_architecture(const u8* image) {
    constexpr u16 MACHINE_CUDA = 190;
    u16 machine;
    u32 flags;
    memcpy(&machine, image + 18, sizeof machine);
    memcpy(&flags, image + 48, sizeof flags);
    if (machine != MACHINE_CUDA) {
        return -1;
    }
    u8 format = image[8];
    return format >= 8 ? flags >> 8 & 0xff : flags & 0xff;
}

// The architecture that PTX asks for at least; -1 for what is no PTX.
inline int ptx_target(const char* text) {
    const char* target = strstr(text, ".target");
    const char* number = target ? strstr(target, "sm_") : nullptr;
    return strstr(text, ".version") && number ? atoi(number + 3) : -1;
}

// For tests that bring no image: all kernels of the device's own architecture.
constexpr const char* ANY_IMAGE = "//";

// Code for sm_90 and later is compiled with features of that very architecture.
inline bool can_run(int architecture, int capability) {
    if (architecture >= 90) {
        return architecture == capability;
    }
    return architecture / 10 == capability / 10 && architecture <= capability;
}

inline Result load_module(Context& context, void** module, const void* image) {
    if (!module || !image) {
        return INVALID_VALUE;
    }
    int architecture = 0;
    if (!memcmp(image, "\x7f" "ELF", 4)) {
        architecture = elf_architecture((const u8*)image);
        if (architecture < 0) {
            return INVALID_IMAGE;
        }
        if (!can_run(architecture, settings.capability)) {
            return NO_BINARY_FOR_GPU;
        }
    } else if (!strcmp((const char*)image, ANY_IMAGE)) {
        architecture = settings.capability;
    } else {
        int target = ptx_target((const char*)image);
        if (target < 0) {
            return INVALID_IMAGE;
        }
        if (target > settings.capability) {
            return INVALID_PTX;
        }
    }
    *module = context.modules.add(std::make_shared<Module>(Module{architecture}));
    return SUCCESS;
}

inline Result get_function(Context& context, void** function, void* module, const std::vector<Kernel>& kernels,
                           const char* name) {
    auto found = context.modules.find(module);
    if (!found) {
        return INVALID_HANDLE;
    }
    for (const Kernel& kernel : kernels) {
        if (!strcmp(kernel.name, name) && (!kernel.hopper || found->image == 90)) {
            *function = context.functions.add(std::make_shared<Function>(Function{&kernel}));
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

struct Launch {
    dim3 grid, block;
    unsigned shared_bytes;
};

inline bool launch_fits(const Launch& launch) {
    const dim3 &g = launch.grid, &b = launch.block;
    return g.x && g.y && g.z && g.x <= 0x7fffffff && g.y <= 65535 && g.z <= 65535 && b.x && b.y && b.z &&
           b.x <= 1024 && b.y <= 1024 && b.z <= 64 && (u64)b.x * b.y * b.z <= 1024;
}

inline void run_kernel(Context& context, const Kernel& kernel, const Launch& launch, const void* argument) {
    std::string name = kernel.name;
    Result due = planned_fault("kernel " + name, &context);
    if (due) {
        break_context(context, due, "planned fault in " + name);
        return;
    }
    const char* wrong = emu::run(launch.grid, launch.block, launch.shared_bytes, kernel.call, argument);
    if (wrong) {
        break_context(context, emu::block.bad_address ? ILLEGAL_ADDRESS : LAUNCH_FAILED, name + ": " + wrong);
    }
}

// The argument is copied now, as on a GPU.
inline Result launch_kernel(const std::shared_ptr<Stream>& stream, void* handle, const Launch& launch,
                            void** parameters) {
    Context& context = *stream->context;
    auto function = context.functions.find(handle);
    if (!function) {
        return INVALID_HANDLE;
    }
    if (!parameters || !launch_fits(launch) || launch.shared_bytes > (unsigned)function->dynamic_shared_max) {
        return INVALID_VALUE;
    }
    // Aligned as a map of the copy engine has to be.
    size_t bytes = (function->kernel->argument_bytes + 63) / 64 * 64;
    std::shared_ptr<void> argument(aligned_alloc(64, bytes), free);
    memcpy(argument.get(), parameters[0], function->kernel->argument_bytes);
    return submit(stream, [&context, function, launch, argument] {
        run_kernel(context, *function->kernel, launch, argument.get());
    });
}

// ---------------------------------------------------------------------------------------------------------------
// Maps of the copy engine
// ---------------------------------------------------------------------------------------------------------------

// The driver's numbers for what the kernels use: bf16, no interleaving, the 128-byte swizzle, zeros outside.
constexpr int TENSOR_BFLOAT16 = 9;
constexpr int TENSOR_SWIZZLE_128B = 3;

struct TensorView {
    int type;
    unsigned rank;
    u64 base;
    const u64 *sizes, *strides;
    const unsigned *box, *steps;
    int interleave, swizzle, fill;
};

inline Result encode_map(void* map, const TensorView& view) {
    bool emulated = view.type == TENSOR_BFLOAT16 && view.rank == 2 && view.box[0] == emu::MatrixMap::BOX_COLUMNS &&
                    view.steps[0] == 1 && view.steps[1] == 1 && !view.interleave && !view.fill &&
                    view.swizzle == TENSOR_SWIZZLE_128B;
    if (!emulated) {
        say("cuTensorMapEncodeTiled: only boxes of 64 bf16 in the 128-byte swizzle are known");
        return NOT_SUPPORTED;
    }
    u64 columns = view.sizes[0], rows = view.sizes[1], row_bytes = view.strides[0];
    bool valid = (u64)map % 64 == 0 && view.base % 16 == 0 && row_bytes % 16 == 0 && columns && rows &&
                 columns * 2 <= row_bytes && view.box[1] && view.box[1] <= 256;
    if (!valid) {
        return INVALID_VALUE;
    }
    if (!is_reachable(view.base, (rows - 1) * row_bytes + columns * 2)) {
        say("cuTensorMapEncodeTiled: a matrix beyond its memory");
        return INVALID_VALUE;
    }
    emu::MatrixMap out = {emu::MatrixMap::MARK, (const u8*)view.base, columns, rows, row_bytes, view.box[1]};
    memset(map, 0, 128);
    memcpy(map, &out, sizeof out);
    return SUCCESS;
}

}  // namespace standin
