//! Tokens that are guessed, to be tried in the step of the token before them: speculative decoding by prompt lookup, and in
//! `model.rs` by a draft model.
//!
//! Much of what an agent writes stands in its context already: names, paths, the lines that an edit repeats. The last
//! tokens of a sequence are looked up in what came before them, and what followed them there is tried. A draw depends on
//! logits and position alone, so what is drawn is what would have been drawn one by one; a wrong guess costs its share
//! of a step. Source: the method is Saxena's "Prompt Lookup Decoding" (2023).
//! **Invariant:** guesses change when tokens come, and never which.

mod model;
mod odds;
mod track;

pub use model::step_tokens_max as draft_step_tokens_max;
pub(super) use model::{Asked, DraftModel, Room};

use crate::prompt::Tokens;

/// Where guesses come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DraftSource {
    /// What followed the last tokens where they stood before.
    #[default]
    Lookup,
    /// What a grammar leaves no choice about.
    Grammar,
    /// A smaller model.
    Model,
}

impl DraftSource {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Lookup, Self::Grammar, Self::Model];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Grammar => "grammar",
            Self::Model => "model",
        }
    }
}

/// Fewest last tokens that are looked up. Chosen: one alone stands anywhere.
const MATCH_MIN: usize = 2;
/// A match of so many is not looked for any further. Chosen: those that share as much seldom part soon.
const MATCH_ENOUGH: usize = 12;
/// Tokens that are searched, the latest first, and compared with the last ones. Chosen: 1 ns each, which is little beside a step of any model.
const SEARCHED_MAX: usize = 32 << 10;
/// Guesses at the start. Chosen: small, for it doubles while they are right.
const WINDOW_START: usize = 4;
/// Longest pause, in tokens, after guesses that were wrong. Chosen: text that begins to repeat itself is noticed soon.
const PAUSE_MAX: u32 = 64;

/// Longest pause where nothing was found. Chosen: a search of a long prompt then costs 1 us a token at most.
const SEARCH_PAUSE_MAX: u32 = 16;

/// One sequence's guesses, and how they fare.
#[derive(Debug)]
pub(super) struct Drafter {
    /// How many are made.
    window: usize,
    /// Tokens until the next.
    pause: u32,
    /// How often, one after the other, all were wrong.
    failures: u32,
    /// How often, one after the other, there was nothing to guess by.
    searches: u32,
}

impl Default for Drafter {
    fn default() -> Self {
        Self { window: WINDOW_START, pause: 0, failures: 0, searches: 0 }
    }
}

impl Drafter {
    /// What may follow the tokens of a sequence, at most `count`.
    pub(super) fn draft(&mut self, prompt: &Tokens, output: &[u32], count: usize) -> Vec<u32> {
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        let text = Text { prompt, output };
        match text.continuation() {
            Some(from) => {
                self.searches = 0;
                text.from(from, count.min(self.window))
            }
            None => {
                self.searches += 1;
                self.pause = (1 << self.searches.min(31)).min(SEARCH_PAUSE_MAX);
                Vec::new()
            }
        }
    }

    /// Whether it will not guess for the next token.
    pub(super) fn pauses(&self) -> bool {
        self.pause > 0
    }

    /// Lets the next token pass without a guess.
    pub(super) fn pass(&mut self) {
        self.pause = self.pause.saturating_sub(1);
    }

    /// Learns how many of the guesses were right.
    pub(super) fn tried(&mut self, guesses: usize, right: usize) {
        match right {
            0 => {
                self.failures += 1;
                self.pause = (1 << self.failures.min(31)).min(PAUSE_MAX);
                self.window = WINDOW_START;
            }
            _ if right == guesses => {
                self.failures = 0;
                self.window = (guesses * 2).max(self.window);
            }
            _ => {
                self.failures = 0;
                self.window = right + 1;
            }
        }
    }
}

/// A prompt and its output.
struct Text<'a> {
    prompt: &'a Tokens,
    output: &'a [u32],
}

