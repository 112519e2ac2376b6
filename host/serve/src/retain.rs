//! What a request's worker has to know to ask the `retain` slot: segments, wishes, whose turn it is.
//!
//! Wishes are open attributes of hints, by this convention: `retain.K.segment` and `retain.K.ttl_ms` for K from 0
//! to 3 ask that everything up to and including that message be kept for so long (-1: up to the tools);
//! `retain.priority` says how dear the conversation is, 0 to 100.
//! **Invariant:** wishes are advice: what cannot be read is as good as absent.

use std::sync::Arc;

use policy::{Attributes, Value};

use crate::app::App;
use crate::prompt::Family;
use crate::prompt::{Segment, Tokenizer};
use crate::request::Prompt;

/// Wishes that one request may have; as many as Anthropic's API takes marks.
const WISHES_MAX: usize = 4;

/// What a worker has to know of a turn, beyond its tokens.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Segments of the prompt.
    pub segments: Vec<Segment>,
    /// Whether the output begins inside a reasoning section.
    pub in_reasoning: bool,
    /// Finds reasoning in the output.
    pub tokenizer: Arc<Tokenizer>,
    /// What stands around it.
    pub family: Family,
    /// What the caller wishes.
    pub wishes: Wishes,
    /// What hint policies said beyond the contract's fields.
    pub attributes: Attributes,
}

/// What a caller wishes for its segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Last message and milliseconds.
    pub keep: Vec<(i32, u32)>,
    /// 0 to 100; 0 for nothing said.
    pub priority: u8,
}

impl Wishes {
    /// Reads the attributes that have a meaning here.
    pub fn of(attributes: &Attributes) -> Self {
        let number = |name: &str| match attributes.get(name) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        };
        let wish = |k: usize| {
            let message = number(&format!("retain.{k}.segment"))? as i32;
            Some((message, number(&format!("retain.{k}.ttl_ms"))? as u32))
        };
        let keep = (0..WISHES_MAX).filter_map(wish).filter(|(_, ttl_ms)| *ttl_ms > 0).collect();
        let priority = number("retain.priority").unwrap_or_default().clamp(0.0, 100.0) as u8;
        Self { keep, priority }
    }

    /// For how long each segment is wished to be kept, in milliseconds: the longest wish that reaches it.
    pub fn ttl_ms(&self, segments: &[Segment]) -> Vec<u32> {
        let mut ttl_ms = vec![0; segments.len()];
        for &(message, wished) in &self.keep {
            let last = segments.iter().rposition(|segment| segment.message <= message);
            for cell in last.map_or(&mut [][..], |last| &mut ttl_ms[..=last]) {
                *cell = wished.max(*cell);
            }
        }
        ttl_ms
    }
}

/// What the worker has to know of this turn; `None` where nobody will ask.
pub fn turn(app: &App, prompt: &Prompt, said: &decide::Wishes) -> Option<Arc<Turn>> {
    // Cache marks need segments too, and no policy.
    let segments = prompt.segments.clone().filter(|_| app.generations.retains())?;
    let attributes = said.attributes.clone();
    Some(Arc::new(Turn {
        segments,
        in_reasoning: prompt.in_reasoning,
        tokenizer: Arc::clone(&app.model.tokenizer),
        family: app.model.family,
        wishes: Wishes::of(&attributes),
        attributes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use decide::Role;

    fn attributes(numbers: &[(&str, f64)]) -> Attributes {
        let named = numbers.iter().map(|(name, value)| ((*name).to_owned(), Value::Number(*value)));
        named.collect::<Vec<_>>().into()
    }

    /// Wished times of segments that belong to these messages.
    fn check(said: &[(&str, f64)], messages: &[i32], expected: &[u32]) {
        let segment =
            |(start, &message): (usize, &i32)| Segment { role: Role::History, start: start as u32, message };
        let segments: Vec<Segment> = messages.iter().enumerate().map(segment).collect();
        assert_eq!(Wishes::of(&attributes(said)).ttl_ms(&segments), expected);
    }

    #[test]
    fn a_wish_reaches_everything_up_to_its_message() {
        let said = [("retain.0.segment", 1.0), ("retain.0.ttl_ms", 300.0)];
        check(&said, &[-1, 0, 1, 1, 2, i32::MAX], &[300, 300, 300, 300, 0, 0]);
    }

    #[test]
    fn the_longest_of_several_wishes_counts() {
        let said = [
            ("retain.0.segment", 0.0),
            ("retain.0.ttl_ms", 900.0),
            ("retain.1.segment", 2.0),
            ("retain.1.ttl_ms", 300.0),
        ];
        check(&said, &[0, 1, 2, 3], &[900, 300, 300, 0]);
    }

    #[test]
    fn a_mark_on_the_tools_reaches_what_stands_before_them() {
        let said = [("retain.3.segment", -1.0), ("retain.3.ttl_ms", 9.0)];
        check(&said, &[0, -1, 1], &[9, 9, 0]);
    }

    #[test]
    fn what_cannot_be_read_is_no_wish() {
        check(&[("retain.0.segment", 1.0)], &[0, 1], &[0, 0]);
        check(&[("retain.4.segment", 1.0), ("retain.4.ttl_ms", 9.0)], &[0, 1], &[0, 0]);
        check(&[("retain.0.segment", 1.0), ("retain.0.ttl_ms", -9.0)], &[0, 1], &[0, 0]);
        assert_eq!(Wishes::of(&attributes(&[("retain.priority", 700.0)])).priority, 100);
    }
}
