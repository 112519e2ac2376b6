//! One session: turn after turn, with the sub-agents that its answers start.
//!
//! **Invariant:** a turn is sent after the answer that it follows, and after the sub-agents that this one started.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::task::JoinSet;

use crate::clock::Moment;
use crate::conversation::{Ask, Conversation};
use crate::plan::Shape;
use crate::run::Run;
use crate::tally::Placed;
use crate::text::{Blocks, nth};
use crate::workload::Instance;

/// What became of a turn, or of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Answered,
    Failed,
    /// The load is over.
    Over,
}

/// A session that is under way.
#[derive(Debug)]
pub(crate) struct Talk {
    of: Instance,
    headers: Vec<(HeaderName, HeaderValue)>,
    conversation: Conversation,
    /// The turn that comes next.
    turn: usize,
    answered: Moment,
}

/// Runs a session whose first turn is due, to its end.
///
/// Boxed, because a session runs those that it starts.
pub(crate) fn run(run: Arc<Run>, of: Instance, due: Moment) -> Pin<Box<dyn Future<Output = Step> + Send>> {
    Box::pin(async move {
        let mut talk = Talk::new(&run, of);
        let mut due = due;
        loop {
            if !run.until(due).await {
                return Step::Over;
            }
            let step = talk.step(&run, due).await;
            if step != Step::Answered {
                return step;
            }
            let mut ready = talk.answered;
            let mut children = JoinSet::new();
            for child in talk.children(&run) {
                children.spawn(self::run(Arc::clone(&run), child, ready));
            }
            while children.join_next().await.is_some() {
                ready = run.clock.now();
            }
            if talk.finish_if_over(&run) {
                return Step::Answered;
            }
            due = talk.next_due(&run).max(ready);
        }
    })
}

impl Talk {
    pub(crate) fn new(run: &Run, of: Instance) -> Self {
        run.tally.lock().sessions.begun += 1;
        Self {
            of,
            headers: run.plan.identity.headers(run.plan.seed, of),
            conversation: Conversation::new(run.plan.target.api, run.plan.answers, Arc::clone(&run.writer)),
            turn: 0,
            answered: Duration::ZERO,
        }
    }

    /// Sends the next turn and keeps its answer.
    pub(crate) async fn step(&mut self, run: &Run, due: Moment) -> Step {
        let Some(ticket) = run.gate.ticket(run.clock.now()) else { return Step::Over };
        let body = self.body(run);
        let flight = run.in_flight.enter();
        let mut exchange = run.caller.call(&self.headers, body).await;
        drop(flight);
        run.gate.ended(exchange.failure.as_ref());
        let from = if run.plan.shape.is_open() { due } else { exchange.sent };
        let at = Placed { turn: self.turn as u32, due, from };
        let mut tally = run.tally.lock();
        tally.add(ticket, &exchange, at);
        if exchange.failure.is_some() {
            tally.sessions.broken += 1;
            return Step::Failed;
        }
        drop(tally);
        self.conversation.answered(std::mem::take(&mut exchange.hearing.answer));
        self.answered = exchange.end;
        self.turn += 1;
        Step::Answered
    }

    fn body(&mut self, run: &Run) -> String {
        let workload = &run.source.workload;
        let request = workload.turn(self.of.session, self.turn);
        // Another round of the same sessions has other text.
        let salt = nth(run.plan.seed, u64::from(self.of.round));
        let tail = nth(salt, (u64::from(self.of.session) << 32) + self.turn as u64);
        let prompt = Blocks {
            ids: workload.trace.blocks(request),
            block_tokens: u64::from(workload.trace.block_tokens),
            salt,
            tail,
        };
        let output_tokens = u64::from(request.output_tokens);
        let ask = Ask { prompt, prompt_tokens: u64::from(request.prompt_tokens), output_tokens };
        self.conversation.ask(ask, workload.system_tokens);
        let most = output_tokens.min(run.plan.output_max.unwrap_or(output_tokens));
        let max_tokens = (!run.plan.says_max_tokens()).then_some(most);
        let conversation = &self.conversation;
        run.plan.target.api.body(&run.head, max_tokens, &conversation.system, &conversation.history)
    }

    /// When the next turn is due: a pause after the answer, if the workload knows one; else when it came in the
    /// workload, though not before the answer is there.
    fn next_due(&self, run: &Run) -> Moment {
        let request = run.source.workload.turn(self.of.session, self.turn);
        let speedup = run.plan.shape.speedup();
        match request.pause_ms {
            Some(pause_ms) => self.answered + run.plan.pauses.kept(pause_ms / speedup),
            None if matches!(run.plan.shape, Shape::Schedule { .. }) => {
                run.begun + Duration::from_secs_f64(request.due_ms / 1e3 / speedup)
            }
            None => self.answered,
        }
    }

    /// Sub-agents that the last answer started.
    pub(crate) fn children<'a>(&self, run: &'a Run) -> impl Iterator<Item = Instance> + use<'a> {
        run.source.workload.children(self.of, self.turn - 1)
    }

    /// Says whether all turns were answered, and counts the session then.
    pub(crate) fn finish_if_over(&self, run: &Run) -> bool {
        let over = self.turn >= run.source.workload.turns(self.of.session);
        if over {
            run.tally.lock().sessions.finished += 1;
        }
        over
    }
}
