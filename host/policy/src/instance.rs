//! One live instance of a plugin. It implements the trait of every slot that its component exports.
//!
//! **Invariant:** after a fault it is never called again: a trap poisons the store.

use crate::bindings::exports::pointsman::policy::{describe, filter, hints, observe, pick, schedule, score};
use crate::bindings::pointsman::policy::types;
use crate::describe::Inputs;
use crate::runtime::Compiled;
use crate::sandbox::{Ctx, OverDeadline};
use crate::slot::{
    Answer, FilterPolicy, Frame, Hints, HintsPolicy, HintsView, ObservePolicy, ObserveView, PickPolicy,
    RouteView, SchedulePolicy, ScheduleView, ScorePolicy, Value,
};
use crate::stats::Outcome;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::Store;

/// Budget of instantiation and settings. Chosen: an interpreter in a component needs tens of milliseconds.
pub(crate) const SETUP_DEADLINE: Duration = Duration::from_secs(1);

/// Why an instance is finished.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) outcome: Outcome,
    pub(crate) message: String,
}

/// A store with the exports of its one instance.
pub(crate) struct Instance {
    store: Store<Ctx>,
    guest: Guest,
    inputs: Arc<Inputs>,
    deadline: Duration,
    fault: Option<Fault>,
    // The flat lists of a call; kept, so that a call allocates nothing here.
    numbers: Vec<f32>,
    ids: Vec<u64>,
}

struct Guest {
    describe: describe::Guest,
    hints: Option<hints::Guest>,
    filter: Option<filter::Guest>,
    score: Option<score::Guest>,
    pick: Option<pick::Guest>,
    schedule: Option<schedule::Guest>,
    observe: Option<observe::Guest>,
}

impl Instance {
    /// A new instance with no inputs declared. Errors: it does not start, or its types do not fit.
    pub(crate) fn new(compiled: &Compiled, mut store: Store<Ctx>) -> Result<Self, String> {
        store.data_mut().arm(SETUP_DEADLINE);
        store.set_epoch_deadline(1);
        let guest = load(compiled, &mut store).map_err(|error| Fault::of(&error, &store).message)?;
        Ok(Self {
            store,
            guest,
            inputs: Arc::default(),
            deadline: SETUP_DEADLINE,
            fault: None,
            numbers: vec![],
            ids: vec![],
        })
    }

    /// Asks it who it is.
    pub(crate) fn describe(&mut self) -> Result<describe::Description, String> {
        self.guarded(|guest, store, _, _| guest.describe.call_describe(store))
            .ok_or_else(|| self.take_fault().map(|fault| fault.message).unwrap_or_default())
    }

    /// Gives it its settings, as JSON.
    pub(crate) fn configure(&mut self, json: &str) -> Result<(), String> {
        self.guarded(|guest, store, _, _| guest.describe.call_configure(store, json))
            .unwrap_or_else(|| Err(self.take_fault().map(|fault| fault.message).unwrap_or_default()))
    }

    /// Says what crosses, and how long calls may take from here on.
    pub(crate) fn set_terms(&mut self, inputs: Arc<Inputs>, deadline: Duration) {
        self.inputs = inputs;
        self.deadline = deadline;
    }

    /// The fault of the last call, if it had one.
    pub(crate) fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// What is left of it, to be dropped elsewhere.
    pub(crate) fn into_store(self) -> Store<Ctx> {
        self.store
    }

    /// Calls the guest within its budget; an error becomes the instance's fault.
    fn guarded<T>(
        &mut self,
        call: impl FnOnce(&Guest, &mut Store<Ctx>, &[f32], &[u64]) -> wasmtime::Result<T>,
    ) -> Option<T> {
        self.store.data_mut().arm(self.deadline);
        self.store.set_epoch_deadline(1);
        match call(&self.guest, &mut self.store, &self.numbers, &self.ids) {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.fault = Some(Fault::of(&error, &self.store));
                None
            }
        }
    }
}

fn load(compiled: &Compiled, store: &mut Store<Ctx>) -> wasmtime::Result<Guest> {
    let instance = compiled.instance.instantiate(&mut *store)?;
    macro_rules! load {
        ($slot:ident) => {
            compiled.$slot.as_ref().map(|found| found.load(&mut *store, &instance)).transpose()?
        };
    }
    Ok(Guest {
        describe: compiled.describe.load(&mut *store, &instance)?,
        hints: load!(hints),
        filter: load!(filter),
        score: load!(score),
        pick: load!(pick),
        schedule: load!(schedule),
        observe: load!(observe),
    })
}

impl Fault {
    fn of(error: &wasmtime::Error, store: &Store<Ctx>) -> Self {
        let outcome = match error.downcast_ref::<OverDeadline>() {
            Some(_) => Outcome::OverDeadline,
            None => Outcome::Trapped,
        };
        let cause = error.root_cause();
        let message = match &store.data().last_error {
            Some(said) => format!("{cause}: {said}"),
            None => cause.to_string(),
        };
        Self { outcome, message }
    }
}

impl From<Frame> for types::Frame {
    fn from(frame: Frame) -> Self {
        Self { now_ms: frame.now_ms, seed: frame.seed }
    }
}

