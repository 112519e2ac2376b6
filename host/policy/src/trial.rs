//! Trial calls: what a plugin must survive before it decides anything, and what warms its instances.
//!
//! Their clock and seed are 0, and so are their ids. **Invariant:** a warm-up teaches a policy nothing.

use crate::check;
use crate::instance::Instance;
use crate::slot::{
    ADMIT_FLEET, AdmitPolicy, AdmitView, DecidePolicy, FilterPolicy, Frame, Hints, HintsPolicy, HintsView,
    MiddlewarePolicy, MiddlewareView, OBSERVE_OUTCOME, ObservePolicy, ObserveView, PickPolicy, REQUEST,
    RETAIN_CACHE, RETAIN_SEGMENT, ROUTE_CANDIDATE, RetainPolicy, RetainView, RouteView, SCHEDULE_BUDGET,
    SCHEDULE_SEQUENCE, SchedulePolicy, ScheduleView, ScorePolicy, Slot,
};
use crate::table::{Schema, Table};
use std::time::Duration;

/// Rows of the trial views: one, and as many as a large fleet has, so that the pages of the first real
/// call are there.
const ROWS: [usize; 2] = [1, 64];
/// Budget of a trial call: it pays for first page faults. Chosen: well above the default deadline.
pub(crate) const DEADLINE: Duration = Duration::from_millis(20);
const FRAME: Frame = Frame { now_ms: 0, seed: 0 };

/// Every slot with both views, `observe` with rows.
pub(crate) fn full(instance: &mut Instance, slots: &[Slot]) -> Result<(), String> {
    run(instance, slots, ROWS[1])
}

/// Every slot with both views, `observe` with an empty batch.
pub(crate) fn warm(instance: &mut Instance, slots: &[Slot]) -> Result<(), String> {
    run(instance, slots, 0)
}

fn run(instance: &mut Instance, slots: &[Slot], outcomes: usize) -> Result<(), String> {
    for slot in slots {
        for rows in ROWS {
            let tried = match slot {
                Slot::Middleware => middleware(instance),
                Slot::Hints => hints(instance),
                Slot::Admit => admit(instance),
                Slot::Filter | Slot::Score | Slot::Pick | Slot::Route => route(instance, *slot, rows),
                Slot::Retain => retain(instance, rows),
                Slot::Schedule => schedule(instance, rows),
                Slot::Observe => observe(instance, outcomes),
            };
            let tried = match instance.take_fault() {
                Some(fault) => Err(fault.message),
                None => tried,
            };
            tried.map_err(|why| format!("trial call of `{slot}`: {why}"))?;
        }
    }
    Ok(())
}

/// Rows whose numbers are 1, 2, 3, … and whose ids are 0.
fn table(schema: &'static Schema, rows: usize) -> Table {
    let mut table = Table::new(schema, rows);
    for column in 0..schema.numbers.len() {
        table.numbers_mut(column).iter_mut().enumerate().for_each(|(row, cell)| *cell = (row + 1) as f32);
    }
    table
}

fn route(instance: &mut Instance, slot: Slot, rows: usize) -> Result<(), String> {
    let (request, candidates) = (table(&REQUEST, 1), table(&ROUTE_CANDIDATE, rows));
    let view = RouteView { frame: FRAME, request: &request, candidates: &candidates };
    match slot {
        Slot::Filter => instance.filter(&view).map_or(Ok(()), |keep| check::filter(&keep, rows)),
        Slot::Score => {
            instance.score(&view).map_or(Ok(()), |mut scores| check::scores(&mut scores, rows).map(drop))
        }
        Slot::Route => instance.decide(&view).map_or(Ok(()), |decided| check::decided(&decided, rows)),
        _ => {
            let scores = vec![0.5; rows];
            instance.pick(&view, &scores).map_or(Ok(()), |row| check::pick(row, rows))
        }
    }
}

fn schedule(instance: &mut Instance, rows: usize) -> Result<(), String> {
    let budget = table(&SCHEDULE_BUDGET, 1);
    let (waiting, running) = (table(&SCHEDULE_SEQUENCE, rows), table(&SCHEDULE_SEQUENCE, rows / 2));
    let view = ScheduleView { frame: FRAME, budget: &budget, waiting: &waiting, running: &running };
    instance.plan(&view).map_or(Ok(()), |plan| check::plan(&plan, rows, rows / 2))
}

fn admit(instance: &mut Instance) -> Result<(), String> {
    let (request, fleet) = (table(&REQUEST, 1), table(&ADMIT_FLEET, 1));
    let view = AdmitView { frame: FRAME, request: &request, fleet: &fleet };
    instance.admit(&view).map_or(Ok(()), |verdict| check::verdict(&verdict))
}

fn retain(instance: &mut Instance, rows: usize) -> Result<(), String> {
    let (cache, segments) = (table(&RETAIN_CACHE, 1), table(&RETAIN_SEGMENT, rows));
    let view = RetainView { frame: FRAME, cache: &cache, segments: &segments };
    instance.retain(&view).map_or(Ok(()), |mut keeps| check::keeps(&mut keeps, rows).map(drop))
}

fn observe(instance: &mut Instance, rows: usize) -> Result<(), String> {
    let outcomes = table(&OBSERVE_OUTCOME, rows);
    instance.observe(&ObserveView { frame: FRAME, outcomes: &outcomes });
    Ok(())
}

fn middleware(instance: &mut Instance) -> Result<(), String> {
    let view = MiddlewareView {
        frame: FRAME,
        method: "POST",
        path: "/v1/chat/completions",
        query: "",
        headers: &[("content-type".to_owned(), b"application/json".to_vec())],
        body: br#"{"model":"trial","messages":[{"role":"user","content":"trial"}]}"#,
        request_id: "trial",
    };
    instance.handle(&view).map_or(Ok(()), |action| check::action(&action))
}

fn hints(instance: &mut Instance) -> Result<(), String> {
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let view = HintsView {
        frame: FRAME,
        protocol: "openai-chat",
        headers: &[text("x-session-id", "trial"), text("user-agent", "trial")],
        extensions: &[text("nvext", r#"{"agent_hints":{"priority":1}}"#)],
        prompt_tokens: 1000,
        output_tokens_max: Some(100),
    };
    let hints = instance.interpret(&view, &Hints::default());
    hints.map_or(Ok(()), |hints| check::hints(&hints))
}
