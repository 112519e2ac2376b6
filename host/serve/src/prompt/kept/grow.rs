//! A conversation's prompt, and how a longer conversation's grows from it.
//!
//! ```text
//! window      ┌ head ┐┌ question ┐┌ last turns ┐┌ added ┐   a few messages that stand for all
//! its text    ──────────────────────────────╴▒▒┆████████    rendered twice, without `added` and with it:
//! the prompt  ──────────── … ───────────────╴▒▒┆████████    the same bytes go and come at the end of the whole text
//! ```
//!
//! Tokens are reused up to the last added token that stands before the change, for nothing merges across one.
//! **Invariant:** whatever is not sure is rendered whole.

use std::sync::Arc;

use decide::Role;
use kv::BlockName;
use parking_lot::Mutex;
use serde_json::Value;

use super::memory::{Held, Memory};
use super::tokens::Tokens;
use super::{Kept, Maker};
use crate::prompt::canonical::is_system;
use crate::prompt::segments::{Segment, Span, segments_of};
use crate::prompt::template::{Change, Shown, Window, is_end_of};
use crate::prompt::tokenizer::Cut;
use crate::prompt::{PromptError, Tokenizer};

/// Bytes of a text's end that are kept, to compare with. Chosen: a few messages; old reasoning that goes reaches further.
const END_BYTES: usize = 4 << 10;
const END_BYTES_THOUGHT: usize = 64 << 10;
/// Answers that are remembered for one prompt: those of several choices, and of a caller that asks again.
const SAID_MAX: usize = 8;
/// Bytes of a state beside what is counted by itself. Chosen: about what its parts and its place in the list take.
const STATE_BYTES: usize = 1 << 10;

/// What is kept of a conversation's prompt.
#[derive(Debug)]
pub(super) struct State {
    tokens: Tokens,
    text_len: usize,
    /// The last bytes of the text.
    end: String,
    /// Places in the text, within `end`.
    cuts: Vec<Cut>,
    window: Window,
    /// Whether its last message is one that may become a part of the next.
    is_open: bool,
    /// How many messages the template saw.
    messages: usize,
    /// What its tokens are, if that was asked for.
    segments: Option<Segments>,
    said: Mutex<Vec<Said>>,
    memory: Memory,
    _held: Held,
}

/// What the tokens of a prompt are.
#[derive(Clone, Debug)]
struct Segments {
    all: Vec<Segment>,
    /// Where the model's turn begins in the text, if that was found.
    turn: Option<usize>,
}

/// What a model wrote.
#[derive(Debug)]
struct Said {
    text: String,
    tokens: Box<[u32]>,
    _held: Held,
}

/// A state that came from another.
pub(super) struct Grown {
    pub(super) state: State,
    pub(super) kept_tokens: usize,
    pub(super) said_tokens: usize,
}

/// What is told of a state beside its text.
struct Told {
    messages: usize,
    segments: Option<Segments>,
    is_open: bool,
}

/// The end of a text, and tokens that belong to it.
struct Tail {
    text_len: usize,
    end: String,
    cuts: Vec<Cut>,
}

impl State {
    /// Whether it is known what its tokens are.
    pub(super) fn is_segmented(&self) -> bool {
        self.segments.is_some()
    }

    /// How many tokens its prompt has.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The last cut that stays when the last `back` bytes of the text go.
    fn cut(&self, back: usize, longest: usize) -> Option<Cut> {
        let stays = |cut: &&Cut| cut.bytes + longest + back <= self.text_len;
        self.cuts.iter().rev().find(stays).copied()
    }

    /// The text from a cut on, without its last `back` bytes.
    fn text_from(&self, cut: Cut, back: usize) -> Option<&str> {
        let start = cut.bytes.checked_sub(self.text_len - self.end.len())?;
        self.end.get(start..self.end.len() - back)
    }

    /// What the model wrote, if the added text begins with it and goes on behind it with a token of its own.
    fn said(&self, added: &str, tokenizer: &Tokenizer) -> Option<(usize, Vec<u32>)> {
        let said = self.said.lock();
        let fits = |said: &&Said| {
            added.strip_prefix(said.text.as_str()).is_some_and(|rest| tokenizer.begins_with_added(rest))
        };
        let longest = said.iter().filter(fits).max_by_key(|said| said.text.len())?;
        Some((longest.text.len(), longest.tokens.to_vec()))
    }
}

