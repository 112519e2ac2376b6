//! The step loop under plans of every kind, on a simulated device whose tokens tell a mixed-up page.

mod ahead;
mod drafts;
mod handoff;
mod outage;
mod pressure;
mod sampling;

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, channel};

use engine::{
    AdapterId, Caps, Executor, Fence, Moved, Pace, SamplingParams, SimConfig, SimExec, StepOut,
    StepPlan as EnginePlan, Ticket, Xfer,
};
use kv::PrefixIndex;
use parking_lot::Mutex;
use policy::{ChainSpec, GenerationId, Generations, Runtime, RuntimeConfig, SchedulePlan, ScheduleView};
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::config::Schedule;
use crate::ctx::{Ctx, mix};
use crate::prompt::Constraint;
use crate::speculation::Cancelled;
use crate::tiers::Tiers;
use crate::worker::{Event, Executors, SequenceHints};

const BLOCK_TOKENS: u32 = 4;
/// Far more turns than anything here needs: who reaches it goes in circles.
const TURNS_MAX: usize = 20_000;

static GENERATIONS: LazyLock<Arc<Generations>> = LazyLock::new(|| {
    let config = RuntimeConfig { instances_max: 4, ..RuntimeConfig::default() };
    let runtime = Runtime::new(config).expect("the sandbox starts");
    Generations::start(runtime, ChainSpec::default(), 1).expect("an empty chain is prepared")
});

/// A planner that is a function.
struct Plans<F>(F);

impl<F: Fn(&ScheduleView<'_>) -> SchedulePlan + Send + Sync> Planner for Plans<F> {
    fn active(&self) -> GenerationId {
        GenerationId(1)
    }

    fn plans(&self) -> bool {
        true
    }

    fn plan(&self, _: usize, view: &ScheduleView<'_>) -> SchedulePlan {
        (self.0)(view)
    }
}

/// Tokens of each row of each step.
type Steps = Arc<Mutex<Vec<Vec<usize>>>>;

/// A device that writes down what it is given.
struct Noting(Box<dyn Executor>, Steps);

impl Executor for Noting {
    fn caps(&self) -> &Caps {
        self.0.caps()
    }

