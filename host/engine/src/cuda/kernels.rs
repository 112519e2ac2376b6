//! The kernels of a device: loaded from the image that is made for it, and launched with one struct each.
#![allow(unsafe_code, reason = "the driver's interface is C")]

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};

use super::args::Plain;
use super::driver::{Context, Failure, driver};
use super::stream::Stream;

macro_rules! kernels {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// A kernel; `kernels/args.cuh` says what each does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kernel { $($variant),* }

        impl Kernel {
            /// All of them, in the order of their numbers.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in an image.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

kernels! {
    Embed = "embed",
    Angles = "angles",
    RowNorm = "row_norm",
    AddNorm = "add_norm",
    PickNorm = "pick_norm",
    RopeKv = "rope_kv",
    Gate = "gate",
    Score = "score",
    Route = "route",
    SortExperts = "sort_experts",
    AddExperts = "add_experts",
    Sample = "sample",
    CopyBlocks = "copy_blocks",
    Unpack = "unpack",
    Skinny16 = "skinny_16",
    Skinny32 = "skinny_32",
    Skinny64 = "skinny_64",
    Gemm64 = "gemm_64",
    Gemm128 = "gemm_128",
    AttendDecode64 = "attend_decode_64",
    AttendDecode128 = "attend_decode_128",
    AttendDecode256 = "attend_decode_256",
    AttendPrefill64 = "attend_prefill_64",
    AttendPrefill128 = "attend_prefill_128",
    AttendPrefill256 = "attend_prefill_256",
    AttendCombine = "attend_combine",
    GemmWgmma128 = "gemm_wgmma_128",
    GemmWgmma256 = "gemm_wgmma_256",
}

impl Kernel {
    /// Dynamic shared memory of a block, in bytes, as the kernel's source says.
    pub(crate) fn shared_bytes(self) -> u32 {
        match self {
            Self::AttendDecode64 => 72 << 10,
            Self::AttendDecode128 => 80 << 10,
            Self::AttendPrefill64 | Self::Skinny64 | Self::Gemm64 | Self::Gemm128 => 48 << 10,
            Self::AttendDecode256 | Self::AttendPrefill128 | Self::AttendPrefill256 => 96 << 10,
            Self::GemmWgmma128 | Self::GemmWgmma256 => 193 << 10,
            _ => 0,
        }
    }
}

/// How a kernel is spread over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub(crate) shared_bytes: u32,
}

impl Grid {
    /// So many blocks in a row, without dynamic shared memory.
    pub(crate) fn row(blocks: usize, threads: u32) -> Self {
        Self { blocks: [blocks as u32, 1, 1], threads, shared_bytes: 0 }
    }
}

/// A loaded image.
#[derive(Debug)]
pub(crate) struct Kernels {
    context: Arc<Context>,
    module: sys::CUmodule,
    /// By number; none for those that this device does not have.
    functions: Vec<Option<sys::CUfunction>>,
}

// SAFETY: modules and functions are names that any thread may use in their context.
unsafe impl Send for Kernels {}

/// Dynamic shared memory beyond this needs to be asked for.
const SHARED_BYTES_PLAIN: u32 = 48 << 10;

impl Kernels {
    /// Loads an image: a cubin, or PTX that ends with a zero byte. `has` says which kernels it holds.
    pub(crate) fn load(
        context: &Arc<Context>,
        image: &[u8],
        has: impl Fn(Kernel) -> bool,
    ) -> Result<Self, Failure> {
        let mut module = std::ptr::null_mut();
        driver!(cuModuleLoadData(&raw mut module, image.as_ptr().cast()))?;
        let mut kernels = Self { context: Arc::clone(context), module, functions: Vec::new() };
        for &kernel in Kernel::ALL {
            kernels.functions.push(match has(kernel) {
                true => Some(kernels.find(kernel)?),
                false => None,
            });
        }
        Ok(kernels)
    }

    fn find(&self, kernel: Kernel) -> Result<sys::CUfunction, Failure> {
        let name = CString::new(kernel.name()).expect("names have no zero byte");
        let mut function = std::ptr::null_mut();
        driver!(cuModuleGetFunction(&raw mut function, self.module, name.as_ptr()))?;
        Ok(function)
    }

    /// Whether this device has a kernel.
    pub(crate) fn has(&self, kernel: Kernel) -> bool {
        self.functions[kernel as usize].is_some()
    }

    /// Lets a kernel have so much dynamic shared memory.
    pub(crate) fn allow_shared(&self, kernel: Kernel, bytes: u32) -> Result<(), Failure> {
        match self.functions[kernel as usize] {
            Some(function) if bytes > SHARED_BYTES_PLAIN => driver!(cuFuncSetAttribute(
                function,
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                bytes as i32
            )),
            _ => Ok(()),
        }
    }

    /// Queues a kernel on a stream; a grid of no blocks does nothing. Arguments are copied now.
    ///
    /// # Panics
    /// When the device does not have the kernel; see [`Self::has`].
    pub(crate) fn launch<A: Plain>(
        &self,
        stream: &Stream,
        kernel: Kernel,
        grid: Grid,
        args: &A,
    ) -> Result<(), Failure> {
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let function = self.functions[kernel as usize].expect("a kernel that this device has");
        let mut pointers = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        driver!(cuLaunchKernel(
            function,
            x,
            y,
            z,
            grid.threads,
            1,
            1,
            grid.shared_bytes,
            stream.handle(),
            pointers.as_mut_ptr(),
            std::ptr::null_mut()
        ))
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // What fails here has failed before: the device is lost.
        let _ = self.context.bind();
        let _ = driver!(cuModuleUnload(self.module));
    }
}
