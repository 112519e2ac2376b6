//! Many sequences, few pages: who gives way, how soon who left is gone, and whether everybody has a turn.

use super::*;

/// Beyond what a worker of these tests runs at once.
const MANY: u64 = 256;

/// A worker with memory of the host below it, whose prompt tokens cost so many microseconds.
fn tiered(pages: u32, prefill_us_per_token: f64) -> Bench {
    let device = SimConfig { pages, prefill_us_per_token, ..SimConfig::default() };
    let mut bench = bench_of(&device, schedule(64, 4, 30_000), None);
    let tiers = memory_of_host(&bench);
    join_tiers(&mut bench, tiers);
    bench
}

/// What an answer says, and how much of its prompt was cached.
fn told(events: &mut mpsc::Receiver<Event>) -> (Vec<u32>, u32) {
    let (mut tokens, mut cached) = (Vec::new(), 0);
    while let Ok(event) = events.try_recv() {
        match event {
            Event::Tokens { sampled, .. } => tokens.extend(sampled.iter().map(|s| s.token)),
            Event::Finished { cached_tokens, .. } => cached = cached_tokens,
            Event::Started { .. } | Event::Failed(_) | Event::Stranded => {}
        }
    }
    (tokens, cached)
}

/// Two sequences that do not fit together. Returns preemptions, those of them that were swapped, and tokens computed.
fn crowded(prefill_us_per_token: f64) -> [u64; 3] {
    let mut bench = tiered(44, prefill_us_per_token);
    for root in 10..40 {
        // It learns what prompts cost.
        let _events = bench.start(u64::from(root), root, 60, 1);
        bench.finish();
    }
    bench.step_loop.load.step_tokens.store(0, Relaxed);
    let mut events = [bench.start(101, 1, 80, 12), bench.start(102, 2, 80, 12)];
    bench.finish();
    let answers = events.each_mut().map(told);
    let roomy = [1, 2].map(|root| {
        let mut bench = bench_of(&SimConfig::default(), schedule(64, 4, 30_000), None);
        let mut events = bench.start(1, root, 80, 12);
        bench.finish();
        told(&mut events)
    });
    // What was computed for it is not cached, however often it came back.
    assert_eq!(answers, roomy);
    assert_eq!(answers.map(|(_, cached)| cached), [0, 0]);
    let load = &bench.step_loop.load;
    [&load.preemptions, &load.preemptions_swapped, &load.step_tokens].map(|cell| cell.load(Relaxed))
}

#[test]
fn who_gives_way_is_swapped_where_computing_costs_more() {
    let [preempted, swapped, computed] = crowded(10_000.0);
    assert!(preempted > 0 && swapped == preempted, "{swapped} of {preempted}");
    let [_, recomputed, all] = crowded(0.0);
    assert_eq!(recomputed, 0, "nothing is cheaper than what costs nothing");
    assert!(computed <= all, "{computed} tokens with swapping, {all} without");
}

#[test]
fn who_left_is_gone_before_the_next_step() {
    let mut bench = bench(64, schedule(64, 4, 30_000), None);
    let (left, _stays) = (bench.start(1, 0, 10, 50), bench.start(2, 1, 10, 50));
    (0..3).for_each(|_| assert!(bench.step_loop.turn()));
    drop(left);
    bench.step_loop.turn();
    let rows: Vec<usize> = bench.steps.lock().iter().map(Vec::len).collect();
    assert_eq!(rows, [2, 2, 2, 1], "its row is in no further step");
    assert_eq!(bench.step_loop.running.len(), 1);
}

/// Places at which equal sequences ended, in order of arrival.
fn ends(planner: Option<Arc<dyn Planner>>, starvation_ms: u64) -> Vec<usize> {
    let mut bench = bench(4096, schedule(64, 8, starvation_ms), planner);
    let mut open: Vec<_> = (0..MANY).map(|id| Some(bench.start(id + 1, id as u32, 12, 6))).collect();
    let (mut places, mut ended) = (vec![0; open.len()], 0);
    for _ in 0..TURNS_MAX {
        bench.step_loop.turn();
        for (place, events) in places.iter_mut().zip(&mut open) {
            let is_over = |events: &mut mpsc::Receiver<Event>| {
                std::iter::from_fn(|| events.try_recv().ok())
                    .any(|event| matches!(event, Event::Finished { .. }))
            };
            if events.as_mut().is_some_and(is_over) {
                *place = ended;
                ended += 1;
                *events = None;
            }
        }
        if ended == places.len() {
            return places;
        }
    }
    panic!("{ended} of {} ended", places.len());
}

#[test]
fn of_many_that_wait_everybody_has_a_turn_in_order() {
    for (arrived, ended) in ends(None, 30_000).into_iter().enumerate() {
        assert!(arrived.abs_diff(ended) <= 8, "number {arrived} ended as number {ended}");
    }
}

#[test]
fn a_policy_that_prefers_who_came_last_starves_nobody() {
    let last_first = |view: &ScheduleView<'_>| SchedulePlan {
        order: (0..view.waiting.rows() as u32).rev().collect(),
        ..SchedulePlan::default()
    };
    let unbounded = ends(Some(Arc::new(Plans(last_first))), 30_000);
    assert!(unbounded[0] > MANY as usize / 2, "the first is served late: as number {}", unbounded[0]);
    for (arrived, ended) in ends(Some(Arc::new(Plans(last_first))), 0).into_iter().enumerate() {
        assert!(arrived.abs_diff(ended) <= 8, "number {arrived} ended as number {ended}");
    }
}
