//! An answer on its way out: tokens of each choice become text, reasoning and calls.
//!
//! **Invariant:** an answer holds its request's seat and its generation until it is dropped, and tells
//! `observe` exactly one end.

use std::sync::Arc;
use std::task::{Context, Poll};

use engine::Sampled;
use policy::Pin;
use tokio::sync::mpsc;

use crate::app::{App, Seat};
use crate::ctx::Moment;
use crate::door::Place;
use crate::observe::{self, Outcome};
use crate::prompt::{Detokenizer, OutputEvent, OutputParser, StopMatcher};
use crate::request::{Prompt, Refusal};
use crate::route::Routed;
use crate::speculation::{Next, Prepared};
use crate::worker::{Event, Finish, SequenceHints};

/// Chosen: what one body frame carries at most; a reader that lags is not sent more at once.
const EVENTS_PER_DELTA_MAX: usize = 64;

/// What a choice gained.
#[derive(Debug, Default)]
pub struct Delta {
    /// Number of the choice.
    pub choice: u32,
    /// Reasoning, text and calls in order.
    pub pieces: Vec<OutputEvent>,
    /// Tokens behind the text of `pieces`, if asked for.
    pub logprobs: Vec<Sampled>,
    /// Why the choice ended, if it did.
    pub finish: Option<FinishReason>,
    /// Whether the prompt has begun to be computed, before anything else.
    pub begun: bool,
}

impl Delta {
    /// Whether the choice gained nothing that a reader sees.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.finish.is_none()
    }

    /// Neighbouring pieces of the same kind become one: fewer events when tokens come faster than they are sent.
    pub fn joined(self) -> Vec<OutputEvent> {
        let mut out: Vec<OutputEvent> = Vec::with_capacity(self.pieces.len());
        for piece in self.pieces {
            match (out.last_mut(), piece) {
                (Some(OutputEvent::Text(a)), OutputEvent::Text(b)) => *a += &b,
                (Some(OutputEvent::Reasoning(a)), OutputEvent::Reasoning(b)) => *a += &b,
                (
                    Some(OutputEvent::CallArguments { index: i, delta: a }),
                    OutputEvent::CallArguments { index, delta },
                ) if *i == index => *a += &delta,
                (_, piece) => out.push(piece),
            }
        }
        out
    }
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// The output limit.
    Length,
    /// It ended in tool calls.
    ToolCalls,
}

/// Tokens counted over all choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: u32,
    /// Prompt tokens that did not have to be computed.
    pub cached_tokens: u32,
    /// Tokens of the output.
    pub completion_tokens: u32,
    /// Those of them that were reasoning.
    pub reasoning_tokens: u32,
}

impl Usage {
    fn plus(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
            reasoning_tokens: self.reasoning_tokens + other.reasoning_tokens,
        }
    }
}

/// What stays the same for the whole answer.
pub struct Pinned {
    /// The host.
    pub app: Arc<App>,
    /// The place in the house.
    pub seat: Seat,
    /// The same, as its tenant's quota counts it.
    pub place: Place,
    /// The generation that decides everything about this request.
    pub policies: Pin,
    /// Its prompt.
    pub prompt: Prompt,
    /// Its hints, as numbers.
    pub hints: SequenceHints,
    /// Where it was sent, and by whom.
    pub routed: Routed,
    /// Nobody reads what another worker says of the prompt; dropping it tells that one that nobody waits any more.
    pub prefilling: Option<mpsc::Receiver<Event>>,
    /// The request's id.
    pub id: String,
    /// When it came in.
    pub arrived: Moment,
}

/// An answer, choice by choice, as it is computed.
pub struct Answer {
    /// What stays the same.
    pub pinned: Pinned,
    choices: Vec<Choice>,
    /// Answers to the other prompts of the same call; their choices come after ours.
    others: Vec<Answer>,
    /// What was prepared for the request.
    prepared: Option<Prepared>,
    /// What its end prepares.
    next: Option<Box<Next>>,
    usage: Usage,
    first_token: Option<Moment>,
    last_token: Moment,
    finish: Option<FinishReason>,
    ended: bool,
}

