//! Chains side by side: how far one is ahead of another, and how sure that is.
//!
//! Both answered the same requests, so what is compared is request by request. Requests that come in together meet the same
//! queues; therefore stretches of neighbours are drawn again, not single requests.
//! Source: B. Efron, Bootstrap methods, Annals of Statistics 1979; H. Künsch, The jackknife and the bootstrap for general
//! stationary observations, 1989 (stretches).

use serde::Serialize;
use trace::Draw;

use crate::results::{Results, Status};
use crate::workload::Workload;

/// One figure of two chains.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Of the first chain.
    pub base: f64,
    /// Of the other one.
    pub value: f64,
    /// Lower end of the interval in which `value - base` lies, 95 in a hundred times.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Two chains side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The chain that is compared with.
    pub base: String,
    /// The other one.
    pub chain: String,
    /// Share of prompt tokens found in a cache.
    pub reuse: Difference,
    /// Mean time to first token, in milliseconds.
    pub ttft_ms_mean: Difference,
    /// Its median.
    pub ttft_ms_p50: Difference,
    /// 99 in a hundred are below.
    pub ttft_ms_p99: Difference,
    /// Mean time to the last token, in milliseconds.
    pub e2e_ms_mean: Difference,
}

/// What a request adds to the figures of one chain.
#[derive(Clone, Copy)]
struct Sample {
    prompt: f64,
    cached: f64,
    ttft_ms: f64,
    e2e_ms: f64,
}

const FIGURES: usize = 5;
/// Stretches that a trace is cut into. Chosen: a stretch is longer than any queue lasts, and there are enough of them.
const STRETCHES: usize = 60;
/// How often they are drawn again. Chosen: the ends of an interval then move by less than a tenth of its width.
const DRAWS: usize = 300;

/// Compares `other` with `base`, over the requests that both answered.
///
/// Cost: some hundred selections over all requests.
pub fn compare((base, other): (&Results, &Results), workloads: &[Workload]) -> Comparison {
    let pairs = pairs(base, other, workloads);
    let both: Vec<[Sample; 2]> = pairs.iter().map(|(_, pair)| *pair).collect();
    let whole = [0, 1].map(|side| figures(both.iter().map(|pair| pair[side])));
    let length = both.len().div_ceil(STRETCHES).max(1);
    let stretches: Vec<&[[Sample; 2]]> = both.chunks(length).collect();
    let mut draw = Draw::new(1);
    let mut differences: [Vec<f64>; FIGURES] = Default::default();
    for _ in 0..DRAWS {
        if stretches.is_empty() {
            break;
        }
        let drawn: Vec<&[[Sample; 2]]> =
            stretches.iter().map(|_| stretches[draw.below(stretches.len() as u64) as usize]).collect();
        let [one, two] =
            [0, 1].map(|side| figures(drawn.iter().flat_map(|it| it.iter().map(move |pair| pair[side]))));
        for (figure, all) in differences.iter_mut().enumerate() {
            all.push(two[figure] - one[figure]);
        }
    }
    let difference = |figure: usize| {
        let mut all = differences[figure].clone();
        all.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| all.get(((all.len().max(1) - 1) as f64 * share).round() as usize).copied();
        let (low, high) = (at(0.025).unwrap_or(0.0), at(0.975).unwrap_or(0.0));
        Difference { base: whole[0][figure], value: whole[1][figure], low, high }
    };
    Comparison {
        base: base.chain.clone(),
        chain: other.chain.clone(),
        reuse: difference(0),
        ttft_ms_mean: difference(1),
        ttft_ms_p50: difference(2),
        ttft_ms_p99: difference(3),
        e2e_ms_mean: difference(4),
    }
}

/// Requests that both answered, in the order in which they came in.
fn pairs(base: &Results, other: &Results, workloads: &[Workload]) -> Vec<(u64, [Sample; 2])> {
    let answered = |call: &&crate::results::Call| call.status == Status::Done;
    let sample = |call: &crate::results::Call| {
        let asked = &workloads[call.workload as usize].trace.requests[call.request as usize];
        Sample {
            prompt: f64::from(asked.prompt_tokens),
            cached: f64::from(call.cached),
            ttft_ms: call.ttft_ms().unwrap_or_default(),
            e2e_ms: call.done.since(call.arrived) / 1e6,
        }
    };
    let both = base.calls.iter().zip(&other.calls).filter(|(one, two)| answered(one) && answered(two));
    let mut pairs: Vec<_> = both.map(|(one, two)| (one.arrived.0, [sample(one), sample(two)])).collect();
    pairs.sort_by_key(|(arrived, _)| *arrived);
    pairs
}

fn figures(samples: impl Iterator<Item = Sample>) -> [f64; FIGURES] {
    let (mut prompt, mut cached, mut e2e, mut sum) = (0.0, 0.0, 0.0, 0.0);
    let mut ttft: Vec<f64> = Vec::new();
    for sample in samples {
        prompt += sample.prompt;
        cached += sample.cached;
        e2e += sample.e2e_ms;
        sum += sample.ttft_ms;
        ttft.push(sample.ttft_ms);
    }
    if ttft.is_empty() {
        return [0.0; FIGURES];
    }
    let count = ttft.len() as f64;
    let mut at = |share: f64| {
        let place = ((count - 1.0) * share).round() as usize;
        *ttft.select_nth_unstable_by(place, f64::total_cmp).1
    };
    [cached / prompt, sum / count, at(0.5), at(0.99), e2e / count]
}
