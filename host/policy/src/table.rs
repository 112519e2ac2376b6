//! Numbers for policies: rows times named columns, one contiguous run a column.

use crate::slot::Attributes;

/// The columns a slot offers. A policy names those that it wants to see.
#[derive(Debug, PartialEq, Eq)]
pub struct Schema {
    /// Columns of `f32`.
    pub numbers: &'static [&'static str],
    /// Columns of `u64`: ids, hashes, and counts above 2^24.
    pub ids: &'static [&'static str],
    /// Whether its rows carry open attributes, which are columns too: `attr.NAME`.
    pub open: bool,
}

/// Rows of one schema, stored by column: `numbers[column * rows + row]`.
#[derive(Clone, Debug)]
pub struct Table {
    schema: &'static Schema,
    rows: usize,
    numbers: Vec<f32>,
    ids: Vec<u64>,
    // Empty, or one a row.
    attributes: Vec<Attributes>,
}

impl Table {
    /// A table of `rows` rows, all zero.
    pub fn new(schema: &'static Schema, rows: usize) -> Self {
        Self {
            schema,
            rows,
            numbers: vec![0.0; schema.numbers.len() * rows],
            ids: vec![0; schema.ids.len() * rows],
            attributes: vec![],
        }
    }

    /// Sets the number of rows and zeroes every cell; keeps the memory.
    pub fn reset(&mut self, rows: usize) {
        self.rows = rows;
        self.numbers.clear();
        self.numbers.resize(self.schema.numbers.len() * rows, 0.0);
        self.ids.clear();
        self.ids.resize(self.schema.ids.len() * rows, 0);
        self.attributes.clear();
    }

    /// Becomes the same as another; keeps the memory.
    pub(crate) fn set_to(&mut self, other: &Self) {
        self.schema = other.schema;
        self.rows = other.rows;
        self.numbers.clone_from(&other.numbers);
        self.ids.clone_from(&other.ids);
        self.attributes.clone_from(&other.attributes);
    }

    /// Sets the open attributes of a row.
    pub fn set_attributes(&mut self, row: usize, attributes: Attributes) {
        assert!(self.schema.open && row < self.rows, "attributes belong to a row of an open table");
        self.attributes.resize(self.rows, Attributes::default());
        self.attributes[row] = attributes;
    }

    /// The open attributes of each row; none where no row has any.
    pub fn attributes(&self) -> &[Attributes] {
        &self.attributes
    }

    /// Its schema.
    pub fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// One column of numbers, by its index in the schema.
    pub fn numbers(&self, column: usize) -> &[f32] {
        &self.numbers[column * self.rows..][..self.rows]
    }

    /// The same, to be written.
    pub fn numbers_mut(&mut self, column: usize) -> &mut [f32] {
        &mut self.numbers[column * self.rows..][..self.rows]
    }

    /// One column of ids, by its index in the schema.
    pub fn ids(&self, column: usize) -> &[u64] {
        &self.ids[column * self.rows..][..self.rows]
    }

    /// The same, to be written.
    pub fn ids_mut(&mut self, column: usize) -> &mut [u64] {
        &mut self.ids[column * self.rows..][..self.rows]
    }

    /// All cells, column after column.
    pub(crate) fn cells(&self) -> (&[f32], &[u64]) {
        (&self.numbers, &self.ids)
    }

    /// These rows, in this order.
    pub fn select(&self, rows: &[usize]) -> Self {
        let mut selected = Self::new(self.schema, rows.len());
        for column in 0..self.schema.numbers.len() {
            gather(self.numbers(column), rows, selected.numbers_mut(column));
        }
        for column in 0..self.schema.ids.len() {
            gather(self.ids(column), rows, selected.ids_mut(column));
        }
        if !self.attributes.is_empty() {
            selected.attributes = rows.iter().map(|row| self.attributes[*row].clone()).collect();
        }
        selected
    }
}

fn gather<T: Copy>(from: &[T], rows: &[usize], to: &mut [T]) {
    to.iter_mut().zip(rows).for_each(|(cell, row)| *cell = from[*row]);
}

impl Schema {
    /// Index of a column of numbers.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.numbers.iter().position(|column| *column == name)
    }

    /// Index of a column of ids.
    pub fn id(&self, name: &str) -> Option<usize> {
        self.ids.iter().position(|column| *column == name)
    }
}
