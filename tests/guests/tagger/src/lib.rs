//! A hint that no contract knows, from a header to a decision: `x-pointsman-row: N` becomes the open attribute
//! `row`, and the scorer likes that row best. It also counts the outcomes that it is told of the tenant `acme`.

use pointsman_sdk::{
    Columns, Hints, HintsView, Interpret, NoConfig, Observe, ObserveView, Policy, RouteView, Score, Value,
    export, host, name_id,
};

/// The policy; it has neither settings nor state.
pub struct Tagger;

impl Policy for Tagger {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Interpret for Tagger {
    fn interpret(&mut self, view: &HintsView<'_>, mut so_far: Hints) -> Option<Hints> {
        let row: f64 = view.header("x-pointsman-row")?.parse().ok()?;
        so_far.attributes.push(("row".to_owned(), Value::Number(row)));
        so_far.attributes.push(("colour".to_owned(), Value::Text("green".to_owned())));
        Some(so_far)
    }
}

impl Score for Tagger {
    const REQUEST: Columns = Columns::numbers(&["attr.row"]).ids(&["attr.colour"]);
    const CANDIDATE: Columns = Columns::numbers(&["queue_len"]);

    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        if view.request.id("attr.colour") != name_id("green") {
            return None;
        }
        let liked = view.request.value("attr.row") as usize;
        Some((0..view.candidates.rows()).map(|row| f32::from(u8::from(row == liked))).collect())
    }
}

impl Observe for Tagger {
    const OUTCOME: Columns = Columns::numbers(&["event"]).ids(&["tenant"]);

    fn observe(&mut self, view: &ObserveView<'_>) {
        let acme = view.outcomes.ids("tenant").iter().filter(|tenant| **tenant == name_id("acme")).count();
        host::counter_add("outcomes_of_acme", acme as u64);
    }
}

export!(Tagger: hints, score, observe);
