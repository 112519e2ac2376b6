//! Makes an arena's memory known to a device, which then copies from and to it by itself.
//!
//! Registering a gigabyte takes a good part of a second, so a thread does it piece by piece; until a piece is registered, copies of
//! its slots are slower and just as right.
#![allow(unsafe_code, reason = "the driver's interface is C")]

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use cudarc::driver::sys::CU_MEMHOSTREGISTER_PORTABLE;
use kv::Arena;

use super::driver::{Context, driver};

/// Bytes of a piece, about.
const PIECE_BYTES: usize = 256 << 20;

/// An arena that is registered, as far as that has come.
pub(crate) struct Pinning {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pinning {
    /// Starts to register an arena. Errors: there is no thread to be had.
    pub(crate) fn start(context: &Arc<Context>, arena: &Arena) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (context, arena, stopped) = (Arc::clone(context), arena.clone(), Arc::clone(&stop));
        let thread =
            std::thread::Builder::new().name("pin".into()).spawn(move || run(&context, &arena, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Pinning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        // A panic of the thread left memory that is slower to copy, and nothing else.
        let _ = thread.join();
    }
}

/// Registers piece after piece, holds them until it is to stop, and lets go of them.
fn run(context: &Context, arena: &Arena, stop: &AtomicBool) {
    let (base, stride, slots) = arena.memory();
    let slots_at_once = (PIECE_BYTES / stride).max(1);
    let mut registered: Vec<*mut c_void> = Vec::new();
    if context.bind().is_err() {
        return;
    }
    for first in (0..slots as usize).step_by(slots_at_once) {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let bytes = slots_at_once.min(slots as usize - first) * stride;
        let at = base.wrapping_add(first * stride).cast_mut().cast::<c_void>();
        // Refused where another device has registered it already, or where the system locks no more memory.
        match driver!(cuMemHostRegister_v2(at, bytes, CU_MEMHOSTREGISTER_PORTABLE)) {
            Ok(()) => registered.push(at),
            Err(_) => break,
        }
    }
    while !stop.load(Ordering::Acquire) {
        std::thread::park_timeout(std::time::Duration::from_secs(1));
    }
    for at in registered {
        // What fails here has failed before: the device is lost.
        let _ = driver!(cuMemHostUnregister(at));
    }
}
