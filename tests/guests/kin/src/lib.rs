//! Counts, in every slot that is shown them, the requests whose parent is `root`, and those that end their session.
//!
//! It decides nothing: each slot falls back to the built-in.

use pointsman_sdk::{
    Admit, AdmitView, Columns, Keep, NoConfig, Observe, ObserveView, Plan, Policy, Retain, RetainView, Route,
    RouteDecision, RouteView, SchedulePlan, ScheduleView, Table, Verdict, export, host, name_id,
};

/// The parent whose children are counted.
const ROOT: u64 = name_id("root");
const LINEAGE: Columns = Columns::numbers(&["session_final"]).ids(&["session", "parent", "class"]);

/// The policy; it has neither settings nor state.
pub struct Kin;

impl Policy for Kin {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }
}

/// Counts the rows of a slot that are of kin, and those of them that are the last of their session.
fn count(slot: &str, table: &Table<'_>) {
    let ids = |name| table.ids(name).iter();
    let kin = ids("parent")
        .zip(ids("class"))
        .map(|(parent, class)| *parent == ROOT && *class == name_id("subagent"));
    let last = table.column("session_final").iter().map(|last| *last == 1.0);
    let (mut all, mut ends) = (0, 0);
    for (_, is_last) in kin.zip(last).filter(|(is_kin, _)| *is_kin) {
        all += 1;
        ends += u64::from(is_last);
    }
    host::counter_add(slot, all);
    host::counter_add(&format!("{slot}_ends"), ends);
}

impl Admit for Kin {
    const REQUEST: Columns = LINEAGE;
    const FLEET: Columns = Columns::NONE;

    fn admit(&mut self, view: &AdmitView<'_>) -> Option<Verdict> {
        count("admit", &view.request);
        None
    }
}

impl Route for Kin {
    const REQUEST: Columns = Columns::numbers(&[
        "session_final",
        "speculative_prefill",
        "attr.tool_ms_total",
    ])
    .ids(&["session", "parent", "class", "attr.turn"]);
    const CANDIDATE: Columns = Columns::numbers(&["queue_len"]);

    fn decide(&mut self, view: &RouteView<'_>) -> Option<RouteDecision> {
        count("route", &view.request);
        host::gauge_set("tool_ms_total", view.request.value("attr.tool_ms_total").into());
        host::gauge_set("speculative_prefill", view.request.value("speculative_prefill").into());
        host::counter_add("turns", u64::from(view.request.id("attr.turn") == name_id("t2")));
        None
    }
}

impl Plan for Kin {
    const SEQUENCE: Columns = LINEAGE;

    fn plan(&mut self, view: &ScheduleView<'_>) -> Option<SchedulePlan> {
        count("schedule", &view.waiting);
        None
    }
}

impl Retain for Kin {
    const SEGMENT: Columns = Columns::numbers(&["session_live"]).ids(&["parent"]);

    fn retain(&mut self, view: &RetainView<'_>) -> Option<Vec<Keep>> {
        let segments = &view.segments;
        let mut kin = segments.ids("parent").iter().zip(segments.column("session_live"));
        host::counter_add(
            "retain_ends",
            u64::from(kin.any(|(parent, live)| *parent == ROOT && *live == 0.0)),
        );
        None
    }
}

impl Observe for Kin {
    const OUTCOME: Columns =
        Columns::numbers(&["session_final", "event"]).ids(&["session", "parent", "class"]);

    fn observe(&mut self, view: &ObserveView<'_>) {
        count("observe", &view.outcomes);
    }
}

export!(Kin: admit, route, plan, retain, observe);
