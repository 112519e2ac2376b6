//! Executors that are lost, at any call: answers are those that they would have been.

use super::*;
use crate::config::Role;
use crate::worker::executors::Gone;
use crate::worker::peers::{Peer, Peers};

/// After how many calls each executor of a worker is lost, one after the other; those after them never are.
type Lives = Arc<Mutex<VecDeque<u64>>>;

/// A device that is lost after some calls, and stays so.
struct Mortal {
    device: Box<dyn Executor>,
    calls_left: Option<u64>,
}

impl Mortal {
    fn call(&mut self, call: &'static str) -> Result<(), EngineError> {
        match &mut self.calls_left {
            Some(0) => {
                let (device, reason) = (self.caps().name.clone(), "its time had come".to_owned());
                return Err(EngineError::Lost { device, call, reason });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }
}

impl Executor for Mortal {
    fn caps(&self) -> &Caps {
        self.device.caps()
    }

    fn submit(&mut self, plan: &EnginePlan<'_>) -> Result<Ticket, EngineError> {
        self.call("submit")?;
        self.device.submit(plan)
    }

    fn poll(&mut self, ticket: Ticket, block: bool) -> Result<Option<StepOut>, EngineError> {
        self.call("poll")?;
        self.device.poll(ticket, block)
    }

    fn transfer(&mut self, moves: Vec<Xfer>, after: Fence) -> Result<Fence, EngineError> {
        self.call("transfer")?;
        self.device.transfer(moves, after)
    }

    fn settle(&mut self, fence: Fence, block: bool) -> Result<Option<Moved>, EngineError> {
        self.call("settle")?;
        self.device.settle(fence, block)
    }
}

fn device(pages: u32) -> SimConfig {
    SimConfig { pages, ..SimConfig::default() }
}

/// A worker whose executors live so long, and which has a draft model or none. It gets another one after each.
fn mortal(device: &SimConfig, lives: &[u64], drafts: bool) -> Bench {
    let device = device.clone();
    let lives: Lives = Arc::new(Mutex::new(lives.iter().copied().collect()));
    let made = move || {
        let calls_left = lives.lock().pop_front();
        let served = Box::new(Mortal { device: sim(&device), calls_left });
        Executors { served, draft: drafts.then(|| sim(&device)) }
    };
    let Executors { served, draft } = made();
    let mut bench = bench_with(served, draft, schedule(16, 4, 30_000), None);
    let steps = Arc::clone(&bench.steps);
    bench.step_loop.parts.make = Box::new(move || {
        let Executors { served, draft } = made();
        Ok(Executors { served: Box::new(Noting(served, Arc::clone(&steps))), draft })
    });
    bench
}

/// Has workers know each other.
fn acquaint(benches: &mut [&mut Bench]) {
    let peers = Arc::new(Peers::default());
    for (index, bench) in benches.iter_mut().enumerate() {
        bench.step_loop.parts.index = index;
        bench.step_loop.parts.peers = Arc::clone(&peers);
        *bench.step_loop.sender.lock() = Some(bench.starts.clone());
        let (load, sender) = (Arc::clone(&bench.step_loop.load), Arc::clone(&bench.step_loop.sender));
        peers.join(Peer { index, role: bench.step_loop.parts.role, load, sender });
        bench.step_loop.parts.prefixes = Arc::new(PrefixIndex::new(2));
    }
}

impl Bench {
    fn counts(&self) -> [u64; 3] {
        let load = &self.step_loop.load;
        [&load.executor_failures, &load.executor_restarts, &load.sequences_moved]
            .map(|cell| cell.load(Relaxed))
    }

    /// Has its executor be lost after so many calls.
    pub(super) fn lose_after(&mut self, calls: u64) {
        let place = &mut self.step_loop.parts.executors.served;
        let gone = Box::new(Gone::new(place.caps().clone(), String::new()));
        let device = std::mem::replace(place, gone);
        *place = Box::new(Mortal { device, calls_left: Some(calls) });
    }

    fn fail_to_restart(&mut self) {
        self.step_loop.parts.make = Box::new(|| Err(EngineError::Device("the driver is gone".to_owned())));
    }
}

/// What sequences of these roots say where nothing is lost.
fn undisturbed(roots: &[u32]) -> Vec<Vec<u32>> {
    roots
        .iter()
        .map(|&root| {
            let mut bench = bench_of(&device(256), schedule(64, 4, 30_000), None);
            let mut events = bench.start(1, root, 20 + root as usize, 30);
            bench.finish();
            said(&mut events)
        })
        .collect()
}

fn start_all(bench: &mut Bench, roots: &[u32]) -> Vec<mpsc::Receiver<Event>> {
    roots.iter().map(|&root| bench.start(u64::from(root) + 1, root, 20 + root as usize, 30)).collect()
}

/// Turns all of them until nobody has anything left.
fn finish_all(benches: &mut [&mut Bench]) {
    for _ in 0..TURNS_MAX {
        let in_transit = |bench: &Bench| bench.step_loop.load.in_transit.load(Relaxed) > 0;
        let mut busy = false;
        for bench in benches.iter_mut().filter(|bench| !bench.is_idle() || in_transit(bench)) {
            bench.step_loop.turn();
            busy = true;
        }
        if !busy {
            return;
        }
    }
    panic!("sequences are left after {TURNS_MAX} turns");
}

#[test]
fn answers_go_on_where_they_were() {
    let roots = [0, 1, 2, 3, 4];
    for (overlaps, drafts, lives) in
        [(false, false, [0, 7, 40]), (false, true, [1, 12, 33]), (true, false, [0, 21, 38])]
    {
        let mut bench = mortal(&SimConfig { overlaps, ..device(64) }, &lives, drafts);
        let mut events = start_all(&mut bench, &roots);
        bench.finish();
        let answers: Vec<_> = events.iter_mut().map(said).collect();
        assert_eq!(answers, undisturbed(&roots));
        assert_eq!(bench.counts(), [3, 3, 0]);
        assert!(bench.step_loop.load.is_healthy());
        assert_eq!(bench.step_loop.draft_model.is_some(), drafts);
        assert_eq!(bench.step_loop.pool.stats().pinned, 0);
    }
}

#[test]
fn another_worker_goes_on_with_what_ran_and_what_waited() {
    let roots = [0, 1, 2, 3, 4, 5];
    let (mut lost, mut well) = (mortal(&device(64), &[9], false), mortal(&device(64), &[], false));
    lost.fail_to_restart();
    acquaint(&mut [&mut lost, &mut well]);
    let mut events = start_all(&mut lost, &roots);
    finish_all(&mut [&mut lost, &mut well]);
    let answers: Vec<_> = events.iter_mut().map(said).collect();
    assert_eq!(answers, undisturbed(&roots));
    assert_eq!((lost.counts(), well.counts()), ([1, 0, 6], [0, 0, 0]));
    assert!(!lost.step_loop.load.is_healthy(), "nobody is to be sent there");
    // Who is on the way there when that happens is handed on, too.
    let mut late = lost.start(9, 0, 20, 30);
    assert!(lost.step_loop.turn());
    finish_all(&mut [&mut well]);
    assert_eq!(said(&mut late), undisturbed(&[0])[0]);
}

#[test]
fn a_worker_that_only_computes_prompts_takes_nobody_over() {
    let (mut lost, mut prefill) = (mortal(&device(64), &[3], false), mortal(&device(64), &[], false));
    prefill.step_loop.parts.role = Role::Prefill;
    acquaint(&mut [&mut lost, &mut prefill]);
    let mut events = lost.start(1, 0, 20, 30);
    finish_all(&mut [&mut lost, &mut prefill]);
    assert_eq!(said(&mut events), undisturbed(&[0])[0]);
    assert_eq!(lost.counts(), [1, 1, 0]);
}

#[test]
fn who_waits_for_longer_than_a_restart_may_take_is_told() {
    let mut bench = mortal(&device(64), &[3], false);
    bench.fail_to_restart();
    let mut events = bench.start(1, 0, 20, 30);
    while bench.step_loop.outage.is_none() {
        assert!(bench.step_loop.turn());
    }
    bench.step_loop.turn();
    assert_eq!(bench.step_loop.waiting.len(), 1, "the first attempt is not the last");
    let now = bench.ctx.now();
    bench.step_loop.outage.as_mut().expect("it lasts").gives_up_at = now;
    bench.step_loop.turn();
    assert!(bench.is_idle());
    let last = std::iter::from_fn(|| events.try_recv().ok()).last();
    assert!(matches!(last, Some(Event::Stranded)), "{last:?}");
}

#[test]
fn a_worker_that_stops_waits_for_no_executor() {
    let mut bench = mortal(&device(64), &[3], false);
    bench.fail_to_restart();
    let mut events = bench.start(1, 0, 20, 30);
    while bench.step_loop.outage.is_none() {
        assert!(bench.step_loop.turn());
    }
    bench.starts = channel().0;
    assert!((0..100).any(|_| !bench.step_loop.turn()), "it ends");
    let last = std::iter::from_fn(|| events.try_recv().ok()).last();
    assert!(matches!(last, Some(Event::Stranded)), "{last:?}");
}

#[test]
fn a_sequence_that_breaks_one_executor_after_the_other_is_given_up() {
    let mut bench = mortal(&device(64), &[4; 4], false);
    let mut events = bench.start(1, 0, 20, 30);
    bench.finish();
    let last = std::iter::from_fn(|| events.try_recv().ok()).last();
    assert!(matches!(&last, Some(Event::Failed(why)) if why.contains("lost 4 times")), "{last:?}");
    let mut next = bench.start(2, 1, 21, 30);
    bench.finish();
    assert_eq!(said(&mut next), undisturbed(&[1])[0], "others are served");
}

#[test]
fn what_a_lost_executor_held_is_found_in_memory_of_the_host_alone() {
    let cached = |tiered: bool| {
        let mut bench = mortal(&device(64), &[30], false);
        if tiered {
            let tiers = memory_of_host(&bench);
            join_tiers(&mut bench, tiers);
        }
        let mut first = bench.start(1, 0, 40, 1);
        bench.finish();
        while bench.step_loop.mover.as_ref().is_some_and(Mover::is_busy) {
            bench.step_loop.turn();
        }
        said(&mut first);
        let mut fatal = bench.start(2, 1, 40, 30);
        bench.finish();
        said(&mut fatal);
        assert_eq!(bench.counts(), [1, 1, 0]);
        let mut again = bench.start(3, 0, 40, 1);
        bench.finish();
        std::iter::from_fn(|| again.try_recv().ok()).find_map(|event| match event {
            Event::Finished { cached_tokens, .. } => Some(cached_tokens),
            _ => None,
        })
    };
    assert_eq!((cached(false), cached(true)), (Some(0), Some(36)));
}

#[test]
fn a_plan_that_is_refused_costs_its_step_and_no_executor() {
    struct Refusing(Box<dyn Executor>, u32);
    impl Executor for Refusing {
        fn caps(&self) -> &Caps {
            self.0.caps()
        }
        fn submit(&mut self, plan: &EnginePlan<'_>) -> Result<Ticket, EngineError> {
            self.1 += 1;
            if self.1 == 3 { Err(EngineError::Plan("row 0".to_owned())) } else { self.0.submit(plan) }
        }
        fn poll(&mut self, ticket: Ticket, block: bool) -> Result<Option<StepOut>, EngineError> {
            self.0.poll(ticket, block)
        }
        fn transfer(&mut self, moves: Vec<Xfer>, after: Fence) -> Result<Fence, EngineError> {
            self.0.transfer(moves, after)
        }
        fn settle(&mut self, fence: Fence, block: bool) -> Result<Option<Moved>, EngineError> {
            self.0.settle(fence, block)
        }
    }
    let refusing = Box::new(Refusing(sim(&device(64)), 0));
    let mut bench = bench_with(refusing, None, schedule(64, 4, 30_000), None);
    let mut events = bench.start(1, 0, 20, 30);
    bench.finish();
    let last = std::iter::from_fn(|| events.try_recv().ok()).last();
    assert!(matches!(&last, Some(Event::Failed(why)) if why.contains("row 0")), "{last:?}");
    assert_eq!((bench.counts(), bench.step_loop.load.is_healthy()), ([0, 0, 0], true));
    let mut next = bench.start(2, 1, 21, 30);
    bench.finish();
    assert_eq!(said(&mut next), undisturbed(&[1])[0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Wherever two workers lose their executors, with memory of the host or without, every sequence says what it would say
    /// alone, or has left, and all pages come back.
    #[test]
    fn whatever_is_lost_everybody_comes_to_the_right_end(
        wanted in prop::collection::vec(wanted(), 1..10),
        lives in (prop::collection::vec(0u64..40, 0..2), prop::collection::vec(0u64..40, 0..2)),
        pages in 13u32..24,
        (tiered, drafts, overlaps) in any::<(bool, bool, bool)>(),
    ) {
        let sized = SimConfig { overlaps, ..device(pages) };
        let mut workers = [mortal(&sized, &lives.0, drafts), mortal(&sized, &lives.1, drafts)];
        if tiered {
            let tiers = memory_of_host(&workers[0]);
            workers.iter_mut().for_each(|worker| join_tiers(worker, Arc::clone(&tiers)));
        }
        let [one, other] = &mut workers;
        acquaint(&mut [&mut *one, &mut *other]);
        let mut events: Vec<_> = wanted
            .iter()
            .enumerate()
            .map(|(id, wanted)| {
                let worker = if id % 2 == 0 { &mut *one } else { &mut *other };
                Some(worker.start(id as u64 + 1, wanted.root, wanted.prompt, wanted.output))
            })
            .collect();
        for turn in 0..40 {
            for (events, wanted) in events.iter_mut().zip(&wanted) {
                if wanted.leaves == Some(turn) {
                    *events = None;
                }
            }
            for worker in [&mut *one, &mut *other] {
                worker.turn_if_awake();
            }
        }
        finish_all(&mut [&mut *one, &mut *other]);
        for worker in [&mut *one, &mut *other] {
            while worker.step_loop.outage.is_some() {
                worker.step_loop.turn();
            }
            prop_assert_eq!(worker.step_loop.pool.stats().pinned, 0);
            let [failures, restarts, _] = worker.counts();
            prop_assert_eq!(failures, restarts);
        }
        for (events, wanted) in events.iter_mut().zip(&wanted) {
            if let Some(events) = events {
                prop_assert_eq!(said(events), alone(wanted, &device(64)), "{:?}", wanted);
            }
        }
    }
}
