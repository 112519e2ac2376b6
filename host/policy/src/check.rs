//! The laws of answers: what a policy says is checked before anything acts on it.
//!
//! **Invariant:** an answer that passes is safe to act on, whoever gave it.

use crate::slot::{Action, Decided, Header, Hints, Keep, SchedulePlan, Value, Verdict};

/// Longest session or parent name, in bytes.
pub const SESSION_BYTES_MAX: usize = 256;
/// Longest class, name or text of an attribute, in bytes.
pub const CLASS_BYTES_MAX: usize = 64;
/// Most attributes.
pub const ATTRIBUTES_MAX: usize = 16;
/// Longest reason that a policy gives a caller, in bytes.
pub const REASON_BYTES_MAX: usize = 256;
/// Longest reason of a route decision, in bytes: it goes into logs.
const ROUTE_REASON_BYTES_MAX: usize = 128;
/// Longest text of an attribute, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// One flag a candidate.
pub(crate) fn filter(keep: &[bool], rows: usize) -> Result<(), String> {
    match keep.len() == rows {
        true => Ok(()),
        false => Err(format!("{} flags for {rows} candidates", keep.len())),
    }
}

/// One finite number a candidate, clamped into [0, 1]. Returns how many were clamped.
pub(crate) fn scores(scores: &mut [f32], rows: usize) -> Result<u64, String> {
    if scores.len() != rows {
        return Err(format!("{} scores for {rows} candidates", scores.len()));
    }
    let mut clipped = 0;
    for (row, score) in scores.iter_mut().enumerate() {
        if !score.is_finite() {
            return Err(format!("score {score} for candidate {row}"));
        }
        let within = score.clamp(0.0, 1.0);
        clipped += u64::from(within != *score);
        *score = within;
    }
    Ok(clipped)
}

/// A row that is there.
pub(crate) fn pick(row: u32, rows: usize) -> Result<(), String> {
    match (row as usize) < rows {
        true => Ok(()),
        false => Err(format!("row {row} of {rows} candidates")),
    }
}

/// A complete permutation. `seen` is scratch.
pub(crate) fn order(order: &[u32], rows: usize, seen: &mut Vec<bool>) -> Result<(), String> {
    if order.len() != rows {
        return Err(format!("an order of {} for {rows} waiting sequences", order.len()));
    }
    seen.clear();
    seen.resize(rows, false);
    for row in order {
        match seen.get_mut(*row as usize) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return Err(format!("row {row} twice")),
            None => return Err(format!("row {row} of {rows} waiting sequences")),
        }
    }
    Ok(())
}

/// A complete order, a size for every sequence or for none, victims that run, each once.
pub(crate) fn plan(plan: &SchedulePlan, waiting: usize, running: usize) -> Result<(), String> {
    let mut seen = vec![];
    order(&plan.order, waiting, &mut seen)?;
    let sizes = plan.chunk_tokens.len();
    if sizes != 0 && sizes != waiting + running {
        return Err(format!("{sizes} chunk sizes for {waiting} waiting and {running} running sequences"));
    }
    seen.clear();
    seen.resize(running, false);
    for row in &plan.victims {
        match seen.get_mut(*row as usize) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return Err(format!("victim {row} twice")),
            None => return Err(format!("victim {row} of {running} running sequences")),
        }
    }
    Ok(())
}

/// A status of an error, and headers that can be sent.
pub(crate) fn action(action: &Action) -> Result<(), String> {
    let changes = match action {
        Action::Continue => return Ok(()),
        Action::Reject(400..=599) => return Ok(()),
        Action::Reject(status) => {
            return Err(format!("a rejection with status {status}; 400 to 599 are errors"));
        }
        Action::Modify(changes) => changes,
    };
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let visible = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    let bad = |(name, value): &&Header| {
        name.is_empty() || !name.bytes().all(token) || !value.iter().copied().all(visible)
    };
    match changes.set.iter().chain(&changes.add).find(bad) {
        Some((name, _)) => Err(format!("header `{}` cannot be sent", name.escape_default())),
        None => Ok(()),
    }
}

/// A reason that fits a line.
pub(crate) fn verdict(verdict: &Verdict) -> Result<(), String> {
    match verdict {
        Verdict::Reject { reason, .. } => reasonable(reason, REASON_BYTES_MAX),
        Verdict::Admit | Verdict::DeferUntil(_) => Ok(()),
    }
}

fn reasonable(reason: &str, max: usize) -> Result<(), String> {
    match reason.len() <= max {
        true => Ok(()),
        false => Err(format!("a reason of {} bytes; at most {max}", reason.len())),
    }
}

/// A row that is there, and a reason that fits a log line.
pub(crate) fn decided(decided: &Decided, rows: usize) -> Result<(), String> {
    reasonable(decided.reason.as_deref().unwrap_or_default(), ROUTE_REASON_BYTES_MAX)?;
    pick(decided.candidate, rows)
}

/// One answer a segment; a priority above the highest becomes that. Returns how many did.
pub(crate) fn keeps(keeps: &mut [Keep], rows: usize) -> Result<u64, String> {
    if keeps.len() != rows {
        return Err(format!("{} answers for {rows} segments", keeps.len()));
    }
    let mut clipped = 0;
    for keep in keeps {
        clipped += u64::from(keep.priority > Keep::PRIORITY_MAX);
        keep.priority = keep.priority.min(Keep::PRIORITY_MAX);
    }
    Ok(clipped)
}