    fn submit(&mut self, plan: &EnginePlan<'_>) -> Result<Ticket, EngineError> {
        assert!(!plan.rows.is_empty(), "a step computes something");
        self.1.lock().push(plan.rows.iter().map(|row| row.tokens.len()).collect());
        self.0.submit(plan)
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

struct Bench {
    step_loop: StepLoop,
    starts: Sender<Message>,
    steps: Steps,
    ctx: Ctx,
    /// Of sequences that are handed over.
    adapter: Option<AdapterId>,
}

fn bench(pages: u32, schedule: Schedule, planner: Option<Arc<dyn Planner>>) -> Bench {
    bench_of(&SimConfig { pages, ..SimConfig::default() }, schedule, planner)
}

fn bench_of(device: &SimConfig, schedule: Schedule, planner: Option<Arc<dyn Planner>>) -> Bench {
    bench_with(sim(device), None, schedule, planner)
}

fn sim(device: &SimConfig) -> Box<dyn Executor> {
    let config = SimConfig { block_tokens: BLOCK_TOKENS, pace: Pace::Virtual, ..device.clone() };
    Box::new(SimExec::new(config).expect("a small device"))
}

fn bench_with(
    device: Box<dyn Executor>,
    draft: Option<Box<dyn Executor>>,
    schedule: Schedule,
    planner: Option<Arc<dyn Planner>>,
) -> Bench {
    let pages = device.caps().kv.pages;
    let steps = Steps::default();
    let ctx = Ctx::system();
    let parts = Parts {
        index: 0,
        name: "worker-0".to_owned(),
        role: crate::config::Role::Both,
        executors: Executors { served: Box::new(Noting(device, Arc::clone(&steps))), draft },
        make: Box::new(|| Err(EngineError::Device("there is no other one".to_owned()))),
        peers: Arc::default(),
        prefixes: Arc::new(PrefixIndex::new(1)),
        generations: Arc::clone(&GENERATIONS),
        kv: crate::config::Kv::default(),
        schedule,
        ahead: crate::config::Speculation::default(),
        speculation: Arc::default(),
        tiers: None,
        ctx: ctx.clone(),
    };
    let (starts, received) = channel();
    let pool = BlockPool::new(pages, BLOCK_TOKENS);
    let mut step_loop = StepLoop::new(parts, pool, Arc::default(), (Arc::default(), received));
    if let Some(planner) = planner {
        step_loop.planner = planner;
    }
    Bench { step_loop, starts, steps, ctx, adapter: None }
}

/// Memory of the host for workers like this one.
fn memory_of_host(bench: &Bench) -> Arc<Tiers> {
    let caps = bench.step_loop.parts.executors.served.caps();
    Arc::new(Tiers::open(&crate::config::Kv::default(), caps, &bench.ctx).expect("memory of the host"))
}

/// Has the worker move blocks to memory of the host, and from there.
fn join_tiers(bench: &mut Bench, tiers: Arc<Tiers>) {
    let shape = bench.step_loop.parts.executors.served.caps().kv;
    bench.step_loop.mover = Some(Mover::new(tiers, (shape.block_bytes, shape.pages), true));
    *bench.step_loop.sender.lock() = Some(bench.starts.clone());
}

fn schedule(step_tokens_max: u32, step_rows_max: u32, starvation_ms_max: u64) -> Schedule {
    Schedule { step_tokens_max, step_rows_max, starvation_ms_max, ..Schedule::default() }
}

impl Bench {
    /// Hands over a sequence whose prompt is made from `root`: equal roots share a prefix.
    fn start(&mut self, id: u64, root: u32, prompt: usize, output: u32) -> mpsc::Receiver<Event> {
        self.hand_over((id, root), prompt, output, None)
    }

    /// Hands over a sequence that follows a grammar.
    fn begin(&mut self, root: u32, guide: &crate::prompt::Guide) -> mpsc::Receiver<Event> {
        self.hand_over((u64::from(root) + 1, root), 20, 60, Some(guide.begin()))
    }

    fn hand_over(
        &mut self,
        (id, root): (u64, u32),
        prompt: usize,
        output: u32,
        constraint: Option<Constraint>,
    ) -> mpsc::Receiver<Event> {
        let tokens: Vec<u32> = (0..prompt as u32).map(|at| 1000 + (root * 500 + at) % 30_000).collect();
        self.hand_over_tokens(id, tokens, output, |start| start.constraint = constraint)
    }

    /// Hands over a sequence with this prompt, and what else `change` makes of it.
    fn hand_over_tokens(
        &mut self,
        id: u64,
        tokens: Vec<u32>,
        output: u32,
        change: impl FnOnce(&mut Start),
    ) -> mpsc::Receiver<Event> {
        let (events, received) = mpsc::channel(output as usize + 1);
        let fingerprint = self.step_loop.parts.executors.served.caps().fingerprint_of(self.adapter);
        let blocks = kv::BlockName::names(fingerprint, super::super::NO_SALT, &tokens, BLOCK_TOKENS as usize);
        self.step_loop.load.in_transit.fetch_add(1, Relaxed);
        self.step_loop.load.in_transit_tokens.fetch_add(tokens.len() as u64, Relaxed);
        let mut start = Start {
            id,
            tokens: tokens.into(),
            blocks: blocks.into(),
            salt: super::super::NO_SALT,
            expected_tokens: 0,
            adapter: self.adapter,
            sampling: SamplingParams::default(),
            output_tokens_max: output,
            announced: false,
            ahead: false,
            stop_tokens: Arc::new([]),
            constraint: None,
            hints: SequenceHints::default(),
            attributes: Default::default(),
            turn: None,
            handoff: None,
            resumed: None,
            arrived: self.ctx.now(),
            events,
        };
        change(&mut start);
        self.starts.send(Message::Start(Box::new(start))).expect("the loop listens");
        received
    }

    fn is_idle(&self) -> bool {
        let left = &self.step_loop;
        left.waiting.is_empty() && left.running.is_empty() && left.ahead.is_empty()
    }

    /// Turns until everybody has left.
    fn finish(&mut self) {
        for _ in 0..TURNS_MAX {
            self.step_loop.turn();
            if self.is_idle() {
                return;
            }
        }
        panic!("sequences are left after {TURNS_MAX} turns");
    }
}

/// Tokens of an answer that ended at its limit.
fn said(events: &mut mpsc::Receiver<Event>) -> Vec<u32> {
    let mut tokens = vec![];
    loop {
        match events.try_recv().expect("it came to its end") {
            Event::Started { .. } => {}
            Event::Tokens { sampled, .. } => tokens.extend(sampled.iter().map(|s| s.token)),
            Event::Finished { finish, .. } => {
                assert_eq!(finish, Finish::Length);
                return tokens;
            }
            Event::Failed(why) => panic!("{why}"),
            Event::Stranded => panic!("no worker was left"),
        }
    }
}

fn in_order(view: &ScheduleView<'_>) -> SchedulePlan {
    SchedulePlan { order: (0..view.waiting.rows() as u32).collect(), ..SchedulePlan::default() }
}

#[test]
fn a_chunk_caps_the_prefill_of_a_step_and_not_its_decode() {
    let plan = |view: &ScheduleView<'_>| {
        let chunk_tokens = vec![3; view.waiting.rows() + view.running.rows()];
        SchedulePlan { chunk_tokens, ..in_order(view) }
    };
    let mut bench = bench(64, schedule(64, 4, 30_000), Some(Arc::new(Plans(plan))));
    let mut events = bench.start(1, 0, 10, 3);
    bench.finish();
    assert_eq!(*bench.steps.lock(), [vec![3], vec![3], vec![3], vec![1], vec![1], vec![1]]);
    assert_eq!(said(&mut events).len(), 3);
}

/// Holds back the sequence with this id, wherever it is.
fn holding_back(id: u64) -> Arc<dyn Planner> {
    Arc::new(Plans(move |view: &ScheduleView<'_>| {
        let ids = view.waiting.ids(0).iter().chain(view.running.ids(0));
        let chunk_tokens = ids.map(|known| if *known == id { 0 } else { 512 }).collect();
        SchedulePlan { chunk_tokens, ..in_order(view) }
    }))
}

