//! What a step costs: a few coefficients, from wherever they come.
//!
//! ```text
//!   step = base + [prompt tokens t > 0]  p0 + p1 t + p2 t² + attend · Σ t_i (context_i + t_i / 2)
//!               + [answering rows r > 0] d0 + d_row r + d1 A + d2 A²            A: tokens that those rows hold
//! ```
//! **Invariant:** a run of decode steps costs the sum of its steps, in closed form: nobody walks through them.

use serde::{Deserialize, Serialize};

/// Coefficients of a step's time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default = "CostModel::zero")]
pub struct CostModel {
    /// Of any step.
    pub base_us: f64,
    /// Of a step that computes prompts: fixed, by token, by squared token.
    pub prefill_us: [f64; 3],
    /// Of each pair of a prompt token and a token before it.
    pub attend_us: f64,
    /// Of a step that draws tokens for answers: fixed.
    pub decode_us: f64,
    /// Of each answer.
    pub decode_row_us: f64,
    /// Of the tokens that answers hold: by token, by squared token.
    pub decode_context_us: [f64; 2],
    /// Tokens beyond which they cost no more; 0 for no such bound.
    pub decode_context_max: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        Device::H100.model(&ModelShape::LLAMA_8B, 1)
    }
}

/// What a step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Batch {
    /// Prompt tokens.
    pub prefill_tokens: f64,
    /// Pairs of such a token and one before it.
    pub prefill_pairs: f64,
    /// Answers that get a token.
    pub rows: f64,
    /// Tokens that those hold.
    pub context: f64,
}

/// Peaks of a device, and how much of them a good engine reaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// Dense bf16 operations per second.
    pub flops: f64,
    /// Bytes of its memory per second.
    pub bytes_per_s: f64,
    /// Bytes of its memory.
    pub memory_bytes: f64,
}

impl Device {
    /// Source: NVIDIA H100 SXM datasheet: 989 TFLOPS dense bf16, 3.35 TB/s, 80 GB.
    pub const H100: Self = Self { name: "h100", flops: 989e12, bytes_per_s: 3.35e12, memory_bytes: 80e9 };
    /// Source: NVIDIA H200 datasheet: 989 TFLOPS dense bf16, 4.8 TB/s, 141 GB.
    pub const H200: Self = Self { name: "h200", flops: 989e12, bytes_per_s: 4.8e12, memory_bytes: 141e9 };
    /// Source: NVIDIA A100 80GB SXM datasheet: 312 TFLOPS dense bf16, 2.04 TB/s, 80 GB.
    pub const A100: Self = Self { name: "a100", flops: 312e12, bytes_per_s: 2.04e12, memory_bytes: 80e9 };

    /// The cost of a model on so many of them, by its floating-point operations and bytes.
    ///
    /// Source: the roofline model, Williams et al., CACM 2009. Chosen: [`FLOPS_SHARE`] and [`BYTES_SHARE`] of the peaks, as
    /// published for serving engines on these devices, and [`STEP_US`] for launching a step.
    pub fn model(&self, model: &ModelShape, devices: u32) -> CostModel {
        let devices = f64::from(devices);
        let flops_per_us = self.flops * FLOPS_SHARE * devices / 1e6;
        let bytes_per_us = self.bytes_per_s * BYTES_SHARE * devices / 1e6;
        let pair_flops = 4.0 * model.layers * model.query_width;
        CostModel {
            // Weights are read once a step, whatever it computes.
            base_us: STEP_US + 2.0 * model.weights / bytes_per_us,
            prefill_us: [0.0, 2.0 * model.active_weights / flops_per_us, 0.0],
            attend_us: pair_flops / flops_per_us,
            decode_us: 0.0,
            decode_row_us: 2.0 * model.active_weights / flops_per_us,
            decode_context_us: [model.kv_bytes_per_token / bytes_per_us, 0.0],
            decode_context_max: 0.0,
        }
    }
}

/// Share of a device's operations that large products reach. Chosen between the 50 and 60 % that engines report.
const FLOPS_SHARE: f64 = 0.55;
/// Share of a device's bandwidth that decode reaches. Chosen between the 50 and 65 % that engines report.
const BYTES_SHARE: f64 = 0.6;
/// Microseconds of a step that computes nothing. Chosen: a graph is launched, tokens come back.
const STEP_US: f64 = 500.0;

/// What the cost of a model depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelShape {
    /// Its name.
    pub name: &'static str,
    /// Weights.
    pub weights: f64,
    /// Weights that a token meets.
    pub active_weights: f64,
    /// Layers.
    pub layers: f64,
    /// Query heads times their width.
    pub query_width: f64,
    /// Bytes of KV for each token.
    pub kv_bytes_per_token: f64,
}

