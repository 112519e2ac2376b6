//! Guests, chains and views for the tests.

use policy::{
    ADMIT_FLEET, AdmitView, ChainSpec, Frame, Generations, Limits, OBSERVE_OUTCOME, ObserveView, OnFailure,
    Outcome, PluginSpec, REQUEST, RETAIN_CACHE, RETAIN_SEGMENT, ROUTE_CANDIDATE, RetainView, RouteView,
    Runtime, RuntimeConfig, SCHEDULE_BUDGET, SCHEDULE_SEQUENCE, ScheduleView, Slot, Table, Way,
};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// One sandbox for all tests: it reserves address space for a thousand instances.
static RUNTIME: LazyLock<Arc<Runtime>> =
    LazyLock::new(|| Runtime::new(RuntimeConfig::default()).expect("the sandbox starts"));

static GUESTS: LazyLock<[Arc<[u8]>; 5]> = LazyLock::new(|| {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders deep");
    let target = guest_build::target_dir_of_test().expect("tests lie in a target folder");
    let names = ["faulty", "first-plugin", "keeper", "elder", "tally"].map(str::to_owned);
    let built = guest_build::build(workspace, &target, &names, |_| {}).expect("the guests build");
    let read = |path| Arc::from(std::fs::read(path).expect("the component was just built"));
    std::array::from_fn(|guest| read(&built[guest]))
});

/// The runtime that tests share.
pub(crate) fn runtime() -> Arc<Runtime> {
    RUNTIME.clone()
}

/// The component that misbehaves as it is told.
pub(crate) fn faulty() -> Arc<[u8]> {
    GUESTS[0].clone()
}

/// The component of the example.
pub(crate) fn first_plugin() -> Arc<[u8]> {
    GUESTS[1].clone()
}

/// The component that counts in its state and in its store.
pub(crate) fn keeper() -> Arc<[u8]> {
    GUESTS[2].clone()
}

/// The component that was built against version 0.1.0 of the contract.
pub(crate) fn elder() -> Arc<[u8]> {
    GUESTS[3].clone()
}

/// The component whose answers follow from all that it was asked before.
pub(crate) fn tally_component() -> Arc<[u8]> {
    GUESTS[4].clone()
}

/// The faulty component with a fault.
pub(crate) fn faulty_plugin(fault: &str) -> PluginSpec {
    let config = serde_json::json!({ "fault": fault });
    PluginSpec { config, ..PluginSpec::new(faulty(), "test") }
}

/// A chain that asks one plugin in one slot.
pub(crate) fn chain_of(slot: Slot, plugin: PluginSpec) -> ChainSpec {
    let name = "it".to_owned();
    let mut chain = ChainSpec { plugins: [(name.clone(), plugin)].into(), ..ChainSpec::default() };
    match slot {
        Slot::Middleware => chain.middleware.push(name),
        Slot::Hints => chain.hints.push(name),
        Slot::Filter => chain.filter.push(name),
        Slot::Score => chain.score.push((name, 1.0)),
        Slot::Pick => chain.pick = Some(name),
        Slot::Schedule => chain.schedule = Some(name),
        Slot::Admit => chain.admit.push(name),
        Slot::Route => chain.route = Some(name),
        Slot::Retain => chain.retain = Some(name),
        Slot::Observe => {}
    }
    chain
}

/// Generations of such a chain, with two workers.
pub(crate) fn start(chain: ChainSpec) -> Arc<Generations> {
    Generations::start(runtime(), chain, 2).expect("the chain can be prepared")
}

/// Generations that ask the faulty plugin in one slot.
pub(crate) fn start_faulty(slot: Slot, fault: &str, on_failure: OnFailure) -> Arc<Generations> {
    start(chain_of(slot, PluginSpec { on_failure, ..faulty_plugin(fault) }))
}

/// Limits with another deadline.
pub(crate) fn deadline(ms: u64) -> Limits {
    Limits { deadline: Duration::from_millis(ms), ..Limits::default() }
}

/// A frame in which the faulty plugin misbehaves; a seed of 0 makes it behave.
pub(crate) fn frame(seed: u64) -> Frame {
    Frame { now_ms: 1_700_000_000_000, seed }
}

/// A route view over candidates with these queue lengths.
pub(crate) struct Route {
    pub(crate) request: Table,
    pub(crate) candidates: Table,
    pub(crate) frame: Frame,
}

