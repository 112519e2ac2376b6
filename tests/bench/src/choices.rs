//! What each choice of the contract costs: flat columns or JSON, kept instances or fresh ones, compiled code kept or
//! made anew.

use std::sync::Arc;
use std::time::Instant;

use policy::{
    ChainSpec, Effort, Frame, Generations, Hints, HintsView, PluginSpec, ROUTE_CANDIDATE, Runtime,
    RuntimeConfig, Table, Way, examine,
};

use crate::table::{Bar, head, median, row, us};

const TURNS: usize = 9;
const CALLS: usize = 3_000;

/// A scorer of 64 candidates that is shown JSON, by the slot that carries text: writing it, crossing, reading it.
pub(crate) fn json_abi(runtime: &Arc<Runtime>, guest: &[u8], candidates: &Table) -> anyhow::Result<f64> {
    let chain = ChainSpec {
        plugins: [("jsonic".to_owned(), PluginSpec::new(guest, "guest"))].into(),
        hints: vec!["jsonic".to_owned()],
        ..ChainSpec::default()
    };
    let generation = Generations::start(Arc::clone(runtime), chain, 1)?.active();
    let mut samples = Vec::with_capacity(CALLS);
    for call in 0..CALLS as u64 {
        let begun = Instant::now();
        let row = |row: usize| -> Vec<f32> {
            (0..ROUTE_CANDIDATE.numbers.len()).map(|column| candidates.numbers(column)[row]).collect()
        };
        let rows: Vec<Vec<f32>> = (0..candidates.rows()).map(row).collect();
        let extensions = [("candidates".to_owned(), serde_json::to_string(&rows)?)];
        let view = HintsView {
            frame: Frame { now_ms: 1_700_000_000_000 + call, seed: call + 1 },
            protocol: "bench",
            headers: &[],
            extensions: &extensions,
            prompt_tokens: 1,
            output_tokens_max: None,
        };
        let decision = generation.hints(Way::default(), &view, Hints::default())?;
        anyhow::ensure!(decision.hints.class.is_some(), "the guest did not read its JSON");
        samples.push(us(begun.elapsed()));
    }
    Ok(median(samples))
}

/// From bytes to the first decision of a Rust plugin: compiled, and found compiled.
pub(crate) fn starts(component: &[u8]) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let chain = || ChainSpec {
        plugins: [("it".to_owned(), PluginSpec::new(component, "guest"))].into(),
        score: vec![("it".to_owned(), 1.0)],
        ..ChainSpec::default()
    };
    let (mut source, mut kept, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let cache = folder.path().join(turn.to_string());
        for times in [&mut source, &mut kept] {
            let config = RuntimeConfig { compile_cache: Some(cache.clone()), ..RuntimeConfig::default() };
            let runtime = Runtime::new(config)?;
            let begun = Instant::now();
            Generations::start(runtime, chain(), 1)?;
            times.push(us(begun.elapsed()) / 1e3);
        }
        let effort = Effort { cases: 1, calls: 1 };
        let runtime = Runtime::new(RuntimeConfig::default())?;
        fresh.push(examine(&runtime, "it", &PluginSpec::new(component, "guest"), effort)?.fresh_us_p50);
    }
    head("Choices of the contract: one scorer of 64 candidates x 10 columns");
    row("a fresh instance each call, p50, us", median(fresh), None, Bar::None);
    row("compile and warm a Rust plugin from source bytes, ms", median(source), None, Bar::AtMost(300.0));
    row("the same from the compile cache, ms", median(kept), None, Bar::AtMost(20.0));
    Ok(())
}