impl ModelShape {
    /// Llama 3.1 8B in bf16. Source: its `config.json`.
    pub const LLAMA_8B: Self = Self {
        name: "llama-8b",
        weights: 8.03e9,
        active_weights: 8.03e9,
        layers: 32.0,
        query_width: 4096.0,
        kv_bytes_per_token: 131_072.0,
    };
    /// Llama 3.3 70B in bf16. Source: its `config.json`.
    pub const LLAMA_70B: Self = Self {
        name: "llama-70b",
        weights: 70.6e9,
        active_weights: 70.6e9,
        layers: 80.0,
        query_width: 8192.0,
        kv_bytes_per_token: 327_680.0,
    };
    /// Qwen3 30B-A3B in bf16. Source: its `config.json`.
    pub const QWEN3_30B_A3B: Self = Self {
        name: "qwen3-30b-a3b",
        weights: 30.5e9,
        active_weights: 3.3e9,
        layers: 48.0,
        query_width: 4096.0,
        kv_bytes_per_token: 98_304.0,
    };
}

impl CostModel {
    /// Devices and models that have a name: `h100/llama-8b`, `4xh200/llama-70b`.
    pub fn named(name: &str) -> Option<Self> {
        let (device, model) = name.split_once('/')?;
        let (count, device) = device.split_once('x').unwrap_or(("1", device));
        let count = count.parse::<u32>().ok().filter(|count| (1..=64).contains(count))?;
        let device = [Device::H100, Device::H200, Device::A100].into_iter().find(|it| it.name == device)?;
        let models = [ModelShape::LLAMA_8B, ModelShape::LLAMA_70B, ModelShape::QWEN3_30B_A3B];
        let model = models.into_iter().find(|it| it.name == model)?;
        Some(device.model(&model, count))
    }

    /// The timing that DynoSim has by default, for a worker with room for so many tokens: a fit to an engine on a B200.
    ///
    /// Source: aisimulate-core 0.13.0, polynomial timing: prefill 4.209989e-7 t² + 1.518344e-2 t + 16.50142 ms, decode
    /// −25.74 u² + 54.01 u + 5.74 ms with u the share of that room which answers hold.
    pub fn polynomial(room_tokens: f64) -> Self {
        Self {
            prefill_us: [16_501.42, 15.183_44, 4.209_989e-4],
            decode_us: 5_740.0,
            decode_context_us: [54_010.0 / room_tokens, -25_740.0 / (room_tokens * room_tokens)],
            decode_context_max: room_tokens,
            ..Self::ZERO
        }
    }

    /// A time for a step with prompts, and one for a step with answers.
    pub fn fixed(prefill_us: f64, decode_us: f64) -> Self {
        Self { prefill_us: [prefill_us, 0.0, 0.0], decode_us, ..Self::ZERO }
    }

    /// A time for a step, a prompt token and an answer: the costs of `engine.sim`.
    pub fn linear(step_us: f64, prefill_us_per_token: f64, decode_us_per_row: f64) -> Self {
        Self {
            base_us: step_us,
            prefill_us: [0.0, prefill_us_per_token, 0.0],
            decode_row_us: decode_us_per_row,
            ..Self::ZERO
        }
    }

    /// Costs nothing.
    pub const ZERO: Self = Self {
        base_us: 0.0,
        prefill_us: [0.0; 3],
        attend_us: 0.0,
        decode_us: 0.0,
        decode_row_us: 0.0,
        decode_context_us: [0.0; 2],
        decode_context_max: 0.0,
    };

    /// What is not named costs nothing.
    fn zero() -> Self {
        Self::ZERO
    }

