//! What a plugin says of itself, checked: its slots, and the columns that cross to it.
//!
//! **Invariant:** a column that is not declared never crosses.

use crate::bindings::exports::pointsman::policy::describe as contract;
use crate::check::ATTRIBUTES_MAX;
use crate::slot::{
    ADMIT_FLEET, OBSERVE_OUTCOME, REQUEST, RETAIN_CACHE, RETAIN_SEGMENT, ROUTE_CANDIDATE, SCHEDULE_BUDGET,
    SCHEDULE_SEQUENCE, Slot,
};
use crate::table::{Schema, Table};

/// Longest name or version kept, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// A column that begins so is an open attribute.
const ATTRIBUTE: &str = "attr.";

/// A plugin's own words, and the projections that follow from them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) slots: Vec<Slot>,
    pub(crate) inputs: Inputs,
}

/// The declared columns of each table in each slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) admit: [Projection; 2],
    pub(crate) filter: [Projection; 2],
    pub(crate) score: [Projection; 2],
    pub(crate) pick: [Projection; 2],
    pub(crate) route: [Projection; 2],
    pub(crate) schedule: [Projection; 2],
    pub(crate) retain: [Projection; 2],
    pub(crate) observe: Projection,
}

/// Declared columns, in the order of declaration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Projection {
    numbers: Vec<Column>,
    ids: Vec<Column>,
}

/// Where a declared column comes from.
#[derive(Clone, Debug)]
enum Column {
    /// The table's own, by index.
    Own(usize),
    /// An open attribute, by name.
    Attribute(Box<str>),
}

impl Projection {
    /// Appends the declared columns of a table to a call's flat lists.
    pub(crate) fn append(&self, table: &Table, numbers: &mut Vec<f32>, ids: &mut Vec<u64>) {
        for column in &self.numbers {
            match column {
                Column::Own(index) => numbers.extend_from_slice(table.numbers(*index)),
                Column::Attribute(name) => {
                    numbers.extend(table.attributes().iter().map(|of| of.number(name)));
                    numbers.resize(numbers.len() + rows_without(table), 0.0);
                }
            }
        }
        for column in &self.ids {
            match column {
                Column::Own(index) => ids.extend_from_slice(table.ids(*index)),
                Column::Attribute(name) => {
                    ids.extend(table.attributes().iter().map(|of| of.id(name)));
                    ids.resize(ids.len() + rows_without(table), 0);
                }
            }
        }
    }
}

/// Rows of a table in which nobody set attributes.
fn rows_without(table: &Table) -> usize {
    table.rows() - table.attributes().len()
}

impl Description {
    /// Checks a plugin's words against the interfaces that it exports.
    pub(crate) fn new(said: contract::Description, exported: &[Slot]) -> Result<Self, String> {
        for slot in &said.slots {
            if !exported.iter().any(|exported| exported.as_str() == slot) {
                return Err(format!("it claims slot `{slot}`, but exports {}", list(exported)));
            }
        }
        let mut inputs = Inputs::default();
        for input in &said.inputs {
            inputs.declare(input)?;
        }
        let short = |text: String| text.chars().take(NAME_BYTES_MAX).collect();
        let slots = exported.to_vec();
        Ok(Self { name: short(said.name), version: short(said.version), slots, inputs })
    }
}

/// Slots as an operator reads them.
pub(crate) fn list(slots: &[Slot]) -> String {
    match slots.is_empty() {
        true => "no slot".to_owned(),
        false => slots.iter().map(|slot| format!("`{slot}`")).collect::<Vec<_>>().join(", "),
    }
}

impl Inputs {
    fn declare(&mut self, input: &contract::Input) -> Result<(), String> {
        let (projection, schema) = match (input.slot.as_str(), input.table.as_str()) {
            ("admit", "request") => (&mut self.admit[0], &REQUEST),
            ("admit", "fleet") => (&mut self.admit[1], &ADMIT_FLEET),
            ("filter", "request") => (&mut self.filter[0], &REQUEST),
            ("filter", "candidate") => (&mut self.filter[1], &ROUTE_CANDIDATE),
            ("score", "request") => (&mut self.score[0], &REQUEST),
            ("score", "candidate") => (&mut self.score[1], &ROUTE_CANDIDATE),
            ("pick", "request") => (&mut self.pick[0], &REQUEST),
            ("pick", "candidate") => (&mut self.pick[1], &ROUTE_CANDIDATE),
            ("route", "request") => (&mut self.route[0], &REQUEST),
            ("route", "candidate") => (&mut self.route[1], &ROUTE_CANDIDATE),
            ("schedule", "budget") => (&mut self.schedule[0], &SCHEDULE_BUDGET),
            ("schedule", "sequence") => (&mut self.schedule[1], &SCHEDULE_SEQUENCE),
            ("retain", "cache") => (&mut self.retain[0], &RETAIN_CACHE),
            ("retain", "segment") => (&mut self.retain[1], &RETAIN_SEGMENT),
            ("observe", "outcome") => (&mut self.observe, &OBSERVE_OUTCOME),
            (slot, table) => return Err(format!("slot `{slot}` has no table `{table}`")),
        };
        *projection = project(input, schema)?;
        Ok(())
    }
}

