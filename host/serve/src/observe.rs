//! The `observe` slot: tells policies what became of a request.

pub use decide::Outcome;
use policy::{Event, Frame, ObserveView, Pin};

use crate::worker::SequenceHints;

/// Tells the chain that a request was pinned to.
pub fn tell(pin: &Pin, event: Event, outcome: &Outcome, hints: &SequenceHints, frame: Frame) {
    let table = decide::outcome(event, outcome, hints);
    pin.observe(&ObserveView { frame, outcomes: &table });
}
