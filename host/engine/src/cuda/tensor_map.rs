//! Views of matrices for the copy engine of compute capability 9.0.
#![allow(unsafe_code, reason = "the driver's interface is C")]

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType_enum as DataType, CUtensorMapFloatOOBfill_enum as Fill,
    CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
    CUtensorMapSwizzle_enum as Swizzle,
};

use super::args::{Ptr, TensorMap};
use super::driver::{Failure, driver};

/// Values of k and rows of a box, as `gemm_wgmma_128` takes them; the first is what the 128-byte swizzle spans.
const BOX: [u32; 2] = [64, 128];

/// A view of a bf16 matrix [rows, k]; what a box has beyond it is zero.
pub(crate) fn matrix(at: Ptr, rows: usize, k: usize) -> Result<TensorMap, Failure> {
    let mut map = TensorMap([0; 16]);
    let (sizes, strides, steps) = ([k as u64, rows as u64], [2 * k as u64], [1u32; 2]);
    driver!(cuTensorMapEncodeTiled(
        (&raw mut map).cast::<CUtensorMap>(),
        DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        2,
        at.0 as *mut _,
        sizes.as_ptr(),
        strides.as_ptr(),
        BOX.as_ptr(),
        steps.as_ptr(),
        Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
        Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    ))?;
    Ok(map)
}