/// One choice's way from tokens to pieces.
pub struct Choice {
    events: mpsc::Receiver<Event>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// Takes the text apart; `None` where it is one piece.
    parser: Option<OutputParser>,
    logprobs_wanted: bool,
    logprobs: Vec<Sampled>,
    calls: u32,
    /// What the model wrote, while it may come back as it is.
    written: Option<Vec<u32>>,
    done: bool,
}

impl Choice {
    /// A choice whose events come through `events`.
    pub fn new(
        events: mpsc::Receiver<Event>,
        detokenizer: Detokenizer,
        stop: StopMatcher,
        parser: Option<OutputParser>,
        logprobs_wanted: bool,
    ) -> Self {
        Self {
            events,
            detokenizer,
            stop,
            parser,
            logprobs_wanted,
            logprobs: Vec::new(),
            calls: 0,
            written: Some(Vec::new()),
            done: false,
        }
    }

    fn token(&mut self, sampled: Sampled, delta: &mut Delta) {
        if let Some(written) = &mut self.written {
            written.push(sampled.token);
        }
        let safe = self.stop.push(self.detokenizer.push(sampled.token));
        if self.logprobs_wanted {
            self.logprobs.push(sampled);
        }
        self.text(&safe.text, delta);
        if safe.matched {
            self.end(Finish::Stop, delta);
        }
    }

    fn text(&mut self, text: &str, delta: &mut Delta) {
        let pieces = self.parsed(text);
        self.take(pieces, delta);
    }

    fn parsed(&mut self, text: &str) -> Vec<OutputEvent> {
        match &mut self.parser {
            Some(parser) => parser.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![OutputEvent::Text(text.to_owned())],
        }
    }

    fn in_reasoning(&self) -> bool {
        self.parser.as_ref().is_some_and(OutputParser::in_reasoning)
    }

    fn take(&mut self, pieces: Vec<OutputEvent>, delta: &mut Delta) {
        if pieces.iter().any(|p| matches!(p, OutputEvent::Text(_))) {
            delta.logprobs.append(&mut self.logprobs);
        } else if !pieces.is_empty() {
            // Log-probabilities are reported for the message's text alone.
            self.logprobs.clear();
        }
        self.calls += count_calls(&pieces);
        delta.pieces.extend(pieces);
    }

    fn end(&mut self, finish: Finish, delta: &mut Delta) {
        if !self.stop.matched() {
            let safe = self.stop.push(self.detokenizer.finish());
            self.text(&safe.text, delta);
            let held = self.stop.finish();
            self.text(&held, delta);
        }
        let pieces = self.parser.as_mut().map(OutputParser::finish).unwrap_or_default();
        self.take(pieces, delta);
        delta.finish = Some(match finish {
            Finish::Length => FinishReason::Length,
            Finish::Stop if self.calls > 0 => FinishReason::ToolCalls,
            Finish::Stop => FinishReason::Stop,
        });
        self.done = true;
        // Nothing more is wanted of the worker.
        self.events.close();
    }
}

impl FinishReason {
    /// Its number in the `finish` column of `observe`.
    fn code(self) -> u8 {
        match self {
            Self::Stop => 1,
            Self::Length => 2,
            Self::ToolCalls => 3,
        }
    }
}

impl Answer {
    /// An answer that has not begun.
    pub fn new(pinned: Pinned, choices: Vec<Choice>) -> Self {
        let prompt_tokens = pinned.prompt.tokens.len() as u32;
        let usage = Usage { prompt_tokens, ..Usage::default() };
        Self {
            pinned,
            choices,
            others: Vec::new(),
            prepared: None,
            next: None,
            usage,
            first_token: None,
            last_token: Moment::ZERO,
            finish: None,
            ended: false,
        }
    }

