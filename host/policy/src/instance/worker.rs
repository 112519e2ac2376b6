//! The slots of a worker: what it computes next, and what of its cache is worth keeping.

use super::Instance;
use crate::bindings::exports::pointsman::policy::{plan, retain};
use crate::slot::{
    Answer, Clip, Frame, Keep, RetainPolicy, RetainView, SchedulePlan, SchedulePolicy, ScheduleView, Tier,
};

impl SchedulePolicy for Instance {
    fn plan(&mut self, view: &ScheduleView<'_>) -> Answer<SchedulePlan> {
        self.numbers.clear();
        self.ids.clear();
        let [budget, sequence] = &self.inputs.schedule;
        budget.append(view.budget, &mut self.numbers, &mut self.ids);
        sequence.append(view.waiting, &mut self.numbers, &mut self.ids);
        sequence.append(view.running, &mut self.numbers, &mut self.ids);
        let (waiting, running) = (view.waiting.rows() as u32, view.running.rows() as u32);
        self.guarded(|guest, store, numbers, ids| {
            if let Some(guest) = &guest.plan {
                let planned = guest.call_plan(store, view.frame.into(), waiting, running, numbers, ids)?;
                return Ok(planned.map(|plan::Decision { order, chunk_tokens, victims }| SchedulePlan {
                    order,
                    chunk_tokens,
                    victims,
                }));
            }
            let Some(guest) = &guest.schedule else { return Ok(None) };
            let order = guest.call_order(store, view.frame.into(), waiting, running, numbers, ids)?;
            Ok(order.map(|order| SchedulePlan { order, ..SchedulePlan::default() }))
        })?
    }
}

impl RetainPolicy for Instance {
    fn retain(&mut self, view: &RetainView<'_>) -> Answer<Vec<Keep>> {
        self.numbers.clear();
        self.ids.clear();
        let [cache, segment] = &self.inputs.retain;
        cache.append(view.cache, &mut self.numbers, &mut self.ids);
        segment.append(view.segments, &mut self.numbers, &mut self.ids);
        let rows = view.segments.rows() as u32;
        let keeps = self.guarded(|guest, store, numbers, ids| match &guest.retain {
            Some(guest) => guest.call_retain(store, view.frame.into(), rows, numbers, ids),
            None => Ok(None),
        })?;
        keeps.map(|keeps| keeps.into_iter().map(Keep::from).collect())
    }

    fn clipped(&mut self, frame: Frame, clips: &[Clip]) -> Answer<()> {
        let clips: Vec<retain::Clip> = clips
            .iter()
            .map(|clip| retain::Clip { row: clip.row, got: clip.got.into(), bound: clip.bound.clone() })
            .collect();
        self.guarded(|guest, store, _, _| match &guest.retain {
            Some(guest) => guest.call_clipped(store, frame.into(), &clips).map(Some),
            None => Ok(None),
        })?
    }
}

impl From<retain::Keep> for Keep {
    fn from(keep: retain::Keep) -> Self {
        let tier = |tier| match tier {
            retain::Tier::Hbm => Tier::Hbm,
            retain::Tier::Host => Tier::Host,
            retain::Tier::Disk => Tier::Disk,
            retain::Tier::Remote => Tier::Remote,
        };
        let retain::Keep { priority, ttl_ms, tier_floor, drop } = keep;
        Self { priority, ttl_ms, tier_floor: tier_floor.map(tier), drop }
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
        let Keep { priority, ttl_ms, tier_floor, drop } = keep;
        Self { priority, ttl_ms, tier_floor: tier_floor.map(tier), drop }
    }
}