    /// The name of a coefficient that is no cost: not a number, or less than nothing. Only the squared terms may be.
    pub fn wrong(&self) -> Option<&'static str> {
        let named = [
            ("base_us", self.base_us),
            ("prefill_us", self.prefill_us[0].min(self.prefill_us[1])),
            ("attend_us", self.attend_us),
            ("decode_us", self.decode_us),
            ("decode_row_us", self.decode_row_us),
            ("decode_context_us", self.decode_context_us[0]),
            ("decode_context_max", self.decode_context_max),
        ];
        let squared = self.prefill_us[2].is_finite() && self.decode_context_us[1].is_finite();
        let wrong = named.iter().find(|(_, value)| !(0.0..1e15).contains(value)).map(|(name, _)| *name);
        wrong.or((!squared).then_some("prefill_us"))
    }

    /// Nanoseconds of a step.
    pub fn step_ns(&self, batch: &Batch) -> f64 {
        let mut us = self.base_us;
        if batch.prefill_tokens > 0.0 {
            let [fixed, token, squared] = self.prefill_us;
            us += fixed + batch.prefill_tokens * (token + squared * batch.prefill_tokens);
            us += self.attend_us * batch.prefill_pairs;
        }
        if batch.rows > 0.0 {
            us += self.answers_us(batch.rows, batch.context);
        }
        us.max(LEAST_US) * 1e3
    }

    fn answers_us(&self, rows: f64, context: f64) -> f64 {
        let context = self.bounded(context);
        let [token, squared] = self.decode_context_us;
        self.decode_us + self.decode_row_us * rows + context * (token + squared * context)
    }

    fn bounded(&self, context: f64) -> f64 {
        if self.decode_context_max > 0.0 { context.min(self.decode_context_max) } else { context }
    }

    /// Nanoseconds of the first `steps` steps that do nothing but draw tokens: each adds one for each of `rows`.
    pub fn run_ns(&self, (rows, context): (f64, f64), steps: f64) -> f64 {
        let growing = match self.decode_context_max {
            max if max > 0.0 => (((max - context) / rows).ceil()).clamp(0.0, steps),
            _ => steps,
        };
        let [token, squared] = self.decode_context_us;
        // Sums over j < n of 1, of the context c + r j, and of its square.
        let n = growing;
        let ones = n * (n - 1.0) / 2.0;
        let squares = (n - 1.0) * n * (2.0 * n - 1.0) / 6.0;
        let linear = n * context + rows * ones;
        let quadratic = n * context * context + 2.0 * context * rows * ones + rows * rows * squares;
        let fixed = self.base_us + self.decode_us + self.decode_row_us * rows;
        let mut us = n * fixed + token * linear + squared * quadratic;
        if steps > growing {
            us += (steps - growing) * (self.base_us + self.answers_us(rows, f64::INFINITY));
        }
        us.max(LEAST_US * steps) * 1e3
    }

    /// How many such steps are over after `ns`, at most `steps_max`.
    pub fn steps_within(&self, run: (f64, f64), ns: f64, steps_max: u32) -> u32 {
        let (mut low, mut high) = (0, steps_max);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.run_ns(run, f64::from(middle)) <= ns { low = middle } else { high = middle - 1 }
        }
        low
    }
}

/// Time always passes, so that every simulation ends. Chosen: no device takes a step in less.
const LEAST_US: f64 = 1.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check_run(model: &CostModel, rows: u32, context: u32, steps: u32) {
        let (rows, context) = (f64::from(rows), f64::from(context));
        let alone = |j: u32| {
            model.step_ns(&Batch { rows, context: context + rows * f64::from(j), ..Batch::default() })
        };
        let walked: f64 = (0..steps).map(alone).sum();
        let summed = model.run_ns((rows, context), f64::from(steps));
        assert!((walked - summed).abs() <= 1e-6 * walked + 1.0, "{walked} {summed}");
        assert_eq!(model.steps_within((rows, context), summed + 1.0, steps), steps);
        if steps > 0 {
            assert_eq!(model.steps_within((rows, context), summed - 10.0, steps), steps - 1);
        }
    }

    proptest! {
        /// A run of steps costs what its steps cost one by one, below the bound of the context, at it and beyond.
        #[test]
        fn a_run_is_the_sum_of_its_steps(rows in 1u32..200, context in 1u32..9_000, steps in 0u32..300) {
            check_run(&CostModel::polynomial(8_192.0), rows, context, steps);
            check_run(&CostModel::fixed(20.0, 30.0), rows, context, steps);
            check_run(&CostModel::linear(100.0, 10.0, 3.0), rows, context, steps);
            check_run(&CostModel::default(), rows, context, steps);
        }
    }

    #[test]
    fn the_polynomial_costs_what_its_source_says() {
        let model = CostModel::polynomial(16_384.0 * 512.0);
        let prompt = Batch { prefill_tokens: 8192.0, ..Batch::default() };
        assert!((model.step_ns(&prompt) / 1e6 - 169.137).abs() < 0.001, "{}", model.step_ns(&prompt));
        let answer = Batch { rows: 1.0, context: 0.5 * 16_384.0 * 512.0, ..Batch::default() };
        assert!((model.step_ns(&answer) / 1e6 - (5.74 + 27.005 - 6.435)).abs() < 0.001);
    }

    #[test]
    fn devices_and_models_have_names() {
        let one = CostModel::named("h100/llama-70b").unwrap();
        let four = CostModel::named("4xh100/llama-70b").unwrap();
        assert!((one.prefill_us[1] / four.prefill_us[1] - 4.0).abs() < 1e-9);
        for unknown in ["h100", "h100/gpt-9", "0xh100/llama-8b", "tpu/llama-8b", "xh100/llama-8b"] {
            assert!(CostModel::named(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn what_is_no_cost_is_named() {
        assert_eq!(CostModel::default().wrong(), None);
        assert_eq!(CostModel { attend_us: -1.0, ..CostModel::ZERO }.wrong(), Some("attend_us"));
        assert_eq!(CostModel { base_us: f64::NAN, ..CostModel::ZERO }.wrong(), Some("base_us"));
    }
}
