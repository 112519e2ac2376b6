//! Replays: every decision of a log made again, with fuel in the place of clocks.
//!
//! Called by `serve` for an operator. **Invariant:** two runs over the same log say the same, but for times.

use super::compare::Comparison;
use super::format::{By, ColumnNames, Columns, EndReason, Entry, FileHead};
use super::log::{Log, LogFile};
use super::report::{ReplayReport, sum_calls};
use super::stage::{Props, Stage};
use crate::error::{PolicyError, PrepareError};
use crate::runtime::{Runtime, RuntimeConfig};
use crate::sandbox::Metering;
use crate::slot::{
    ADMIT_FLEET, AdmitView, OBSERVE_OUTCOME, ObserveView, REQUEST, RETAIN_CACHE, RETAIN_SEGMENT,
    ROUTE_CANDIDATE, RetainView, RouteView, SCHEDULE_BUDGET, SCHEDULE_SEQUENCE, ScheduleView,
};
use crate::spec::ChainSpec;
use crate::stats::Stats;
use crate::table::{Schema, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a log was not replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The sandbox.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A file.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is no log that can be read.
    #[error("{path} {why}")]
    NoLog {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A component beside the log is not the one that it names.
    #[error("{path} is not the component that its name says")]
    Component {
        /// The file.
        path: PathBuf,
    },
    /// A chain or a component cannot decide.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A component does not take its own state.
    #[error("plugin `{plugin}` cannot go on from its recorded state: {why}")]
    State {
        /// The plugin.
        plugin: String,
        /// What it said.
        why: String,
    },
    /// A plugin that no generation of the log has.
    #[error("the log has no plugin `{plugin}`; there are {known}")]
    NoPlugin {
        /// The name.
        plugin: String,
        /// Those of the log.
        known: String,
    },
}

/// Who decides in the place of those that did.
pub(super) enum Against {
    /// The recorded chains, with other components for some plugins: bytes and where they came from.
    Recorded { plugins: BTreeMap<String, (Arc<[u8]>, String)> },
    /// Another chain.
    Chain { name: String, spec: Box<ChainSpec> },
}

/// A replay to be run.
pub struct Replay {
    runtime: Arc<Runtime>,
    against: Against,
}

impl Replay {
    /// A sandbox as replays need it: one that meters work, not time.
    pub fn runtime() -> Result<Arc<Runtime>, PolicyError> {
        Runtime::new(RuntimeConfig { metering: Metering::Fuel, ..RuntimeConfig::default() })
    }

    /// The recorded chains, with these components in the place of the recorded ones: by plugin, with their origins.
    pub fn of_recorded(runtime: Arc<Runtime>, plugins: BTreeMap<String, (Arc<[u8]>, String)>) -> Self {
        Self { runtime, against: Against::Recorded { plugins } }
    }

    /// Another chain, with a name for the report. Requests of a named chain go to the one of that name if there is
    /// one.
    pub fn of_chain(runtime: Arc<Runtime>, name: String, spec: ChainSpec) -> Self {
        Self { runtime, against: Against::Chain { name, spec: Box::new(spec) } }
    }

    /// Makes every decision of a log again: of a file, or of all files of a folder.
    pub fn run(&self, log: &Path) -> Result<ReplayReport, ReplayError> {
        let log = Log::open(log)?;
        let props = Props { runtime: &self.runtime, against: &self.against, folder: log.folder };
        let mut run = Run { props, stage: None, gathered: Gathered::default() };
        for path in &log.files {
            run.file(path)?;
        }
        run.leave_stage();
        let gathered = run.gathered;
        if let Against::Recorded { plugins } = &self.against
            && let Some(plugin) = plugins.keys().find(|name| !gathered.plugins.contains(*name))
        {
            let known = gathered.plugins.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(ReplayError::NoPlugin { plugin: plugin.clone(), known });
        }
        Ok(self.report(gathered, log.files.len()))
    }

    fn report(&self, gathered: Gathered, files: usize) -> ReplayReport {
        let as_recorded = matches!(self.against, Against::Recorded { .. }) && gathered.replaced.is_empty();
        let against = match &self.against {
            Against::Chain { name, .. } => name.clone(),
            Against::Recorded { .. } if as_recorded => "the recorded chain".to_owned(),
            Against::Recorded { plugins } => {
                let replaced = plugins.iter().filter(|(name, _)| gathered.replaced.contains(*name));
                let words = replaced.map(|(name, (_, origin))| format!("{name} from {origin}"));
                format!("the recorded chain with {}", words.collect::<Vec<_>>().join(", "))
            }
        };
        ReplayReport {
            against,
            as_recorded,
            files,
            records: gathered.records,
            comparison: gathered.comparison,
            calls: sum_calls(&gathered.stats),
            missed_again: gathered.missed_again,
            states: gathered.digests,
            states_checked: gathered.states.0,
            states_equal: gathered.states.1,
            unknown: gathered.unknown,
            notes: gathered.notes,
        }
    }
}

/// What a run has found out.
#[derive(Default)]
struct Gathered {
    comparison: Comparison,
    records: u64,
    stats: Vec<(String, Arc<Stats>)>,
    plugins: BTreeSet<String>,
    replaced: BTreeSet<String>,
    unknown: BTreeMap<String, String>,
    states: (u64, u64),
    digests: BTreeMap<String, Vec<String>>,
    missed_again: u64,
    notes: Vec<String>,
}

struct Run<'a> {
    props: Props<'a>,
    // With the recording and the number of the file that may go on from it.
    stage: Option<(Stage<'a>, Option<(u64, u64)>)>,
    gathered: Gathered,
}

impl Run<'_> {
    fn file(&mut self, path: &Path) -> Result<(), ReplayError> {
        let file = LogFile::read(path)?;
        let Some((head, mut entries)) = file.entries()? else {
            self.gathered.notes.push(format!("{}: it is cut off before its first decision", path.display()));
            self.leave_stage();
            return Ok(());
        };
        let goes_on = head.continues
            && self.stage.as_ref().is_some_and(|(_, next)| *next == Some((head.recording, head.number)));
        if !goes_on {
            self.leave_stage();
            let stage = Stage::new(self.props.clone(), head.workers as usize, head.slots.clone());
            self.stage = Some((stage, None));
        }
        let mut next = None;
        let mut ended = false;
        for entry in entries.by_ref() {
            match entry {
                Entry::End(end) => {
                    ended = true;
                    match end.why {
                        EndReason::Full => next = Some((head.recording, head.number + 1)),
                        EndReason::Gap => self.gathered.notes.push(format!(
                            "{}: decisions after it were not recorded: the disk did not keep up",
                            path.display()
                        )),
                        EndReason::Stopped => {}
                    }
                    if let Some((stage, _)) = &mut self.stage {
                        stage.compare_all(&end.states);
                    }
                }
                entry => self.entry(&head, entry).map_err(|error| match error {
                    Trouble::Replay(error) => error,
                    Trouble::Entry(why) => ReplayError::NoLog { path: path.to_owned(), why: why.into() },
                })?,
            }
        }
        match file.note(&entries.tail) {
            Some(note) => self.gathered.notes.push(note),
            None if !ended => self
                .gathered
                .notes
                .push(format!("{}: it was not closed; its last decisions may be missing", path.display())),
            None => {}
        }
        if let Some((_, goes_on)) = &mut self.stage {
            *goes_on = next;
        }
        Ok(())
    }

    /// Takes what the stage has found out.
    fn leave_stage(&mut self) {
        let Some((stage, _)) = self.stage.take() else { return };
        let gathered = &mut self.gathered;
        gathered.digests = stage.digests();
        gathered.stats.extend(stage.stats);
        gathered.replaced.extend(stage.replaced);
        gathered.unknown.extend(stage.unknown);
        gathered.states.0 += stage.states.0;
        gathered.states.1 += stage.states.1;
    }

    fn entry(&mut self, head: &FileHead, entry: Entry<'_>) -> Result<(), Trouble> {
        let Some((stage, _)) = &mut self.stage else { return Ok(()) };
        match entry {
            Entry::Generation(generation) => {
                self.gathered.plugins.extend(generation.plugins.iter().map(|plugin| plugin.name.clone()));
                return stage.enter(&generation).map_err(Trouble::Replay);
            }
            Entry::Late(late) => {
                self.gathered.missed_again += stage.expect_late(late);
                return Ok(());
            }
            Entry::File(_) | Entry::End(_) => return Err(Trouble::Entry("has two heads")),
            decision => {
                let tables = Tables { names: &head.tables };
                decide(stage, &mut self.gathered.comparison, &tables, decision)?;
            }
        }
        self.gathered.missed_again -= stage.forget_late();
        self.gathered.records += 1;
        Ok(())
    }
}