impl Maker<'_> {
    /// The state of a conversation that is rendered whole.
    pub(super) fn whole(&self, messages: &[Value], memory: &Memory) -> Result<State, PromptError> {
        let shown = self.template.shown(&self.setting, messages);
        let window = Window::default().extended(&shown.objects);
        let objects = shown.objects.iter().map(|(_, value)| value.clone()).collect();
        let text = self.template.text(&self.setting, objects)?;
        let (tokens, cuts) = self.tokenizer.encode_with_cuts(&text);
        let segments = self.segmented.then(|| {
            let spans = self.template.spans_of(&self.setting, &shown, &text, true);
            let turn = turn(&spans);
            Segments { all: segments_of(self.tokenizer, &spans, &text, &tokens), turn }
        });
        let tokens = Tokens::default().then(0, &tokens, self.naming, memory);
        let tail = self.tail(&window, text.len(), text, cuts);
        let told =
            Told { messages: shown.objects.len(), segments, is_open: messages.last().is_some_and(is_system) };
        Ok(self.state((tokens, window), tail, told, memory))
    }

    /// The state of a conversation to which messages were added; `None` if it has to be rendered whole.
    pub(super) fn grown(&self, state: &State, added: &[Value], memory: &Memory) -> Option<Grown> {
        if self.template.folds(&self.setting) && (state.is_open || added.first().is_some_and(is_system)) {
            return None;
        }
        let shown = self.template.shown(&self.setting, added);
        let turns = shown.objects.iter().map(|(turn, _)| *turn);
        let (reaches, has_tools) = (self.template.reach(&self.setting), self.setting.has_tools());
        let reach = reaches.of(turns, has_tools, state.window.thought());
        let window = state.window.extended(&shown.objects);
        let mut messages = state.window.messages(reach)?;
        if reaches.is_strict(has_tools) && !self.template.takes(&self.setting, window.shape()) {
            return None;
        }
        let old = self.template.text(&self.setting, messages.clone()).ok()?;
        messages.extend(shown.objects.iter().map(|(_, value)| value.clone()));
        let new = self.template.text(&self.setting, messages).ok()?;
        let change = Change::between(&old, &new);
        if change.back > state.end.len() || !is_end_of(&old, &state.end, change.back) {
            return None;
        }
        let text_len = state.text_len - change.back + change.added.len();
        let (keep, tokens, cuts, said_tokens) = self.added_tokens(state, &change)?;
        let mut end = state.end[..state.end.len() - change.back].to_owned();
        end.push_str(&change.added);
        let tokens = state.tokens.then(keep, &tokens, self.naming, memory);
        let segments = match self.segmented {
            true => Some(self.segments(state, (&shown, &change), (&end, text_len), &tokens)?),
            false => None,
        };
        let tail = self.tail(&window, text_len, end, cuts);
        let is_open = added.last().is_some_and(is_system);
        let told = Told { messages: state.messages + shown.objects.len(), segments, is_open };
        let state = self.state((tokens, window), tail, told, memory);
        Some(Grown { state, kept_tokens: keep, said_tokens })
    }

    /// How many tokens stay, those that come, all cuts, and how many of them the model wrote.
    fn added_tokens(&self, state: &State, change: &Change) -> Option<(usize, Vec<u32>, Vec<Cut>, usize)> {
        let said = if change.back == 0 { state.said(&change.added, self.tokenizer) } else { None };
        if let Some((bytes, mut tokens)) = said {
            let (more, cuts) = self.tokenizer.encode_with_cuts(&change.added[bytes..]);
            let written = tokens.len();
            let base = Cut { bytes: state.text_len + bytes, tokens: state.len() + written };
            tokens.extend(more);
            return Some((state.len(), tokens, moved(&state.cuts, cuts, base), written));
        }
        let cut = state.cut(change.back, self.tokenizer.longest_added())?;
        let text = state.text_from(cut, change.back)?.to_owned() + &change.added;
        let (tokens, cuts) = self.tokenizer.encode_with_cuts(&text);
        let before = state.cuts.iter().take_while(|other| other.bytes <= cut.bytes).copied();
        let before: Vec<Cut> = before.collect();
        Some((cut.tokens, tokens, moved(&before, cuts, cut), 0))
    }

    /// What is kept of the end of a text; `end` is all of it that is at hand.
    fn tail(&self, window: &Window, text_len: usize, mut end: String, mut cuts: Vec<Cut>) -> Tail {
        let bytes = if window.thought() { END_BYTES_THOUGHT } else { END_BYTES };
        let longest = self.tokenizer.longest_added();
        // One cut that stays if nothing goes, and one before it.
        let mut usable = cuts.iter().rev().filter(|cut| cut.bytes + longest <= text_len);
        let last = usable.next();
        let from = usable.next().or(last).map_or(text_len, |cut| cut.bytes);
        let from = from.min(text_len.saturating_sub(bytes));
        let have = text_len - end.len();
        let drop = end.floor_char_boundary(from.saturating_sub(have));
        end.drain(..drop);
        end.shrink_to_fit();
        cuts.retain(|cut| cut.bytes >= have + drop);
        cuts.shrink_to_fit();
        Tail { text_len, end, cuts }
    }

    fn state(&self, (tokens, window): (Tokens, Window), tail: Tail, told: Told, memory: &Memory) -> State {
        let Tail { text_len, end, cuts } = tail;
        let own = tokens.own_bytes() + window.len() * size_of::<(u64, Value)>() + window.shape().len();
        let segments = told.segments.as_ref().map_or(0, |segments| size_of_val(&*segments.all));
        let held = memory.hold(STATE_BYTES + own + 2 * end.len() + size_of_val(&*cuts) + segments);
        let Told { messages, segments, is_open } = told;
        let (said, memory) = (Mutex::default(), memory.clone());
        State { tokens, text_len, end, cuts, window, is_open, messages, segments, said, memory, _held: held }
    }

    /// What the tokens are of a text that goes on where the model's turn began; `None` if it does not.
    fn segments(
        &self,
        state: &State,
        (shown, change): (&Shown, &Change),
        (end, text_len): (&str, usize),
        tokens: &Tokens,
    ) -> Option<Segments> {
        let before = state.segments.as_ref()?;
        let turn_at = before.turn.filter(|turn| *turn <= state.text_len - change.back)?;
        let text = end.get(turn_at.checked_sub(text_len - end.len())?..)?;
        let (last, kept) = before.all.split_last()?;
        let first_token = last.start as usize;
        let mut spans = self.template.spans_of(&self.setting, shown, text, false);
        if let Some(first) = spans.first_mut().filter(|first| first.message == Span::BEFORE) {
            *first = Span { role: Role::History, message: 0, ..*first };
        }
        let turn = turn(&spans).map(|turn| turn + turn_at);
        let own = segments_of(self.tokenizer, &spans, text, &tokens.since(first_token));
        let own = own.into_iter().map(|segment| Segment {
            start: segment.start + last.start,
            message: match segment.message {
                Span::AFTER => Span::AFTER,
                message => message.max(0) + state.messages as i32,
            },
            ..segment
        });
        Some(Segments { all: kept.iter().copied().chain(own).collect(), turn })
    }

    /// The tokens of a prompt and the names of its blocks.
    pub(crate) fn tokens(&self, kept: &Kept) -> (Tokens, Arc<[BlockName]>) {
        let tokens = &kept.0.tokens;
        (tokens.clone(), tokens.names(self.naming))
    }
}

