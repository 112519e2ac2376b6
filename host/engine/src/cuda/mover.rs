//! Moves of blocks: each one copy by the device, on a stream for each direction, beside the compute.
//!
//! ```text
//! compute ── step ── step ──●────────────── step (touches the page) ──
//!                           │ event          ▲ waits for the copy's event
//! in       ─────────────────┴── load ──●─────┘
//! ```
//!
//! **Invariant:** a copy runs after the steps that were submitted before it, and a step after the copies that touch its pages and
//! were started before it; slots are held until their copy is done.
#![allow(unsafe_code, reason = "copies run beside the host")]

use std::collections::BTreeMap;
use std::sync::Arc;

use kv::{PageIdx, Slot, SlotMut};

use super::args::Ptr;
use super::driver::{Context, Failure};
use super::stream::{Event, Stream};
use crate::clock::Stopwatch;
use crate::settling::Settling;
use crate::{EngineError, Fence, KvShape, Moved, Saved, StepPlan, Xfer};

/// Copies between pages and slots.
pub(crate) struct Mover {
    context: Arc<Context>,
    inward: Stream,
    outward: Stream,
    block_bytes: usize,
    block_tokens: u32,
    moving: Settling<Moving>,
    /// The last copy that touches a page, by page; only those that may still run.
    touched: BTreeMap<u32, Touch>,
    /// Events to be used again.
    spare: Vec<Event>,
    /// Recorded on the compute stream when a transfer begins.
    computed: Event,
}

/// The last copy of a page, which runs after all that came before.
struct Touch {
    end: Arc<Event>,
    /// Whether it or one before it writes the page; whoever only reads it need not wait otherwise.
    writes: bool,
}

/// A transfer that nobody has settled.
struct Moving {
    /// Passed when all of its copies are done; one for each stream that has some.
    events: Vec<Arc<Event>>,
    saves: Vec<(PageIdx, SlotMut)>,
    /// Held until they are read.
    _loads: Vec<Slot>,
    watch: Stopwatch,
}

impl Mover {
    pub(crate) fn new(context: &Arc<Context>, shape: &KvShape) -> Result<Self, Failure> {
        Ok(Self {
            context: Arc::clone(context),
            inward: Stream::new(context)?,
            outward: Stream::new(context)?,
            block_bytes: shape.block_bytes as usize,
            block_tokens: shape.block_tokens,
            moving: Settling::new(),
            touched: BTreeMap::new(),
            spare: Vec::new(),
            computed: Event::new(context)?,
        })
    }

    /// The fence given out last.
    pub(crate) fn last(&self) -> Fence {
        self.moving.last()
    }

    /// Errors: those of [`Settling::check_room`].
    pub(crate) fn check_room(&self) -> Result<(), EngineError> {
        self.moving.check_room()
    }

    /// Starts checked moves after what `compute` has been given, and after a fence.
    pub(crate) fn start(
        &mut self,
        pages: Ptr,
        compute: &Stream,
        (moves, after): (Vec<Xfer>, Fence),
    ) -> Result<Fence, Failure> {
        let started = self.queue(pages, compute, (moves, after));
        if started.is_err() {
            // Whatever was queued may still run on the slots, which go back to their arena now.
            let _ = (self.inward.synchronize(), self.outward.synchronize());
        }
        started
    }

    fn queue(
        &mut self,
        pages: Ptr,
        compute: &Stream,
        (moves, after): (Vec<Xfer>, Fence),
    ) -> Result<Fence, Failure> {
        let watch = Stopwatch::start();
        self.forget_done()?;
        let before = self.moving.get(after).map(|moving| moving.events.clone()).unwrap_or_default();
        self.computed.record(compute)?;
        let mut ends = Ends::default();
        let (mut saves, mut loads) = (Vec::new(), Vec::new());
        for one in moves {
            // Copies within the device wait on the stream that loads: both write pages.
            let outward = matches!(one, Xfer::Save { .. });
            let end = self.end_of(&mut ends, outward, &before)?;
            let stream = if outward { &self.outward } else { &self.inward };
            let at = |page: PageIdx| pages.at(page.0 as usize * self.block_bytes);
            let touches: [Option<(PageIdx, bool)>; 2] = match &one {
                Xfer::Copy { from, to } => [Some((*from, false)), Some((*to, true))],
                Xfer::Save { from, .. } => [Some((*from, false)), None],
                Xfer::Load { to, .. } => [Some((*to, true)), None],
            };
            for (page, writes) in touches.into_iter().flatten() {
                let touch = Touch { end: Arc::clone(&end), writes };
                let Some(other) = self.touched.insert(page.0, touch) else { continue };
                // Copies of one stream run in order; those of the other are waited for.
                if !Arc::ptr_eq(&other.end, &end) {
                    stream.wait(&other.end)?;
                }
                self.touched.entry(page.0).and_modify(|touch| touch.writes |= other.writes);
            }
            match one {
                Xfer::Copy { from, to } => stream.copy(at(from), at(to), self.block_bytes)?,
                Xfer::Save { from, mut to } => {
                    // SAFETY: the slot has a block's bytes, was checked, and is held in `saves` until the copy is done.
                    unsafe { stream.download(at(from), to.as_mut_ptr(), self.block_bytes)? };
                    saves.push((from, to));
                }
                Xfer::Load { from, to } => {
                    // SAFETY: as above, held in `loads`; a slot that is shared is not written.
                    unsafe { stream.upload(&from, at(to))? };
                    loads.push(from);
                }
            }
        }
        let mut events = Vec::new();
        for (end, stream) in [(ends.inward, &self.inward), (ends.outward, &self.outward)] {
            if let Some(end) = end {
                end.record(stream)?;
                events.push(end);
            }
        }
        Ok(self.moving.start(Moving { events, saves, _loads: loads, watch }))
    }