/// Names and texts of bounded length, finite numbers.
pub(crate) fn hints(hints: &Hints) -> Result<(), String> {
    let bounded = |what: &str, text: &str, max: usize| match text.len() <= max {
        true => Ok(()),
        false => Err(format!("{what} of {} bytes; at most {max}", text.len())),
    };
    bounded("a session", hints.session.as_deref().unwrap_or_default(), SESSION_BYTES_MAX)?;
    bounded("a parent", hints.parent.as_deref().unwrap_or_default(), SESSION_BYTES_MAX)?;
    bounded("a class", hints.class.as_deref().unwrap_or_default(), CLASS_BYTES_MAX)?;
    if hints.priority.is_some_and(|priority| !priority.is_finite()) {
        return Err("a priority that is no number".to_owned());
    }
    if hints.attributes.len() > ATTRIBUTES_MAX {
        return Err(format!("{} attributes; at most {ATTRIBUTES_MAX}", hints.attributes.len()));
    }
    for (name, value) in &hints.attributes {
        bounded("the name of an attribute", name, CLASS_BYTES_MAX)?;
        match value {
            Value::Text(text) => bounded("an attribute", text, TEXT_BYTES_MAX)?,
            Value::Number(number) if !number.is_finite() => {
                return Err(format!("attribute `{name}` is no number"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scores_outside_the_range_are_clamped_and_counted() {
        let mut answer = [-1.0, 0.25, 7.0];
        assert_eq!(scores(&mut answer, 3), Ok(2));
        assert_eq!(answer, [0.0, 0.25, 1.0]);
    }

    #[test]
    fn a_score_that_is_no_number_is_refused() {
        for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(scores(&mut [0.5, score], 2).is_err());
        }
    }

    #[test]
    fn a_missing_or_spare_element_is_refused() {
        assert!(scores(&mut [0.5], 2).is_err());
        assert!(filter(&[true; 3], 2).is_err());
        assert!(order(&[0], 2, &mut vec![]).is_err());
        assert!(pick(2, 2).is_err());
    }

    #[test]
    fn long_names_and_wild_numbers_in_hints_are_refused() {
        let text = |bytes: usize| "x".repeat(bytes);
        let check = |hints: Hints, fits: bool| assert_eq!(super::hints(&hints).is_ok(), fits, "{hints:?}");
        check(Hints { session: Some(text(SESSION_BYTES_MAX)), ..Hints::default() }, true);
        check(Hints { session: Some(text(SESSION_BYTES_MAX + 1)), ..Hints::default() }, false);
        check(Hints { class: Some(text(CLASS_BYTES_MAX + 1)), ..Hints::default() }, false);
        check(Hints { priority: Some(f32::NAN), ..Hints::default() }, false);
        let attribute = |value| Hints { attributes: vec![("a".to_owned(), value)], ..Hints::default() };
        check(attribute(Value::Flag(true)), true);
        check(attribute(Value::Number(f64::NAN)), false);
        check(attribute(Value::Text(text(TEXT_BYTES_MAX + 1))), false);
        let many = vec![("a".to_owned(), Value::Flag(true)); ATTRIBUTES_MAX + 1];
        check(Hints { attributes: many, ..Hints::default() }, false);
    }

    #[test]
    fn a_plan_names_sequences_that_are_there() {
        let check = |order: &[u32], chunk_tokens: &[u32], victims: &[u32], fits: bool| {
            let plan = SchedulePlan {
                order: order.to_vec(),
                chunk_tokens: chunk_tokens.to_vec(),
                victims: victims.to_vec(),
            };
            assert_eq!(super::plan(&plan, 2, 1).is_ok(), fits, "{plan:?}");
        };
        check(&[1, 0], &[], &[], true);
        check(&[1, 0], &[1, 2, 3], &[0], true);
        check(&[1], &[], &[], false);
        check(&[1, 0], &[1, 2], &[], false);
        check(&[1, 0], &[], &[0, 0], false);
        check(&[1, 0], &[], &[1], false);
    }

    #[test]
    fn a_retention_has_an_answer_for_each_segment() {
        let wild = Keep { priority: 200, ..Keep::ORDINARY };
        let mut answer = [Keep::ORDINARY, wild];
        assert_eq!(keeps(&mut answer, 2), Ok(1));
        assert_eq!(answer[1].priority, Keep::PRIORITY_MAX);
        assert!(keeps(&mut answer, 3).is_err());
    }

    proptest! {
        /// An order passes if and only if sorting it gives 0, 1, 2, ….
        #[test]
        fn an_order_passes_if_it_is_a_permutation(answer in prop::collection::vec(0u32..6, 0..6)) {
            let mut sorted = answer.clone();
            sorted.sort_unstable();
            let complete = sorted.iter().enumerate().all(|(row, value)| row as u32 == *value);
            prop_assert_eq!(order(&answer, answer.len(), &mut vec![]).is_ok(), complete);
        }
    }
}
