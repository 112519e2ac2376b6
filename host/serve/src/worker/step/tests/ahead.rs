//! Sequences that are computed ahead of need, beside and behind all others.

use super::*;

impl Bench {
    /// The same as `start`, for a prompt that nobody waits for.
    fn prepare(&mut self, id: u64, root: u32, prompt: usize) -> mpsc::Receiver<Event> {
        let received = self.start(id, root, prompt, 0);
        let load = &self.step_loop.load;
        load.in_transit.fetch_sub(1, Relaxed);
        load.in_transit_tokens.fetch_sub(prompt as u64, Relaxed);
        let handed: Vec<Message> = self.step_loop.received.try_iter().collect();
        for mut message in handed {
            if let Message::Start(start) = &mut message {
                start.ahead |= start.id == id;
            }
            self.starts.send(message).expect("the loop listens");
        }
        received
    }

    fn count(&self, cell: impl Fn(&crate::speculation::Counts) -> u64) -> u64 {
        cell(&self.step_loop.parts.speculation)
    }

    fn cancelled(&self, why: Cancelled) -> u64 {
        self.count(|counts| counts.cancelled(why))
    }
}

fn ended(events: &mut mpsc::Receiver<Event>) -> bool {
    loop {
        match events.try_recv() {
            Ok(Event::Finished { .. }) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

#[test]
fn what_was_prepared_is_found() {
    let mut bench = bench(64, schedule(32, 8, 1000), None);
    let mut prepared = bench.prepare(1, 1, 40);
    bench.finish();
    assert!(ended(&mut prepared));
    assert_eq!(bench.count(|counts| counts.tokens.load(Relaxed)), 40);
    let mut answer = bench.start(2, 1, 48, 2);
    bench.finish();
    let cached = loop {
        if let Event::Finished { cached_tokens, .. } = answer.try_recv().expect("it came to its end") {
            break cached_tokens;
        }
    };
    assert_eq!(cached, 40);
    let mut again = bench.prepare(3, 1, 40);
    bench.finish();
    assert!(ended(&mut again), "there was nothing to do");
    assert_eq!(bench.count(|counts| counts.needless.load(Relaxed)), 1);
    assert_eq!(bench.count(|counts| counts.tokens.load(Relaxed)), 40);
}

#[test]
fn whoever_comes_ends_it_and_finds_what_was_computed() {
    let mut bench = bench(64, schedule(32, 8, 1000), None);
    bench.step_loop.parts.ahead.idle_tokens_max = 8;
    let mut prepared = bench.prepare(1, 1, 40);
    bench.step_loop.turn();
    bench.step_loop.turn();
    let mut answer = bench.start(2, 1, 48, 1);
    bench.finish();
    assert_eq!(bench.cancelled(Cancelled::Load), 1);
    assert!(!ended(&mut prepared));
    assert_eq!(prepared.try_recv().err(), Some(mpsc::error::TryRecvError::Disconnected));
    said(&mut answer);
    // Two steps of the preparation, then the rest of the prompt.
    assert_eq!(*bench.steps.lock(), [vec![8], vec![8], vec![32]]);
}

#[test]
fn it_takes_little_of_a_step_beside_others_and_waits_behind_them() {
    let mut bench = bench(64, schedule(32, 8, 1000), None);
    bench.step_loop.parts.ahead.beside_tokens_max = 3;
    let mut answer = bench.start(1, 1, 8, 4);
    bench.step_loop.turn();
    let mut prepared = bench.prepare(2, 2, 20);
    bench.finish();
    said(&mut answer);
    assert!(ended(&mut prepared));
    let steps = bench.steps.lock().clone();
    assert_eq!(steps, [vec![8], vec![1, 3], vec![1, 3], vec![1, 3], vec![11]]);
    assert_eq!(bench.step_loop.load.running.load(Relaxed), 0);
}

#[test]
fn without_leave_to_stand_beside_others_it_waits_for_them() {
    let mut bench = bench(64, schedule(32, 8, 1000), None);
    bench.step_loop.parts.ahead.beside_tokens_max = 0;
    let mut answer = bench.start(1, 1, 8, 3);
    bench.step_loop.turn();
    let mut prepared = bench.prepare(2, 2, 20);
    bench.finish();
    said(&mut answer);
    assert!(ended(&mut prepared));
    assert_eq!(*bench.steps.lock(), [vec![8], vec![1], vec![1], vec![20]]);
}

#[test]
fn further_ones_than_a_worker_may_have_are_dropped() {
    let mut bench = bench(64, schedule(32, 8, 1000), None);
    bench.step_loop.parts.ahead.in_flight_max = 2;
    let mut prepared: Vec<_> = (1..=4).map(|id| bench.prepare(id, id as u32, 20)).collect();
    bench.finish();
    assert_eq!(bench.cancelled(Cancelled::Full), 2);
    assert_eq!(prepared.iter_mut().filter_map(|events| ended(events).then_some(())).count(), 2);
}

#[test]
fn it_leaves_pages_to_others() {
    let mut bench = bench(10, schedule(64, 8, 1000), None);
    bench.step_loop.parts.ahead.spare_share_min = 0.5;
    let mut prepared = bench.prepare(1, 1, 24);
    bench.finish();
    assert!(!ended(&mut prepared));
    assert_eq!(bench.cancelled(Cancelled::Pages), 1);
    // One that runs out of pages takes them from what is prepared, and gives way to nobody.
    bench.step_loop.parts.ahead.spare_share_min = 0.0;
    bench.step_loop.parts.ahead.beside_tokens_max = 1;
    let mut answer = bench.start(2, 2, 20, 16);
    bench.step_loop.turn();
    let mut prepared = bench.prepare(3, 3, 20);
    bench.finish();
    assert_eq!(said(&mut answer).len(), 16);
    assert!(!ended(&mut prepared));
    assert_eq!(bench.cancelled(Cancelled::Pages), 2);
    assert_eq!(bench.step_loop.load.preemptions.load(Relaxed), 0);
}

#[test]
fn whoever_asked_for_it_may_leave() {
    let mut bench = bench(64, schedule(32, 8, 1000), None);
    bench.step_loop.parts.ahead.idle_tokens_max = 4;
    let prepared = bench.prepare(1, 1, 40);
    bench.step_loop.turn();
    drop(prepared);
    // The loop sleeps when nothing is left: somebody else wakes it.
    let mut answer = bench.start(2, 2, 8, 1);
    bench.finish();
    said(&mut answer);
    assert_eq!(Cancelled::ALL.map(|why| bench.cancelled(why)), [0; Cancelled::ALL.len()]);
    assert_eq!(bench.step_loop.pool.stats().pinned, 0);
}
