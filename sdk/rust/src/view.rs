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

/// One request at the door, and how busy the house is.
#[derive(Clone, Copy, Debug)]
pub struct AdmitView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// Declared columns of the request: one row.
    pub request: Table<'a>,
    /// Declared columns of the load of all workers: one row.
    pub fleet: Table<'a>,
}

impl<'a> AdmitView<'a> {
    pub(crate) fn new(
        frame: Frame,
        columns: (Columns, Columns),
        mut numbers: &'a [f32],
        mut ids: &'a [u64],
    ) -> Self {
        let request = Table::split(columns.0, 1, &mut numbers, &mut ids);
        Self { frame, request, fleet: Table::new(columns.1, 1, numbers, ids) }
    }
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

/// Segments of a worker's KV cache, and how full it is.
#[derive(Clone, Copy, Debug)]
pub struct RetainView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// Declared columns of the cache: one row.
    pub cache: Table<'a>,
    /// Declared columns of the segments: a row each.
    pub segments: Table<'a>,
}

impl<'a> RetainView<'a> {
    pub(crate) fn new(
        frame: Frame,
        columns: (Columns, Columns),
        rows: usize,
        mut numbers: &'a [f32],
        mut ids: &'a [u64],
    ) -> Self {
        let cache = Table::split(columns.0, 1, &mut numbers, &mut ids);
        Self { frame, cache, segments: Table::new(columns.1, rows, numbers, ids) }
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

/// An enum whose values are those of a column.
macro_rules! column_values {
    ($(#[$doc:meta])+ $name:ident { $($(#[$variant_doc:meta])+ $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])+ $variant = $value,)+
        }

        impl $name {
            /// What a cell says; `None` for a value that this version does not know.
            pub fn of(cell: f32) -> Option<Self> {
                [$(Self::$variant),+].into_iter().find(|value| value.cell() == cell)
            }

            /// The cell that says it.
            pub fn cell(self) -> f32 {
                self as u32 as f32
            }
        }
    };
}

column_values! {
    /// Value of the column `event` of an outcome.
    Event {
        /// The first token is out.
        FirstToken = 0,
        /// The request ended well.
        Finished = 1,
        /// The request failed or its client left.
        Failed = 2,
    }
}

column_values! {
    /// Value of the column `event` of a cache: why a policy is asked.
    CacheEvent {
        /// A turn of a session is complete, and its segments are in the cache.
        TurnCommitted = 0,
        /// A session ended.
        SessionEnded = 1,
        /// A tier passed its mark.
        Pressure = 2,
    }
}

column_values! {
    /// Value of the column `role` of a segment: what its tokens are.
    Role {
        /// System prompt.
        System = 0,
        /// Definitions of tools.
        Tools = 1,
        /// Messages of earlier turns.
        History = 2,
        /// What the model thought.
        Reasoning = 3,
        /// What a tool answered.
        ToolResult = 4,
        /// What the model said.
        Output = 5,
    }
}
