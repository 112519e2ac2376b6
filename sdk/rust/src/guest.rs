//! Between the generated bindings and the slot traits: decodes views, keeps the one policy instance.
//!
//! Used by [`crate::export!`] only. **Invariant:** a call before `configure` abstains.

use crate::bindings;
use crate::bindings::describe::exports::pointsman::policy::describe as contract;
use crate::columns::Columns;
use crate::hints::{Hints, Value};
use crate::host::{self, Level};
use crate::slot::{Filter, Interpret, Observe, Pick, Policy, Schedule, Score};
use crate::view::{Frame, HintsView, ObserveView, RouteView, ScheduleView, Table};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::thread::LocalKey;

/// The policy of a plugin, with where its one instance lives.
pub trait Exported: Policy {
    /// Name of the package.
    const NAME: &'static str;
    /// Version of the package.
    const VERSION: &'static str;

    /// The slots exported, with the columns each declares.
    fn slots() -> Vec<SlotInputs>;

    /// The instance, once configured.
    fn cell() -> &'static LocalKey<RefCell<Option<Self>>>;
}

/// A slot and the columns declared for each of its tables.
pub struct SlotInputs {
    slot: &'static str,
    tables: Vec<(&'static str, Columns)>,
}

/// What each slot declares: a function a slot, named as in [`crate::export!`].
pub mod inputs {
    use super::*;

    /// Columns of `hints`: none.
    pub fn hints<P: Interpret>() -> SlotInputs {
        SlotInputs { slot: "hints", tables: vec![] }
    }

    /// Columns of `filter`.
    pub fn filter<P: Filter>() -> SlotInputs {
        SlotInputs { slot: "filter", tables: vec![("request", P::REQUEST), ("candidate", P::CANDIDATE)] }
    }

    /// Columns of `score`.
    pub fn score<P: Score>() -> SlotInputs {
        SlotInputs { slot: "score", tables: vec![("request", P::REQUEST), ("candidate", P::CANDIDATE)] }
    }

    /// Columns of `pick`.
    pub fn pick<P: Pick>() -> SlotInputs {
        SlotInputs { slot: "pick", tables: vec![("request", P::REQUEST), ("candidate", P::CANDIDATE)] }
    }

    /// Columns of `schedule`.
    pub fn schedule<P: Schedule>() -> SlotInputs {
        SlotInputs { slot: "schedule", tables: vec![("budget", P::BUDGET), ("sequence", P::SEQUENCE)] }
    }

