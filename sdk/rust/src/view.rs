//! What a policy is shown: the clock, a seed, and tables of the columns that it declared.

use crate::columns::Columns;

/// The clock and the randomness of one decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Seed for [`crate::Random`].
    pub seed: u64,
}

/// Rows times declared columns, each column one contiguous run.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    columns: Columns,
    rows: usize,
    numbers: &'a [f32],
    ids: &'a [u64],
}

impl<'a> Table<'a> {
    /// A table over flat numbers and ids; their lengths must fit.
    pub fn new(columns: Columns, rows: usize, numbers: &'a [f32], ids: &'a [u64]) -> Self {
        assert_eq!(numbers.len(), columns.numbers.len() * rows, "numbers are rows times columns");
        assert_eq!(ids.len(), columns.ids.len() * rows, "ids are rows times columns");
        Self { columns, rows, numbers, ids }
    }

    /// Splits a table off the front of what is left of a call's flat lists.
    pub(crate) fn split(columns: Columns, rows: usize, numbers: &mut &'a [f32], ids: &mut &'a [u64]) -> Self {
        let (numbers_here, numbers_left) = numbers.split_at(columns.numbers.len() * rows);
        let (ids_here, ids_left) = ids.split_at(columns.ids.len() * rows);
        (*numbers, *ids) = (numbers_left, ids_left);
        Self { columns, rows, numbers: numbers_here, ids: ids_here }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// A declared column of numbers, a cell a row. Look it up once, before the loop over rows.
    #[track_caller]
    pub fn column(&self, name: &str) -> &'a [f32] {
        let index = position(self.columns.numbers, name);
        &self.numbers[index * self.rows..][..self.rows]
    }

    /// A declared column of ids, a cell a row.
    #[track_caller]
    pub fn ids(&self, name: &str) -> &'a [u64] {
        let index = position(self.columns.ids, name);
        &self.ids[index * self.rows..][..self.rows]
    }

    /// A declared number of a table that has one row.
    #[track_caller]
    pub fn value(&self, name: &str) -> f32 {
        self.column(name)[0]
    }

    /// A declared id of a table that has one row.
    #[track_caller]
    pub fn id(&self, name: &str) -> u64 {
        self.ids(name)[0]
    }
}

#[track_caller]
fn position(declared: &[&str], name: &str) -> usize {
    // Names are literals: equal ones mostly are the same bytes, and comparing addresses is nearly free.
    if let Some(index) = declared.iter().position(|column| std::ptr::eq(*column, name)) {
        return index;
    }
    match declared.iter().position(|column| *column == name) {
        Some(index) => index,
        None => panic!("column `{name}` was not declared; declared are {declared:?}"),
    }
}

/// What a caller said about a request, raw.
#[derive(Clone, Copy, Debug)]
pub struct HintsView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// `openai-chat` and the like.
    pub protocol: &'a str,
    /// Allow-listed headers, names in lower case.
    pub headers: &'a [(String, String)],
    /// Extension objects of the body by name, each as JSON text.
    pub extensions: &'a [(String, String)],
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// Output limit that the caller asked for.
    pub output_tokens_max: Option<u32>,
}

impl<'a> HintsView<'a> {
    /// Value of a header that is there and not blank.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        find(self.headers, name).map(str::trim).filter(|value| !value.is_empty())
    }

    /// JSON text of an extension object.
    pub fn extension(&self, name: &str) -> Option<&'a str> {
        find(self.extensions, name)
    }
}

fn find<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// One request and the workers that could serve it.
#[derive(Clone, Copy, Debug)]
pub struct RouteView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// Declared columns of the request: one row.
    pub request: Table<'a>,
    /// Declared columns of the candidates: a row each.
    pub candidates: Table<'a>,
}

impl<'a> RouteView<'a> {
    pub(crate) fn new(
        frame: Frame,
        columns: (Columns, Columns),
        rows: usize,
        mut numbers: &'a [f32],
        mut ids: &'a [u64],
    ) -> Self {
        let request = Table::split(columns.0, 1, &mut numbers, &mut ids);
        Self { frame, request, candidates: Table::new(columns.1, rows, numbers, ids) }
    }
}

/// A worker's sequences before a step.
#[derive(Clone, Copy, Debug)]
pub struct ScheduleView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// Declared columns of the budgets: one row.
    pub budget: Table<'a>,
    /// Sequences that wait, in order of arrival.
    pub waiting: Table<'a>,
    /// Sequences that run, in order of admission to the batch.
    pub running: Table<'a>,
}

impl<'a> ScheduleView<'a> {
    pub(crate) fn new(
        frame: Frame,
        columns: (Columns, Columns),
        rows: (usize, usize),
        mut numbers: &'a [f32],
        mut ids: &'a [u64],
    ) -> Self {
        let budget = Table::split(columns.0, 1, &mut numbers, &mut ids);
        let waiting = Table::split(columns.1, rows.0, &mut numbers, &mut ids);
        Self { frame, budget, waiting, running: Table::new(columns.1, rows.1, numbers, ids) }
    }
}

/// What became of requests: a batch, which may be empty.
#[derive(Clone, Copy, Debug)]
pub struct ObserveView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// Declared columns of the outcomes: a row each.
    pub outcomes: Table<'a>,
}

/// Value of the column `event` of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first token is out.
    FirstToken = 0,
    /// The request ended well.
    Finished = 1,
    /// The request failed or its client left.
    Failed = 2,
}

impl Event {
    /// The event that a cell says.
    pub fn of(cell: f32) -> Option<Self> {
        [Self::FirstToken, Self::Finished, Self::Failed]
            .into_iter()
            .find(|event| *event as u32 as f32 == cell)
    }
}