/// The flat lists of a route call.
macro_rules! route_lists {
    ($self:ident, $slot:ident, $view:ident) => {{
        $self.numbers.clear();
        $self.ids.clear();
        let [request, candidate] = &$self.inputs.$slot;
        request.append($view.request, &mut $self.numbers, &mut $self.ids);
        candidate.append($view.candidates, &mut $self.numbers, &mut $self.ids);
        ($view.frame.into(), $view.candidates.rows() as u32)
    }};
}

impl FilterPolicy for Instance {
    fn filter(&mut self, view: &RouteView<'_>) -> Answer<Vec<bool>> {
        let (frame, rows) = route_lists!(self, filter, view);
        self.guarded(|guest, store, numbers, ids| match &guest.filter {
            Some(guest) => guest.call_filter(store, frame, rows, numbers, ids),
            None => Ok(None),
        })?
    }
}

impl ScorePolicy for Instance {
    fn score(&mut self, view: &RouteView<'_>) -> Answer<Vec<f32>> {
        let (frame, rows) = route_lists!(self, score, view);
        self.guarded(|guest, store, numbers, ids| match &guest.score {
            Some(guest) => guest.call_score(store, frame, rows, numbers, ids),
            None => Ok(None),
        })?
    }
}

impl PickPolicy for Instance {
    fn pick(&mut self, view: &RouteView<'_>, scores: &[f32]) -> Answer<u32> {
        let (frame, rows) = route_lists!(self, pick, view);
        self.guarded(|guest, store, numbers, ids| match &guest.pick {
            Some(guest) => guest.call_pick(store, frame, rows, numbers, ids, scores),
            None => Ok(None),
        })?
    }
}

impl SchedulePolicy for Instance {
    fn order(&mut self, view: &ScheduleView<'_>) -> Answer<Vec<u32>> {
        self.numbers.clear();
        self.ids.clear();
        let [budget, sequence] = &self.inputs.schedule;
        budget.append(view.budget, &mut self.numbers, &mut self.ids);
        sequence.append(view.waiting, &mut self.numbers, &mut self.ids);
        sequence.append(view.running, &mut self.numbers, &mut self.ids);
        let (waiting, running) = (view.waiting.rows() as u32, view.running.rows() as u32);
        self.guarded(|guest, store, numbers, ids| match &guest.schedule {
            Some(guest) => guest.call_order(store, view.frame.into(), waiting, running, numbers, ids),
            None => Ok(None),
        })?
    }
}

impl ObservePolicy for Instance {
    fn observe(&mut self, view: &ObserveView<'_>) -> Answer<()> {
        self.numbers.clear();
        self.ids.clear();
        self.inputs.observe.append(view.outcomes, &mut self.numbers, &mut self.ids);
        let rows = view.outcomes.rows() as u32;
        self.guarded(|guest, store, numbers, ids| match &guest.observe {
            Some(guest) => guest.call_observe(store, view.frame.into(), rows, numbers, ids).map(Some),
            None => Ok(None),
        })?
    }
}

impl HintsPolicy for Instance {
    fn interpret(&mut self, view: &HintsView<'_>, so_far: &Hints) -> Answer<Hints> {
        let so_far = so_far.clone().into();
        let answer: Option<hints::HintSet> = self.guarded(|guest, store, _, _| match &guest.hints {
            Some(guest) => guest.call_interpret(
                store,
                view.frame.into(),
                view.protocol,
                view.headers,
                view.extensions,
                view.prompt_tokens,
                view.output_tokens_max,
                &so_far,
            ),
            None => Ok(None),
        })?;
        answer.map(Hints::from)
    }
}

impl From<hints::HintSet> for Hints {
    fn from(set: hints::HintSet) -> Self {
        let value = |value| match value {
            hints::Value::Flag(flag) => Value::Flag(flag),
            hints::Value::Number(number) => Value::Number(number),
            hints::Value::Text(text) => Value::Text(text),
        };
        Self {
            session: set.session,
            parent: set.parent,
            class: set.class,
            priority: set.priority,
            strict_tier: set.strict_tier,
            deadline_ms: set.deadline_ms,
            expected_output_tokens: set.expected_output_tokens,
            speculative_prefill: set.speculative_prefill,
            session_final: set.session_final,
            attributes: set.attributes.into_iter().map(|(name, it)| (name, value(it))).collect(),
        }
    }
}

impl From<Hints> for hints::HintSet {
    fn from(set: Hints) -> Self {
        let value = |value| match value {
            Value::Flag(flag) => hints::Value::Flag(flag),
            Value::Number(number) => hints::Value::Number(number),
            Value::Text(text) => hints::Value::Text(text),
        };
        Self {
            session: set.session,
            parent: set.parent,
            class: set.class,
            priority: set.priority,
            strict_tier: set.strict_tier,
            deadline_ms: set.deadline_ms,
            expected_output_tokens: set.expected_output_tokens,
            speculative_prefill: set.speculative_prefill,
            session_final: set.session_final,
            attributes: set.attributes.into_iter().map(|(name, it)| (name, value(it))).collect(),
        }
    }
}
