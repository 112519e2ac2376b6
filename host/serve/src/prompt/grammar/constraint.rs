//! What one sequence may say next.
//!
//! ```text
//! Reasoning ─close─► Gap ─► Answer          MayReason ─open─► Reasoning
//!                                           MayReason ───────► Answer
//! ```
//!
//! Reasoning is free but cannot end the answer. In the gap a model may put two newlines, as its template does.
//! A preempted sequence keeps its constraint: what is computed again is KV, not tokens.
//! **Invariant:** a mask is computed before each draw, and is never empty; what is tried changes nothing.

use std::sync::Arc;

use engine::TokenMask;
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::compile::Kept;
use super::vocabulary::Vocabulary;
use crate::prompt::output::ReasoningMarks;

/// Where a prompt leaves the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reasoning {
    /// It answers at once.
    None,
    /// It may open a reasoning section first, between these marks.
    May(ReasoningMarks),
    /// It is in one.
    Inside(ReasoningMarks),
}

/// What one sequence may say next.
pub struct Constraint {
    vocabulary: Arc<Vocabulary>,
    /// The token that opens reasoning, where that may still come.
    open: Option<u32>,
    /// What ends reasoning.
    close: &'static str,
    phase: Phase,
    matcher: Matcher,
    mask: SimpleVob,
    /// Whether `mask` is that of the next token.
    ready: bool,
    /// Those behind each of the tokens that are tried after it.
    tried: Vec<SimpleVob>,
    /// A copy of the grammar's state that these lead on, while there may be more of them. It takes what goes wrong with it:
    /// a guess may lead where the grammar becomes too complex, and the answer itself never comes there.
    trial: Option<Box<Matcher>>,
    /// The last bytes of reasoning, for its end may span tokens.
    tail: Vec<u8>,
    /// Where the grammar is kept for others, to be told when it fails.
    kept: Kept,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Reasoning,
    MayReason,
    /// So many newlines may still come.
    Gap(usize),
    Answer,
}

/// Most newlines between reasoning and answer. Specified: those of Qwen 3's template.
const GAP_MAX: usize = 2;

/// What follows a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// More tokens.
    More,
    /// Nothing: the answer is complete.
    Complete,
}

impl Constraint {
    pub(super) fn new(
        vocabulary: Arc<Vocabulary>,
        matcher: Matcher,
        reasoning: Reasoning,
        kept: Kept,
    ) -> Self {
        let (open, close, phase) = match reasoning {
            Reasoning::Inside(marks) => (None, marks.close, Phase::Reasoning),
            Reasoning::May(marks) => match vocabulary.control(marks.open) {
                Some(open) => (Some(open), marks.close, Phase::MayReason),
                None => (None, "", Phase::Answer),
            },
            Reasoning::None => (None, "", Phase::Answer),
        };
        Self {
            vocabulary,
            open,
            close,
            phase,
            matcher,
            mask: SimpleVob::new(),
            ready: false,
            tried: Vec::new(),
            trial: None,
            tail: Vec::new(),
            kept,
        }
    }

    /// Computes the tokens that may come next, if that is not done.
    ///
    /// Cost: about 20 us for a vocabulary of 128,000 tokens, 4 ms at the 99th percentile (`bench -- grammar`), and one
    /// allocation of a bit a token; nothing within reasoning.
    /// Errors: what the grammar met, when it became too complex; the sequence cannot go on then.
    pub fn compute(&mut self) -> Result<(), String> {
        if self.ready || self.phase == Phase::Reasoning {
            self.ready = true;
            return Ok(());
        }
        self.mask = self.matcher.compute_mask().map_err(|error| self.fail(&error))?;
        match self.phase {
            Phase::MayReason => {
                if let Some(open) = self.open {
                    self.mask.allow_token(open);
                }
            }
            Phase::Gap(left) => {
                let fit = self.vocabulary.newlines.iter().filter(|(_, len)| *len <= left);
                fit.for_each(|&(token, _)| self.mask.allow_token(token));
            }
            Phase::Reasoning | Phase::Answer => {}
        }
        self.ready = true;
        Ok(())
    }

    /// Whether the tokens that may come next are computed.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// The tokens that the grammar leaves no choice about, as it would spell them; none where it does.
    pub fn forced(&mut self) -> Vec<u32> {
        match self.phase {
            Phase::Answer => self.matcher.compute_ff_tokens(),
            _ => Vec::new(),
        }
    }

