//! The thread that writes: all sequences that have something, then one sync of each, then the books.
//!
//! **Invariant:** a sequence's tokens count as synced after its file is, and its folder if the file was made since.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::folder::Folder;
use super::format;
use super::sequence::{Sequence, Taken};

/// Largest buffers that are kept from one sequence to the next, in bytes. Chosen: a round's tokens of any model.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// Most files that are synced at a time. A file system commits what is asked of it together at once.
const SYNCS_MAX: usize = 16;

/// Writes rounds until the queue is closed.
pub(super) fn run(folder: &Folder) {
    let mut buffers = Buffers::default();
    while let Some(round) = folder.queue.next(folder.config.sync_every) {
        write_round(folder, round, &mut buffers);
        folder.queue.finish();
    }
}

#[derive(Default)]
struct Buffers {
    tokens: Vec<u32>,
    bytes: Vec<u8>,
}

fn write_round(folder: &Folder, round: Vec<Arc<Sequence>>, buffers: &mut Buffers) {
    let mut parts = Vec::with_capacity(round.len());
    for sequence in round {
        let taken = sequence.take(&mut buffers.tokens);
        let written = write(folder, &sequence, taken, buffers);
        parts.push(Part { sequence, taken, written, synced: AtomicBool::new(false) });
        buffers.reset();
    }
    // Before the files: what was made in the folder and is not found there would be lost with all that it holds.
    if folder.sync_names() {
        sync(folder, &parts);
    }
    for Part { sequence, taken, written, synced } in parts {
        let synced = synced.into_inner();
        if synced {
            sequence.set_synced(taken.count);
        } else if written != Written::Nothing && sequence.stop() {
            folder.count(|stats| stats.stopped += 1);
        }
        if taken.closed {
            folder.settle(sequence.key, taken.end && synced);
        }
    }
    folder.count(|stats| stats.rounds += 1);
}

/// Syncs the files that were written, [`SYNCS_MAX`] at a time.
fn sync(folder: &Folder, parts: &[Part]) {
    let next = AtomicUsize::new(0);
    let sync_some = || {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            if part.written == Written::All {
                let synced = folder.checked("syncing", folder.media.sync(&part.sequence.file));
                part.synced.store(synced, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..parts.len().min(SYNCS_MAX) {
            let helper = std::thread::Builder::new().name("checkpoints-sync".to_owned());
            // Without helpers it takes longer, that is all.
            let _ = helper.spawn_scoped(scope, sync_some);
        }
        sync_some();
    });
}

/// What a round does for one sequence.
struct Part {
    sequence: Arc<Sequence>,
    taken: Taken,
    written: Written,
    synced: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    /// A sequence that has stopped, and had nothing left.
    Nothing,
    All,
    Failed,
}

fn write(folder: &Folder, sequence: &Sequence, taken: Taken, buffers: &mut Buffers) -> Written {
    let Buffers { tokens, bytes } = buffers;
    if taken.stopped && tokens.is_empty() {
        return Written::Nothing;
    }
    format::add_tokens(bytes, taken.first, tokens);
    if taken.end {
        format::add_end(bytes, taken.count);
    }
    if !folder.grow(sequence.key, bytes.len() as u64) {
        return Written::Failed;
    }
    match folder.checked("writing", folder.media.append(&sequence.file, bytes)) {
        true => {
            folder.count(|stats| stats.tokens += tokens.len() as u64);
            Written::All
        }
        false => Written::Failed,
    }
}

impl Buffers {
    fn reset(&mut self) {
        self.tokens.clear();
        self.bytes.clear();
        self.tokens.shrink_to(KEPT_BYTES_MAX / 4);
        self.bytes.shrink_to(KEPT_BYTES_MAX);
    }
}
