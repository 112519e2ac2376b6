//! The exported functions of each slot: each decodes its view and asks the policy.
//!
//! **Invariant:** a call before `configure` abstains.

use super::{Component, Exported, with};
use crate::bindings;
use crate::bindings::admit::exports::pointsman::policy::admit;
use crate::bindings::filter::exports::pointsman::policy::filter;
use crate::bindings::hints::exports::pointsman::policy::hints;
use crate::bindings::observe::exports::pointsman::policy::observe;
use crate::bindings::pick::exports::pointsman::policy::pick;
use crate::bindings::plan::exports::pointsman::policy::plan;
use crate::bindings::retain::exports::pointsman::policy::retain;
use crate::bindings::route::exports::pointsman::policy::route;
use crate::bindings::schedule::exports::pointsman::policy::schedule;
use crate::bindings::score::exports::pointsman::policy::score;
use crate::bindings::state::exports::pointsman::policy::state;
use crate::slot::{
    Admit, Clip, Filter, Interpret, Keep, Observe, Pick, Plan, Retain, Route, Schedule, Score, State, Tier,
    Verdict,
};
use crate::view::{AdmitView, Frame, HintsView, ObserveView, RetainView, RouteView, ScheduleView, Table};

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
frame_of!(hints, admit, filter, score, pick, route, schedule, plan, retain, observe);

impl<P: Exported + Admit> admit::Guest for Component<P> {
    fn admit(frame: admit::Frame, numbers: Vec<f32>, ids: Vec<u64>) -> Option<admit::Verdict> {
        let columns = (P::REQUEST, P::FLEET);
        let verdict =
            with(|policy: &mut P| policy.admit(&AdmitView::new(frame.into(), columns, &numbers, &ids)))?;
        Some(match verdict {
            Verdict::Admit => admit::Verdict::Admit,
            Verdict::DeferUntil { ms } => admit::Verdict::DeferUntil(ms),
            Verdict::Reject { retry_after_ms, reason } => {
                admit::Verdict::Reject(admit::Rejection { retry_after_ms, reason })
            }
        })
    }
}

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

impl<P: Exported + Route> route::Guest for Component<P> {
    fn decide(frame: route::Frame, rows: u32, numbers: Vec<f32>, ids: Vec<u64>) -> Option<route::Decision> {
        let columns = (P::REQUEST, P::CANDIDATE);
        let chosen = with(|policy: &mut P| {
            policy.decide(&RouteView::new(frame.into(), columns, rows as usize, &numbers, &ids))
        })?;
        Some(route::Decision { candidate: chosen.candidate, reason: chosen.reason })
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

impl<P: Exported + Plan> plan::Guest for Component<P> {
    fn plan(
        frame: plan::Frame,
        waiting: u32,
        running: u32,
        numbers: Vec<f32>,
        ids: Vec<u64>,
    ) -> Option<plan::Decision> {
        let columns = (P::BUDGET, P::SEQUENCE);
        let rows = (waiting as usize, running as usize);
        let plan = with(|policy: &mut P| {
            policy.plan(&ScheduleView::new(frame.into(), columns, rows, &numbers, &ids))
        })?;
        Some(plan::Decision { order: plan.order, chunk_tokens: plan.chunk_tokens, victims: plan.victims })
    }
}

impl<P: Exported + Retain> retain::Guest for Component<P> {
    fn retain(
        frame: retain::Frame,
        rows: u32,
        numbers: Vec<f32>,
        ids: Vec<u64>,
    ) -> Option<Vec<retain::Keep>> {
        let columns = (P::CACHE, P::SEGMENT);
        let answer = with(|policy: &mut P| {
            policy.retain(&RetainView::new(frame.into(), columns, rows as usize, &numbers, &ids))
        })?;
        Some(answer.into_iter().map(retain::Keep::from).collect())
    }

    fn clipped(frame: retain::Frame, clips: Vec<retain::Clip>) {
        let clips: Vec<Clip> = clips.into_iter().map(Clip::from).collect();
        with(|policy: &mut P| {
            policy.clipped(frame.into(), &clips);
            Some(())
        });
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

impl<P: Exported + State> state::Guest for Component<P> {
    fn schema() -> String {
        P::SCHEMA.to_owned()
    }

    fn export_state(schema: String) -> Option<Vec<u8>> {
        with(|policy: &mut P| policy.export_state(&schema))
    }

    fn import_state(schema: String, state: Vec<u8>) -> Result<(), String> {
        with(|policy: &mut P| Some(policy.import_state(&schema, &state)))
            .unwrap_or_else(|| Err("a policy takes over a state after it is configured".to_owned()))
    }
}

impl From<Keep> for retain::Keep {
    fn from(keep: Keep) -> Self {
        let tier = |tier| match tier {
            Tier::Hbm => retain::Tier::Hbm,
            Tier::Host => retain::Tier::Host,
            Tier::Disk => retain::Tier::Disk,
            Tier::Remote => retain::Tier::Remote,
        };
        Self {
            priority: keep.priority,
            ttl_ms: keep.ttl_ms,
            tier_floor: keep.tier_floor.map(tier),
            drop: keep.drop,
        }
    }
}

impl From<retain::Clip> for Clip {
    fn from(clip: retain::Clip) -> Self {
        let tier = |tier| match tier {
            retain::Tier::Hbm => Tier::Hbm,
            retain::Tier::Host => Tier::Host,
            retain::Tier::Disk => Tier::Disk,
            retain::Tier::Remote => Tier::Remote,
        };
        let retain::Keep { priority, ttl_ms, tier_floor, drop } = clip.got;
        let got = Keep { priority, ttl_ms, tier_floor: tier_floor.map(tier), drop };
        Self { row: clip.row, got, bound: clip.bound }
    }
}
