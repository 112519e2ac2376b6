//! The thread that writes: all sequences that have something, then one sync of each, then the books.
//!
//! **Invariant:** a sequence's tokens count as synced after its file is, and its folder if the file was made since.

use std::sync::Arc;

use super::folder::Folder;
use super::format;
use super::sequence::{Sequence, Taken};

/// Largest buffers that are kept from one sequence to the next, in bytes. Chosen: a round's tokens of any model.
const KEPT_BYTES_MAX: usize = 1 << 20;

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
    let mut written = Vec::with_capacity(round.len());
    for sequence in round {
        let taken = sequence.take(&mut buffers.tokens);
        let outcome = write(folder, &sequence, taken, buffers);
        written.push((sequence, taken, outcome));
        buffers.reset();
    }
    // Before the files: what was made in the folder and is not found there would be lost with all that it holds.
    let found = folder.sync_names();
    for (sequence, taken, outcome) in &written {
        let synced = match outcome {
            Written::Failed => false,
            Written::Nothing => true,
            Written::All => found && folder.checked("writing", folder.media.sync(&sequence.file)),
        };
        if synced && *outcome == Written::All {
            sequence.set_synced(taken.count);
        }
        if !synced && sequence.stop() {
            folder.count(|stats| stats.stopped += 1);
        }
        if taken.closed {
            folder.settle(sequence.key, taken.end && synced);
        }
    }
    folder.count(|stats| stats.rounds += 1);
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
