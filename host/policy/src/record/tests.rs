//! The bytes of a log: what goes in comes out, whatever happens to the end of a file.

use super::format::{Attribute, By, ColumnNames, Columns, End, EndReason, Entry, FORMAT, FileHead, TABLES};
use super::frame::{self, Frames, Tail};
use crate::chain::RouteDecision;
use crate::slot::{Frame, REQUEST, ROUTE_CANDIDATE, Value, name_id};
use crate::table::Table;
use proptest::prelude::*;
use std::borrow::Cow;

fn frame_of(entry: &Entry<'_>) -> Vec<u8> {
    let mut frame = frame::write(vec![], entry).expect("an entry can be written");
    frame::seal(&mut frame);
    frame
}

fn file_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let frames = entries.iter().flat_map(frame_of);
    frame::MAGIC.iter().copied().chain(frames).collect()
}

fn outcome(decisions: u64) -> Entry<'static> {
    Entry::End(End { decisions, why: EndReason::Full, states: vec![(7, vec![None, Some([1; 32])])] })
}

fn names(index: usize) -> ColumnNames {
    ColumnNames::from(TABLES[index])
}

/// Reads a file: how many entries, and how it ended.
fn read(bytes: &[u8]) -> (usize, Tail) {
    let mut frames = Frames::new(bytes).expect("it begins as a log does");
    let count = frames.by_ref().count();
    (count, frames.tail)
}

prop_compose! {
    fn any_route()(
        rows in 1usize..9,
        cells in prop::collection::vec(any::<u32>(), 100),
        ids in prop::collection::vec(any::<u64>(), 12),
        scores in prop::collection::vec(any::<u32>(), 0..9),
        flag in any::<bool>(),
        number in any::<u64>(),
        text in "[a-z]{0,12}",
    ) -> (Table, Table, RouteDecision) {
        let mut candidates = Table::new(&ROUTE_CANDIDATE, rows);
        for column in 0..ROUTE_CANDIDATE.numbers.len() {
            for (row, cell) in candidates.numbers_mut(column).iter_mut().enumerate() {
                // Every bit pattern, so that numbers which are none are among them.
                *cell = f32::from_bits(cells[(column * rows + row) % cells.len()]);
            }
        }
        candidates.ids_mut(0).iter_mut().zip(&ids).for_each(|(cell, id)| *cell = *id);
        let mut request = Table::new(&REQUEST, 1);
        request.numbers_mut(0)[0] = f32::NAN;
        let attributes = vec![
            ("flag".to_owned(), Value::Flag(flag)),
            ("number".to_owned(), Value::Number(f64::from_bits(number))),
            ("text".to_owned(), Value::Text(text)),
        ];
        request.set_attributes(0, attributes.into());
        let scores = scores.into_iter().map(f32::from_bits).collect();
        let decision = RouteDecision { candidate: rows - 1, decided_by: "me".into(), scores, fell_back: flag };
        (request, candidates, decision)
    }
}

fn route<'a>(request: &'a Table, candidates: &'a Table, decision: &'a RouteDecision) -> Entry<'a> {
    let frame = Frame { now_ms: 5, seed: u64::MAX };
    Entry::Route {
        by: By { generation: 3, chain: 1, muted: 1 << 63, frame },
        request: request.into(),
        candidates: candidates.into(),
        answer: Ok(Cow::Borrowed(decision)),
    }
}

