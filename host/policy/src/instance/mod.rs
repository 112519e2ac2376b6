//! One live instance of a plugin. It implements the trait of every slot that its component exports.
//!
//! **Invariant:** after a fault it is never called again: a trap poisons the store.

mod hints;
mod middleware;
mod request;
mod worker;

use crate::bindings::exports::pointsman::policy::{
    admit, describe, filter, hints as contract_hints, observe, pick, plan, retain, route, schedule, score,
    state,
};
use crate::bindings::middleware::exports::vllm::router_middleware::on_request;
use crate::bindings::pointsman::policy::types;
use crate::describe::Inputs;
use crate::runtime::Compiled;
use crate::sandbox::{self, Ctx, HOSTCALL_BYTES_MAX, OverDeadline};
use crate::slot::{Answer, Frame, ObservePolicy, ObserveView};
use crate::stats::Outcome;
use crate::store::Store as Shelf;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::{Store, Trap};

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
    finished: bool,
    called: bool,
    // The flat lists of a call; kept, so that a call allocates nothing here.
    numbers: Vec<f32>,
    ids: Vec<u64>,
}

struct Guest {
    describe: Option<describe::Guest>,
    middleware: Option<on_request::Guest>,
    hints: Option<contract_hints::Guest>,
    admit: Option<admit::Guest>,
    filter: Option<filter::Guest>,
    score: Option<score::Guest>,
    pick: Option<pick::Guest>,
    route: Option<route::Guest>,
    schedule: Option<schedule::Guest>,
    plan: Option<plan::Guest>,
    retain: Option<retain::Guest>,
    observe: Option<observe::Guest>,
    state: Option<state::Guest>,
}

impl Instance {
    /// A new instance with no inputs declared. Errors: it does not start, or its types do not fit.
    pub(crate) fn new(compiled: &Compiled, mut store: Store<Ctx>) -> Result<Self, String> {
        sandbox::arm(&mut store, SETUP_DEADLINE).map_err(|error| error.to_string())?;
        let guest = load(compiled, &mut store).map_err(|error| Fault::of(&error, &store).message)?;
        Ok(Self {
            store,
            guest,
            inputs: Arc::default(),
            deadline: SETUP_DEADLINE,
            fault: None,
            finished: false,
            called: false,
            numbers: vec![],
            ids: vec![],
        })
    }

    /// Asks it who it is.
    pub(crate) fn describe(&mut self) -> Result<describe::Description, String> {
        self.guarded(|guest, store, _, _| match &guest.describe {
            Some(guest) => guest.call_describe(store),
            None => Ok(middleware::description()),
        })
        .ok_or_else(|| self.take_fault().map(|fault| fault.message).unwrap_or_default())
    }

    /// Gives it its settings, as JSON.
    pub(crate) fn configure(&mut self, json: &str) -> Result<(), String> {
        self.guarded(|guest, store, _, _| match &guest.describe {
            Some(guest) => guest.call_configure(store, json),
            None if json == "{}" => Ok(Ok(())),
            None => Ok(Err("it takes no settings: its contract has none".to_owned())),
        })
        .unwrap_or_else(|| Err(self.take_fault().map(|fault| fault.message).unwrap_or_default()))
    }

    /// Says what crosses, and how long calls may take from here on.
    pub(crate) fn set_terms(&mut self, inputs: Arc<Inputs>, deadline: Duration) {
        self.inputs = inputs;
        self.deadline = deadline;
    }

    /// The form of state that it writes and reads; `None` if it has no state to carry.
    pub(crate) fn state_schema(&mut self) -> Result<Option<String>, String> {
        self.about_state(0, |guest, store| guest.call_schema(store))
    }

    /// Its state in that form, at most so many bytes; `None` if it has none or cannot write it so.
    pub(crate) fn export_state(&mut self, schema: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, String> {
        let exported =
            self.about_state(bytes_max, |guest, store| guest.call_export_state(store, schema))?.flatten();
        match &exported {
            Some(state) if state.len() as u64 > bytes_max => {
                Err(format!("its state of {} bytes is more than {bytes_max}", state.len()))
            }
            _ => Ok(exported),
        }
    }

    /// Gives it the state of the one before it.
    pub(crate) fn import_state(&mut self, schema: &str, state: &[u8]) -> Result<(), String> {
        self.called = true;
        self.about_state(0, |guest, store| guest.call_import_state(store, schema, state))?
            .unwrap_or_else(|| Err("it takes no state".to_owned()))
    }

    /// A call about state, with the budgets of a setup. Errors: it faulted, and is finished.
    fn about_state<T>(
        &mut self,
        bytes_max: u64,
        call: impl FnOnce(&state::Guest, &mut Store<Ctx>) -> wasmtime::Result<T>,
    ) -> Result<Option<T>, String> {
        let deadline = std::mem::replace(&mut self.deadline, SETUP_DEADLINE);
        // Room for one byte too many, so that a state beyond the limit is told from a broken call.
        let bytes = usize::try_from(bytes_max).unwrap_or(usize::MAX).saturating_mul(2);
        self.store.set_hostcall_fuel(HOSTCALL_BYTES_MAX.saturating_add(bytes));
        let answer = self.guarded(|guest, store, _, _| match &guest.state {
            Some(guest) => call(guest, store).map(Some),
            None => Ok(None),
        });
        self.store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        self.deadline = deadline;
        answer.ok_or_else(|| self.take_fault().map(|fault| fault.message).unwrap_or_default())
    }

    /// The fault of the last call, if it had one.
    pub(crate) fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Whether it faulted at some time: it cannot be called again.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Notes that it is asked or told something real.
    pub(crate) fn begin_call(&mut self) {
        self.called = true;
    }

    /// Whether nothing but trials reached it so far.
    pub(crate) fn is_cold(&self) -> bool {
        !self.called
    }

    /// Fuel that the last call took; 0 where CPU time is metered.
    pub(crate) fn fuel_spent(&self) -> u64 {
        sandbox::fuel_spent(&self.store, self.deadline)
    }

    /// Has it read and write this store from here on.
    pub(crate) fn set_shelf(&mut self, shelf: Shelf) {
        self.store.data_mut().set_shelf(shelf);
    }

    /// Linear memory that it has taken, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes
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
        let armed = sandbox::arm(&mut self.store, self.deadline);
        match armed.and_then(|()| call(&self.guest, &mut self.store, &self.numbers, &self.ids)) {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.finished = true;
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
            compiled.exports.$slot.as_ref().map(|found| found.load(&mut *store, &instance)).transpose()?
        };
    }
    Ok(Guest {
        describe: load!(describe),
        middleware: load!(middleware),
        hints: load!(hints),
        admit: load!(admit),
        filter: load!(filter),
        score: load!(score),
        pick: load!(pick),
        route: load!(route),
        schedule: load!(schedule),
        plan: load!(plan),
        retain: load!(retain),
        observe: load!(observe),
        state: load!(state),
    })
}

impl Fault {
    fn of(error: &wasmtime::Error, store: &Store<Ctx>) -> Self {
        let outcome = match error.downcast_ref::<OverDeadline>() {
            Some(_) => Outcome::OverDeadline,
            None if matches!(error.downcast_ref(), Some(Trap::OutOfFuel)) => Outcome::OverDeadline,
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
