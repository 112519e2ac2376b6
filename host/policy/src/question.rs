//! Random questions to a slot, by seed: what an examination asks.
//!
//! **Invariant:** the same slot and seed make the same question on every machine.

use crate::check;
use crate::instance::Instance;
use crate::slot::*;
use crate::table::{Schema, Table};

/// Most rows of a random view.
const ROWS_MAX: usize = 96;
/// The clock of a random view: not 0, which marks trial calls.
const NOW_MS: u64 = 1_700_000_000_000;

/// One view of a slot, owned.
pub(crate) struct Question {
    slot: Slot,
    frame: Frame,
    /// The table with one row.
    single: Table,
    /// The table with many.
    rows: Table,
    /// A second table with many: running sequences.
    more: Table,
    scores: Vec<f32>,
    headers: Vec<(String, String)>,
    extensions: Vec<(String, String)>,
}

/// A lawful answer, to be compared with another.
pub(crate) type Told = Option<String>;

impl Question {
    /// The question of a seed.
    pub(crate) fn random(slot: Slot, seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let rows = 1 + random.below(ROWS_MAX as u64) as usize;
        Self::of_rows(slot, rows, random)
    }

    /// A question with so many candidates, sequences, segments or outcomes.
    pub(crate) fn of_rows(slot: Slot, rows: usize, random: &mut Random) -> Self {
        let (single, many): (&'static Schema, &'static Schema) = match slot {
            Slot::Admit => (&REQUEST, &ADMIT_FLEET),
            Slot::Schedule => (&SCHEDULE_BUDGET, &SCHEDULE_SEQUENCE),
            Slot::Retain => (&RETAIN_CACHE, &RETAIN_SEGMENT),
            Slot::Observe => (&REQUEST, &OBSERVE_OUTCOME),
            _ => (&REQUEST, &ROUTE_CANDIDATE),
        };
        let rows = if slot == Slot::Admit { 1 } else { rows };
        let running = if slot == Slot::Schedule { rows / 2 } else { 0 };
        Self {
            slot,
            frame: Frame { now_ms: NOW_MS + random.below(1 << 30), seed: random.next() },
            single: drawn(single, 1, random),
            rows: drawn(many, rows, random),
            more: drawn(&SCHEDULE_SEQUENCE, running, random),
            scores: (0..rows).map(|_| random.unit()).collect(),
            headers: texts(&["x-session-id", "x-parent-session-id", "user-agent"], random),
            extensions: texts(&["nvext", "metadata", "prompt_cache_key", "service_tier"], random),
        }
    }

    /// Asks an instance; its answer is held to the laws. Errors: a fault, or the law that it broke.
    pub(crate) fn ask(&self, instance: &mut Instance) -> Result<Told, String> {
        let told = self.told(instance);
        match instance.take_fault() {
            Some(fault) => Err(format!("{}: {}", fault.outcome, fault.message)),
            None => told,
        }
    }

    fn told(&self, instance: &mut Instance) -> Result<Told, String> {
        let rows = self.rows.rows();
        let route = RouteView { frame: self.frame, request: &self.single, candidates: &self.rows };
        match self.slot {
            Slot::Middleware => {
                let view = self.middleware();
                lawful(instance.handle(&view), |action| check::action(action))
            }
            Slot::Hints => {
                lawful(instance.interpret(&self.hints(), &Hints::default()), |hints| check::hints(hints))
            }
            Slot::Admit => {
                let view = AdmitView { frame: self.frame, request: &self.single, fleet: &self.rows };
                lawful(instance.admit(&view), |verdict| check::verdict(verdict))
            }
            Slot::Filter => lawful(instance.filter(&route), |keep| check::filter(keep, rows)),
            Slot::Score => lawful(instance.score(&route), |scores| match check::scores(scores, rows)? {
                0 => Ok(()),
                clipped => Err(format!("{clipped} scores outside 0 to 1")),
            }),
            Slot::Pick => lawful(instance.pick(&route, &self.scores), |row| check::pick(*row, rows)),
            Slot::Route => lawful(instance.decide(&route), |decided| check::decided(decided, rows)),
            Slot::Schedule => {
                let view = ScheduleView {
                    frame: self.frame,
                    budget: &self.single,
                    waiting: &self.rows,
                    running: &self.more,
                };
                lawful(instance.plan(&view), |plan| check::plan(plan, rows, self.more.rows()))
            }
            Slot::Retain => {
                let view = RetainView { frame: self.frame, cache: &self.single, segments: &self.rows };
                lawful(instance.retain(&view), |keeps| match check::keeps(keeps, rows)? {
                    0 => Ok(()),
                    clipped => Err(format!("{clipped} priorities above {}", Keep::PRIORITY_MAX)),
                })
            }
            Slot::Observe => {
                let view = ObserveView { frame: self.frame, outcomes: &self.rows };
                lawful(instance.observe(&view), |()| Ok(()))
            }
        }
    }

    fn hints(&self) -> HintsView<'_> {
        HintsView {
            frame: self.frame,
            protocol: "openai-chat",
            headers: &self.headers,
            extensions: &self.extensions,
            prompt_tokens: self.rows.rows() as u32 * 100,
            output_tokens_max: None,
        }
    }

    fn middleware(&self) -> MiddlewareView<'_> {
        MiddlewareView {
            frame: self.frame,
            method: "POST",
            path: "/v1/chat/completions",
            query: "",
            headers: &[],
            body: br#"{"model":"examined","messages":[{"role":"user","content":"hello"}]}"#,
            request_id: "examined",
        }
    }
}

fn lawful<T: std::fmt::Debug>(
    answer: Answer<T>,
    check: impl FnOnce(&mut T) -> Result<(), String>,
) -> Result<Told, String> {
    let Some(mut answer) = answer else { return Ok(None) };
    check(&mut answer)?;
    Ok(Some(format!("{answer:?}")))
}

/// A table of numbers of all sizes, many of them 0, and of ids of which some are the same.
fn drawn(schema: &'static Schema, rows: usize, random: &mut Random) -> Table {
    let mut table = Table::new(schema, rows);
    for column in 0..schema.numbers.len() {
        let size = 10_f32.powi(random.below(7) as i32 - 1);
        for cell in table.numbers_mut(column) {
            *cell = if random.below(4) == 0 { 0.0 } else { (random.unit() * size).round() };
        }
    }
    for column in 0..schema.ids.len() {
        table
            .ids_mut(column)
            .iter_mut()
            .for_each(|cell| *cell = random.below(8).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    // Rows are told apart by their first id, as workers and sequences are.
    if !schema.ids.is_empty() && rows > 1 {
        table.ids_mut(0).iter_mut().enumerate().for_each(|(row, cell)| *cell = row as u64 + 1);
    }
    table
}

/// Texts that callers might send, and some that none should.
fn texts(names: &[&str], random: &mut Random) -> Vec<(String, String)> {
    const TEXTS: [&str; 8] = [
        "",
        "{",
        "null",
        "\"a text\"",
        "{\"agent_hints\":{\"priority\":5,\"osl\":64}}",
        "{\"session_id\":\"s\",\"priority\":\"3\"}",
        "[1,2,3]",
        "plain",
    ];
    names.iter().map(|name| ((*name).to_owned(), TEXTS[random.below(8) as usize].to_owned())).collect()
}

/// splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}
