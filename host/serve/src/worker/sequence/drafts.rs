//! Guesses of a sequence's next tokens: where they come from, and that they are tried as if they had been drawn.
//!
//! **Invariant:** drafts are in the output while they are laid, and never otherwise.

use engine::TokenMask;

use super::super::drafter::DraftSource;
use super::Sequence;
use crate::prompt::Constraint;

/// Most alternatives that any device reports by itself; more are the host's work, which has to come first.
const BLIND_LOGPROBS_MAX: u32 = 32;

impl Sequence {
    /// How many of `count` next tokens may be guessed.
    pub(in crate::worker) fn drafts_max(&self, count: usize) -> usize {
        if !self.drafts_wanted || self.is_prompt_only() {
            return 0;
        }
        // The last token of an output is drawn, and nothing behind it is needed.
        count.min((self.start.output_tokens_max as usize).saturating_sub(self.output.len() + 1))
    }

    /// Guesses at most so many of its next tokens, all below `vocab`, to be tried in this step.
    pub(in crate::worker) fn draft(&mut self, count: usize, vocab: u32, go_on: &dyn Fn() -> bool) {
        let count = self.drafts_max(count);
        if count == 0 {
            return;
        }
        let mut drafts = self.start.constraint.as_mut().map(Constraint::forced).unwrap_or_default();
        drafts.truncate(count);
        self.drafted_by = DraftSource::Grammar;
        if drafts.is_empty() {
            self.drafted_by = DraftSource::Lookup;
            drafts = self.drafter.draft(&self.start.tokens, &self.output, count);
        }
        // Nothing follows what ends the answer.
        let stop = drafts.iter().position(|draft| self.start.stop_tokens.contains(draft));
        drafts.truncate(stop.unwrap_or(drafts.len()));
        if let Some(constraint) = &mut self.start.constraint {
            let guessed = drafts.len();
            constraint.try_tokens(&mut drafts, vocab, go_on);
            if drafts.is_empty() && guessed > 0 {
                self.tried(guessed, 0);
            }
        }
        self.drafts = drafts;
    }

    /// Whether its token after the next can be asked for before the next is known: how it is drawn depends on the seed
    /// and on logits alone, and nobody would guess it.
    pub(in crate::worker) fn goes_on_blindly(&self, drafts_max: usize) -> bool {
        let sampling = &self.start.sampling;
        let plain = sampling.repetition_penalty == 1.0
            && sampling.presence_penalty == 0.0
            && sampling.frequency_penalty == 0.0
            && sampling.logprobs.is_none_or(|count| count <= BLIND_LOGPROBS_MAX);
        let unguessed = drafts_max == 0 || !self.drafts_wanted || self.drafter.pauses();
        plain
            && unguessed
            && self.start.constraint.is_none()
            && !self.is_prompt_only()
            && self.giver.is_none()
    }

    /// Lets its next token pass without a guess.
    pub(in crate::worker) fn pass_draft(&mut self) {
        self.drafter.pass();
    }

    /// Prepares for drafts that come one by one from a model. False where none may be tried.
    pub(in crate::worker) fn begin_drafts(&mut self) -> bool {
        assert!(self.drafts.is_empty(), "its tokens are guessed by one source at a time");
        self.drafted_by = DraftSource::Model;
        self.start.constraint.as_mut().is_none_or(Constraint::begin_trial)
    }

    /// Lays one more draft behind the others. False if nothing can be tried with it.
    pub(in crate::worker) fn add_draft(&mut self, token: u32, vocab: u32) -> bool {
        let ends = token >= vocab || self.start.stop_tokens.contains(&token);
        let goes_on = !ends
            && self.start.constraint.as_mut().is_none_or(|constraint| constraint.try_next(token, vocab));
        if goes_on {
            self.drafts.push(token);
            self.output.push(token);
        }
        goes_on
    }

    /// Ends what [`Sequence::begin_drafts`] began: the drafts are there, and not laid.
    pub(in crate::worker) fn end_drafts(&mut self) {
        self.lift_drafts();
        if let Some(constraint) = &mut self.start.constraint {
            constraint.end_trial();
        }
    }

    /// Learns how many of its drafts were right, and says where they came from; those that a grammar forces say nothing
    /// about the others.
    pub(in crate::worker) fn tried(&mut self, drafts: usize, right: usize) -> DraftSource {
        if self.drafted_by == DraftSource::Lookup {
            self.drafter.tried(drafts, right);
        }
        self.drafted_by
    }

    /// Puts its drafts behind its output, as if they had been drawn.
    pub(in crate::worker) fn lay_drafts(&mut self) {
        self.output.extend_from_slice(&self.drafts);
    }

    /// Takes them away again.
    pub(in crate::worker) fn lift_drafts(&mut self) {
        self.output.truncate(self.output.len() - self.drafts.len());
    }

    /// Which tokens may come behind its drafts; `None` allows all.
    pub(in crate::worker) fn next_mask(&self) -> Option<TokenMask<'_>> {
        self.start.constraint.as_ref().map(|constraint| constraint.mask_behind(self.drafts.len()))
    }
}