fn project(input: &contract::Input, schema: &Schema) -> Result<Projection, String> {
    let find = |kind: &str, names: &[String], known: &[&str]| {
        let attributes = if schema.open { ATTRIBUTES_MAX } else { 0 };
        if names.len() > known.len() + attributes {
            return Err(format!("{} {kind} columns of table `{}` declared", names.len(), input.table));
        }
        let source = |name: &String| {
            if let Some(attribute) = name.strip_prefix(ATTRIBUTE).filter(|_| schema.open) {
                return Ok(Column::Attribute(attribute.into()));
            }
            known.iter().position(|column| column == name).map(Column::Own).ok_or_else(|| {
                let (slot, table, known) = (&input.slot, &input.table, known.join(", "));
                format!("slot `{slot}`, table `{table}` has no {kind} column `{name}`; it has {known}")
            })
        };
        names.iter().map(source).collect::<Result<Vec<_>, _>>()
    };
    let numbers = find("number", &input.numbers, schema.numbers)?;
    Ok(Projection { numbers, ids: find("id", &input.ids, schema.ids)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Value;

    fn declare(slot: &str, table: &str, numbers: &[&str]) -> Result<Description, String> {
        let numbers = numbers.iter().map(|name| (*name).to_owned()).collect();
        let input = contract::Input { slot: slot.to_owned(), table: table.to_owned(), numbers, ids: vec![] };
        let said = contract::Description {
            name: "test".to_owned(),
            version: "1".to_owned(),
            slots: vec![slot.to_owned()],
            inputs: vec![input],
            wishes: vec![],
        };
        Description::new(said, &[Slot::Score])
    }

    #[test]
    fn columns_cross_in_the_order_of_declaration() {
        let described = declare("score", "candidate", &["running", "queue_len"]).expect("known columns");
        let mut table = Table::new(&ROUTE_CANDIDATE, 2);
        table.numbers_mut(1).copy_from_slice(&[1.0, 2.0]);
        table.numbers_mut(2).copy_from_slice(&[3.0, 4.0]);
        let (mut numbers, mut ids) = (vec![], vec![]);
        described.inputs.score[1].append(&table, &mut numbers, &mut ids);
        assert_eq!((numbers, ids), (vec![3.0, 4.0, 1.0, 2.0], vec![]));
    }

    #[test]
    fn an_open_attribute_is_a_column_and_zero_where_nobody_set_it() {
        let described = declare("score", "request", &["attr.gold", "priority"]).expect("known columns");
        let mut table = Table::new(&REQUEST, 1);
        table.numbers_mut(3)[0] = 7.0;
        let read = |table: &Table| {
            let (mut numbers, mut ids) = (vec![], vec![]);
            described.inputs.score[0].append(table, &mut numbers, &mut ids);
            numbers
        };
        assert_eq!(read(&table), [0.0, 7.0]);
        table.set_attributes(0, vec![("gold".to_owned(), Value::Flag(true))].into());
        assert_eq!(read(&table), [1.0, 7.0]);
        assert!(declare("score", "candidate", &["attr.gold"]).is_err(), "a worker has no attributes");
    }

    #[test]
    fn an_unknown_column_is_refused_with_the_known_ones() {
        let error = declare("score", "candidate", &["moon_phase"]).expect_err("no such column");
        assert!(error.contains("`moon_phase`; it has overlap_tokens, queue_len"), "{error}");
    }

    #[test]
    fn a_slot_that_is_not_exported_is_refused() {
        let error = declare("pick", "candidate", &[]).expect_err("not exported");
        assert_eq!(error, "it claims slot `pick`, but exports `score`");
    }

    #[test]
    fn a_table_of_another_slot_is_refused() {
        assert!(declare("score", "budget", &[]).is_err());
    }
}
