// A stand-in for the CUDA driver: a `libcuda.so` that runs the kernels on the processor, so that what drives a GPU is
// tested without one. Calls are those that the `cudarc` crate makes.
//
//   $CXX -O2 -std=c++17 -shared -fPIC -fvisibility=hidden -Wl,-soname,libcuda.so -o libcuda.so driver.cpp
//
// Environment: STANDIN_DEVICES (1), STANDIN_CC (9.0), STANDIN_MEMORY_MIB of each device (4096), STANDIN_SEED of the
// order of work (1), STANDIN_FAIL (planned faults, "call:nth:result,..", a call may be "kernel NAME").
#define EMU
#define KERNELS_SM90A

#include "../prelude.cuh"

// Declared weak, so that the driver can be built of some of the kernels.
#define KERNEL(name, Argument) extern "C" __attribute__((weak)) void name(Argument);
#include "../list.def"
#undef KERNEL

#if __has_include("../attend.cu")
#include "../attend.cu"
#endif
#if __has_include("../experts.cu")
#include "../experts.cu"
#endif
#if __has_include("../gemm.cu")
#include "../gemm.cu"
#endif
#if __has_include("../pointwise.cu")
#include "../pointwise.cu"
#endif
#if __has_include("../sample.cu")
#include "../sample.cu"
#endif
#if __has_include("../gemm_wgmma.cu")
#include "../gemm_wgmma.cu"
#endif

#include "driver_kernels.h"

namespace standin {

template <class Argument, void (*kernel)(Argument)>
Kernel describe(const char* name) {
    // The driver may have been built without this kernel.
    bool there = (const void*)kernel != nullptr;
    return {name, sizeof(Argument), there ? call_kernel<Argument, kernel> : nullptr, true};
}

// The list twice: with and without what is for compute capability 9.0 alone.
inline const std::vector<Kernel>& kernels() {
    static const std::vector<Kernel> all = [] {
#define KERNEL(name, Argument) describe<Argument, name>(#name),
        std::vector<Kernel> out = {
#include "../list.def"
        };
#undef KERNEL
#undef KERNELS_SM90A
#define KERNEL(name, Argument) #name,
        const std::set<std::string> everywhere = {
#include "../list.def"
        };
#undef KERNEL
        for (Kernel& kernel : out) {
            kernel.hopper = !everywhere.count(kernel.name);
        }
        return out;
    }();
    return all;
}

}  // namespace standin

#include "driver_calls.h"
