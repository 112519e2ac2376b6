//! Guesses of a draft model, which is a simulated device that is right as often as it is told.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::worker::DraftSource;

/// A device that says what the served one says, but for some tokens.
struct Guessing {
    device: SimExec,
    right_of_100: u64,
    seed: u64,
    guesses: u64,
    steps: Steps,
    fails: Arc<AtomicBool>,
}

impl Guessing {
    fn new(device: &SimConfig, right_of_100: u64, seed: u64) -> Self {
        let config = SimConfig { block_tokens: BLOCK_TOKENS, pace: Pace::Virtual, ..device.clone() };
        let device = SimExec::new(config).expect("a small device");
        Self { device, right_of_100, seed, guesses: 0, steps: Steps::default(), fails: Arc::default() }
    }
}

impl Executor for Guessing {
    fn caps(&self) -> &Caps {
        self.device.caps()
    }

    fn submit(&mut self, plan: &EnginePlan<'_>) -> Result<Ticket, EngineError> {
        assert!(!plan.rows.is_empty(), "a step computes something");
        self.steps.lock().push(plan.rows.iter().map(|row| row.tokens.len()).collect());
        match self.fails.load(Relaxed) {
            true => Err(EngineError::Plan("the draft device is gone".to_owned())),
            false => self.device.submit(plan),
        }
    }

    fn poll(&mut self, ticket: Ticket, block: bool) -> Result<Option<StepOut>, EngineError> {
        let mut out = self.device.poll(ticket, block)?;
        for sampled in out.iter_mut().flat_map(|out| &mut out.sampled) {
            self.guesses += 1;
            if mix(self.seed ^ mix(self.guesses)) % 100 >= self.right_of_100 {
                sampled.token ^= 1;
            }
        }
        Ok(out)
    }

    fn transfer(&mut self, _: Vec<Xfer>, _: Fence) -> Result<Fence, EngineError> {
        unreachable!("blocks of a draft model stay where they are")
    }

    fn settle(&mut self, _: Fence, _: bool) -> Result<Option<Moved>, EngineError> {
        unreachable!("blocks of a draft model stay where they are")
    }
}

/// A device with so many pages, and a draft model that is right so often.
fn drafted(pages: u32, right_of_100: u64, schedule: Schedule) -> (Bench, Steps, Arc<AtomicBool>) {
    let device = SimConfig { pages, ..SimConfig::default() };
    let draft = Guessing::new(&device, right_of_100, 7);
    let (steps, fails) = (Arc::clone(&draft.steps), Arc::clone(&draft.fails));
    (bench_with(sim(&device), Some(Box::new(draft)), schedule, None), steps, fails)
}

fn undrafted(root: u32, prompt: usize, output: u32) -> Vec<u32> {
    let schedule = Schedule { draft_tokens_max: 0, ..schedule(64, 1, 30_000) };
    let mut bench = bench(512, schedule, None);
    let mut events = bench.start(1, root, prompt, output);
    bench.finish();
    said(&mut events)
}

impl Bench {
    /// Guesses of the draft model, and those that were right.
    fn guessed(&self) -> (u64, u64) {
        let counts = self.step_loop.load.drafts(DraftSource::Model);
        (counts.tokens.load(Relaxed), counts.accepted.load(Relaxed))
    }
}

#[test]
fn a_draft_model_that_is_always_right_saves_nearly_all_steps() {
    let (mut bench, _, _) = drafted(256, 100, schedule(64, 8, 30_000));
    let mut events = bench.start(1, 0, 10, 91);
    bench.finish();
    assert_eq!(said(&mut events), undrafted(0, 10, 91));
    let (guessed, right) = bench.guessed();
    assert_eq!(guessed, right);
    // The first token comes with the prompt, then eight are right and the ninth is drawn behind them.
    assert_eq!((right, bench.steps.lock().len()), (80, 11));
}

#[test]
fn sequences_share_the_steps_of_the_draft_model() {
    let (mut bench, steps, _) = drafted(256, 100, schedule(64, 8, 30_000));
    let mut events: Vec<_> = (0..4).map(|i| bench.start(u64::from(i) + 1, i, 10, 13)).collect();
    bench.finish();
    for (root, events) in (0..).zip(&mut events) {
        assert_eq!(said(events), undrafted(root, 10, 13));
    }
    let (guessed, right) = bench.guessed();
    assert_eq!(guessed, right);
    // Sixteen tokens of a step: one is drawn for each of the four, and three are guessed.
    assert_eq!(bench.steps.lock()[1], [4, 4, 4, 4]);
    assert_eq!(steps.lock()[..3], [vec![11; 4], vec![1; 4], vec![1; 4]]);
}

