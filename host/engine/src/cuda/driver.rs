//! The CUDA driver: found at run time, asked what is there, and called with every result checked.
//!
//! [`devices`] and [`Context::open`] are the only ways in. They never panic: an absent library, an old one or one that lacks a
//! function is an error that says what would be right.
//! **Invariant:** nothing of the driver is called before [`present`] has said that all functions we call are there.
#![allow(unsafe_code, reason = "the driver's interface is C")]

use std::ffi::{CStr, c_int};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use crate::EngineError;

/// Oldest driver that the kernels load on: CUDA 12.0, which is R525.
const DRIVER_MIN: u32 = 12_000;
/// Oldest compute capability that there are kernels for.
const COMPUTE_MIN: (u32, u32) = (8, 0);

/// Every function of the driver that we call. A call to one that a library lacks would panic.
const FUNCTIONS: [&str; 45] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphUpload",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuTensorMapEncodeTiled",
];

/// A call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) call: &'static str,
    pub(crate) code: CUresult,
}

impl Failure {
    pub(crate) fn check(call: &'static str, code: CUresult) -> Result<(), Self> {
        match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            code => Err(Self { call, code }),
        }
    }

    /// Whether memory was refused.
    pub(crate) fn is_out_of_memory(self) -> bool {
        self.code == CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }

    /// What the driver calls it.
    pub(crate) fn reason(self) -> String {
        let text = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
            let mut text = std::ptr::null();
            // SAFETY: the function writes a pointer to a constant string, or fails.
            let known = unsafe { get(self.code, &raw mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
            // SAFETY: by the check, `text` is that string.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
            (Some(name), Some(string)) => format!("{name} ({string})"),
            _ => format!("error {}", self.code as u32),
        }
    }

    /// As the error of an executor whose device cannot go on.
    pub(crate) fn lost(self, device: &str) -> EngineError {
        EngineError::Lost { device: device.to_owned(), call: self.call, reason: self.reason() }
    }
}

/// Calls a function of the driver by its name; a [`Failure`] knows the name.
macro_rules! driver {
    ($name:ident($($arg:expr),* $(,)?)) => {
        $crate::cuda::driver::Failure::check(
            stringify!($name),
            // SAFETY: said where the macro is used, for all its calls.
            unsafe { cudarc::driver::sys::$name($($arg),*) },
        )
    };
}
pub(crate) use driver;

/// A CUDA device of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    /// Its place among the machine's devices.
    pub index: u32,
    /// What the driver calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute: (u32, u32),
    /// Memory in all, in bytes.
    pub memory_bytes: u64,
    /// Multiprocessors.
    pub multiprocessors: u32,
}

/// The CUDA devices of this machine, usable or not.
///
/// Errors: [`EngineError::Device`] when there is no driver, none that can be used, or no device.
pub fn cuda_devices() -> Result<Vec<CudaDevice>, EngineError> {
    present()?;
    let mut count: c_int = 0;
    driver!(cuDeviceGetCount(&raw mut count)).map_err(unusable)?;
    let devices: Vec<_> = (0..count).map(describe).collect::<Result<_, _>>().map_err(unusable)?;
    if devices.is_empty() {
        return Err(EngineError::Device("the driver sees no device".into()));
    }
    Ok(devices)
}

/// A driver that fails before it is used.
fn unusable(failure: Failure) -> EngineError {
    EngineError::Device(format!("the driver's {} failed: {}", failure.call, failure.reason()))
}

