//! Prompts that one worker computes for another.

use super::*;
use crate::config::Role;
use crate::worker::{Handoff, Handoffs, handoff};

/// A worker that computes prompts, and one that answers.
struct Pair {
    prefill: Bench,
    decode: Bench,
    counts: Arc<Handoffs>,
}

impl Pair {
    fn new(prefill_pages: u32, decode_pages: u32) -> Self {
        let schedule = || schedule(16, 8, 30_000);
        let mut prefill = bench(prefill_pages, schedule(), None);
        let mut decode = bench(decode_pages, schedule(), None);
        let tiers = memory_of_host(&decode);
        for (bench, role) in [(&mut prefill, Role::Prefill), (&mut decode, Role::Decode)] {
            bench.step_loop.parts.role = role;
            join_tiers(bench, Arc::clone(&tiers));
        }
        Self { prefill, decode, counts: Arc::default() }
    }

    /// Hands a sequence over to both. The second channel is that of the worker that computes its prompt.
    fn start(&mut self, (id, root): (u64, u32), prompt: usize, output: u32) -> [mpsc::Receiver<Event>; 2] {
        let wanted = 0..(prompt - 1) / BLOCK_TOKENS as usize;
        let (giver, taker) = handoff(wanted, Arc::clone(&self.counts));
        let computing = self.prefill.start(id, root, prompt, 0);
        self.prefill.give_last(Handoff::Give(giver));
        let answer = self.decode.start(id, root, prompt, output);
        self.decode.give_last(Handoff::Take(taker));
        [answer, computing]
    }

    /// Turns both until everybody has left. A worker that would sleep is not turned.
    fn finish(&mut self) {
        for _ in 0..TURNS_MAX {
            for bench in [&mut self.prefill, &mut self.decode] {
                bench.turn_if_awake();
            }
            if self.prefill.is_idle() && self.decode.is_idle() {
                return;
            }
        }
        panic!("sequences are left after {TURNS_MAX} turns");
    }

    fn counted(&self) -> [u64; 3] {
        [&self.counts.ended, &self.counts.short, &self.counts.blocks].map(|cell| cell.load(Relaxed))
    }
}

impl Bench {
    /// Gives the sequence that was handed over last its part in a handoff.
    fn give_last(&mut self, part: Handoff) {
        let mut handed: Vec<Message> = self.step_loop.received.try_iter().collect();
        if let Some(Message::Start(start)) = handed.last_mut() {
            start.handoff = Some(part);
        }
        handed.into_iter().for_each(|message| self.starts.send(message).expect("the loop listens"));
    }

    pub(super) fn turn_if_awake(&mut self) {
        let handed: Vec<Message> = self.step_loop.received.try_iter().collect();
        let asleep = handed.is_empty() && self.step_loop.is_idle();
        handed.into_iter().for_each(|message| self.starts.send(message).expect("the loop listens"));
        if !asleep {
            self.step_loop.turn();
        }
    }

    fn drafted(&self) -> u64 {
        self.step_loop.load.drafts.iter().map(|drafts| drafts.tokens.load(Relaxed)).sum()
    }

    fn computed(&self) -> u64 {
        self.step_loop.load.step_tokens.load(Relaxed)
    }
}

/// What a worker that does both says.
fn alone(root: u32, prompt: usize, output: u32) -> Vec<u32> {
    let mut bench = bench(256, schedule(16, 8, 30_000), None);
    let mut events = bench.start(1, root, prompt, output);
    bench.finish();
    said(&mut events)
}

#[test]
fn the_answer_is_that_of_one_worker() {
    let mut pair = Pair::new(64, 64);
    let [mut answer, _computing] = pair.start((1, 1), 50, 6);
    pair.finish();
    assert_eq!(said(&mut answer), alone(1, 50, 6));
    assert_eq!(pair.counted(), [1, 0, 12]);
    assert_eq!(pair.decode.computed() - pair.decode.drafted(), 2 + 5);
    assert_eq!(pair.prefill.step_loop.pool.stats().pinned, 0);
}

#[test]
fn a_worker_that_cannot_hold_a_prompt_leaves_it_to_the_other() {
    let mut pair = Pair::new(4, 64);
    let [mut answer, _computing] = pair.start((1, 1), 50, 6);
    pair.finish();
    assert_eq!(said(&mut answer), alone(1, 50, 6));
    assert_eq!(pair.counted()[..2], [1, 1]);
}

#[test]
fn a_worker_whose_device_is_lost_leaves_the_rest_of_a_prompt_to_the_other() {
    for calls in [0, 1, 5, 9] {
        let mut pair = Pair::new(64, 64);
        pair.prefill.lose_after(calls);
        let [mut answer, _computing] = pair.start((1, 1), 50, 6);
        pair.finish();
        assert_eq!(said(&mut answer), alone(1, 50, 6));
        assert_eq!(pair.counted()[..2], [1, 1], "{calls} calls");
    }
}

#[test]
fn a_prompt_that_nobody_waits_for_is_not_computed() {
    let mut pair = Pair::new(64, 64);
    let [answer, computing] = pair.start((1, 1), 200, 6);
    for _ in 0..3 {
        pair.prefill.turn_if_awake();
        pair.decode.turn_if_awake();
    }
    drop((answer, computing));
    pair.finish();
    assert!((1..100).contains(&pair.prefill.computed()), "{} tokens", pair.prefill.computed());
    assert_eq!(pair.decode.computed(), 0);
    let pinned = [&pair.prefill, &pair.decode].map(|bench| bench.step_loop.pool.stats().pinned);
    assert_eq!(pinned, [0, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Many at once, with pages for few: some are preempted on either side, some leave, and all others say what they would.
    #[test]
    fn whatever_happens_answers_are_the_same(
        pages in (30u32..80, 30u32..80),
        sequences in prop::collection::vec((0u32..4, 5usize..100, 1u32..8, prop::option::weighted(0.2, 0usize..20)), 1..12),
    ) {
        let mut pair = Pair::new(pages.0, pages.1);
        let mut open = Vec::new();
        for (id, (root, prompt, output, leaves)) in sequences.into_iter().enumerate() {
            let [answer, computing] = pair.start((id as u64 + 1, root), prompt, output);
            open.push((answer, computing, (root, prompt, output)));
            if let Some(turns) = leaves {
                for _ in 0..turns {
                    pair.prefill.turn_if_awake();
                    pair.decode.turn_if_awake();
                }
                open.pop();
            }
        }
        pair.finish();
        for (mut answer, _, (root, prompt, output)) in open {
            prop_assert_eq!(said(&mut answer), alone(root, prompt, output));
        }
        let pinned = [&pair.prefill, &pair.decode].map(|bench| bench.step_loop.pool.stats().pinned);
        prop_assert_eq!(pinned, [0, 0]);
    }
}