#[test]
fn guesses_that_are_wrong_change_no_answer() {
    for right_of_100 in [0, 30, 80] {
        let (mut bench, _, _) = drafted(256, right_of_100, schedule(64, 8, 30_000));
        let mut events: Vec<_> = (0..3).map(|i| bench.start(u64::from(i) + 1, i, 10, 60)).collect();
        bench.finish();
        for (root, events) in (0..).zip(&mut events) {
            assert_eq!(said(events), undrafted(root, 10, 60), "{right_of_100} of 100 right");
        }
        let (guessed, right) = bench.guessed();
        assert!(right <= guessed && guessed > 0 && (right > 0) == (right_of_100 > 0), "{right} of {guessed}");
    }
}

#[test]
fn a_draft_model_that_fails_costs_guesses_and_no_answer() {
    let (mut bench, _, fails) = drafted(256, 100, schedule(64, 8, 30_000));
    let mut events = bench.start(1, 0, 10, 91);
    (0..3).for_each(|_| assert!(bench.step_loop.turn()));
    fails.store(true, Relaxed);
    bench.finish();
    assert_eq!(said(&mut events), undrafted(0, 10, 91));
    assert_eq!(bench.step_loop.load.draft_failures.load(Relaxed), 1);
    assert_eq!(bench.guessed(), (16, 16), "what came before it was used");
    assert!(bench.step_loop.draft_model.is_none(), "it is not asked again");
}

#[test]
fn a_long_prompt_is_caught_up_with_in_small_steps() {
    let (mut bench, steps, _) = drafted(1024, 100, schedule(2048, 8, 30_000));
    let mut events = bench.start(1, 0, 1000, 60);
    bench.finish();
    assert_eq!(said(&mut events), undrafted(0, 1000, 60));
    let (guessed, right) = bench.guessed();
    assert!(guessed == right && right > 30, "{right} of {guessed}");
    let rows: Vec<usize> = steps.lock().iter().flatten().copied().collect();
    assert!(rows.iter().all(|tokens| *tokens <= 64), "{rows:?}");
    let fed: usize = rows.iter().sum();
    assert!((1000..1060).contains(&fed), "every token is computed once, {fed}");
    // Its next turn, and whoever else begins with it, finds what is there.
    steps.lock().clear();
    let mut events = bench.start(2, 0, 1010, 12);
    bench.finish();
    assert_eq!(said(&mut events), undrafted(0, 1010, 12));
    let fed: usize = steps.lock().iter().flatten().sum();
    assert!(fed < 40, "only what is new is computed, {fed}");
}

#[test]
fn whoever_finds_no_page_in_the_draft_model_goes_without() {
    let device = SimConfig { pages: 256, ..SimConfig::default() };
    // Room for one of them.
    let draft = Guessing::new(&SimConfig { pages: 8, ..device.clone() }, 100, 7);
    let mut bench = bench_with(sim(&device), Some(Box::new(draft)), schedule(64, 8, 30_000), None);
    let mut events: Vec<_> = (0..3).map(|i| bench.start(u64::from(i) + 1, i, 20, 12)).collect();
    bench.finish();
    for (root, events) in (0..).zip(&mut events) {
        assert_eq!(said(events), undrafted(root, 20, 12));
    }
    let (guessed, right) = bench.guessed();
    assert!(guessed == right && right > 0, "{right} of {guessed}");
    assert_eq!(bench.step_loop.load.draft_failures.load(Relaxed), 0);
    assert_eq!(bench.step_loop.draft_model.as_ref().map(|draft| draft.pool().stats().pinned), Some(0));
}

#[test]
fn a_sequence_with_tokens_that_the_draft_model_has_not_goes_without() {
    let device = SimConfig { pages: 64, ..SimConfig::default() };
    let draft = SimConfig { vocab: 1005, tokens: 1000..1005, ..device.clone() };
    let mut bench = bench_with(
        sim(&device),
        Some(Box::new(Guessing::new(&draft, 100, 7))),
        schedule(64, 8, 30_000),
        None,
    );
    // What the served one says goes beyond, and so does the second prompt.
    let mut events = [bench.start(1, 0, 4, 3), bench.start(2, 0, 10, 20)];
    bench.finish();
    assert_eq!(said(&mut events[0]), undrafted(0, 4, 3));
    assert_eq!(said(&mut events[1]), undrafted(0, 10, 20));
    assert_eq!(bench.guessed(), (0, 0));
    assert_eq!(bench.step_loop.load.draft_failures.load(Relaxed), 0);
}