#[test]
fn a_sequence_that_is_held_back_lets_others_by_and_runs_when_nobody_else_can() {
    let mut bench = bench(64, schedule(64, 4, 30_000), Some(holding_back(1)));
    let (mut held, mut other) = (bench.start(1, 0, 10, 2), bench.start(2, 1, 7, 2));
    bench.finish();
    assert_eq!(*bench.steps.lock(), [vec![7], vec![1], vec![10], vec![1]]);
    assert_eq!((said(&mut held).len(), said(&mut other).len()), (2, 2));
}

#[test]
fn nobody_is_held_back_beyond_the_bound_of_starvation() {
    let mut bench = bench(64, schedule(64, 4, 0), Some(holding_back(1)));
    let _events = [bench.start(1, 0, 10, 2), bench.start(2, 1, 7, 2)];
    bench.finish();
    assert_eq!(bench.steps.lock()[0], [10, 7]);
}

#[test]
fn those_whom_the_plan_names_give_way_first() {
    // Two sequences of two pages each, and a fifth page for whoever grows first.
    let first_runs = |view: &ScheduleView<'_>| {
        let victims = (0..view.running.rows() as u32).collect();
        SchedulePlan { victims, ..in_order(view) }
    };
    let mut bench = bench(5, schedule(64, 4, 30_000), Some(Arc::new(Plans(first_runs))));
    let mut events = [bench.start(1, 0, 8, 6), bench.start(2, 1, 8, 6)];
    // The second step needs the page.
    (0..2).for_each(|_| assert!(bench.step_loop.turn()));
    assert_eq!(bench.step_loop.load.preemptions.load(Relaxed), 1);
    assert_eq!(bench.step_loop.waiting[0].start.id, 1, "the last admitted would have been 2");
    bench.finish();
    assert!(events.iter_mut().all(|events| said(events).len() == 6));
}