/// Whether the driver can be called at all.
fn present() -> Result<(), EngineError> {
    let refuse = |reason: String| Err(EngineError::Device(reason));
    // SAFETY: opening the library runs its initialisers, which is what a driver is installed for.
    if !unsafe { sys::is_culib_present() } {
        return refuse(
            "the driver library libcuda.so.1 is not installed, or not where libraries are looked for".into(),
        );
    }
    // SAFETY: as above; the library is there.
    let library = unsafe { sys::culib() };
    // SAFETY: the symbol is looked up and not called.
    let lacks = |name: &&&str| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err();
    if let Some(name) = FUNCTIONS.iter().find(lacks) {
        return refuse(format!(
            "the driver library lacks {name}: it is older than R525 (CUDA 12.0), or broken"
        ));
    }
    driver!(cuInit(0)).map_err(|failure| match failure.code {
        CUresult::CUDA_ERROR_NO_DEVICE => EngineError::Device("the driver sees no device".into()),
        _ => unusable(failure),
    })?;
    let mut version: c_int = 0;
    driver!(cuDriverGetVersion(&raw mut version)).map_err(unusable)?;
    if (version as u32) < DRIVER_MIN {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return refuse(format!("the driver is for CUDA {major}.{minor}; 12.0 (R525) or newer is needed"));
    }
    Ok(())
}

fn describe(index: c_int) -> Result<CudaDevice, Failure> {
    let mut device = 0;
    driver!(cuDeviceGet(&raw mut device, index))?;
    let mut name = [0; 256];
    driver!(cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int - 1, device))?;
    let mut bytes = 0usize;
    driver!(cuDeviceTotalMem_v2(&raw mut bytes, device))?;
    let attribute = |attribute| {
        let mut value = 0;
        driver!(cuDeviceGetAttribute(&raw mut value, attribute, device)).map(|()| value as u32)
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(CudaDevice {
        index: index as u32,
        // SAFETY: the driver ends the name with a zero, and the last byte is zero in any case.
        name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
        compute: (major, minor),
        memory_bytes: bytes as u64,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

/// A device's primary context, retained.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: CudaDevice,
    handle: sys::CUcontext,
    ordinal: sys::CUdevice,
}

// SAFETY: a context may be current in any thread; the handle is only a name of it.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Opens a device and makes its context current in this thread.
    ///
    /// Errors: those of [`cuda_devices`]; [`EngineError::Device`] for a device that is not there or too old.
    pub(crate) fn open(index: u32) -> Result<Arc<Self>, EngineError> {
        let devices = cuda_devices()?;
        let count = devices.len();
        let refuse = |reason: String| EngineError::Device(reason);
        let device = devices.into_iter().nth(index as usize);
        let device = device.ok_or_else(|| {
            refuse(format!("cuda:{index} does not exist; the driver sees {count} from cuda:0 on"))
        })?;
        if device.compute < COMPUTE_MIN {
            let (name, (major, minor)) = (&device.name, device.compute);
            return Err(refuse(format!(
                "cuda:{index} ({name}) has compute capability {major}.{minor}; 8.0 or newer is needed"
            )));
        }
        let (mut ordinal, mut handle) = (0, std::ptr::null_mut());
        driver!(cuDeviceGet(&raw mut ordinal, index as c_int)).map_err(unusable)?;
        driver!(cuDevicePrimaryCtxRetain(&raw mut handle, ordinal)).map_err(unusable)?;
        let context = Self { device, handle, ordinal };
        context.bind().map_err(unusable)?;
        Ok(Arc::new(context))
    }

    /// Makes it the current one of this thread, which calls need. Cost: tens of nanoseconds.
    pub(crate) fn bind(&self) -> Result<(), Failure> {
        driver!(cuCtxSetCurrent(self.handle))
    }

    /// Memory that is free now, in bytes.
    pub(crate) fn free_bytes(&self) -> Result<u64, Failure> {
        let (mut free, mut total) = (0usize, 0usize);
        driver!(cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        Ok(free as u64)
    }

    /// Name for logs and errors.
    pub(crate) fn name(&self) -> String {
        format!("cuda:{} ({})", self.device.index, self.device.name)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // What fails here has failed before: the device is lost.
        let _ = driver!(cuDevicePrimaryCtxRelease_v2(self.ordinal));
    }
}
