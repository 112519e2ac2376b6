//! Built against version 0.1.0 of the contract: components of that time are served beside those of today.
//!
//! Scores the last candidate best, and orders the youngest first.
#![allow(unsafe_code, reason = "generated from the contract")]

#[allow(missing_docs, reason = "generated from the contract, which is documented there")]
#[allow(unused_imports, unused_macros, reason = "natively nothing is exported")]
#[allow(clippy::allow_attributes_without_reason, reason = "generated")]
pub mod contract {
    wit_bindgen::generate!({ path: "../../../wit/v0.1", world: "policy", generate_all });
}

use contract::exports::pointsman::policy::{describe, filter, hints, observe, pick, schedule, score};
use contract::pointsman::policy::metrics;
use contract::pointsman::policy::types::Frame;

/// The policy; it has neither settings nor state.
pub struct Elder;

impl describe::Guest for Elder {
    fn describe() -> describe::Description {
        let text = |text: &str| text.to_owned();
        let input = |slot: &str, table: &str, column: &str| describe::Input {
            slot: text(slot),
            table: text(table),
            numbers: vec![text(column)],
            ids: vec![],
        };
        describe::Description {
            name: text("elder"),
            version: text("0.1.0"),
            slots: ["hints", "filter", "score", "pick", "schedule", "observe"].map(text).to_vec(),
            inputs: vec![
                input("score", "candidate", "queue_len"),
                input("schedule", "sequence", "age_ms"),
                input("observe", "outcome", "event"),
            ],
            wishes: vec![],
        }
    }

    fn configure(_: String) -> Result<(), String> {
        Ok(())
    }
}

impl hints::Guest for Elder {
    fn interpret(
        _: Frame,
        _: String,
        _: Vec<(String, String)>,
        _: Vec<(String, String)>,
        _: u32,
        _: Option<u32>,
        so_far: hints::HintSet,
    ) -> Option<hints::HintSet> {
        Some(hints::HintSet { session: Some("elder".to_owned()), ..so_far })
    }
}

impl filter::Guest for Elder {
    fn filter(_: Frame, rows: u32, _: Vec<f32>, _: Vec<u64>) -> Option<Vec<bool>> {
        Some(vec![true; rows as usize])
    }
}

impl score::Guest for Elder {
    fn score(_: Frame, rows: u32, numbers: Vec<f32>, _: Vec<u64>) -> Option<Vec<f32>> {
        assert_eq!(numbers.len(), rows as usize, "one declared column");
        metrics::counter_add("scored", 1);
        Some((1..=rows).map(|row| row as f32 / rows as f32).collect())
    }
}

impl pick::Guest for Elder {
    fn pick(_: Frame, _: u32, _: Vec<f32>, _: Vec<u64>, scores: Vec<f32>) -> Option<u32> {
        (0..scores.len() as u32).max_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize]))
    }
}

impl schedule::Guest for Elder {
    fn order(_: Frame, waiting: u32, running: u32, numbers: Vec<f32>, _: Vec<u64>) -> Option<Vec<u32>> {
        assert_eq!(numbers.len(), (waiting + running) as usize, "one declared column");
        Some((0..waiting).rev().collect())
    }
}

impl observe::Guest for Elder {
    fn observe(_: Frame, rows: u32, _: Vec<f32>, _: Vec<u64>) {
        metrics::counter_add("observed", rows.into());
    }
}

// A name with an `@` is no name of a native symbol.
#[cfg(target_arch = "wasm32")]
contract::export!(Elder with_types_in contract);