    /// The same, with answers to other prompts of its call.
    pub fn joined_by(mut self, others: Vec<Answer>) -> Self {
        self.others = others;
        self
    }

    /// The same, with what was prepared for its request and what its end prepares.
    pub fn between(mut self, prepared: Option<Prepared>, next: Option<Box<Next>>) -> Self {
        self.prepared = prepared;
        self.next = next;
        self
    }

    /// The stop string that ended a choice, if one did.
    pub fn stopped_by(&self, choice: u32) -> Option<&str> {
        let own = self.choices.len() as u32;
        match choice.checked_sub(own) {
            None => self.choices[choice as usize].stop.stopped_by(),
            Some(beyond) => self.others.get((beyond / own) as usize)?.stopped_by(beyond % own),
        }
    }

    /// Tokens so far, of all prompts.
    pub fn usage(&self) -> Usage {
        self.others.iter().fold(self.usage, |sum, other| sum.plus(other.usage))
    }

    /// The next gain of any choice; `None` when all have ended.
    pub async fn next(&mut self) -> Option<Result<Delta, Refusal>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delta, Refusal>>> {
        let own = self.choices.len() as u32;
        let mut polled = self.poll_own(cx);
        for (number, other) in (1..).zip(&mut self.others) {
            if let Poll::Ready(Some(_)) = polled {
                return polled;
            }
            let theirs =
                other.poll_own(cx).map_ok(|delta| Delta { choice: delta.choice + number * own, ..delta });
            // All have ended when each has.
            polled = if polled.is_pending() && matches!(theirs, Poll::Ready(None)) { polled } else { theirs };
        }
        polled
    }

    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delta, Refusal>>> {
        if self.choices.iter().all(|c| c.done) {
            self.finish();
            return Poll::Ready(None);
        }
        for i in 0..self.choices.len() {
            let mut delta = Delta { choice: i as u32, ..Delta::default() };
            for _ in 0..EVENTS_PER_DELTA_MAX {
                if self.choices[i].done {
                    break;
                }
                match self.choices[i].events.poll_recv(cx) {
                    Poll::Pending => break,
                    Poll::Ready(event) => {
                        if let Err(refusal) = self.take_event(i, event, &mut delta) {
                            self.fail();
                            return Poll::Ready(Some(Err(refusal)));
                        }
                    }
                }
            }
            self.finish = delta.finish.or(self.finish);
            if let Some(next) = &mut self.next {
                next.heard(&delta.pieces);
            }
            if delta.begun || !delta.is_empty() {
                return Poll::Ready(Some(Ok(delta)));
            }
        }
        Poll::Pending
    }

    fn take_event(&mut self, choice: usize, event: Option<Event>, delta: &mut Delta) -> Result<(), Refusal> {
        let now = self.pinned.app.ctx.now();
        match event {
            Some(Event::Started { cached_tokens }) => {
                self.usage.cached_tokens = self.usage.cached_tokens.max(cached_tokens);
                delta.begun = true;
            }
            Some(Event::Tokens { sampled, cached_tokens }) => {
                self.usage.cached_tokens = self.usage.cached_tokens.max(cached_tokens);
                self.last_token = now;
                if self.first_token.is_none() {
                    self.first_token = Some(now);
                    self.tell(policy::Event::FirstToken);
                }
                let choice = &mut self.choices[choice];
                for token in sampled {
                    if choice.done {
                        break; // A stop string ended it; what follows was never asked for.
                    }
                    self.usage.completion_tokens += 1;
                    self.usage.reasoning_tokens += u32::from(choice.in_reasoning());
                    choice.token(token, delta);
                }
            }
            Some(Event::Finished { finish, cached_tokens }) => {
                self.usage.cached_tokens = self.usage.cached_tokens.max(cached_tokens);
                self.last_token = now;
                self.choices[choice].end(finish, delta);
                self.remember(choice);
            }
            Some(Event::Failed(reason)) => return Err(Refusal::Internal(reason)),
            Some(Event::Stranded) => return Err(Refusal::NoWorker),
            None => return Err(Refusal::Internal("the worker stopped".into())),
        }
        Ok(())
    }