/// Why an entry was not replayed.
enum Trouble {
    Replay(ReplayError),
    Entry(&'static str),
}

/// From cells to tables.
struct Tables<'a> {
    names: &'a [ColumnNames],
}

impl Tables<'_> {
    fn table(&self, columns: &Columns<'_>, schema: &'static Schema) -> Result<Table, Trouble> {
        let at = super::format::TABLES.iter().position(|known| std::ptr::eq(*known, schema));
        let names = at.and_then(|at| self.names.get(at));
        names
            .and_then(|names| columns.table(schema, names))
            .ok_or(Trouble::Entry("has a table whose cells do not fit its columns"))
    }
}

const STRAY: Trouble = Trouble::Entry("has a decision of a generation that it does not describe");

/// Makes one decision again and compares.
fn decide(
    stage: &Stage<'_>,
    comparison: &mut Comparison,
    tables: &Tables<'_>,
    entry: Entry<'_>,
) -> Result<(), Trouble> {
    let who = |by: &By| stage.who(by).ok_or(STRAY);
    match entry {
        Entry::Admit { by, request, fleet, answer } => {
            let (request, fleet) = (tables.table(&request, &REQUEST)?, tables.table(&fleet, &ADMIT_FLEET)?);
            let (generation, way) = who(&by)?;
            let view = AdmitView { frame: by.frame, request: &request, fleet: &fleet };
            comparison.admit(&answer, &generation.admit(way, &view));
        }
        Entry::Route { by, request, candidates, answer } => {
            let (request, candidates) =
                (tables.table(&request, &REQUEST)?, tables.table(&candidates, &ROUTE_CANDIDATE)?);
            let (generation, way) = who(&by)?;
            let view = RouteView { frame: by.frame, request: &request, candidates: &candidates };
            comparison.route(&view, &answer, &generation.route(way, &view));
        }
        Entry::Schedule { by, worker, budget, waiting, running, answer } => {
            let budget = tables.table(&budget, &SCHEDULE_BUDGET)?;
            let waiting = tables.table(&waiting, &SCHEDULE_SEQUENCE)?;
            let running = tables.table(&running, &SCHEDULE_SEQUENCE)?;
            let (generation, _) = who(&by)?;
            let view =
                ScheduleView { frame: by.frame, budget: &budget, waiting: &waiting, running: &running };
            comparison.schedule(&answer, &generation.schedule(worker as usize, &view));
        }
        Entry::Retain { by, worker, cache, segments, answer } => {
            let (cache, segments) =
                (tables.table(&cache, &RETAIN_CACHE)?, tables.table(&segments, &RETAIN_SEGMENT)?);
            let (generation, _) = who(&by)?;
            let view = RetainView { frame: by.frame, cache: &cache, segments: &segments };
            comparison.retain(&answer, &generation.retain(worker as usize, &view));
        }
        Entry::Clipped { by, worker, clips } => {
            comparison.clipped += clips.len() as u64;
            who(&by)?.0.clipped(worker as usize, by.frame, &clips);
        }
        Entry::Observe { by, outcomes } => {
            let outcomes = tables.table(&outcomes, &OBSERVE_OUTCOME)?;
            let (generation, way) = who(&by)?;
            comparison.outcomes += outcomes.rows() as u64;
            generation.observe(way, &ObserveView { frame: by.frame, outcomes: &outcomes });
        }
        Entry::File(_) | Entry::Generation(_) | Entry::Late(_) | Entry::End(_) => {}
    }
    Ok(())
}
