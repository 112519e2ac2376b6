//! Speculative decoding keeps the distribution: what is drawn at a temperature with guesses is held against the
//! probabilities of the model, and so is what is drawn without.

use engine::{CpuConfig, CpuExec, Isa, ModelFiles};

use super::*;
use crate::worker::DraftSource;

const VOCAB: usize = 32;
const HIDDEN: usize = 32;
/// Sequences, and tokens of each.
const SEQUENCES: u64 = 400;
const OUTPUT: u32 = 24;
/// The 99.9th percentile of chi-square with 31 degrees of freedom. Source: any table of it.
const CHI_SQUARE_MAX: f64 = 61.1;

/// A model of random weights; `noise` in 0 to 1 takes them away from those of the others.
fn model(noise: f64) -> Box<dyn Executor> {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": VOCAB,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu",
    });
    let config: &'static [u8] = config.to_string().into_bytes().leak();
    let files = ModelFiles::embedded("random", config, weights(noise).leak()).expect("whole files");
    let config =
        CpuConfig { threads: 1, pages: 1024, block_tokens: BLOCK_TOKENS, context_max: 0, isa: Isa::Auto };
    Box::new(Timeless(CpuExec::load(&files, config).expect("a small model")))
}

/// A device that says that it takes no time, so that guesses are always worth theirs.
struct Timeless(CpuExec);

impl Executor for Timeless {
    fn caps(&self) -> &Caps {
        self.0.caps()
    }

    fn submit(&mut self, plan: &EnginePlan<'_>) -> Result<Ticket, EngineError> {
        self.0.submit(plan)
    }

    fn poll(&mut self, ticket: Ticket, block: bool) -> Result<Option<StepOut>, EngineError> {
        let out = self.0.poll(ticket, block)?;
        Ok(out.map(|out| StepOut { took: Duration::ZERO, ..out }))
    }

    fn transfer(&mut self, moves: Vec<Xfer>, after: Fence) -> Result<Fence, EngineError> {
        self.0.transfer(moves, after)
    }

    fn settle(&mut self, fence: Fence, block: bool) -> Result<Option<Moved>, EngineError> {
        self.0.settle(fence, block)
    }
}

fn weights(noise: f64) -> Vec<u8> {
    let layer = "model.layers.0.";
    let matrices = [
        ("model.embed_tokens.weight".to_owned(), VOCAB, HIDDEN, 1.0),
        ("lm_head.weight".to_owned(), VOCAB, HIDDEN, 0.35),
        (format!("{layer}self_attn.q_proj.weight"), 32, HIDDEN, 0.3),
        (format!("{layer}self_attn.k_proj.weight"), 16, HIDDEN, 0.3),
        (format!("{layer}self_attn.v_proj.weight"), 16, HIDDEN, 0.3),
        (format!("{layer}self_attn.o_proj.weight"), HIDDEN, 32, 0.3),
        (format!("{layer}mlp.gate_proj.weight"), 64, HIDDEN, 0.2),
        (format!("{layer}mlp.up_proj.weight"), 64, HIDDEN, 0.2),
        (format!("{layer}mlp.down_proj.weight"), HIDDEN, 64, 0.2),
    ];
    let norms = [
        "model.norm.weight".to_owned(),
        format!("{layer}input_layernorm.weight"),
        format!("{layer}post_attention_layernorm.weight"),
    ];
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut add = |name: String, shape: &[usize], values: Vec<f32>| {
        let start = data.len();
        values.iter().for_each(|value| data.extend(value.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name, entry);
    };
    let mut drawn = 0;
    for (name, rows, columns, scale) in matrices {
        let values = (0..rows * columns).map(|_| {
            drawn += 1;
            (scale * ((1.0 - noise) * normal(drawn, 1) + noise * normal(drawn, 2))) as f32
        });
        add(name, &[rows, columns], values.collect());
    }
    norms.into_iter().for_each(|name| add(name, &[HIDDEN], vec![1.0; HIDDEN]));
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Of mean 0 and variance 1: the sum of twelve evenly drawn numbers, less six.
fn normal(number: u64, salt: u64) -> f64 {
    let even = |i: u64| (mix(mix(number * 16 + i) ^ salt) >> 11) as f64 / (1u64 << 53) as f64;
    (0..12).map(even).sum::<f64>() - 6.0
}

/// Counts of tokens, and what the model's probabilities have them be.
#[derive(Clone, Default)]
struct Tally {
    seen: [f64; VOCAB],
    expected: [f64; VOCAB],
}

impl Tally {
    /// Pearson's statistic. The draws depend on each other through their contexts alone, each of which is expected for
    /// itself: its distribution has no larger tail than chi-square's.
    fn chi_square(&self) -> f64 {
        self.seen
            .iter()
            .zip(&self.expected)
            .map(|(seen, expected)| (seen - expected).powi(2) / expected)
            .sum()
    }
}

/// Has the model answer many times at temperature 1, with what each token would have been expected to be, and says what
/// was said, the tally, and the guesses and how many of them were right.
fn answers(served: f64, draft: Option<f64>) -> (Vec<Vec<u32>>, Tally, (u64, u64)) {
    let mut bench = bench_with(model(served), draft.map(model), schedule(256, 4, 30_000), None);
    let mut tally = Tally::default();
    let mut texts = Vec::new();
    for first in (0..SEQUENCES).step_by(4) {
        let mut all: Vec<_> = (first..first + 4)
            .map(|seed| {
                bench.hand_over_tokens(seed + 1, vec![3, 14, 15, 9], OUTPUT, |start| {
                    start.sampling = SamplingParams {
                        temperature: 1.0,
                        seed,
                        logprobs: Some(VOCAB as u32),
                        ..SamplingParams::default()
                    };
                })
            })
            .collect();
        bench.finish();
        for events in &mut all {
            let mut tokens = Vec::new();
            while let Ok(event) = events.try_recv() {
                let Event::Tokens { sampled, .. } = event else { continue };
                for sampled in sampled {
                    // The first is drawn with the prompt, where nothing is guessed.
                    if !tokens.is_empty() {
                        tally.seen[sampled.token as usize] += 1.0;
                        sampled
                            .top
                            .iter()
                            .for_each(|t| tally.expected[t.token as usize] += f64::from(t.logprob).exp());
                    }
                    tokens.push(sampled.token);
                }
            }
            assert_eq!(tokens.len(), OUTPUT as usize);
            texts.push(tokens);
        }
    }
    let counts =
        |counts: &crate::worker::Drafts| (counts.tokens.load(Relaxed), counts.accepted.load(Relaxed));
    let guessed = counts(bench.step_loop.load.drafts(DraftSource::Model));
    (texts, tally, guessed)
}

#[test]
fn what_is_drawn_with_guesses_has_the_distribution_of_the_model() {
    let (plain, undrafted, none) = answers(0.0, None);
    assert_eq!(none, (0, 0));
    let (texts, drafted, (guessed, right)) = answers(0.0, Some(0.25));
    assert!(guessed > 1000 && right * 10 > guessed && right < guessed, "{right} of {guessed} were right");
    assert_eq!(texts, plain, "they are the same answers");
    for (name, tally) in [("undrafted", &undrafted), ("drafted", &drafted)] {
        assert!(tally.chi_square() < CHI_SQUARE_MAX, "{name}: {}", tally.chi_square());
    }
    // Had guesses been taken as they are, it would show.
    let (_, guesses, _) = answers(0.25, None);
    let mixed = Tally { seen: guesses.seen, expected: undrafted.expected };
    assert!(mixed.chi_square() > 2.0 * CHI_SQUARE_MAX, "{}", mixed.chi_square());
}