    /// Columns of `observe`.
    pub fn observe<P: Observe>() -> SlotInputs {
        SlotInputs { slot: "observe", tables: vec![("outcome", P::OUTCOME)] }
    }
}

/// The component of a policy.
pub struct Component<P>(PhantomData<P>);

fn with<P: Exported, R>(call: impl FnOnce(&mut P) -> Option<R>) -> Option<R> {
    P::cell().with_borrow_mut(|policy| call(policy.as_mut()?))
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl<P: Exported> contract::Guest for Component<P> {
    fn describe() -> contract::Description {
        let slots = P::slots();
        let inputs = slots.iter().flat_map(|SlotInputs { slot, tables }| {
            tables.iter().map(|(table, columns)| contract::Input {
                slot: (*slot).to_owned(),
                table: (*table).to_owned(),
                numbers: strings(columns.numbers),
                ids: strings(columns.ids),
            })
        });
        contract::Description {
            name: P::NAME.to_owned(),
            version: P::VERSION.to_owned(),
            slots: slots.iter().map(|inputs| inputs.slot.to_owned()).collect(),
            inputs: inputs.collect(),
            wishes: P::WISHES.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    fn configure(json: String) -> Result<(), String> {
        // A panic is a trap to the host; the hook is what tells it why.
        std::panic::set_hook(Box::new(|panic| host::log(Level::Error, &panic.to_string())));
        let config = serde_json::from_str(&json).map_err(|error| error.to_string())?;
        let policy = P::new(config)?;
        P::cell().set(Some(policy));
        Ok(())
    }
}

/// Each world has its own record of the same frame.
macro_rules! frame_of {
    ($($world:ident),+) => {
        $(impl From<bindings::$world::pointsman::policy::types::Frame> for Frame {
            fn from(frame: bindings::$world::pointsman::policy::types::Frame) -> Self {
                Self { now_ms: frame.now_ms, seed: frame.seed }
            }
        })+
    };
}
frame_of!(hints, filter, score, pick, schedule, observe);

use bindings::filter::exports::pointsman::policy::filter;
use bindings::hints::exports::pointsman::policy::hints;
use bindings::observe::exports::pointsman::policy::observe;
use bindings::pick::exports::pointsman::policy::pick;
use bindings::schedule::exports::pointsman::policy::schedule;
use bindings::score::exports::pointsman::policy::score;

impl<P: Exported + Filter> filter::Guest for Component<P> {
    fn filter(frame: filter::Frame, rows: u32, numbers: Vec<f32>, ids: Vec<u64>) -> Option<Vec<bool>> {
        let columns = (P::REQUEST, P::CANDIDATE);
        with(|policy: &mut P| {
            policy.filter(&RouteView::new(frame.into(), columns, rows as usize, &numbers, &ids))
        })
    }
}

impl<P: Exported + Score> score::Guest for Component<P> {
    fn score(frame: score::Frame, rows: u32, numbers: Vec<f32>, ids: Vec<u64>) -> Option<Vec<f32>> {
        let columns = (P::REQUEST, P::CANDIDATE);
        with(|policy: &mut P| {
            policy.score(&RouteView::new(frame.into(), columns, rows as usize, &numbers, &ids))
        })
    }
}

impl<P: Exported + Pick> pick::Guest for Component<P> {
    fn pick(
        frame: pick::Frame,
        rows: u32,
        numbers: Vec<f32>,
        ids: Vec<u64>,
        scores: Vec<f32>,
    ) -> Option<u32> {
        let columns = (P::REQUEST, P::CANDIDATE);
        with(|policy: &mut P| {
            policy.pick(&RouteView::new(frame.into(), columns, rows as usize, &numbers, &ids), &scores)
        })
    }
}

impl<P: Exported + Schedule> schedule::Guest for Component<P> {
    fn order(
        frame: schedule::Frame,
        waiting: u32,
        running: u32,
        numbers: Vec<f32>,
        ids: Vec<u64>,
    ) -> Option<Vec<u32>> {
        let columns = (P::BUDGET, P::SEQUENCE);
        let rows = (waiting as usize, running as usize);
        with(|policy: &mut P| policy.order(&ScheduleView::new(frame.into(), columns, rows, &numbers, &ids)))
    }
}

impl<P: Exported + Observe> observe::Guest for Component<P> {
    fn observe(frame: observe::Frame, rows: u32, numbers: Vec<f32>, ids: Vec<u64>) {
        with(|policy: &mut P| {
            let outcomes = Table::new(P::OUTCOME, rows as usize, &numbers, &ids);
            policy.observe(&ObserveView { frame: frame.into(), outcomes });
            Some(())
        });
    }
}

impl<P: Exported + Interpret> hints::Guest for Component<P> {
    fn interpret(
        frame: hints::Frame,
        protocol: String,
        headers: Vec<(String, String)>,
        extensions: Vec<(String, String)>,
        prompt_tokens: u32,
        output_tokens_max: Option<u32>,
        so_far: hints::HintSet,
    ) -> Option<hints::HintSet> {
        let view = HintsView {
            frame: frame.into(),
            protocol: &protocol,
            headers: &headers,
            extensions: &extensions,
            prompt_tokens,
            output_tokens_max,
        };
        with(|policy: &mut P| policy.interpret(&view, so_far.into())).map(hints::HintSet::from)
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
