// A stand-in for the CUDA driver: a `libcuda.so` that runs the kernels on the processor, so that what drives a GPU is
// tested without one. Calls are those that the `cudarc` crate makes.
//
//   $CXX -O2 -std=c++17 -shared -fPIC -fvisibility=hidden -Wl,-soname,libcuda.so -o libcuda.so driver.cpp
//
// Environment: STANDIN_DEVICES (1), STANDIN_CC (9.0), STANDIN_MEMORY_MIB of each device (4096), STANDIN_SEED of the
// order of work (1), STANDIN_FAIL (planned faults, "call:nth:result,..", a call may be "kernel NAME").
#define EMU
#define KERNELS_SM90A

#include "../all.cu"

#include "driver_kernels.h"

namespace standin {

// The list twice: with and without what is for compute capability 9.0 alone.
inline const std::vector<Kernel>& kernels() {
    static const std::vector<Kernel> all = [] {
#define KERNEL(name, Argument) {#name, sizeof(Argument), call_kernel<Argument, name>, true},
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