    /// The event that ends a transfer's copies of one direction; the first copy waits for compute and for `before`.
    fn end_of(
        &mut self,
        ends: &mut Ends,
        outward: bool,
        before: &[Arc<Event>],
    ) -> Result<Arc<Event>, Failure> {
        let (end, stream) = match outward {
            true => (&mut ends.outward, &self.outward),
            false => (&mut ends.inward, &self.inward),
        };
        if let Some(end) = end {
            return Ok(Arc::clone(end));
        }
        stream.wait(&self.computed)?;
        for event in before {
            stream.wait(event)?;
        }
        let event = self.spare.pop().map_or_else(|| Event::new(&self.context), Ok)?;
        Ok(Arc::clone(end.insert(Arc::new(event))))
    }

    /// Has a step wait for the copies that write pages of its tables, and for those that read pages that it writes.
    pub(crate) fn order(&mut self, plan: &StepPlan<'_>, compute: &Stream) -> Result<(), Failure> {
        self.forget_done()?;
        if self.touched.is_empty() {
            return Ok(());
        }
        let read =
            plan.pages.iter().filter_map(|page| self.touched.get(&page.0)).filter(|touch| touch.writes);
        let block_tokens = self.block_tokens;
        let written = plan.rows.iter().flat_map(|row| {
            let last = row.position + row.tokens.len() as u32 - 1;
            let blocks = row.position / block_tokens..=last / block_tokens;
            blocks.filter_map(|block| self.touched.get(&plan.pages[(row.pages.start + block) as usize].0))
        });
        let mut waited: Vec<&Arc<Event>> = Vec::new();
        for Touch { end, .. } in read.chain(written) {
            if !waited.iter().any(|one| Arc::ptr_eq(one, end)) {
                compute.wait(end)?;
                waited.push(end);
            }
        }
        Ok(())
    }

    /// Forgets the copies that are done, so that nobody asks for them again.
    fn forget_done(&mut self) -> Result<(), Failure> {
        // Many pages wait for one event: the driver is asked once for each.
        let mut events: Vec<(Arc<Event>, bool)> = Vec::new();
        for Touch { end, .. } in self.touched.values() {
            if !events.iter().any(|(event, _)| Arc::ptr_eq(event, end)) {
                events.push((Arc::clone(end), end.passed()?));
            }
        }
        let passed =
            |end: &Arc<Event>| events.iter().any(|(event, passed)| *passed && Arc::ptr_eq(event, end));
        self.touched.retain(|_, touch| !passed(&touch.end));
        Ok(())
    }

    /// Settles a fence; none when it still runs and is not to be waited for.
    pub(crate) fn settle(&mut self, fence: Fence, block: bool) -> Result<Option<Moved>, SettleError> {
        let moving = self.moving.get(fence).map_err(SettleError::Refused)?;
        for event in &moving.events {
            match block {
                true => event.synchronize().map_err(SettleError::Failed)?,
                false if !event.passed().map_err(SettleError::Failed)? => return Ok(None),
                false => {}
            }
        }
        let moving = self.moving.take(fence).map_err(SettleError::Refused)?;
        let saved =
            moving.saves.into_iter().map(|(page, slot)| Saved { page, slot: slot.freeze() }).collect();
        self.forget_done().map_err(SettleError::Failed)?;
        self.spare.extend(moving.events.into_iter().filter_map(Arc::into_inner));
        Ok(Some(Moved { saved, took: moving.watch.elapsed() }))
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        // Slots go back to their arena only when no copy can touch them; streams wait for their work when they are dropped.
        let _ = self.context.bind();
        let _ = self.inward.synchronize();
        let _ = self.outward.synchronize();
    }
}

/// Why a fence was not settled.
pub(crate) enum SettleError {
    /// There is no such fence.
    Refused(EngineError),
    /// The device failed.
    Failed(Failure),
}

/// The events that end a transfer's copies.
#[derive(Default)]
struct Ends {
    inward: Option<Arc<Event>>,
    outward: Option<Arc<Event>>,
}