#[test]
fn a_page_for_a_guess_is_held_for_one_step() {
    let (mut bench, _, _) = drafted(8, 0, schedule(64, 8, 30_000));
    let mut events = bench.start(1, 0, 8, 10);
    // None is right: a turn for the prompt and the first token, and one for each of the others.
    for _ in 0..10 {
        assert!(bench.step_loop.turn());
        for s in &bench.step_loop.running {
            assert!(
                s.pages.len() <= decide::pages_for(s.len(), BLOCK_TOKENS as usize),
                "nothing is left of a guess"
            );
        }
    }
    assert!(bench.is_idle() && bench.guessed().0 > 8, "more was guessed than a page holds");
    assert_eq!(said(&mut events), undrafted(0, 8, 10));
}

/// Steps, and guesses, of an answer of 400 tokens by a device that takes 100 us a step, with a draft model of its own pace.
fn paced(draft_us: f64, right_of_100: u64) -> (usize, u64) {
    let device = SimConfig { pages: 256, step_us: 100.0, ..SimConfig::default() };
    let draft = Guessing::new(&SimConfig { step_us: draft_us, ..device.clone() }, right_of_100, 7);
    let mut bench = bench_with(sim(&device), Some(Box::new(draft)), schedule(64, 8, 30_000), None);
    let mut events = bench.start(1, 0, 10, 400);
    bench.finish();
    assert_eq!(said(&mut events), undrafted(0, 10, 400));
    let steps = bench.steps.lock().len();
    (steps, bench.guessed().0)
}

#[test]
fn guesses_go_on_while_they_save_time_and_pause_where_they_do_not() {
    let (steps, guesses) = paced(5.0, 100);
    assert!(steps <= 55 && guesses >= 340, "cheap and right: {steps} steps, {guesses} guesses");
    let (_, guesses) = paced(5.0, 0);
    assert!(guesses < 120, "cheap and wrong: {guesses} guesses");
    let (_, guesses) = paced(150.0, 100);
    assert!(guesses < 120, "dearer than the token: {guesses} guesses");
    let (often, seldom) = (paced(20.0, 90).1, paced(20.0, 40).1);
    assert!(often > seldom, "{often} guesses where 90 of 100 are right, {seldom} where 40 are");
}

/// Three constrained sequences of which a draft model guesses what the grammar leaves open.
#[test]
fn guesses_keep_to_a_grammar() {
    let (tokenizer, guide) = array_guide();
    let run = |right_of_100: Option<u64>| {
        let mut bench = match right_of_100 {
            Some(right) => drafted(64, right, schedule(64, 8, 30_000)).0,
            None => bench(64, Schedule { draft_tokens_max: 0, ..schedule(64, 8, 30_000) }, None),
        };
        let mut events: Vec<_> = (0..3).map(|root| bench.begin(root, &guide)).collect();
        bench.finish();
        let texts: Vec<String> = events.iter_mut().map(|events| text(events, &tokenizer)).collect();
        (texts, bench.guessed())
    };
    let (plain, _) = run(None);
    for right_of_100 in [100, 50] {
        let (texts, (guessed, right)) = run(Some(right_of_100));
        assert_eq!(texts, plain);
        assert!(guessed > 0 && (right == guessed || right_of_100 < 100), "{right} of {guessed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever is planned and guessed, every sequence says what it would say alone, and all pages come back.
    #[test]
    fn whatever_is_guessed_everybody_comes_to_the_right_end(
        wanted in prop::collection::vec(wanted(), 1..10),
        pages in 13u32..40,
        draft_pages in 1u32..40,
        (tokens, rows) in (1u32..24, 1u32..6),
        ids in prop_oneof![Just(1000..31_000), Just(1000..1002)],
        right_of_100 in prop_oneof![Just(0u64), Just(50), Just(100)],
        seed in any::<u64>(),
    ) {
        let device = SimConfig { pages, tokens: ids, ..SimConfig::default() };
        let draft = Guessing::new(&SimConfig { pages: draft_pages, ..device.clone() }, right_of_100, seed);
        let load = simulate(&wanted, &device, Some(Box::new(draft)), schedule(tokens, rows, 30_000), seed);
        prop_assert_eq!(load.draft_failures.load(Relaxed), 0, "it read nothing that was not written");
        let counts = load.drafts(DraftSource::Model);
        let (guessed, right) = (counts.tokens.load(Relaxed), counts.accepted.load(Relaxed));
        prop_assert!(right_of_100 < 100 || guessed == right, "{} of {} right", right, guessed);
    }
}