    /// Keeps what the model wrote beside the prompt, for a caller sends it back with the next turn.
    fn remember(&mut self, choice: usize) {
        let choice = &mut self.choices[choice];
        // A text that a stop string cut comes back without it.
        let written = choice.written.take().filter(|_| !choice.stop.matched());
        if let (Some(kept), Some(written)) = (&self.pinned.prompt.kept, written) {
            kept.remember(&written, &self.pinned.app.model.tokenizer);
        }
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.tell(policy::Event::Finished);
            self.account("ok");
            self.prepare();
        }
    }

    /// Counts what was prepared for this turn, and has the next one prepared.
    fn prepare(&mut self) {
        let Pinned { app, prompt, routed, .. } = &self.pinned;
        if let Some(prepared) = self.prepared.take() {
            let block_tokens = app.config.kv.block_tokens;
            app.speculation.found(&prepared, prompt, self.usage.cached_tokens, block_tokens);
        }
        if let Some((next, finish)) = self.next.take().zip(self.finish) {
            next.begin(app, routed.prefilled_by(), finish);
        }
    }

    fn fail(&mut self) {
        for choice in &mut self.choices {
            choice.done = true;
        }
        if !std::mem::replace(&mut self.ended, true) {
            self.tell(policy::Event::Failed);
            self.account("failed");
        }
    }

    fn ttft_ms(&self) -> f32 {
        self.first_token.map_or(0.0, |at| at.saturating_sub(self.pinned.arrived).as_secs_f32() * 1e3)
    }

    fn itl_ms(&self) -> f32 {
        let span = self.first_token.map_or(Moment::ZERO, |first| self.last_token.saturating_sub(first));
        span.as_secs_f32() * 1e3 / self.usage.completion_tokens.saturating_sub(1).max(1) as f32
    }

    fn tell(&self, event: policy::Event) {
        let pinned = &self.pinned;
        let outcome = Outcome {
            ttft_ms: self.ttft_ms(),
            itl_ms: self.itl_ms(),
            prompt_tokens: self.usage.prompt_tokens,
            cached_tokens: self.usage.cached_tokens,
            output_tokens: self.usage.completion_tokens,
            finish: self.finish.map_or(0, FinishReason::code),
            worker: pinned.app.workers[pinned.routed.worker].id,
            sequence: crate::ctx::name_id(&pinned.id),
        };
        observe::tell(&pinned.policies, event, &outcome, &pinned.hints, pinned.app.frame());
    }

    fn account(&self, outcome: &'static str) {
        let pinned = &self.pinned;
        let took = pinned.app.ctx.now().saturating_sub(pinned.arrived);
        pinned.app.metrics.request_ended(outcome, &self.usage, took);
        pinned.seat.charge_output(self.usage.completion_tokens, pinned.app.ctx.now());
        if let Some(first) = self.first_token {
            pinned.app.metrics.first_token(first.saturating_sub(pinned.arrived));
        }
        tracing::info!(
            request = %pinned.id,
            worker = %pinned.app.workers[pinned.routed.worker].name,
            generation = pinned.policies.id().0,
            chain = %pinned.policies.chain(),
            decided_by = %pinned.routed.decided_by,
            key = pinned.seat.caller().key(),
            prompt_tokens = self.usage.prompt_tokens,
            prefix_hit_tokens = self.usage.cached_tokens,
            output_tokens = self.usage.completion_tokens,
            ttft_ms = self.ttft_ms(),
            took_ms = took.as_secs_f32() * 1e3,
            outcome,
            "request finished"
        );
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.tell(policy::Event::Failed);
            self.account("client_left");
        }
    }
}

fn count_calls(pieces: &[OutputEvent]) -> u32 {
    pieces.iter().filter(|p| matches!(p, OutputEvent::CallStart { .. })).count() as u32
}
