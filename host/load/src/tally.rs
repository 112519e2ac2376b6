//! What a run has seen so far.
//!
//! **Invariant:** memory is bounded: one sample for each counted request, of which there are a million at most, and a
//! histogram of the gaps between tokens.

use crate::caller::Exchange;
use crate::clock::Moment;
use crate::failure::Failures;
use crate::gate::Ticket;
use crate::histogram::Histogram;

/// One request that was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// From when on its latencies count: when it was due in an open loop, when it was sent in a closed one.
    pub(crate) from: Moment,
    pub(crate) due: Moment,
    pub(crate) sent: Moment,
    pub(crate) first: Option<Moment>,
    pub(crate) last: Option<Moment>,
    pub(crate) end: Moment,
    /// Place in its session, from 0 on.
    pub(crate) turn: u32,
    pub(crate) input_tokens: Option<u64>,
    pub(crate) cached_tokens: Option<u64>,
    pub(crate) output_tokens: u64,
    /// Whether the server counted those, else its events are.
    pub(crate) is_output_told: bool,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) samples: Vec<Sample>,
    pub(crate) gaps: Histogram,
    pub(crate) failures: Failures,
    pub(crate) warm: u64,
    pub(crate) warm_failures: Failures,
    pub(crate) sessions: Sessions,
    /// Arrivals that were turned away, because too many were in flight.
    pub(crate) turned_away: u64,
}

/// What became of sessions, sub-agents included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    pub(crate) begun: u64,
    /// All of their turns were answered.
    pub(crate) finished: u64,
    /// A request of theirs failed.
    pub(crate) broken: u64,
}

impl Sample {
    pub(crate) fn ttft_ms(&self) -> Option<f64> {
        self.first.map(|first| ms(first.saturating_sub(self.from)))
    }

    pub(crate) fn e2e_ms(&self) -> f64 {
        ms(self.end.saturating_sub(self.from))
    }

    /// Mean time between tokens: from the first to the last, by the tokens that came after the first.
    pub(crate) fn itl_ms(&self) -> Option<f64> {
        let (first, last) = self.first.zip(self.last)?;
        let gaps = self.output_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some(ms(last - first) / gaps as f64)
    }
}

impl Tally {
    /// Takes what became of a request: the `turn`th of its session, due when it says, whose latencies count `from` then.
    pub(crate) fn add(&mut self, ticket: Ticket, exchange: &Exchange, at: Placed) {
        let failures = match ticket {
            Ticket::Warmup => &mut self.warm_failures,
            Ticket::Counted => &mut self.failures,
        };
        if let Some(failure) = &exchange.failure {
            failures.add(failure);
            return;
        }
        if ticket == Ticket::Warmup {
            self.warm += 1;
            return;
        }
        exchange.gaps_us.iter().for_each(|gap| self.gaps.add(*gap));
        self.samples.push(Sample {
            from: at.from,
            due: at.due,
            sent: exchange.sent,
            first: exchange.first,
            last: exchange.last,
            end: exchange.end,
            turn: at.turn,
            input_tokens: exchange.hearing.usage.input,
            cached_tokens: exchange.hearing.usage.cached,
            output_tokens: exchange.output_tokens(),
            is_output_told: exchange.hearing.usage.output.is_some(),
        });
    }
}

/// Where a request stood.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) turn: u32,
    pub(crate) due: Moment,
    pub(crate) from: Moment,
}

pub(crate) fn ms(span: Moment) -> f64 {
    span.as_secs_f64() * 1e3
}