proptest! {
    /// Whatever the cells, what is read has the same bits, and would be written in the same way.
    #[test]
    fn a_decision_is_read_as_it_was_written((request, candidates, decision) in any_route()) {
        let entry = route(&request, &candidates, &decision);
        let bytes = file_of(&[entry]);
        let mut frames = Frames::new(&bytes).expect("a log");
        let read = frames.next().expect("one entry");
        prop_assert_eq!(file_of(std::slice::from_ref(&read)), bytes.clone());
        let Entry::Route { request: cells, candidates: rows, answer: Ok(answer), .. } = read else {
            return Err(TestCaseError::fail("another entry"));
        };
        let table = rows.table(&ROUTE_CANDIDATE, &names(2)).expect("the cells fit");
        let bits = |numbers: &[f32]| numbers.iter().map(|it| it.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(table.cells().0), bits(candidates.cells().0));
        prop_assert_eq!(table.cells().1, candidates.cells().1);
        prop_assert_eq!(bits(&answer.scores), bits(&decision.scores));
        let (again, before) = (cells.table(&REQUEST, &names(0)).expect("the cells fit"), &request);
        for name in ["flag", "number", "text", "absent"] {
            let (again, before) = (&again.attributes()[0], &before.attributes()[0]);
            prop_assert_eq!(again.number(name).to_bits(), before.number(name).to_bits());
            prop_assert_eq!(again.id(name), before.id(name));
        }
    }

    /// Wherever a file is cut, the entries before the cut are read.
    #[test]
    fn a_torn_tail_is_found(cut in 8usize..1000) {
        let entries: Vec<_> = (0..5).map(outcome).collect();
        let whole = file_of(&entries);
        let cut = cut.min(whole.len());
        let sizes: Vec<usize> = entries.iter().map(|entry| frame_of(entry).len()).collect();
        let ends: Vec<usize> = sizes.iter().scan(8, |at, size| { *at += size; Some(*at) }).collect();
        let before = ends.iter().filter(|end| **end <= cut).count();
        let (count, tail) = read(&whole[..cut]);
        prop_assert_eq!(count, before);
        prop_assert_eq!(tail == Tail::Whole, cut == 8 || ends.contains(&cut));
    }
}

#[test]
fn a_text_leaves_only_its_id() {
    let mut request = Table::new(&REQUEST, 1);
    request.set_attributes(0, vec![("plan".to_owned(), Value::Text("a secret".to_owned()))].into());
    let columns = Columns::from(&request);
    assert_eq!(columns.attributes[0][0].1, Attribute::Id(name_id("a secret")));
    let candidates = Table::new(&ROUTE_CANDIDATE, 1);
    let decision = RouteDecision { candidate: 0, decided_by: "me".into(), scores: vec![], fell_back: false };
    let bytes = file_of(&[route(&request, &candidates, &decision)]);
    assert!(!bytes.windows(6).any(|part| part == b"secret"), "a log has no texts");
}

#[test]
fn a_flipped_bit_ends_the_file_there() {
    let entries: Vec<_> = (0..3).map(outcome).collect();
    let whole = file_of(&entries);
    let second = 8 + frame_of(&entries[0]).len();
    for at in [second + 5, second + 12, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        let (count, tail) = read(&damaged);
        assert!(matches!(tail, Tail::Torn(..)), "{tail:?}");
        assert_eq!(count, if at < whole.len() - 1 { 1 } else { 2 });
    }
    assert!(Frames::new(b"something else").is_none());
}

#[test]
fn a_log_of_fewer_columns_is_read_by_name() {
    let names = ColumnNames {
        numbers: vec!["waited_ms".to_owned(), "gone".to_owned(), "prompt_tokens".to_owned()],
        ids: vec!["tenant".to_owned()],
    };
    let columns = |numbers: Vec<f32>| Columns {
        rows: 1,
        numbers: numbers.into(),
        ids: vec![9].into(),
        attributes: vec![],
    };
    let table = columns(vec![1.0, 2.0, 3.0]).table(&REQUEST, &names).expect("the cells fit");
    let number = |name| table.numbers(REQUEST.number(name).expect("a column"))[0];
    assert_eq!((number("waited_ms"), number("prompt_tokens"), number("priority")), (1.0, 3.0, 0.0));
    assert_eq!(table.ids(REQUEST.id("tenant").expect("a column")), [9]);
    assert!(columns(vec![1.0]).table(&REQUEST, &names).is_none());
}

#[test]
fn a_head_names_every_table() {
    let head = FileHead {
        format: FORMAT,
        contract: "0.1.1".to_owned(),
        recording: 1,
        number: 2,
        continues: true,
        began_ms: 3,
        workers: 4,
        slots: vec![],
        tables: TABLES.iter().map(|schema| ColumnNames::from(*schema)).collect(),
    };
    let bytes = file_of(&[Entry::File(head.clone())]);
    assert_eq!(Frames::new(&bytes).expect("a log").next(), Some(Entry::File(head)));
}
