//! A turn that finds most of its prompt cached, against computing all of it.

use std::sync::Arc;

use engine::Model;

use super::subject::{BLOCK, Subject};
use crate::table::{Bar, head, median, row};

/// Tokens that are found cached.
const CACHED: usize = 4096;
/// Tokens of a step of the recompute: what the step loop takes at once.
const CHUNK: usize = 512;
/// Chosen: a recompute takes half a minute.
const TURNS: usize = 3;

pub(super) fn run(model: &Arc<Model>) -> anyhow::Result<()> {
    let mut subject = Subject::new(model, 1)?;
    let (mut whole, mut token, mut block) = (vec![], vec![], vec![]);
    for _ in 0..TURNS {
        let mut recompute = 0.0;
        for past in (0..CACHED).step_by(CHUNK) {
            recompute += subject.extend(0, past, CHUNK)?.cpu;
        }
        whole.push(recompute);
        token.push(subject.decode(1, CACHED)?.cpu / recompute);
        block.push(subject.extend(0, CACHED, BLOCK)?.cpu / recompute);
    }
    head(&format!("A prefix hit of {CACHED} tokens, one thread: share of its recompute"));
    row("recompute, CPU seconds", median(whole), None, Bar::None);
    row("hit, then one token", median(token), Some(1.0), Bar::AtMost(0.02));
    row(&format!("hit, then {BLOCK} tokens"), median(block), Some(1.0), Bar::AtMost(0.02));
    Ok(())
}
