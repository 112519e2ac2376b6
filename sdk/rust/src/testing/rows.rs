//! Tables, built by column name or drawn from a seed.

use crate::columns::{ATTRIBUTE, Columns, REQUEST, SEGMENT, SEQUENCE};
use crate::random::Random;
use crate::view::Frame;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A table with every column that hosts offer; a cell that nobody set is 0.
///
/// Those of requests, sequences and segments have a column `attr.NAME` for every name.
#[derive(Clone, Debug)]
pub struct Rows {
    offered: Columns,
    rows: usize,
    numbers: Vec<f32>,
    ids: Vec<u64>,
    attributes: Attributes,
}

/// Open attributes: those that were set, and for a drawn table a seed for all others.
#[derive(Clone, Debug, Default)]
struct Attributes {
    numbers: BTreeMap<String, Vec<f32>>,
    ids: BTreeMap<String, Vec<u64>>,
    seed: Option<u64>,
}

impl Rows {
    /// Rows of zeroes of one of the crate's tables, such as [`REQUEST`] or [`crate::CANDIDATE`].
    pub fn new(offered: Columns, rows: usize) -> Self {
        let numbers = vec![0.0; offered.numbers.len() * rows];
        let ids = vec![0; offered.ids.len() * rows];
        Self { offered, rows, numbers, ids, attributes: Attributes::default() }
    }

    /// Sets a column of numbers: a value a row.
    #[track_caller]
    pub fn numbers(mut self, name: &str, values: &[f32]) -> Self {
        assert_eq!(values.len(), self.rows, "`{name}` has a value a row");
        match column(self.offered, self.offered.numbers, name) {
            Some(index) => self.numbers[index * self.rows..][..self.rows].copy_from_slice(values),
            None => _ = self.attributes.numbers.insert(name.to_owned(), values.to_owned()),
        }
        self
    }

    /// Sets a column of ids: a value a row.
    #[track_caller]
    pub fn ids(mut self, name: &str, values: &[u64]) -> Self {
        assert_eq!(values.len(), self.rows, "`{name}` has a value a row");
        match column(self.offered, self.offered.ids, name) {
            Some(index) => self.ids[index * self.rows..][..self.rows].copy_from_slice(values),
            None => _ = self.attributes.ids.insert(name.to_owned(), values.to_owned()),
        }
        self
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Draws every cell: numbers of the magnitudes that a host shows, often equal ones; few ids.
    pub(super) fn drawn(offered: Columns, rows: usize, random: &mut Random) -> Self {
        let mut drawn = Self::new(offered, rows);
        for (index, name) in offered.numbers.iter().enumerate() {
            let end = match *name {
                "kv_used" | "health" | "used" | "pinned" => 1.0,
                "session_live" | "session_final" | "speculative_prefill" | "stage" | "decodes" => 2.0,
                "event" | "finish" => 3.0,
                "role" => 6.0,
                "strict_tier" | "running" | "queue_len" | "free_rows" | "index" | "reuse" | "workers" => 8.0,
                "requests_running" | "requests_max" | "requests_deferred" => 64.0,
                "tenant_running" | "tenant_deferred" => 16.0,
                "priority" => 100.0,
                "wish_priority" => 101.0,
                _ => 40_000.0,
            };
            let constant = random.below(4) == 0;
            let first = random.unit();
            for cell in &mut drawn.numbers[index * rows..][..rows] {
                let unit = if constant { first } else { random.unit() };
                *cell = if end > 1.0 { (unit * end).floor() } else { unit };
                if *name == "priority" {
                    *cell -= 50.0;
                }
            }
        }
        drawn.ids.fill_with(|| random.below(6) as u64);
        if let Some(index) = offered.ids.iter().position(|name| ["worker", "sequence"].contains(name)) {
            let distinct = &mut drawn.ids[index * rows..][..rows];
            distinct.iter_mut().enumerate().for_each(|(row, id)| *id = row as u64 + 1);
        }
        drawn.attributes.seed = Some(random.next_u64());
        drawn
    }

    /// The flat lists of the declared columns.
    #[track_caller]
    pub(super) fn project(&self, declared: Columns, numbers: &mut Vec<f32>, ids: &mut Vec<u64>) {
        for name in declared.numbers {
            match column(self.offered, self.offered.numbers, name) {
                Some(index) => numbers.extend_from_slice(&self.numbers[index * self.rows..][..self.rows]),
                None => numbers.extend(self.attributes.numbers(name, self.rows)),
            }
        }
        for name in declared.ids {
            match column(self.offered, self.offered.ids, name) {
                Some(index) => ids.extend_from_slice(&self.ids[index * self.rows..][..self.rows]),
                None => ids.extend(self.attributes.ids(name, self.rows)),
            }
        }
    }
}

impl Attributes {
    fn numbers(&self, name: &str, rows: usize) -> Vec<f32> {
        match (self.numbers.get(name), self.seed) {
            (Some(set), _) => set.clone(),
            (None, None) => vec![0.0; rows],
            (None, Some(seed)) => {
                let mut random = stream(seed, name);
                // Flags, then numbers of either sign, each absent from some rows.
                let scale = [0.0, 1.0, 100.0, 1e6][random.below(4)];
                let cell = |random: &mut Random| match random.below(3) {
                    0 => 0.0,
                    1 => scale,
                    _ if scale > 1.0 => (random.unit() - 0.5) * scale,
                    _ => 0.0,
                };
                (0..rows).map(|_| cell(&mut random)).collect()
            }
        }
    }

    fn ids(&self, name: &str, rows: usize) -> Vec<u64> {
        match (self.ids.get(name), self.seed) {
            (Some(set), _) => set.clone(),
            (None, None) => vec![0; rows],
            (None, Some(seed)) => {
                let mut random = stream(seed, name);
                (0..rows).map(|_| random.below(4) as u64).collect()
            }
        }
    }
}

/// The stream of one attribute of a drawn table: the same, whatever else is declared.
fn stream(seed: u64, name: &str) -> Random {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    Random::new(seed ^ hasher.finish())
}

/// Where the column is among those offered; `None` is an open attribute.
#[track_caller]
fn column(table: Columns, offered: &[&str], name: &str) -> Option<usize> {
    let index = offered.iter().position(|column| *column == name);
    let has_attributes = [REQUEST, SEQUENCE, SEGMENT].contains(&table);
    let is_attribute = name.strip_prefix(ATTRIBUTE).is_some_and(|name| !name.is_empty());
    assert!(
        index.is_some() || has_attributes && is_attribute,
        "no host offers the column `{name}`; offered are {offered:?}{}",
        if has_attributes { " and attr.NAME" } else { "" },
    );
    index
}

pub(super) fn frame(random: &mut Random) -> Frame {
    Frame { now_ms: 1_700_000_000_000 + random.below(1 << 30) as u64, seed: random.next_u64() }
}
