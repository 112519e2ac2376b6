//! Whether a step plan or a transfer can be run as given. Called by every executor, first of all.

use std::ops::Range;

use crate::plan::drawn_sample;
use crate::{Caps, EngineError, Fence, Row, StepPlan, Xfer};

/// Checks everything that a pass relies on. `known`: samples of the step before.
///
/// Errors: [`EngineError::Plan`], naming the row and the numbers.
pub(crate) fn plan(caps: &Caps, plan: &StepPlan<'_>, known: usize) -> Result<(), EngineError> {
    let mut next = 0;
    let mut drawn = vec![false; plan.samples.len()];
    let mut written = Vec::new();
    for (index, row) in plan.rows.iter().enumerate() {
        let refuse = |reason: String| Err(EngineError::Plan(format!("row {index}: {reason}")));
        if row.tokens.start != next || row.tokens.end <= next || row.tokens.end as usize > plan.tokens.len() {
            return refuse(format!("tokens {:?} do not follow {next} of {}", row.tokens, plan.tokens.len()));
        }
        next = row.tokens.end;
        if let Err(reason) = check_row(caps, plan, (row, known)) {
            return refuse(reason);
        }
        written.extend(written_pages(caps, plan, row).map(|page| (page, index)));
        match drawn.get_mut(to_usize(&row.samples)) {
            Some(own) if own.len() <= row.tokens.len() && !own.contains(&true) => own.fill(true),
            _ => {
                let reason = format!("samples {:?} are missing, taken, or more than its tokens", row.samples);
                return refuse(reason);
            }
        }
    }
    if next as usize != plan.tokens.len() {
        return Err(EngineError::Plan(format!("tokens {next}.. of {} have no row", plan.tokens.len())));
    }
    if let Some(sample) = drawn.iter().position(|drawn| !drawn) {
        return Err(EngineError::Plan(format!("sample {sample} has no row")));
    }
    // Two rows writing one slot would race.
    written.sort_unstable();
    match written.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(EngineError::Plan(format!(
            "page {} is written by row {} and row {}",
            pair[0].0, pair[0].1, pair[1].1
        ))),
        None => check_samples(caps, plan),
    }
}

/// Checks that moves stay within pages and slots and apart from each other, and that their fence was given out before
/// `last`.
///
/// Errors: [`EngineError::Transfer`], naming the move and the numbers; nothing has been moved then.
pub(crate) fn moves(caps: &Caps, moves: &[Xfer], (after, last): (Fence, Fence)) -> Result<(), EngineError> {
    let refuse = |reason: String| Err(EngineError::Transfer(reason));
    if after > last {
        return refuse(format!("fence {} was never given out, the last is {}", after.0, last.0));
    }
    let mut touched = Vec::with_capacity(moves.len());
    for (index, one) in moves.iter().enumerate() {
        let (read, written, slot_bytes) = match one {
            Xfer::Copy { from, to } => (Some(from), Some(to), None),
            Xfer::Save { from, to } => (Some(from), None, Some(to.len())),
            Xfer::Load { from, to } => (None, Some(to), Some(from.len())),
        };
        if let Some(page) = read.into_iter().chain(written).find(|page| page.0 >= caps.kv.pages) {
            return refuse(format!("move {index}: page {} of {}", page.0, caps.kv.pages));
        }
        if let Some(bytes) = slot_bytes.filter(|bytes| *bytes as u64 != caps.kv.block_bytes) {
            return refuse(format!(
                "move {index}: a slot of {bytes} bytes where a block takes {}",
                caps.kv.block_bytes
            ));
        }
        // Writes sort before reads of their page, so that a clash shows between neighbours.
        touched.extend(written.map(|page| (page.0, false, index)));
        touched.extend(read.map(|page| (page.0, true, index)));
    }
    touched.sort_unstable();
    let clash = touched.windows(2).find(|pair| pair[0].0 == pair[1].0 && !pair[0].1);
    clash.map_or(Ok(()), |pair| {
        let does = if pair[1].1 { "read" } else { "written" };
        let ((page, _, writer), (_, _, other)) = (pair[0], pair[1]);
        refuse(format!("page {page} is written by move {writer} and {does} by move {other}"))
    })
}

fn check_row(caps: &Caps, plan: &StepPlan<'_>, (row, known): (&Row, usize)) -> Result<(), String> {
    let end = u64::from(row.position) + u64::from(row.tokens.end - row.tokens.start);
    if end > u64::from(caps.context_max) {
        return Err(format!("ends at position {end} of {}", caps.context_max));
    }
    if let Some(adapter) = row.adapter.filter(|adapter| adapter.0 as usize >= caps.adapters.len()) {
        return Err(format!("adapter {} of {}", adapter.0, caps.adapters.len()));
    }
    let tokens = &plan.tokens[to_usize(&row.tokens)];
    for &token in tokens {
        match drawn_sample(token) {
            Some(sample) if sample >= known => {
                return Err(format!("sample {sample} of {known} in the step before"));
            }
            None if token >= caps.vocab => return Err(format!("token {token} of {}", caps.vocab)),
            _ => {}
        }
    }
    let Some(pages) = plan.pages.get(to_usize(&row.pages)) else {
        return Err(format!("pages {:?} of {}", row.pages, plan.pages.len()));
    };
    let needed = end.div_ceil(u64::from(caps.kv.block_tokens));
    if (pages.len() as u64) < needed {
        return Err(format!("{} pages where {needed} hold {end} tokens", pages.len()));
    }
    match pages[..needed as usize].iter().find(|page| page.0 >= caps.kv.pages) {
        Some(page) => Err(format!("page {} of {}", page.0, caps.kv.pages)),
        None => Ok(()),
    }
}

fn written_pages(caps: &Caps, plan: &StepPlan<'_>, row: &Row) -> impl Iterator<Item = u32> {
    let last = row.position + (row.tokens.end - row.tokens.start) - 1;
    let blocks = row.position / caps.kv.block_tokens..last / caps.kv.block_tokens + 1;
    plan.pages[to_usize(&row.pages)][to_usize(&blocks)].iter().map(|page| page.0)
}

fn check_samples(caps: &Caps, plan: &StepPlan<'_>) -> Result<(), EngineError> {
    for (index, spec) in plan.samples.iter().enumerate() {
        if let Some((token, _)) = spec.params.logit_bias.iter().find(|(token, _)| *token >= caps.vocab) {
            return Err(EngineError::Plan(format!(
                "sample {index}: bias on token {token} of {}",
                caps.vocab
            )));
        }
        if spec.mask.is_some_and(|mask| mask.tokens(caps.vocab).next().is_none()) {
            return Err(EngineError::Plan(format!("sample {index}: its mask allows no token")));
        }
        if spec.output.len() >= spec.position as usize {
            let (output, position) = (spec.output.len(), spec.position);
            let reason = format!("sample {index}: output of {output} in a sequence of {position} tokens");
            return Err(EngineError::Plan(reason));
        }
    }
    Ok(())
}

fn to_usize(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}