/// Where the model's turn begins.
fn turn(spans: &[Span]) -> Option<usize> {
    spans.last().filter(|last| last.message == Span::AFTER).map(|last| last.start)
}

/// Cuts that stay, and those of a text behind `base`.
fn moved(before: &[Cut], cuts: Vec<Cut>, base: Cut) -> Vec<Cut> {
    let moved = |cut: Cut| Cut { bytes: base.bytes + cut.bytes, tokens: base.tokens + cut.tokens };
    before.iter().copied().chain(cuts.into_iter().map(moved)).collect()
}

impl Kept {
    /// The end of the text.
    pub(crate) fn end(&self) -> &str {
        &self.0.end
    }

    /// The tokens before the last place that spells `mark`; `None` where that is not near the end, or tokens cannot be
    /// told apart there.
    pub(crate) fn tokens_before(&self, mark: &str, maker: &Maker<'_>) -> Option<Vec<u32>> {
        let state = &self.0;
        let before_end = state.text_len - state.end.len();
        let at = state.end.rfind(mark)?;
        let cut = state.cuts.iter().rev().find(|cut| cut.bytes <= before_end + at)?;
        let between = state.end.get(cut.bytes.checked_sub(before_end)?..at)?;
        let mut tokens = state.tokens.since(0);
        tokens.truncate(cut.tokens);
        tokens.extend(maker.tokenizer.encode_prompt(between));
        Some(tokens)
    }

    /// What its tokens are, if the maker was to find out.
    pub(crate) fn segments(&self) -> Option<&[Segment]> {
        self.0.segments.as_ref().map(|segments| segments.all.as_slice())
    }

    /// Remembers what the model wrote to this prompt, all of it.
    pub(crate) fn remember(&self, tokens: &[u32], tokenizer: &Tokenizer) {
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|&token| tokenizer.token_bytes(token).into_owned()).collect();
        let Ok(text) = String::from_utf8(bytes) else { return };
        let mut said = self.0.said.lock();
        if text.is_empty() || said.iter().any(|other| other.text == text) {
            return;
        }
        if said.len() == SAID_MAX {
            said.remove(0);
        }
        let held = self.0.memory.hold(text.len() + size_of_val(tokens));
        said.push(Said { text, tokens: tokens.into(), _held: held });
    }
}