impl Route {
    pub(crate) fn new(queue_len: &[f32], frame: Frame) -> Self {
        let mut request = Table::new(&REQUEST, 1);
        request.numbers_mut(0)[0] = 1000.0;
        let mut candidates = Table::new(&ROUTE_CANDIDATE, queue_len.len());
        candidates.numbers_mut(1).copy_from_slice(queue_len);
        candidates.ids_mut(0).iter_mut().enumerate().for_each(|(row, id)| *id = row as u64 + 1);
        Self { request, candidates, frame }
    }

    pub(crate) fn number(mut self, name: &str, values: &[f32]) -> Self {
        let column = ROUTE_CANDIDATE.number(name).expect("a known column");
        self.candidates.numbers_mut(column).copy_from_slice(values);
        self
    }

    pub(crate) fn view(&self) -> RouteView<'_> {
        RouteView { frame: self.frame, request: &self.request, candidates: &self.candidates }
    }
}

/// A schedule view over so many waiting sequences, aged 1, 2, 3, … ms.
pub(crate) struct Schedule {
    pub(crate) budget: Table,
    pub(crate) waiting: Table,
    pub(crate) running: Table,
    pub(crate) frame: Frame,
}

impl Schedule {
    pub(crate) fn new(waiting: usize, frame: Frame) -> Self {
        let mut table = Table::new(&SCHEDULE_SEQUENCE, waiting);
        table.numbers_mut(0).iter_mut().enumerate().for_each(|(row, age)| *age = row as f32 + 1.0);
        let (budget, running) = (Table::new(&SCHEDULE_BUDGET, 1), Table::new(&SCHEDULE_SEQUENCE, 1));
        Self { budget, waiting: table, running, frame }
    }

    pub(crate) fn view(&self) -> ScheduleView<'_> {
        ScheduleView {
            frame: self.frame,
            budget: &self.budget,
            waiting: &self.waiting,
            running: &self.running,
        }
    }
}

/// A request at the door of an idle host.
pub(crate) struct Admission {
    pub(crate) request: Table,
    pub(crate) fleet: Table,
    pub(crate) frame: Frame,
}

impl Admission {
    pub(crate) fn new(frame: Frame) -> Self {
        Self { request: Table::new(&REQUEST, 1), fleet: Table::new(&ADMIT_FLEET, 1), frame }
    }

    pub(crate) fn view(&self) -> AdmitView<'_> {
        AdmitView { frame: self.frame, request: &self.request, fleet: &self.fleet }
    }
}

/// A cache with so many segments.
pub(crate) struct Segments {
    pub(crate) cache: Table,
    pub(crate) segments: Table,
    pub(crate) frame: Frame,
}

impl Segments {
    pub(crate) fn new(segments: usize, frame: Frame) -> Self {
        let segments = Table::new(&RETAIN_SEGMENT, segments);
        Self { cache: Table::new(&RETAIN_CACHE, 1), segments, frame }
    }

    pub(crate) fn view(&self) -> RetainView<'_> {
        RetainView { frame: self.frame, cache: &self.cache, segments: &self.segments }
    }
}

/// Tells the active generation of outcomes: pairs of worker and session that finished.
pub(crate) fn observe(generations: &Generations, frame: Frame, outcomes: &[(u64, u64)]) {
    let mut table = Table::new(&OBSERVE_OUTCOME, outcomes.len());
    let column = |name| OBSERVE_OUTCOME.id(name).expect("a known column");
    for (row, (worker, session)) in outcomes.iter().enumerate() {
        table.numbers_mut(0)[row] = 1.0;
        table.ids_mut(column("worker"))[row] = *worker;
        table.ids_mut(column("session"))[row] = *session;
    }
    generations.active().observe(Way::default(), &ObserveView { frame, outcomes: &table });
}

/// Calls of the plugin `it` that came to this in a slot.
pub(crate) fn count(generations: &Generations, slot: Slot, outcome: Outcome) -> u64 {
    let counts = generations.metrics();
    counts["it"].slots.get(&slot).map_or(0, |counts| counts.of(outcome))
}

/// Waits until the janitor had time to build a spare instance.
pub(crate) fn let_the_janitor_work() {
    std::thread::sleep(Duration::from_millis(100));
}