impl Text<'_> {
    fn len(&self) -> usize {
        self.prompt.len() + self.output.len()
    }

    fn at(&self, place: usize) -> u32 {
        match place.checked_sub(self.prompt.len()) {
            Some(place) => self.output[place],
            None => self.prompt.at(place),
        }
    }

    /// Where that goes on which most of the last tokens are found at, the latest of equals.
    fn continuation(&self) -> Option<usize> {
        let len = self.len();
        let last = self.at(len.checked_sub(1)?);
        let mut best = (MATCH_MIN - 1, None);
        let mut compared = 0;
        let mut end = len;
        for piece in self.prompt.pieces().chain([self.output]).rev() {
            let start = end - piece.len();
            let mut ends = piece.len().min((len - 1).saturating_sub(start));
            let oldest = len.saturating_sub(SEARCHED_MAX + start).min(ends);
            while let Some(found) = piece[oldest..ends].iter().rposition(|token| *token == last) {
                let found = oldest + found;
                let place = start + found;
                let same = (1..MATCH_ENOUGH)
                    .take_while(|back| place >= *back && self.at(place - back) == self.at(len - 1 - back));
                let same = same.count() + 1;
                if same > best.0 {
                    best = (same, Some(place + 1));
                }
                compared += same;
                if same == MATCH_ENOUGH || compared > SEARCHED_MAX {
                    return best.1;
                }
                ends = found;
            }
            end = start;
            if len - end >= SEARCHED_MAX {
                break;
            }
        }
        best.1
    }

    /// The tokens from a place on, as if the text repeated itself from there behind its end.
    fn from(&self, place: usize, count: usize) -> Vec<u32> {
        let period = self.len() - place;
        (0..count).map(|i| self.at(place + i % period)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft(prompt: &[u32], output: &[u32], count: usize) -> Vec<u32> {
        Drafter { window: count, ..Drafter::default() }.draft(&prompt.to_vec().into(), output, count)
    }

    #[test]
    fn what_followed_the_longest_match_is_tried() {
        // 2 3 is followed by 9 at last, but 1 2 3 by 4.
        let prompt = [1, 2, 3, 4, 5, 6, 2, 3, 9, 8];
        assert_eq!(draft(&prompt, &[1, 2, 3], 3), [4, 5, 6]);
        assert_eq!(draft(&prompt, &[7, 2, 3], 3), [9, 8, 7]);
        assert_eq!(draft(&prompt, &[7, 3], 3), [0; 0], "one token alone says nothing");
        assert_eq!(draft(&[1], &[], 3), [0; 0]);
    }

    #[test]
    fn what_repeats_itself_goes_on_repeating() {
        assert_eq!(draft(&[9], &[1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        assert_eq!(draft(&[7, 7, 7], &[], 4), [7, 7, 7, 7]);
    }

    #[test]
    fn guesses_grow_while_they_are_right_and_pause_when_they_are_wrong() {
        let mut drafter = Drafter::default();
        let prompt: Tokens = vec![7; 100].into();
        let mut count = |right: fn(usize) -> usize| {
            let guesses = drafter.draft(&prompt, &[], 100).len();
            if guesses > 0 {
                drafter.tried(guesses, right(guesses));
            }
            guesses
        };
        assert_eq!([count(|all| all), count(|all| all), count(|_| 2), count(|_| 0)], [4, 8, 16, 3]);
        assert_eq!([count(|_| 0), count(|_| 0), count(|_| 0)], [0, 0, 4]);
        let pauses = (0..5).map(|_| (0..).take_while(|_| count(|_| 0) == 0).count()).collect::<Vec<_>>();
        assert_eq!(pauses, [4, 8, 16, 32, 64]);
    }

    #[test]
    fn where_nothing_is_found_it_is_not_looked_for_at_every_token() {
        let mut drafter = Drafter::default();
        let prompt: Tokens = (0..100).collect::<Vec<u32>>().into();
        let searched = (0..100).filter(|_| {
            let before = drafter.searches;
            drafter.draft(&prompt, &[], 8);
            drafter.searches > before
        });
        assert_eq!(searched.count(), 8);
    }

    proptest! {
        /// Whatever is tried stood behind an equal pair of tokens.
        #[test]
        fn guesses_come_from_the_text(
            prompt in proptest::collection::vec(0u32..4, 1..40), output in proptest::collection::vec(0u32..4, 0..40),
        ) {
            let text = [prompt.clone(), output.clone()].concat();
            let guesses = draft(&prompt, &output, 1);
            let last = &text[text.len().saturating_sub(MATCH_MIN)..];
            let followed = |token: u32| text.windows(3).any(|three| three[..2] == *last && three[2] == token);
            match guesses[..] {
                [] => prop_assert!((0..4).all(|token| !followed(token))),
                [token] => prop_assert!(followed(token)),
                _ => prop_assert!(false, "one was asked for"),
            }
        }
    }
}
