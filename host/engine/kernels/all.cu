// Everything as one unit: one cubin for each architecture, one library for the host.
#include "prelude.cuh"

#include "attend.cu"
#include "experts.cu"
#include "gemm.cu"
#include "pointwise.cu"
#include "sample.cu"
#ifdef KERNELS_SM90A
#include "gemm_wgmma.cu"
#endif
