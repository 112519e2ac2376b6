//! Examines a plugin before anybody trusts it: what it exports and wants, whether it keeps the laws of its slots
//! on random views, and what its calls cost.
//!
//! Used by `plugin check` and `plugin bench`. **Invariant:** nothing live is touched; every question is asked of two
//! instances, which must agree.

use crate::bindings::exports::pointsman::policy::describe as contract;
use crate::describe::{Description, Inputs};
use crate::error::{PrepareError, Stage};
use crate::instance::Instance;
use crate::question::{Question, Random};
use crate::runtime::{Digest, Runtime};
use crate::sandbox::Belongings;
use crate::seat;
use crate::slot::Slot;
use crate::spec::PluginSpec;
use crate::{clock, trial};
use serde::Serialize;
use std::sync::Arc;

/// Candidates, sequences or segments of a timed call.
pub const ROWS: [usize; 3] = [8, 64, 512];

/// How much is asked.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Random views a slot.
    pub cases: u64,
    /// Timed calls a slot and number of rows.
    pub calls: usize,
}

/// What was found out about a plugin.
#[derive(Clone, Debug, Serialize)]
pub struct Examination {
    /// What it calls itself.
    pub component: String,
    /// Its own version.
    pub version: String,
    /// Its bytes' name.
    pub digest: Digest,
    /// Its size.
    pub component_bytes: usize,
    /// Whether it imports WASI, of which nothing is granted.
    pub wasi: bool,
    /// From bytes to machine code, in milliseconds.
    pub compile_ms: f64,
    /// From machine code to an instance that took its settings, in milliseconds.
    pub start_ms: f64,
    /// Linear memory of an instance after all questions, in bytes.
    pub memory_bytes: usize,
    /// The slots that it answers.
    pub slots: Vec<Slot>,
    /// The columns that it declared.
    pub inputs: Vec<Input>,
    /// Whether it carries state, and in which form.
    pub state: Option<String>,
    /// The laws that it was held to.
    pub laws: Vec<Law>,
    /// What its calls cost.
    pub costs: Vec<Cost>,
    /// A fresh instance and its first call of 64 rows, the median in microseconds: what an instance a call would cost.
    pub fresh_us_p50: f64,
}

/// Declared columns of one table.
#[derive(Clone, Debug, Serialize)]
pub struct Input {
    /// The slot.
    pub slot: String,
    /// The table.
    pub table: String,
    /// Columns of numbers, then of ids.
    pub columns: Vec<String>,
}

/// One slot's laws on random views.
#[derive(Clone, Debug, Serialize)]
pub struct Law {
    /// `score` and the like, or `state`.
    pub of: String,
    /// Views asked about.
    pub cases: u64,
    /// Those that it abstained from.
    pub abstained: u64,
    /// The first broken law, with the seed of its view.
    pub broken: Option<String>,
}

/// What calls of one slot cost.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// The slot.
    pub slot: Slot,
    /// Candidates, sequences or segments.
    pub rows: usize,
    /// Median, in microseconds.
    pub us_p50: f64,
    /// 99th percentile, in microseconds.
    pub us_p99: f64,
}

impl Examination {
    /// Whether every law was kept.
    pub fn is_lawful(&self) -> bool {
        self.laws.iter().all(|law| law.broken.is_none())
    }
}

/// Examines a plugin. Errors: it does not get as far as its first question.
pub fn examine(
    runtime: &Arc<Runtime>,
    name: &str,
    spec: &PluginSpec,
    effort: Effort,
) -> Result<Examination, PrepareError> {
    let at = |stage| move |message: String| PrepareError::new(stage, name, message);
    let begun = clock::monotonic_ns();
    let compiled = runtime.compile(&spec.component).map_err(at(Stage::Compiled))?;
    let compile_ms = ms_since(begun);
    let begun = clock::monotonic_ns();
    let fresh = || {
        let belongings = Belongings { plugin: name.into(), ..Belongings::default() };
        let mut instance = seat::start(belongings, spec, &compiled, runtime).map_err(at(Stage::Described))?;
        instance.configure(&seat::settings(spec)).map_err(at(Stage::Configured))?;
        Ok::<_, PrepareError>(instance)
    };
    let mut one = fresh()?;
    let start_ms = ms_since(begun);
    let said = fresh()?.describe().map_err(at(Stage::Described))?;
    let inputs = said.inputs.iter().map(input).collect();
    let described = Description::new(said, &compiled.slots).map_err(at(Stage::Described))?;
    let terms = Arc::new(described.inputs.clone());
    let ready = |instance: &mut Instance| {
        instance.set_terms(terms.clone(), spec.limits.deadline.max(trial::DEADLINE));
        trial::warm(instance, &described.slots).map_err(at(Stage::Warmed))
    };
    ready(&mut one)?;
    let mut laws = vec![];
    for slot in &described.slots {
        let mut other = fresh()?;
        ready(&mut other)?;
        let mut twin = fresh()?;
        ready(&mut twin)?;
        laws.push(law(&mut other, &mut twin, *slot, effort.cases));
    }
    let state = one.state_schema().map_err(at(Stage::Ready))?;
    if let Some(schema) = &state {
        let mut heir = fresh()?;
        ready(&mut heir)?;
        laws.push(state_law(&mut one, &mut heir, schema, &described.slots, spec.limits.state_bytes_max));
    }
    let mut costs = vec![];
    if laws.iter().all(|law| law.broken.is_none()) {
        one = fresh()?;
        ready(&mut one)?;
        let rows = described.slots.iter().flat_map(|slot| ROWS.map(|rows| (*slot, rows)));
        costs = rows.filter_map(|(slot, rows)| cost(&mut one, slot, rows, effort.calls)).collect();
    }
    let fresh_us_p50 = match described.slots.first() {
        Some(slot) => fresh_us(*slot, &terms, fresh)?,
        None => 0.0,
    };
    Ok(Examination {
        fresh_us_p50,
        component: described.name,
        version: described.version,
        digest: compiled.digest,
        component_bytes: spec.component.len(),
        wasi: compiled.wasi,
        compile_ms,
        start_ms,
        memory_bytes: one.memory_bytes(),
        slots: described.slots,
        inputs,
        state,
        laws,
        costs,
    })
}

