//! Runs kernels by themselves, for tests: on the stand-in driver, or on a device where `POINTSMAN_GPU` says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::args::{Plain, Ptr, Step};
use super::driver::Context;
use super::image;
use super::kernels::{Grid, Kernel, Kernels};
use super::memory::{DeviceMemory, bytes_of};
use super::standin;
use super::stream::Stream;
use crate::digest::mix;
use crate::pack;

/// Whether tests run on a device of this machine instead of the stand-in driver.
pub(crate) fn on_device() -> bool {
    std::env::var_os("POINTSMAN_GPU").is_some()
}

/// Takes the device of this machine, or the stand-in, for one test: what one breaks, others would see. None when there is
/// neither, which is said.
pub(crate) fn device() -> Option<MutexGuard<'static, ()>> {
    static DEVICE: Mutex<()> = Mutex::new(());
    // A test that failed has let go of its contexts, and with them of all that it broke.
    let device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    if !on_device() {
        if !standin::load() {
            return None;
        }
        standin::reset();
    }
    Some(device)
}

/// A device with the kernels on it.
pub(crate) struct Harness {
    pub(crate) context: Arc<Context>,
    pub(crate) stream: Stream,
    pub(crate) kernels: Kernels,
    // Dropped last.
    _device: MutexGuard<'static, ()>,
}

impl Harness {
    /// None when there is nothing to run on.
    pub(crate) fn open() -> Option<Self> {
        let device = device()?;
        let context = Context::open(0).unwrap();
        let image = image::image_for(context.device.compute).unwrap();
        let kernels = Kernels::load(&context, image.bytes, |kernel| image.has(kernel)).unwrap();
        Some(Self { stream: Stream::new(&context).unwrap(), context, kernels, _device: device })
    }

    /// Device memory with these values.
    pub(crate) fn upload<T: Plain>(&self, values: &[T]) -> DeviceMemory {
        self.context.bind().unwrap();
        let memory = DeviceMemory::of::<T>(&self.context, values.len()).unwrap();
        #[allow(unsafe_code, reason = "the copy is waited for")]
        // SAFETY: the memory has as many bytes, and the copy ends before the values do.
        unsafe {
            self.stream.upload(bytes_of(values), memory.ptr()).unwrap();
        }
        self.stream.synchronize().unwrap();
        memory
    }

    /// So many values of which every bit is set: NaN as a float.
    pub(crate) fn poisoned<T: Plain>(&self, len: usize) -> DeviceMemory {
        self.upload(&vec![u8::MAX; len * size_of::<T>()])
    }

    /// What is in device memory, after all that was queued.
    pub(crate) fn download<T: Plain + Default>(&self, memory: &DeviceMemory) -> Vec<T> {
        self.context.bind().unwrap();
        let mut values = vec![T::default(); memory.bytes() / size_of::<T>()];
        #[allow(unsafe_code, reason = "the copy is waited for")]
        // SAFETY: the vector has as many bytes or fewer, and lives until the copy is done.
        unsafe {
            let bytes = values.len() * size_of::<T>();
            self.stream.download(memory.ptr(), values.as_mut_ptr().cast(), bytes).unwrap();
        }
        self.stream.synchronize().unwrap();
        values
    }

    /// Queues a kernel.
    pub(crate) fn launch<A: Plain>(&self, kernel: Kernel, grid: Grid, args: &A) {
        self.context.bind().unwrap();
        self.kernels.allow_shared(kernel, grid.shared_bytes).unwrap();
        self.kernels.launch(&self.stream, kernel, grid, args).unwrap();
    }
}

/// Inputs of a step, put together by hand: a header, then arrays.
#[derive(Default)]
pub(crate) struct StepInputs {
    pub(crate) header: Step,
    arrays: Vec<u8>,
}

impl StepInputs {
    /// Adds an array; gives its place for the header.
    pub(crate) fn put<T: Plain>(&mut self, values: &[T]) -> u32 {
        self.arrays.resize(self.arrays.len().next_multiple_of(16), 0);
        let at = size_of::<Step>() + self.arrays.len();
        self.arrays.extend_from_slice(bytes_of(values));
        at as u32
    }

    /// Device memory with all of it.
    pub(crate) fn upload(&self, harness: &Harness) -> DeviceMemory {
        let mut bytes = bytes_of(&[self.header]).to_vec();
        bytes.extend_from_slice(&self.arrays);
        harness.upload(&bytes)
    }
}

/// A row of numbers that looks random and is the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(1)))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A whole number from `range`.
    pub(crate) fn within(&mut self, range: std::ops::Range<usize>) -> usize {
        range.start + (self.bits() % (range.end - range.start) as u64) as usize
    }

    /// One of these.
    pub(crate) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.within(0..values.len())]
    }

    /// From -1 to 1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    /// bf16 values from -1 to 1, as bits.
    pub(crate) fn bf16s(&mut self, len: usize) -> Vec<u16> {
        (0..len).map(|_| pack::narrow(self.float())).collect()
    }
}

/// A bf16 value as f64.
pub(crate) fn wide(bits: u16) -> f64 {
    f64::from(pack::widen(bits))
}

/// Panics unless values are near what they should be: in the root of the mean square by `tolerance` of the expected
/// values', and each by ten times that of the largest.
pub(crate) fn assert_near(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let (mut error, mut norm) = (0.0, 0.0);
    for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
        let off = (got - expected).abs();
        // Not `>`: a NaN is never near.
        let near = off <= 10.0 * tolerance * largest + f64::MIN_POSITIVE;
        assert!(near, "{what}: value {place} is {got}, not {expected} (largest {largest})");
        error += off * off;
        norm += expected * expected;
    }
    assert!(
        error.sqrt() <= tolerance * norm.sqrt() + f64::MIN_POSITIVE,
        "{what}: {} of {}",
        error.sqrt(),
        norm.sqrt()
    );
}

/// A null address for what a kernel does not need.
pub(crate) const NONE: Ptr = Ptr::NULL;