#[test]
fn a_plan_of_another_generation_is_replaced_at_once() {
    struct Swapped(std::sync::atomic::AtomicU64);
    impl Planner for Swapped {
        fn active(&self) -> GenerationId {
            GenerationId(self.0.load(Relaxed))
        }
        fn plans(&self) -> bool {
            self.0.load(Relaxed) == 1
        }
        fn plan(&self, _: usize, view: &ScheduleView<'_>) -> SchedulePlan {
            let chunk_tokens = vec![1; view.waiting.rows() + view.running.rows()];
            SchedulePlan { chunk_tokens, ..in_order(view) }
        }
    }
    let planner = Arc::new(Swapped(1.into()));
    let mut bench = bench(64, schedule(64, 4, 30_000), Some(planner.clone()));
    let _events = bench.start(1, 0, 20, 1);
    (0..3).for_each(|_| assert!(bench.step_loop.turn()));
    planner.0.store(2, Relaxed);
    bench.finish();
    assert_eq!(*bench.steps.lock(), [vec![1], vec![1], vec![1], vec![17]]);
}

/// The device draws other tokens where pages or adapters are mixed up.
#[test]
fn sequences_of_adapters_share_steps_and_no_blocks() {
    let device = SimConfig { pages: 64, adapters: 2, ..SimConfig::default() };
    let adapters = [None, Some(AdapterId(0)), Some(AdapterId(1))];
    let alone = adapters.map(|adapter| {
        let mut bench = bench_of(&device, schedule(64, 4, 30_000), None);
        bench.adapter = adapter;
        let mut events = bench.start(1, 0, 20, 12);
        bench.finish();
        said(&mut events)
    });
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2], "{alone:?}");
    let mut bench = bench_of(&device, schedule(64, 4, 30_000), None);
    for round in 0..2 {
        let first = bench.steps.lock().len();
        let mut id = round * 3;
        let mut events = adapters.map(|adapter| {
            (bench.adapter, id) = (adapter, id + 1);
            bench.start(id, 0, 20, 12)
        });
        bench.finish();
        assert_eq!(events.each_mut().map(said), alone, "round {round}");
        let rows = &bench.steps.lock()[first];
        assert!(
            rows.len() == 3 && rows.iter().all(|row| (*row == 20) == (round == 0)),
            "round {round}: {rows:?}"
        );
    }
}

/// A sequence of a simulation.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    root: u32,
    prompt: usize,
    output: u32,
    /// The turn in which its client leaves, if it does.
    leaves: Option<usize>,
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let leaves = prop_oneof![4 => Just(None), 1 => (0usize..40).prop_map(Some)];
    (0u32..3, 1usize..40, 1u32..12, leaves).prop_map(|(root, prompt, output, leaves)| Wanted {
        root,
        prompt,
        output,
        leaves,
    })
}

