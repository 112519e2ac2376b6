//! A row's logits are the same bits, however the step loop cuts and mixes its work.

use std::sync::Arc;

use proptest::prelude::*;

use super::testing::{TestRow, run, run_adapted, run_drawing};
use crate::adapter::testing::Written;
use crate::{
    AdapterId, CpuConfig, CpuExec, EngineError, Executor, Experts, Fence, Isa, Model, ModelConfig, Rope,
    RopeScaling, Sampled, Sliding, WeightFormat, Xfer,
};

/// Large enough that products and attention run on several threads; widths that fill no panel.
fn model() -> Arc<Model> {
    let shape = ModelConfig {
        architecture: "Qwen3ForCausalLM".to_owned(),
        hidden: 144,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 48,
        ffn: 350,
        vocab: 1000,
        ..ModelConfig::llama_135m()
    };
    Arc::new(Model::random(shape, 5).unwrap())
}

/// As [`model`], with a window that ends within a tile of keys, sinks, biases and experts.
fn windowed() -> Arc<Model> {
    let rope = Rope { theta: 100.0, scaling: RopeScaling::Linear { factor: 2.0 } };
    let shape = ModelConfig {
        architecture: "GptOssForCausalLM".to_owned(),
        ffn: 90,
        sliding: Some(Sliding { window: 37, layers: vec![true, false], rope }),
        experts: Some(Experts { count: 4, active: 2, normalized: true }),
        ..model().config.clone()
    };
    Arc::new(Model::random(shape, 6).unwrap())
}

