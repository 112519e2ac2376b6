//! Streams, the events that order them, and graphs.
//!
//! **Invariant:** work of one stream runs in order; between streams only events order anything.
#![allow(unsafe_code, reason = "the driver's interface is C")]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{
    self, CUevent_flags_enum as EventFlags, CUresult, CUstream_flags_enum as StreamFlags,
};

use super::args::Ptr;
use super::driver::{Context, Failure, driver};

/// A queue of work of a device.
#[derive(Debug)]
pub(crate) struct Stream {
    context: Arc<Context>,
    handle: sys::CUstream,
}

// SAFETY: a stream may be used from any thread, one at a time; `&mut` or one owner sees to that.
unsafe impl Send for Stream {}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, Failure> {
        let mut handle = std::ptr::null_mut();
        driver!(cuStreamCreate(&raw mut handle, StreamFlags::CU_STREAM_NON_BLOCKING as u32))?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    pub(crate) fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// Copies to the device.
    ///
    /// # Safety
    /// `to` has room, and `from` lives unchanged until the copy is done.
    pub(crate) unsafe fn upload(&self, from: &[u8], to: Ptr) -> Result<(), Failure> {
        driver!(cuMemcpyHtoDAsync_v2(to.0, from.as_ptr().cast(), from.len(), self.handle))
    }

    /// Copies from the device.
    ///
    /// # Safety
    /// `from` has as much, and `to` lives and is not touched until the copy is done.
    pub(crate) unsafe fn download(&self, from: Ptr, to: *mut u8, bytes: usize) -> Result<(), Failure> {
        driver!(cuMemcpyDtoHAsync_v2(to.cast::<c_void>(), from.0, bytes, self.handle))
    }

    /// Copies within the device; the caller has checked both ranges.
    pub(crate) fn copy(&self, from: Ptr, to: Ptr, bytes: usize) -> Result<(), Failure> {
        driver!(cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.handle))
    }

    /// Zeroes device memory; the caller has checked the range.
    pub(crate) fn zero(&self, at: Ptr, bytes: usize) -> Result<(), Failure> {
        driver!(cuMemsetD8Async(at.0, 0, bytes, self.handle))
    }

    /// What is queued from now on waits for an event.
    pub(crate) fn wait(&self, event: &Event) -> Result<(), Failure> {
        driver!(cuStreamWaitEvent(self.handle, event.handle, 0))
    }

    /// Waits until everything queued is done.
    pub(crate) fn synchronize(&self) -> Result<(), Failure> {
        driver!(cuStreamSynchronize(self.handle))
    }

    /// Records what `launches` queues on this stream instead of running it.
    pub(crate) fn capture<E: From<Failure>>(
        &self,
        launches: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        driver!(cuStreamBeginCapture_v2(
            self.handle,
            sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        ))?;
        let launched = launches();
        let mut graph = std::ptr::null_mut();
        let ended = driver!(cuStreamEndCapture(self.handle, &raw mut graph));
        launched?;
        ended?;
        let mut exec = std::ptr::null_mut();
        let made = driver!(cuGraphInstantiateWithFlags(&raw mut exec, graph, 0));
        driver!(cuGraphDestroy(graph))?;
        made?;
        let graph = Graph { context: Arc::clone(&self.context), exec };
        driver!(cuGraphUpload(graph.exec, self.handle))?;
        Ok(graph)
    }

    /// Runs a graph.
    pub(crate) fn launch(&self, graph: &Graph) -> Result<(), Failure> {
        driver!(cuGraphLaunch(graph.exec, self.handle))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // What fails here has failed before: the device is lost.
        let _ = self.context.bind();
        let _ = driver!(cuStreamSynchronize(self.handle));
        let _ = driver!(cuStreamDestroy_v2(self.handle));
    }
}

/// A point in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<Context>,
    handle: sys::CUevent,
}

// SAFETY: an event may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks what it changes.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, Failure> {
        let mut handle = std::ptr::null_mut();
        driver!(cuEventCreate(&raw mut handle, EventFlags::CU_EVENT_DISABLE_TIMING as u32))?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    /// The point is after what the stream has been given so far.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), Failure> {
        driver!(cuEventRecord(self.handle, stream.handle))
    }

    /// Whether the point has been passed.
    pub(crate) fn passed(&self) -> Result<bool, Failure> {
        match driver!(cuEventQuery(self.handle)) {
            Ok(()) => Ok(true),
            Err(Failure { code: CUresult::CUDA_ERROR_NOT_READY, .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Waits until the point is passed.
    pub(crate) fn synchronize(&self) -> Result<(), Failure> {
        driver!(cuEventSynchronize(self.handle))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // What fails here has failed before: the device is lost.
        let _ = self.context.bind();
        let _ = driver!(cuEventDestroy_v2(self.handle));
    }
}

/// Launches that were recorded, and run as one.
#[derive(Debug)]
pub(crate) struct Graph {
    context: Arc<Context>,
    exec: sys::CUgraphExec,
}

// SAFETY: one owner uses it at a time, and the driver ties it to no thread.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // What fails here has failed before: the device is lost.
        let _ = self.context.bind();
        let _ = driver!(cuGraphExecDestroy(self.exec));
    }
}