/// Orders, chunks and victims at random, each a function of its seed and the number of the question.
fn chaos(seed: u64) -> Arc<dyn Planner> {
    let questions = AtomicU64::new(0);
    Arc::new(Plans(move |view: &ScheduleView<'_>| {
        let question = questions.fetch_add(1, Relaxed);
        let draw = |salt: u64| mix(seed ^ mix(question ^ (salt << 32)));
        let shuffled = |rows: usize, salt: u64| {
            let mut order: Vec<u32> = (0..rows as u32).collect();
            order.sort_by_key(|row| draw(salt + u64::from(*row)));
            order
        };
        let (waiting, running) = (view.waiting.rows(), view.running.rows());
        let sizes = [0, 0, 1, 2, 5, 100];
        let sized = |row: usize| sizes[draw(900 + row as u64) as usize % sizes.len()];
        let mut victims = shuffled(running, 300);
        victims.truncate(draw(1) as usize % (running + 1));
        SchedulePlan {
            order: shuffled(waiting, 600),
            chunk_tokens: if draw(2) % 4 == 0 { vec![] } else { (0..waiting + running).map(sized).collect() },
            victims,
        }
    }))
}

/// What each says with room for all and nobody else there.
fn alone(wanted: &Wanted, device: &SimConfig) -> Vec<u32> {
    let schedule = Schedule { draft_tokens_max: 0, ..schedule(64, 1, 30_000) };
    let mut bench = bench_of(&SimConfig { pages: 64, ..device.clone() }, schedule, None);
    let mut events = bench.start(1, wanted.root, wanted.prompt, wanted.output);
    bench.finish();
    said(&mut events)
}

fn simulate(
    wanted: &[Wanted],
    device: &SimConfig,
    draft: Option<Box<dyn Executor>>,
    schedule: Schedule,
    seed: u64,
) -> Arc<Load> {
    let mut bench = bench_with(sim(device), draft, schedule, Some(chaos(seed)));
    let mut coming: VecDeque<(usize, Wanted)> = wanted.iter().copied().enumerate().collect();
    let mut events: Vec<Option<mpsc::Receiver<Event>>> = vec![];
    for turn in 0..TURNS_MAX {
        // Some come while others run.
        while bench.is_idle() || mix(seed ^ turn as u64).is_multiple_of(3) {
            let Some((id, next)) = coming.pop_front() else { break };
            events.push(Some(bench.start(id as u64 + 1, next.root, next.prompt, next.output)));
            if bench.is_idle() {
                break;
            }
        }
        for (events, wanted) in events.iter_mut().zip(wanted) {
            if wanted.leaves == Some(turn) {
                *events = None;
            }
        }
        if bench.is_idle() && coming.is_empty() && bench.step_loop.load.in_transit.load(Relaxed) == 0 {
            break;
        }
        bench.step_loop.turn();
    }
    assert!(bench.is_idle() && coming.is_empty(), "sequences are left after {TURNS_MAX} turns");
    assert_eq!(bench.step_loop.pool.stats().pinned, 0, "every page was given back");
    assert_eq!(bench.step_loop.pool.available(), device.pages);
    if let Some(draft) = &bench.step_loop.draft_model {
        assert_eq!(draft.pool().stats().pinned, 0, "so was every page of the draft model");
    }
    for (events, wanted) in events.iter_mut().zip(wanted) {
        if let Some(events) = events {
            assert_eq!(said(events), alone(wanted, device), "{wanted:?}");
        }
    }
    Arc::clone(&bench.step_loop.load)
}

/// Two compute the same prefix side by side where every page counts; whoever is left alone is not failed for it.
#[test]
fn a_prefix_computed_twice_takes_no_page_from_the_last_one() {
    let wanted: Vec<Wanted> =
        [(2, 10, 7), (1, 20, 1), (0, 1, 1), (0, 1, 1), (0, 1, 1), (1, 34, 4), (0, 1, 1)]
            .map(|(root, prompt, output)| Wanted { root, prompt, output, leaves: None })
            .to_vec();
    let device = SimConfig { pages: 13, ..SimConfig::default() };
    simulate(&wanted, &device, None, schedule(3, 3, 30_000), 3_694_235_408_319_366_288);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Whatever is planned, every sequence says what it would say alone, and all pages come back.
    #[test]
    fn whatever_is_planned_everybody_comes_to_the_right_end(
        wanted in prop::collection::vec(wanted(), 1..10),
        // The longest sequence takes 13.
        pages in 13u32..24,
        (tokens, rows) in (1u32..24, 1u32..6),
        // Of few token ids, every other guess is right.
        ids in prop_oneof![Just(1000..31_000), Just(1000..1002)],
        starvation_ms in prop_oneof![Just(0u64), Just(30_000)],
        // Steps that are submitted ahead change nothing that anybody says.
        overlaps in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let device = SimConfig { pages, tokens: ids, overlaps, ..SimConfig::default() };
        simulate(&wanted, &device, None, schedule(tokens, rows, starvation_ms), seed);
    }
}