fn exec(model: &Arc<Model>, isa: Isa, threads: usize, block_tokens: u32) -> Option<CpuExec> {
    let config = CpuConfig { threads, pages: 100, block_tokens, context_max: 0, isa };
    match CpuExec::new(Arc::clone(model), config) {
        Ok(exec) => Some(exec),
        Err(EngineError::Config(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

/// As [`model`], with weights of 8 bits.
fn rounded() -> Arc<Model> {
    Arc::new(Model::random_as(model().config.clone(), 5, WeightFormat::Int8).unwrap())
}

/// Every instruction set with every model.
fn everywhere() -> impl Iterator<Item = (Isa, Arc<Model>)> {
    let isas = [Isa::Avx512Bf16, Isa::Avx2, Isa::Portable];
    [model(), windowed(), rounded()]
        .into_iter()
        .flat_map(move |model| isas.map(|isa| (isa, Arc::clone(&model))))
}

fn tokens(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * i * 7 + i * 13 + seed * 101) % 1000).collect()
}

fn pages(from: u32) -> Vec<u32> {
    (from..from + 25).collect()
}

/// All of one sequence in one step, alone.
fn plain(exec: &mut CpuExec, tokens: &[u32]) -> Sampled {
    run(exec, &[TestRow { tokens, position: 0, pages: pages(0) }]).unwrap().remove(0)
}

#[test]
fn chunks_of_any_size_give_the_bits_of_one_pass() {
    let tokens = tokens(1, 300);
    for (isa, model) in everywhere() {
        let Some(mut exec) = exec(&model, isa, 2, 16) else { continue };
        let whole = plain(&mut exec, &tokens);
        for chunk in [1, 7, 16, 100, 129] {
            let mut last = None;
            for (index, part) in tokens.chunks(chunk).enumerate() {
                let row = TestRow { tokens: part, position: (index * chunk) as u32, pages: pages(30) };
                last = run(&mut exec, &[row]).unwrap().pop();
            }
            assert_eq!(last.as_ref(), Some(&whole), "{isa:?}, chunks of {chunk}");
        }
    }
}

#[test]
fn threads_and_page_sizes_change_no_bit() {
    let tokens = tokens(2, 200);
    for (isa, model) in everywhere() {
        let Some(mut one) = exec(&model, isa, 1, 16) else { continue };
        let whole = plain(&mut one, &tokens);
        for (threads, block_tokens) in [(2, 16), (3, 32), (1, 9), (4, 128)] {
            let mut exec = exec(&model, isa, threads, block_tokens).unwrap();
            assert_eq!(plain(&mut exec, &tokens), whole, "{isa:?}, {threads} threads, {block_tokens} a page");
        }
    }
}

#[test]
fn a_prefix_hit_gives_the_bits_of_the_plain_run() {
    check_prefix_hit(&model());
    check_prefix_hit(&windowed());
}

fn check_prefix_hit(model: &Arc<Model>) {
    let mut exec = exec(model, Isa::Auto, 2, 16).unwrap();
    let (first, mut second) = (tokens(3, 100), tokens(3, 64));
    second.extend(tokens(4, 70));
    let whole = plain(&mut exec, &second);
    run(&mut exec, &[TestRow { tokens: &first, position: 0, pages: pages(30) }]).unwrap();
    // Four blocks of the first sequence, one of them moved, then the second's own.
    let moved =
        exec.transfer(vec![Xfer::Copy { from: kv::PageIdx(31), to: kv::PageIdx(90) }], Fence(0)).unwrap();
    assert!(exec.settle(moved, true).unwrap().is_some());
    let shared: Vec<u32> = [30, 90, 32, 33].into_iter().chain(60..70).collect();
    let hit = run(&mut exec, &[TestRow { tokens: &second[64..], position: 64, pages: shared }]).unwrap();
    assert_eq!(hit[0], whole);
}

#[test]
fn stale_bytes_in_a_page_change_nothing() {
    let model = model();
    let mut exec = exec(&model, Isa::Auto, 1, 16).unwrap();
    let short = tokens(6, 37);
    let fresh = plain(&mut exec, &short);
    plain(&mut exec, &tokens(7, 300));
    assert_eq!(plain(&mut exec, &short), fresh);
}

#[test]
fn tokens_that_are_tried_give_the_bits_of_single_steps_and_leave_nothing_behind() {
    let model = model();
    let tokens = tokens(3, 60);
    for isa in [Isa::Avx512Bf16, Isa::Avx2, Isa::Portable] {
        let Some(mut exec) = exec(&model, isa, 2, 16) else { continue };
        let alone: Vec<Sampled> = (40..=60).map(|count| plain(&mut exec, &tokens[..count])).collect();
        let row = |tokens, position| [TestRow { tokens, position, pages: pages(30) }];
        run(&mut exec, &row(&tokens[..39], 0)).unwrap();
        // What comes after the 44th is wrong, and is computed again.
        let tried = [&tokens[39..44], &[7, 8, 9]].concat();
        let drawn = run_drawing(&mut exec, &row(&tried, 39), |_| 8).unwrap();
        assert_eq!(drawn[..5], alone[..5]);
        let drawn = run_drawing(&mut exec, &row(&tokens[44..], 44), |_| 16).unwrap();
        assert_eq!(drawn, alone[5..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever shares the step, a row gives the bits that it gives alone.
    #[test]
    fn a_batch_gives_every_row_its_own_bits(
        lengths in proptest::collection::vec((0u32..60, 1u32..40), 1..9), threads in 1usize..4,
        windows in any::<bool>()
    ) {
        let model = if windows { windowed() } else { model() };
        let mut exec = exec(&model, Isa::Auto, threads, 16).unwrap();
        let sequences: Vec<Vec<u32>> = (0..).zip(&lengths).map(|(i, (past, new))| tokens(i, past + new)).collect();
        let alone: Vec<Sampled> = sequences.iter().map(|tokens| plain(&mut exec, tokens)).collect();
        let place = |index: usize| (index as u32 * 8..index as u32 * 8 + 8).collect::<Vec<u32>>();
        for (index, (tokens, (past, _))) in sequences.iter().zip(&lengths).enumerate() {
            if *past > 0 {
                let row = TestRow { tokens: &tokens[..*past as usize], position: 0, pages: place(index) };
                run(&mut exec, &[row]).unwrap();
            }
        }
        let rows: Vec<TestRow<'_>> = sequences.iter().zip(&lengths).enumerate().map(|(index, (tokens, (past, _)))| {
            TestRow { tokens: &tokens[*past as usize..], position: *past, pages: place(index) }
        }).collect();
        prop_assert_eq!(run(&mut exec, &rows).unwrap(), alone);
    }
}

/// A model with three adapters: of all parts, of attention alone, and of all parts with another rank. Biases, and norms
/// of what layers add, are in the way of what is added to a product.
fn adapted(shape: ModelConfig, format: WeightFormat) -> Arc<Model> {
    let (hidden, q, kv) = (shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let attention = [
        ("self_attn.q_proj", [hidden, q]),
        ("self_attn.k_proj", [hidden, kv]),
        ("self_attn.v_proj", [hidden, kv]),
        ("self_attn.o_proj", [q, hidden]),
    ];
    let mlp = [
        ("mlp.gate_proj", [hidden, shape.ffn]),
        ("mlp.up_proj", [hidden, shape.ffn]),
        ("mlp.down_proj", [shape.ffn, hidden]),
    ];
    let all = if shape.experts.is_some() { attention.to_vec() } else { [&attention[..], &mlp].concat() };
    let layers = shape.layers;
    let mut model = Model::random_as(shape, 5, format).unwrap();
    for (id, (rank, parts)) in [(8, &all[..]), (5, &attention[..]), (17, &all[..])].into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        Written::random(id as u64, layers, rank, parts).write(folder.path());
        assert_eq!(model.add_adapter(folder.path()).unwrap(), AdapterId(id as u32));
    }
    Arc::new(model)
}

/// Models with adapters, and the same without.
fn adapted_models() -> Vec<(Arc<Model>, Arc<Model>)> {
    let olmo = ModelConfig { architecture: "Olmo2ForCausalLM".to_owned(), ..model().config.clone() };
    [
        (model().config.clone(), WeightFormat::Bf16),
        (olmo, WeightFormat::Int8),
        (windowed().config.clone(), WeightFormat::Bf16),
    ]
    .into_iter()
    .map(|(shape, format)| {
        let plain = Model::random_as(shape.clone(), 5, format).unwrap();
        (adapted(shape, format), Arc::new(plain))
    })
    .collect()
}

/// Which adapter the row of a place has in these tests.
fn adapter_of(place: usize) -> Option<AdapterId> {
    (place as u32 % 4).checked_sub(1).map(AdapterId)
}

/// All of one sequence in one step, alone, with an adapter.
fn plain_with(exec: &mut CpuExec, tokens: &[u32], adapter: Option<AdapterId>) -> Sampled {
    let row = TestRow { tokens, position: 0, pages: pages(0) };
    run_adapted(exec, &[row], (|_| 1, |_| adapter)).unwrap().remove(0)
}

#[test]
fn adapters_change_their_rows_and_no_bit_of_others() {
    for (model, without) in adapted_models() {
        for isa in [Isa::Avx512Bf16, Isa::Avx2, Isa::Portable] {
            let Some(mut with) = exec(&model, isa, 2, 16) else { continue };
            let mut bare = exec(&without, isa, 1, 16).unwrap();
            assert_eq!(with.caps().fingerprint, bare.caps().fingerprint);
            let sequences: Vec<Vec<u32>> = (0..9).map(|seed| tokens(seed, 3 + seed * 7)).collect();
            let alone: Vec<Sampled> = sequences
                .iter()
                .enumerate()
                .map(|(place, tokens)| plain_with(&mut with, tokens, adapter_of(place)))
                .collect();
            for (place, tokens) in sequences.iter().enumerate() {
                let same = plain(&mut bare, tokens) == alone[place];
                assert_eq!(same, adapter_of(place).is_none(), "{isa:?}, row {place}");
            }
            let row = |place: usize| TestRow {
                tokens: &sequences[place],
                position: 0,
                pages: (place as u32 * 8..place as u32 * 8 + 8).collect(),
            };
            let rows: Vec<TestRow<'_>> = (0..sequences.len()).map(row).collect();
            assert_eq!(run_adapted(&mut with, &rows, (|_| 1, adapter_of)).unwrap(), alone, "{isa:?}");
        }
    }
}

#[test]
fn chunks_and_threads_change_no_bit_of_a_row_with_an_adapter() {
    let tokens = tokens(1, 230);
    for (model, _) in adapted_models() {
        for adapter in (0..3).map(|id| Some(AdapterId(id))) {
            let whole = plain_with(&mut exec(&model, Isa::Auto, 1, 16).unwrap(), &tokens, adapter);
            for (chunk, threads, block_tokens) in [(1, 1, 16), (33, 3, 16), (115, 2, 32), (230, 4, 16)] {
                let mut exec = exec(&model, Isa::Auto, threads, block_tokens).unwrap();
                let mut last = None;
                for (index, part) in tokens.chunks(chunk).enumerate() {
                    let row = TestRow { tokens: part, position: (index * chunk) as u32, pages: pages(30) };
                    last = run_adapted(&mut exec, &[row], (|_| 1, |_| adapter)).unwrap().pop();
                }
                assert_eq!(last.as_ref(), Some(&whole), "{adapter:?}, chunks of {chunk}, {threads} threads");
            }
        }
    }
}

/// A step that cannot be run is refused before anything is computed, with the numbers.
fn check_refused(row: TestRow<'_>, reason: &str) {
    let mut exec = exec(&model(), Isa::Auto, 1, 16).unwrap();
    let error = run(&mut exec, &[row]).unwrap_err();
    assert_eq!(error.to_string(), format!("step plan refused: {reason}"));
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    check_refused(TestRow { tokens: &[3, 1000], position: 0, pages: pages(0) }, "row 0: token 1000 of 1000");
}

#[test]
fn a_page_table_that_is_too_short_is_refused() {
    let row = TestRow { tokens: &[1, 2], position: 15, pages: vec![4] };
    check_refused(row, "row 0: 1 pages where 2 hold 17 tokens");
}

#[test]
fn a_page_that_does_not_exist_is_refused() {
    check_refused(TestRow { tokens: &[1], position: 0, pages: vec![100] }, "row 0: page 100 of 100");
}

#[test]
fn a_position_past_the_context_is_refused() {
    let row = TestRow { tokens: &[1, 2], position: 8191, pages: pages(0) };
    check_refused(row, "row 0: ends at position 8193 of 8192");
}

#[test]
fn an_adapter_that_does_not_exist_is_refused() {
    let row = || [TestRow { tokens: &[1], position: 0, pages: pages(0) }];
    let refused = |exec: &mut CpuExec, id| {
        run_adapted(exec, &row(), (|_| 1, |_| Some(AdapterId(id)))).unwrap_err().to_string()
    };
    let mut none = exec(&model(), Isa::Auto, 1, 16).unwrap();
    assert_eq!(refused(&mut none, 0), "step plan refused: row 0: adapter 0 of 0");
    let model = adapted(model().config.clone(), WeightFormat::Bf16);
    let mut three = exec(&model, Isa::Auto, 1, 16).unwrap();
    assert_eq!(refused(&mut three, 3), "step plan refused: row 0: adapter 3 of 3");
    assert_eq!(three.caps().adapters.len(), 3);
}

#[test]
fn a_row_without_tokens_is_refused() {
    check_refused(
        TestRow { tokens: &[], position: 0, pages: pages(0) },
        "row 0: tokens 0..0 do not follow 0 of 0",
    );
}

#[test]
fn two_rows_writing_one_page_are_refused() {
    let mut exec = exec(&model(), Isa::Auto, 1, 16).unwrap();
    let row = |position| TestRow { tokens: &[1], position, pages: vec![7] };
    let error = run(&mut exec, &[row(0), row(1)]).unwrap_err();
    assert_eq!(error.to_string(), "step plan refused: page 7 is written by row 0 and row 1");
}

#[test]
fn a_ticket_is_given_out_once() {
    let mut exec = exec(&model(), Isa::Auto, 1, 16).unwrap();
    run(&mut exec, &[]).unwrap();
    assert!(exec.poll(crate::Ticket(1), true).is_err());
}
