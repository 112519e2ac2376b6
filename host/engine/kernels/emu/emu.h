// Runs the kernels on the processor, for tests without a GPU: the part of CUDA that they use. It shows wrong results,
// missing barriers and waits, and use of shared memory that was not written; it says nothing about speed, nor about the
// PTX of `intrin.cuh`.
//
// Rules: operations of a warp take all 32 lanes; static shared memory has no initialiser; a program has one launch at a
// time, and no thread-local variables but shared memory.
#pragma once

#include "block.h"
#include "cuda.h"
#include "launch.h"
#include "warp.h"
