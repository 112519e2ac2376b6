//! What stands in a log: a head, the generations with all that their answers follow from, and every decision.
//!
//! Written by the recorder from borrowed views, read by replays as owned ones. **Invariant:** nothing of a prompt, a
//! header or a text attribute is in it: of a text there is its id. Names of attributes and reasons that policies
//! give to callers are.

use crate::chain::{AdmitDecision, RetainDecision, RouteDecision, ScheduleDecision};
use crate::error::Rejected;
use crate::seat::exact::{Late, Snapshot};
use crate::slot::{
    ADMIT_FLEET, Attributes, Clip, Frame, OBSERVE_OUTCOME, REQUEST, RETAIN_CACHE, RETAIN_SEGMENT,
    ROUTE_CANDIDATE, SCHEDULE_BUDGET, SCHEDULE_SEQUENCE, Slot, Value, name_id,
};
use crate::spec::{Limits, Match, NamedChain, OnFailure};
use crate::table::{Schema, Table};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Version of this module. Another one is not read.
pub(super) const FORMAT: u32 = 1;

/// One entry of a log.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Entry<'a> {
    /// First in each file.
    File(FileHead),
    /// Comes before the first decision of a generation in a file.
    Generation(Box<GenerationHead>),
    /// Calls of the next decision that missed a deadline.
    Late(Vec<(u64, Vec<Late>)>),
    Admit {
        by: By,
        request: Columns<'a>,
        fleet: Columns<'a>,
        answer: Answered<'a, AdmitDecision>,
    },
    Route {
        by: By,
        request: Columns<'a>,
        candidates: Columns<'a>,
        answer: Answered<'a, RouteDecision>,
    },
    Schedule {
        by: By,
        worker: u32,
        budget: Columns<'a>,
        waiting: Columns<'a>,
        running: Columns<'a>,
        answer: Cow<'a, ScheduleDecision>,
    },
    Retain {
        by: By,
        worker: u32,
        cache: Columns<'a>,
        segments: Columns<'a>,
        answer: Cow<'a, RetainDecision>,
    },
    Clipped {
        by: By,
        worker: u32,
        clips: Cow<'a, [Clip]>,
    },
    Observe {
        by: By,
        outcomes: Columns<'a>,
    },
    /// Last in a file that was closed in order.
    End(End),
}

/// Head of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileHead {
    pub(super) format: u32,
    /// The newest contract of the host that wrote it.
    pub(super) contract: String,
    /// The same in all files from one start of a recording to its end.
    pub(super) recording: u64,
    pub(super) number: u64,
    /// Nothing is missing between the file before it and this one.
    pub(super) continues: bool,
    pub(super) began_ms: u64,
    pub(super) workers: u32,
    /// The kinds of decisions that it has.
    pub(super) slots: Vec<Slot>,
    /// Columns of every table, as the host knew them.
    pub(super) tables: Vec<ColumnNames>,
}

/// Names of a table's columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ColumnNames {
    pub(super) numbers: Vec<String>,
    pub(super) ids: Vec<String>,
}

/// A generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct GenerationHead {
    pub(super) id: u64,
    pub(super) reason: String,
    pub(super) default: NamedChain,
    pub(super) named: Vec<NamedChain>,
    pub(super) schedule: Option<String>,
    pub(super) retain: Option<String>,
    /// In the order of names.
    pub(super) plugins: Vec<PluginHead>,
}

/// A plugin of a generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PluginHead {
    pub(super) name: String,
    /// Generations that share a plugin, with what it has learned, have the same number here.
    pub(super) seat: u64,
    pub(super) component: [u8; 32],
    /// What the component calls itself.
    pub(super) component_name: String,
    pub(super) version: String,
    pub(super) origin: String,
    /// Settings, as JSON.
    pub(super) config: String,
    pub(super) limits: Limits,
    pub(super) on_failure: OnFailure,
    pub(super) matches: Match,
    /// Slots in which it is asked and which the log does not have.
    pub(super) unheard: Vec<Slot>,
    /// Where it stands; `None` if a generation before this one in the file has it.
    pub(super) snapshot: Option<Snapshot>,
}