/// A new instance, its settings, and its first call: the median of some, in microseconds.
fn fresh_us(
    slot: Slot,
    terms: &Arc<Inputs>,
    fresh: impl Fn() -> Result<Instance, PrepareError>,
) -> Result<f64, PrepareError> {
    const TIMES: usize = 101;
    let question = Question::of_rows(slot, ROWS[1], &mut Random::new(1));
    let mut ns = vec![];
    for _ in 0..TIMES {
        let begun = clock::monotonic_ns();
        let mut instance = fresh()?;
        instance.set_terms(terms.clone(), trial::DEADLINE);
        // Its answer was held to the laws before.
        let _answered = question.ask(&mut instance);
        ns.push(clock::monotonic_ns().saturating_sub(begun));
    }
    ns.sort_unstable();
    Ok(ns[TIMES / 2] as f64 / 1e3)
}

fn ms_since(begun_ns: u64) -> f64 {
    clock::monotonic_ns().saturating_sub(begun_ns) as f64 / 1e6
}

fn input(input: &contract::Input) -> Input {
    let columns = input.numbers.iter().chain(&input.ids).cloned().collect();
    Input { slot: input.slot.clone(), table: input.table.clone(), columns }
}

/// Asks two instances the same questions: each answer must be lawful, and both must give the same.
fn law(one: &mut Instance, other: &mut Instance, slot: Slot, cases: u64) -> Law {
    let mut law = Law { of: slot.to_string(), cases, abstained: 0, broken: None };
    for seed in 1..=cases {
        let question = Question::random(slot, seed);
        let answers = question.ask(one).and_then(|answer| Ok((answer, question.ask(other)?)));
        match answers {
            Ok((answer, same)) if answer == same => law.abstained += u64::from(answer.is_none()),
            Ok(_) => {
                law.broken = Some(format!("seed {seed}: two instances with the same past disagree"));
                return law;
            }
            Err(why) => {
                law.broken = Some(format!("seed {seed}: {why}"));
                return law;
            }
        }
    }
    law
}

/// What one instance learned the other takes over: from then on both answer alike.
fn state_law(one: &mut Instance, heir: &mut Instance, schema: &str, slots: &[Slot], bytes_max: u64) -> Law {
    const CASES: u64 = 50;
    let mut broken = None;
    let mut learn = |seed| {
        for slot in slots {
            Question::random(*slot, seed).ask(one)?;
        }
        let state = one.export_state(schema, bytes_max)?.ok_or("it does not export its own form")?;
        heir.import_state(schema, &state)?;
        for slot in slots.iter().filter(|slot| **slot != Slot::Observe) {
            let question = Question::random(*slot, seed + CASES);
            if question.ask(one)? != question.ask(heir)? {
                return Err(format!("slot `{slot}`: it answers otherwise than the one whose state it took"));
            }
        }
        Ok::<_, String>(())
    };
    for seed in 1..=CASES {
        if let Err(why) = learn(seed) {
            broken = Some(format!("seed {seed}: {why}"));
            break;
        }
    }
    Law { of: "state".to_owned(), cases: CASES, abstained: 0, broken }
}

fn cost(instance: &mut Instance, slot: Slot, rows: usize, calls: usize) -> Option<Cost> {
    let question = Question::of_rows(slot, rows, &mut Random::new(rows as u64));
    let mut ns = Vec::with_capacity(calls);
    for _ in 0..calls {
        let begun = clock::monotonic_ns();
        question.ask(instance).ok()?;
        ns.push(clock::monotonic_ns().saturating_sub(begun));
    }
    ns.sort_unstable();
    let last = ns.len().checked_sub(1)?;
    let quantile = |share: f64| ns.get((last as f64 * share) as usize).map(|ns| *ns as f64 / 1e3);
    Some(Cost { slot, rows, us_p50: quantile(0.5)?, us_p99: quantile(0.99)? })
}
