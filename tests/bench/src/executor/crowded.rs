//! Threads on cores that others keep busy: what they lose against one thread there.

use std::sync::Arc;

use engine::Model;

use super::TURNS;
use super::machine::Crowd;
use super::peer::Peer;
use super::subject::{Subject, Work};
use crate::table::{Bar, head, median, row};

/// Threads of the executor; the first is what the others are compared with.
const THREADS: [usize; 3] = [1, 2, 4];
/// Threads that spin meanwhile, one for each core of a small machine.
const SPINNING: usize = 2;
const WORKS: [Work; 3] = [Work::Prefill(512), Work::Decode(1), Work::Decode(16)];

pub(super) fn run(model: &Arc<Model>, peer: Option<&Peer>) -> anyhow::Result<()> {
    let mut subjects = Vec::new();
    for threads in THREADS {
        subjects.push(Subject::new(model, threads)?);
    }
    head(&format!("{SPINNING} threads of others spin: times as fast as one thread of ours; tokens a second"));
    let crowd = Crowd::start(SPINNING);
    for work in WORKS {
        let (mut ours, mut theirs) = ([vec![], vec![], vec![]], [vec![], vec![], vec![]]);
        for _ in 0..TURNS {
            for (subject, seen) in subjects.iter_mut().zip(&mut ours) {
                seen.push(subject.rate(work)?.wall);
            }
            // llama.cpp with more threads than cores, or with a batch to fill first, takes minutes here.
            let Some(peer) = peer.filter(|_| work != Work::Decode(16)) else { continue };
            for (threads, seen) in THREADS.into_iter().zip(&mut theirs).take(2) {
                seen.push(peer.rate(work, threads)?);
            }
        }
        let name = work.name();
        row(&format!("one thread, {name}"), median(ours[0].clone()), None, Bar::None);
        report(&format!("{name}, threads:"), &ours, Bar::AtLeast(0.9));
        if !theirs[0].is_empty() {
            row(&format!("llama.cpp, one thread, {name}"), median(theirs[0].clone()), None, Bar::None);
            report(&format!("llama.cpp, {name}, threads:"), &theirs, Bar::None);
        }
    }
    drop(crowd);
    Ok(())
}

/// Medians of what more threads reach against one, turn by turn.
fn report(name: &str, seen: &[Vec<f64>; 3], bar: Bar) {
    for (threads, rates) in THREADS.iter().zip(seen).skip(1).filter(|(_, rates)| !rates.is_empty()) {
        let ratios = rates.iter().zip(&seen[0]).map(|(many, one)| many / one);
        row(&format!("{name} {threads}"), median(ratios.collect()), Some(1.0), bar);
    }
}
