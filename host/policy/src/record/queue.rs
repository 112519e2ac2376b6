//! Between decisions and the disk: a bounded queue, and the thread that empties it.
//!
//! **Invariant:** who puts something in never waits for the disk.

use super::folder::Folder;
use super::frame;
use crate::runtime::Digest;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes that may wait. Chosen: seconds of a busy host, and little beside its KV memory.
const QUEUED_BYTES_MAX: usize = 16 << 20;
/// A chunk that is worth waking the thread for.
const CHUNK_BYTES: usize = 256 << 10;
/// How long a smaller one waits.
const PAUSE: Duration = Duration::from_millis(50);

/// What the thread is to do.
pub(super) enum Job {
    /// Begin a file of at most so many bytes.
    Begin { number: u64, bytes_max: u64 },
    /// Append frames.
    Frames(Vec<u8>),
    /// Keep a component.
    Component(Digest, Arc<[u8]>),
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    bytes: usize,
    closed: bool,
    failed: Option<String>,
}

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// Bytes on the disk.
    pub(super) written: AtomicU64,
    /// Files begun.
    pub(super) files: AtomicU64,
}

impl Queue {
    /// Starts the thread.
    pub(super) fn start(folder: Folder) -> io::Result<(Arc<Self>, JoinHandle<()>)> {
        let queue = Arc::new(Self::default());
        let own = queue.clone();
        let thread = std::thread::Builder::new().name("policy-recorder".to_owned());
        let thread = thread.spawn(move || own.work_off(folder))?;
        Ok((queue, thread))
    }

    /// Whether so many bytes more have room, or why nothing is written any more.
    pub(super) fn has_room(&self, bytes: usize) -> Result<bool, String> {
        let waiting = self.waiting.lock();
        match &waiting.failed {
            Some(error) => Err(error.clone()),
            None => Ok(waiting.bytes + bytes <= QUEUED_BYTES_MAX),
        }
    }

    /// Appends frames. Says whether there was room for them; there always is for the last of a file.
    pub(super) fn push_frames(&self, frames: &[u8], last: bool) -> bool {
        let mut waiting = self.waiting.lock();
        let full = waiting.bytes + frames.len() > QUEUED_BYTES_MAX && !last;
        if full || waiting.failed.is_some() {
            return false;
        }
        waiting.bytes += frames.len();
        let chunk_bytes = match waiting.jobs.back_mut() {
            Some(Job::Frames(chunk)) => {
                chunk.extend_from_slice(frames);
                chunk.len()
            }
            _ => {
                waiting.jobs.push_back(Job::Frames(frames.to_vec()));
                frames.len()
            }
        };
        drop(waiting);
        if chunk_bytes >= CHUNK_BYTES {
            self.wake.notify_one();
        }
        true
    }

    /// Anything else: few, and small but for components, which are shared.
    pub(super) fn push(&self, job: Job) {
        self.waiting.lock().jobs.push_back(job);
    }

    /// Has the thread end when all is written.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.wake.notify_one();
    }

    /// What went wrong with the disk, if anything did.
    pub(super) fn failure(&self) -> Option<String> {
        self.waiting.lock().failed.clone()
    }

    fn work_off(&self, mut folder: Folder) {
        loop {
            let mut waiting = self.waiting.lock();
            if waiting.jobs.is_empty() && waiting.closed {
                return;
            }
            if !waiting.closed {
                self.wake.wait_for(&mut waiting, PAUSE);
            }
            let jobs = std::mem::take(&mut waiting.jobs);
            waiting.bytes = 0;
            drop(waiting);
            for job in jobs {
                if let Err(error) = self.run(&mut folder, job) {
                    tracing::error!(%error, "decisions are not recorded any more");
                    let mut waiting = self.waiting.lock();
                    waiting.failed = Some(error.to_string());
                    waiting.jobs.clear();
                    return;
                }
            }
        }
    }

    fn run(&self, folder: &mut Folder, job: Job) -> io::Result<()> {
        match job {
            Job::Begin { number, bytes_max } => {
                folder.begin(number, bytes_max)?;
                folder.write(frame::MAGIC)?;
                self.written.fetch_add(frame::MAGIC.len() as u64, Relaxed);
                self.files.fetch_add(1, Relaxed);
            }
            Job::Frames(mut frames) => {
                frame::seal(&mut frames);
                folder.write(&frames)?;
                self.written.fetch_add(frames.len() as u64, Relaxed);
            }
            Job::Component(digest, component) => folder.keep(digest, &component)?,
        }
        Ok(())
    }
}
