//! Tests of transfers that every executor has to pass.

use std::path::Path;
use std::sync::Arc;

use kv::{Arena, PageIdx, Slot};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::cpu::testing::{TestRow, run};
use crate::{
    CpuConfig, CpuExec, Executor, Fence, Model, ModelConfig, ModelFiles, Pace, Saved, SimConfig, SimExec,
    UNSETTLED_MAX, Xfer,
};

const PAGES: u32 = 24;
const BLOCK_TOKENS: u32 = 4;

fn cpu_config(threads: usize) -> CpuConfig {
    CpuConfig { threads, pages: PAGES, block_tokens: BLOCK_TOKENS, ..CpuConfig::default() }
}

/// Pages of 6 KiB of a model that computes nothing useful.
fn small_cpu(threads: usize) -> Box<dyn Executor> {
    let shape = ModelConfig {
        hidden: 32,
        layers: 2,
        heads: 2,
        kv_heads: 2,
        head_dim: 16,
        ffn: 32,
        vocab: 64,
        ..ModelConfig::llama_135m()
    };
    let model = Arc::new(Model::random(shape, 5).unwrap());
    Box::new(CpuExec::new(model, cpu_config(threads)).unwrap())
}

fn fixture_cpu(family: &str) -> Box<dyn Executor> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(family);
    Box::new(CpuExec::load(&ModelFiles::open(&folder).unwrap(), cpu_config(2)).unwrap())
}

fn sim() -> Box<dyn Executor> {
    let config = SimConfig {
        pages: PAGES,
        block_tokens: BLOCK_TOKENS,
        vocab: 200,
        tokens: 1..200,
        ..SimConfig::default()
    };
    Box::new(SimExec::new(SimConfig { pace: Pace::Virtual, ..config }).unwrap())
}

fn arena(exec: &dyn Executor) -> Arena {
    Arena::new(PAGES, exec.caps().kv.block_bytes as usize).unwrap()
}

fn save(exec: &mut dyn Executor, arena: &Arena, pages: &[u32]) -> Vec<Slot> {
    let save =
        |&page: &u32| Xfer::Save { from: PageIdx(page), to: arena.take().expect("a slot for each page") };
    let fence = exec.transfer(pages.iter().map(save).collect(), Fence(0)).unwrap();
    let saved = exec.settle(fence, true).unwrap().expect("waited for").saved;
    let order: Vec<u32> = saved.iter().map(|saved| saved.page.0).collect();
    assert_eq!(order, pages, "saves come back in order");
    saved.into_iter().map(|Saved { slot, .. }| slot).collect()
}

fn load(exec: &mut dyn Executor, slots: &[Slot], pages: &[u32]) {
    let load = |(slot, &page): (&Slot, &u32)| Xfer::Load { from: slot.clone(), to: PageIdx(page) };
    let fence = exec.transfer(slots.iter().zip(pages).map(load).collect(), Fence(0)).unwrap();
    assert!(exec.settle(fence, true).unwrap().expect("waited for").saved.is_empty());
}

/// A prompt is computed, saved, overwritten, and loaded into other pages: what follows it draws the same bits.
fn check_moved(mut exec: Box<dyn Executor>) {
    let exec = &mut *exec;
    let tokens: Vec<u32> = (0..22).map(|i| i * i * 7 % 190 + 1).collect();
    let other: Vec<u32> = tokens.iter().map(|token| token / 2 + 3).collect();
    let whole = run(exec, &[TestRow { tokens: &tokens, position: 0, pages: (0..6).collect() }]).unwrap();
    let arena = arena(exec);
    let slots = save(exec, &arena, &[0, 1, 2, 3, 4]);
    for first in [0, 6, 12, 18] {
        run(exec, &[TestRow { tokens: &other, position: 0, pages: (first..first + 6).collect() }]).unwrap();
    }
    let pages = vec![17, 3, 11, 0, 8, 20];
    let ending = |exec: &mut dyn Executor| {
        run(exec, &[TestRow { tokens: &tokens[20..], position: 20, pages: pages.clone() }]).unwrap()
    };
    assert_ne!(ending(exec), whole, "the pages hold something else");
    load(exec, &slots, &pages[..5]);
    assert_eq!(ending(exec), whole);
    assert_eq!(arena.free(), PAGES - 5, "loads let go of their slots");
    drop(slots);
    assert_eq!(arena.free(), PAGES);
}