/// Who decided, for whom, when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct By {
    pub(super) generation: u64,
    /// 0 is the default chain; named ones follow in their order.
    pub(super) chain: u32,
    /// A bit for each plugin that was not asked.
    pub(super) muted: u64,
    pub(super) frame: Frame,
}

/// A decision, or the plugin that failed and may not be replaced.
pub(super) type Answered<'a, T> = Result<Cow<'a, T>, Cow<'a, Rejected>>;

/// End of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) decisions: u64,
    pub(super) why: EndReason,
    /// Digests of the states, by seat; only where the recording ends.
    pub(super) states: Vec<(u64, Vec<Option<[u8; 32]>>)>,
}

/// Why a file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum EndReason {
    /// It is full; the next one goes on.
    Full,
    /// The recording was stopped.
    Stopped,
    /// The disk did not keep up: decisions are missing after it.
    Gap,
}

/// The cells of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Columns<'a> {
    pub(super) rows: u32,
    pub(super) numbers: Cow<'a, [f32]>,
    pub(super) ids: Cow<'a, [u64]>,
    /// Empty, or one a row.
    pub(super) attributes: Vec<Vec<(Cow<'a, str>, Attribute)>>,
}

/// The value of an open attribute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Attribute {
    Flag(bool),
    Number(f64),
    /// The id of a text.
    Id(u64),
}

impl<'a> From<&'a Table> for Columns<'a> {
    fn from(table: &'a Table) -> Self {
        let (numbers, ids) = table.cells();
        let value = |value: &Value| match value {
            Value::Flag(flag) => Attribute::Flag(*flag),
            Value::Number(number) => Attribute::Number(*number),
            Value::Text(text) => Attribute::Id(name_id(text)),
            Value::Id(id) => Attribute::Id(*id),
        };
        let row =
            |of: &'a Attributes| of.iter().map(|(name, it)| (name.as_str().into(), value(it))).collect();
        Self {
            rows: table.rows() as u32,
            numbers: numbers.into(),
            ids: ids.into(),
            attributes: table.attributes().iter().map(row).collect(),
        }
    }
}

/// The tables of a log, in the order of [`FileHead::tables`].
pub(super) static TABLES: [&Schema; 8] = [
    &REQUEST,
    &ADMIT_FLEET,
    &ROUTE_CANDIDATE,
    &SCHEDULE_BUDGET,
    &SCHEDULE_SEQUENCE,
    &RETAIN_CACHE,
    &RETAIN_SEGMENT,
    &OBSERVE_OUTCOME,
];

impl From<&Schema> for ColumnNames {
    fn from(schema: &Schema) -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self { numbers: owned(schema.numbers), ids: owned(schema.ids) }
    }
}

impl Columns<'_> {
    /// The table that was recorded. Columns that this host does not know are left out, those that the log's did not
    /// know are 0. `None`: the cells do not fit the names.
    pub(super) fn table(&self, schema: &'static Schema, names: &ColumnNames) -> Option<Table> {
        let rows = self.rows as usize;
        let fits = self.numbers.len() == rows.checked_mul(names.numbers.len())?
            && self.ids.len() == rows.checked_mul(names.ids.len())?
            && (self.attributes.is_empty() || (schema.open && self.attributes.len() == rows));
        if !fits {
            return None;
        }
        let mut table = Table::new(schema, rows);
        for (at, name) in names.numbers.iter().enumerate() {
            if let Some(column) = schema.number(name) {
                table.numbers_mut(column).copy_from_slice(&self.numbers[at * rows..][..rows]);
            }
        }
        for (at, name) in names.ids.iter().enumerate() {
            if let Some(column) = schema.id(name) {
                table.ids_mut(column).copy_from_slice(&self.ids[at * rows..][..rows]);
            }
        }
        let value = |value: &Attribute| match value {
            Attribute::Flag(flag) => Value::Flag(*flag),
            Attribute::Number(number) => Value::Number(*number),
            Attribute::Id(id) => Value::Id(*id),
        };
        for (row, of) in self.attributes.iter().enumerate() {
            let of: Vec<_> = of.iter().map(|(name, it)| (name.to_string(), value(it))).collect();
            table.set_attributes(row, of.into());
        }
        Some(table)
    }
}
