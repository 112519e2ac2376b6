//! The slots of a request: at the door, and on the way to a worker.

use super::Instance;
use crate::bindings::exports::pointsman::policy::{admit, route};
use crate::slot::{
    AdmitPolicy, AdmitView, Answer, DecidePolicy, Decided, FilterPolicy, PickPolicy, RouteView, ScorePolicy,
    Verdict,
};

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

impl DecidePolicy for Instance {
    fn decide(&mut self, view: &RouteView<'_>) -> Answer<Decided> {
        let (frame, rows) = route_lists!(self, route, view);
        let decided = self.guarded(|guest, store, numbers, ids| match &guest.route {
            Some(guest) => guest.call_decide(store, frame, rows, numbers, ids),
            None => Ok(None),
        })?;
        decided.map(|route::Decision { candidate, reason }| Decided { candidate, reason })
    }
}

impl AdmitPolicy for Instance {
    fn admit(&mut self, view: &AdmitView<'_>) -> Answer<Verdict> {
        self.numbers.clear();
        self.ids.clear();
        let [request, fleet] = &self.inputs.admit;
        request.append(view.request, &mut self.numbers, &mut self.ids);
        fleet.append(view.fleet, &mut self.numbers, &mut self.ids);
        let verdict = self.guarded(|guest, store, numbers, ids| match &guest.admit {
            Some(guest) => guest.call_admit(store, view.frame.into(), numbers, ids),
            None => Ok(None),
        })?;
        verdict.map(|verdict| match verdict {
            admit::Verdict::Admit => Verdict::Admit,
            admit::Verdict::DeferUntil(until_ms) => Verdict::DeferUntil(until_ms),
            admit::Verdict::Reject(admit::Rejection { retry_after_ms, reason }) => {
                Verdict::Reject { retry_after_ms, reason }
            }
        })
    }
}