/// Grammars over the embedded model's tokens.
fn grammars() -> (Arc<crate::prompt::Tokenizer>, crate::prompt::Grammars) {
    let json = include_bytes!("../../../../../examples/models/tiny-agent/tokenizer.json");
    let tokenizer =
        crate::prompt::Tokenizer::from_bytes(std::path::Path::new("tiny"), json).expect("a tokenizer");
    let tokenizer = Arc::new(tokenizer);
    (Arc::clone(&tokenizer), crate::prompt::Grammars::new(tokenizer, Arc::new([2])))
}

/// A guide to arrays of four words, and what spells them.
fn array_guide() -> (Arc<crate::prompt::Tokenizer>, crate::prompt::Guide) {
    use crate::prompt::{Ask, Calls, Format, Guide, Reasoning};
    let (tokenizer, grammars) = grammars();
    let schema = serde_json::json!({"type": "array", "items": {"enum": ["ab", "cd", 17, false]}, "minItems": 4, "maxItems": 4});
    let format = Format::JsonSchema { schema, strict: true, param: "schema".into() };
    let ask = Ask { format: &format, calls: Calls::None, syntax: None };
    let grammar = grammars.grammar(&ask, |work| work()).expect("it compiles").expect("it constrains");
    (tokenizer, Guide { grammar, reasoning: Reasoning::None })
}

/// Three constrained sequences where two have room, chunk by chunk: each says what it would say alone.
#[test]
fn a_preempted_sequence_keeps_to_its_grammar() {
    let (tokenizer, guide) = array_guide();
    let run = |roots: &[u32], (pages, tokens, drafts): (u32, u32, u32)| -> (Vec<String>, u64) {
        let schedule = Schedule { draft_tokens_max: drafts, ..schedule(tokens, 8, 30_000) };
        let mut bench = bench(pages, schedule, None);
        let mut events: Vec<_> = roots.iter().map(|&root| bench.begin(root, &guide)).collect();
        bench.finish();
        let texts = events.iter_mut().map(|events| text(events, &tokenizer)).collect();
        (texts, bench.step_loop.load.preemptions.load(Relaxed))
    };
    let alone: Vec<String> = (0..3).flat_map(|root| run(&[root], (64, 64, 0)).0).collect();
    // What a grammar forces comes at once, so that fewer pages are needed for as long.
    for (pages, drafts) in [(14, 0), (12, 8)] {
        let (together, preemptions) = run(&[0, 1, 2], (pages, 5, drafts));
        assert_eq!(together, alone);
        assert!(preemptions > 0, "somebody had to give way of {pages} pages");
    }
    for text in alone {
        let values: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
        assert_eq!(values.len(), 4, "{text}");
    }
}

fn text(events: &mut mpsc::Receiver<Event>, tokenizer: &crate::prompt::Tokenizer) -> String {
    let mut bytes = Vec::new();
    while let Ok(event) = events.try_recv() {
        match event {
            Event::Tokens { sampled, .. } => {
                sampled.iter().for_each(|s| bytes.extend_from_slice(&tokenizer.token_bytes(s.token)));
            }
            Event::Finished { finish, .. } => assert_eq!(finish, Finish::Stop),
            other => panic!("{other:?}"),
        }
    }
    String::from_utf8(bytes).expect("whole characters")
}