#[test]
fn a_block_that_was_away_gives_the_bits_of_one_that_never_moved() {
    for family in ["llama2", "llama3", "llama_linear", "qwen3"] {
        check_moved(fixture_cpu(family));
    }
}

#[test]
fn a_simulated_block_that_was_away_draws_the_same_tokens() {
    check_moved(sim());
}

/// `(kind, page, other page or slot)` of each move of each call.
type Calls = Vec<Vec<(u8, u32, u32)>>;

/// Moves against plain bytes: pages and kept slots hold what the model says after each call.
fn check_against_model(mut exec: Box<dyn Executor>, calls: &Calls) {
    let exec = &mut *exec;
    let block_bytes = exec.caps().kv.block_bytes as usize;
    let arena = Arena::new(3 * PAGES, block_bytes).unwrap();
    let all: Vec<u32> = (0..PAGES).collect();
    let mut pages: Vec<Vec<u8>> = (0..PAGES as usize)
        .map(|page| (0..block_bytes).map(|at| (page * 37 + at * 11 + at / 251) as u8).collect())
        .collect();
    let filled = pages.iter().map(|bytes| {
        let mut slot = arena.take().expect("enough slots");
        slot.copy_from_slice(bytes);
        slot.freeze()
    });
    let mut kept: Vec<Slot> = filled.collect();
    let mut kept_bytes = pages.clone();
    load(exec, &kept, &all);
    for call in calls {
        let (mut moves, mut sources, mut after) = (Vec::new(), Vec::new(), pages.clone());
        for &(kind, page, other) in call {
            let (one, two) = (PageIdx(page % PAGES), PageIdx(other % PAGES));
            match kind {
                0 => {
                    moves.push(Xfer::Copy { from: one, to: two });
                    after[two.0 as usize] = pages[one.0 as usize].clone();
                }
                1 => {
                    moves.push(Xfer::Save { from: one, to: arena.take().expect("enough slots") });
                    sources.push((one, other as usize % kept.len()));
                }
                _ => {
                    let slot = other as usize % kept.len();
                    moves.push(Xfer::Load { from: kept[slot].clone(), to: one });
                    after[one.0 as usize] = kept_bytes[slot].clone();
                }
            }
        }
        if let Ok(fence) = exec.transfer(moves, Fence(0)) {
            let saved = exec.settle(fence, false).unwrap().expect("done at once").saved;
            assert_eq!(saved.len(), sources.len());
            for (Saved { page, slot }, (source, place)) in saved.into_iter().zip(sources) {
                assert_eq!(page, source);
                kept_bytes[place] = pages[page.0 as usize].clone();
                kept[place] = slot;
            }
            pages = after;
        }
        // What was refused changed nothing either.
        assert!(kept.iter().zip(&kept_bytes).all(|(slot, bytes)| slot[..] == bytes[..]));
        let now = save(exec, &arena, &all);
        assert!(now.iter().zip(&pages).all(|(slot, bytes)| slot[..] == bytes[..]));
        drop(now);
        assert_eq!(arena.free(), 2 * PAGES, "no slot is lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever moves, pages and slots hold what plain vectors of bytes say.
    #[test]
    fn moves_match_plain_bytes(calls in vec(vec((0u8..3, 0..PAGES, 0..PAGES), 0..7), 1..20)) {
        check_against_model(sim(), &calls);
        check_against_model(small_cpu(2), &calls);
    }
}

/// Moves that are refused, with the numbers; nothing has moved then.
fn check_refused(moves: impl Fn(&Arena) -> Vec<Xfer>, reason: &str) {
    for mut exec in [small_cpu(1), sim()] {
        let block_bytes = exec.caps().kv.block_bytes;
        let arena = arena(&*exec);
        let error = exec.transfer(moves(&arena), Fence(0)).unwrap_err().to_string();
        assert_eq!(error, format!("transfer refused: {}", reason.replace("BLOCK", &block_bytes.to_string())));
        assert_eq!(arena.free(), PAGES, "slots are given up");
        assert!(exec.settle(Fence(1), true).is_err(), "no fence was given out");
    }
}

fn copy(from: u32, to: u32) -> Xfer {
    Xfer::Copy { from: PageIdx(from), to: PageIdx(to) }
}

fn take(arena: &Arena) -> kv::SlotMut {
    arena.take().expect("a free slot")
}

#[test]
fn pages_that_do_not_exist_are_refused() {
    check_refused(|_| vec![copy(0, 1), copy(2, 24)], "move 1: page 24 of 24");
    check_refused(|_| vec![copy(99, 1)], "move 0: page 99 of 24");
    check_refused(|arena| vec![Xfer::Save { from: PageIdx(24), to: take(arena) }], "move 0: page 24 of 24");
    check_refused(
        |arena| vec![Xfer::Load { from: take(arena).freeze(), to: PageIdx(24) }],
        "move 0: page 24 of 24",
    );
}

#[test]
fn slots_of_another_size_are_refused() {
    let other = || take(&Arena::new(1, 100).unwrap());
    let reason = "move 1: a slot of 100 bytes where a block takes BLOCK";
    check_refused(|_| vec![copy(0, 1), Xfer::Save { from: PageIdx(2), to: other() }], reason);
    check_refused(|_| vec![copy(0, 1), Xfer::Load { from: other().freeze(), to: PageIdx(2) }], reason);
}

#[test]
fn moves_of_one_call_that_meet_in_a_page_are_refused() {
    check_refused(
        |_| vec![copy(0, 5), copy(1, 2), copy(3, 5)],
        "page 5 is written by move 0 and written by move 2",
    );
    check_refused(|_| vec![copy(0, 5), copy(5, 6)], "page 5 is written by move 0 and read by move 1");
    check_refused(|_| vec![copy(4, 4)], "page 4 is written by move 0 and read by move 0");
    check_refused(
        |arena| {
            let load = Xfer::Load { from: take(arena).freeze(), to: PageIdx(3) };
            vec![Xfer::Save { from: PageIdx(3), to: take(arena) }, load]
        },
        "page 3 is written by move 1 and read by move 0",
    );
}

#[test]
fn a_page_may_be_read_by_many() {
    for mut exec in [small_cpu(1), sim()] {
        let fence = exec.transfer(vec![copy(0, 1), copy(0, 2)], Fence(0)).unwrap();
        assert!(exec.settle(fence, true).unwrap().is_some());
    }
}

#[test]
fn a_fence_is_given_out_before_it_is_waited_for_and_settled_once() {
    for mut exec in [small_cpu(1), sim()] {
        let error = exec.transfer(Vec::new(), Fence(2)).unwrap_err();
        assert_eq!(error.to_string(), "transfer refused: fence 2 was never given out, the last is 0");
        let first = exec.transfer(Vec::new(), Fence(0)).unwrap();
        let second = exec.transfer(Vec::new(), first).unwrap();
        assert!(exec.settle(second, true).unwrap().is_some(), "fences are settled in any order");
        assert!(exec.settle(first, true).unwrap().is_some());
        for fence in [first, second, Fence(0), Fence(9)] {
            let error = exec.settle(fence, true).unwrap_err();
            assert_eq!(error.to_string(), format!("transfer refused: fence {} is not outstanding", fence.0));
        }
    }
}

#[test]
fn fences_that_nobody_settles_are_bounded() {
    let mut exec = sim();
    for _ in 0..UNSETTLED_MAX {
        exec.transfer(Vec::new(), Fence(0)).unwrap();
    }
    let error = exec.transfer(vec![copy(0, 1)], Fence(0)).unwrap_err();
    assert_eq!(error.to_string(), "transfer refused: 4096 fences are not settled, the most there may be");
    assert!(exec.settle(Fence(7), true).unwrap().is_some());
    assert!(exec.transfer(vec![copy(0, 1)], Fence(0)).is_ok());
}