    /// Computes what may come behind each of these tokens, as if they were drawn one after the other, and drops those
    /// from the first on that may not come, leave no token below `vocab`, or end the answer. Only after
    /// [`Constraint::compute`]. It is over when `go_on` says no.
    ///
    /// Cost: a copy of the grammar's state, and a mask for each of them.
    pub fn try_tokens(&mut self, tokens: &mut Vec<u32>, vocab: u32, go_on: &dyn Fn() -> bool) {
        if tokens.is_empty() || !self.begin_trial() {
            self.tried.clear();
            return tokens.clear();
        }
        while let Some(&token) = tokens.get(self.tried.len())
            && go_on()
            && self.try_next(token, vocab)
        {}
        self.end_trial();
        tokens.truncate(self.tried.len());
    }

    /// Prepares to try tokens one by one. False where none may be tried.
    pub fn begin_trial(&mut self) -> bool {
        self.tried.clear();
        self.trial = None;
        self.phase == Phase::Answer
    }

    /// Computes what may come behind one more token, as if it were drawn. False if it may not come, leaves no token below
    /// `vocab`, or ends the answer: none is to be tried behind it. Only between [`Constraint::begin_trial`] and
    /// [`Constraint::end_trial`].
    ///
    /// Cost: a mask, and for the first token a copy of the grammar's state.
    pub fn try_next(&mut self, token: u32, vocab: u32) -> bool {
        if token >= vocab || !self.mask_behind(self.tried.len()).allows(token) {
            return false;
        }
        // The copy is made for those alone that try something.
        let trial = self.trial.get_or_insert_with(|| Box::new(self.matcher.clone()));
        if trial.consume_token(token).is_ok()
            && !trial.is_stopped()
            && let Ok(mask) = trial.compute_mask()
            && TokenMask(mask.as_slice()).tokens(vocab).next().is_some()
        {
            self.tried.push(mask);
            return true;
        }
        false
    }

    /// Gives up the copy. What was tried stays until the next trial.
    pub fn end_trial(&mut self) {
        self.trial = None;
    }

    /// Whether any token below `vocab` may come next. Only after [`Constraint::compute`].
    pub fn allows_any(&self, vocab: u32) -> bool {
        self.mask().tokens(vocab).next().is_some()
    }

    /// The tokens that may come behind the first `tried` of those that are tried.
    pub fn mask_behind(&self, tried: usize) -> TokenMask<'_> {
        match tried.checked_sub(1) {
            Some(last) => TokenMask(self.tried[last].as_slice()),
            None => self.mask(),
        }
    }

    /// The tokens that may come next. Only after [`Constraint::compute`].
    pub fn mask(&self) -> TokenMask<'_> {
        assert!(self.ready, "a mask is computed before it is used");
        match self.phase {
            Phase::Reasoning => TokenMask(self.vocabulary.all.as_slice()),
            _ => TokenMask(self.mask.as_slice()),
        }
    }

    /// Takes a drawn token in, which is none that ends the answer.
    ///
    /// Errors: as [`Constraint::compute`].
    pub fn advance(&mut self, token: u32) -> Result<Next, String> {
        self.ready = false;
        match self.phase {
            Phase::Gap(left) => {
                if let Some((_, len)) = self.vocabulary.newlines.iter().find(|(newline, _)| *newline == token)
                {
                    self.phase = Phase::Gap(left.saturating_sub(*len));
                    return Ok(Next::More);
                }
            }
            Phase::Reasoning => {
                self.reason(token);
                return Ok(Next::More);
            }
            Phase::MayReason if self.open == Some(token) => {
                self.phase = Phase::Reasoning;
                return Ok(Next::More);
            }
            Phase::MayReason | Phase::Answer => {}
        }
        self.phase = Phase::Answer;
        self.matcher.consume_token(token).map_err(|error| self.fail(&error))?;
        Ok(if self.matcher.is_stopped() { Next::Complete } else { Next::More })
    }

    fn reason(&mut self, token: u32) {
        let close = self.close.as_bytes();
        self.tail.extend_from_slice(self.vocabulary.bytes(token));
        if self.tail.windows(close.len()).any(|bytes| bytes == close) {
            self.phase = Phase::Gap(GAP_MAX);
            self.tail = Vec::new();
        } else {
            self.tail.drain(..self.tail.len().saturating_sub(close.len() - 1));
        }
    }

    /// A grammar that fails is compiled afresh for whoever asks next: its automaton is shared, and may be full.
    fn fail(&self, error: &anyhow::Error) -> String {
        self.kept.forget();
        format!("the output's grammar failed: {}", first_line(&error.to_string()))
    }
}

/// The first line of a message: what follows may quote the output.
pub(super) fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("phase", &self.phase).finish_non_exhaustive()
    }
}
