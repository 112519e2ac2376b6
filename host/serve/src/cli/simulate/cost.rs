//! What steps cost, where the command line has to find it out: from a file, or from a worker that it times.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use sim::{CostModel, Fit, Scenario, Setup};

use super::measure::{Measured, limits, measure};
use super::shape::Limits;
use crate::app::StartError;
use crate::config::{Config, Device, Weights};
use crate::ctx::Ctx;
use crate::devices::{open_first, threads_per_worker};
use crate::model::ServedModel;
use crate::telemetry;

#[derive(Debug, Args)]
pub(super) struct CostArgs {
    /// What steps cost: `4xh200/llama-70b`, `polynomial`, `fixed:PREFILL_MS,DECODE_MS`, `linear:…`, a `FILE.toml` with
    /// `[costs]`, or `measured`: what steps of a worker take here and now.
    #[arg(long)]
    cost: Option<String>,
    /// For `measured`: the configuration of the worker, which has its model and device; without one, the default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// For `measured`: how long its steps are timed, about; 20 if it is not said.
    #[arg(long, value_name = "SECONDS")]
    measure_s: Option<f64>,
    /// For `measured`: write what was found, for `--cost FILE.toml` and scenarios.
    #[arg(long, value_name = "FILE")]
    cost_out: Option<PathBuf>,
}

/// The word that has a worker timed.
const MEASURED: &str = "measured";
/// Chosen: 30 shapes of a real model, a good dozen times each.
const MEASURE_S: f64 = 20.0;

/// A file of coefficients.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CostFile {
    costs: CostModel,
}

impl CostArgs {
    /// Overrules what a scenario says of costs, and reads them if they are in a file, whose path is relative to `folder` in a
    /// scenario. Says whether they are to be measured; until then steps cost nothing.
    pub(super) fn settle(&self, scenario: &mut Scenario, folder: &Path) -> anyhow::Result<bool> {
        let mut folder = folder;
        if let Some(cost) = &self.cost {
            (scenario.cost, scenario.costs) = (cost.clone(), None);
            folder = Path::new("");
        }
        let measured = scenario.costs.is_none() && scenario.cost == MEASURED;
        let flags = [
            ("config", self.config.is_some()),
            ("measure-s", self.measure_s.is_some()),
            ("cost-out", self.cost_out.is_some()),
        ];
        if let Some((flag, _)) = flags.iter().find(|(_, given)| *given && !measured) {
            bail!("`--{flag}` is for costs that are measured; add `--cost measured`");
        }
        if let Some(seconds) = self.measure_s {
            ensure!(
                (0.1..=3600.0).contains(&seconds),
                "`--measure-s` is {seconds}; it lies between 0.1 and 3600"
            );
        }
        if measured {
            scenario.costs = Some(CostModel::ZERO);
        } else if scenario.costs.is_none() && scenario.cost.ends_with(".toml") {
            scenario.costs = Some(read(&folder.join(&scenario.cost))?);
        }
        Ok(measured)
    }

    /// Times a worker's steps, prints the coefficients that say them best, and writes them where that is asked for.
    pub(super) fn measure(&self, setup: &Setup) -> anyhow::Result<CostModel> {
        let (worker, measured) = self.time()?;
        let fit = Fit::new(&measured.steps).with_context(|| format!("steps of {}", worker.device))?;
        let text = table(&worker, &measured, &fit)?;
        println!("{text}");
        let (tokens, rows) = (worker.limits.tokens_max, worker.limits.rows_max);
        if setup.step_tokens_max > tokens || setup.step_rows_max > rows {
            eprintln!(
                "remark: steps of the fleet have up to {} tokens and {} sequences (`step_tokens_max` and `step_rows_max` of the \
                 scenario), those of the worker {tokens} and {rows}; what larger ones cost was not timed",
                setup.step_tokens_max, setup.step_rows_max
            );
        }
        if let Some(path) = &self.cost_out {
            super::write(path, &text)?;
        }
        Ok(fit.model)
    }

    fn time(&self) -> anyhow::Result<(Worker, Measured)> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::parse("")?,
        };
        // As in the demo: the log is not what is to be read here.
        let filter = if self.config.is_some() { config.telemetry.log.as_str() } else { "warn" };
        telemetry::init_logs(filter).map_err(anyhow::Error::msg)?;
        // Another device than the one that is asked for would be measured under its name, and a draft model for nothing.
        config.engine.device_required = true;
        config.model.draft.source.clear();
        let ctx = Ctx::system();
        let seconds = self.measure_s.unwrap_or(MEASURE_S);
        eprintln!("loading {}, to time its steps for about {seconds} s", crate::model::name(&config.model));
        let model = ServedModel::load(&config.model)?;
        let opened = open_first(&config, &model, &ctx, 1).map_err(|error| match error {
            StartError::Device(problem) => anyhow::anyhow!("`engine.device`: {problem}"),
            other => other.into(),
        })?;
        let mut executor = opened.into_iter().next().context("there is a first worker")?.executors.served;
        let worker =
            Worker::new(&config, &model, limits(executor.as_ref(), &config.schedule), &executor.caps().name);
        let span = Duration::from_secs_f64(seconds);
        let measured = measure(executor.as_mut(), &config.schedule, &model.sampling, (&ctx, span))?;
        Ok((worker, measured))
    }
}

fn read(path: &Path) -> anyhow::Result<CostModel> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: CostFile = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(file.costs)
}

/// Who was timed.
struct Worker {
    model: String,
    /// The executor, and how much of the machine it has.
    device: String,
    limits: Limits,
}

impl Worker {
    fn new(config: &Config, model: &ServedModel, limits: Limits, executor: &str) -> Self {
        let weights = match config.engine.weights {
            Weights::Bf16 => "bf16",
            Weights::Int8 => "int8",
        };
        let threads = threads_per_worker(&config.engine);
        Self {
            model: format!("{} in {weights}", model.name),
            device: match config.engine.device {
                Device::Cpu if threads == 1 => format!("{executor} with 1 thread"),
                Device::Cpu => format!("{executor} with {threads} threads"),
                Device::Sim | Device::Cuda(_) => executor.to_owned(),
            },
            limits,
        }
    }
}

/// The coefficients as TOML, with who was timed, how, and how well they say it.
fn table(worker: &Worker, measured: &Measured, fit: &Fit) -> anyhow::Result<String> {
    let Measured { shapes, rounds, left_out, .. } = measured;
    let Limits { tokens_max, rows_max, pages, block_tokens, .. } = worker.limits;
    let (worst, error) = fit.worst();
    let mut text = format!(
        "# Steps of {} on {}, timed by `pointsman simulate --cost measured`, version {}.\n",
        worker.model,
        worker.device,
        env!("CARGO_PKG_VERSION")
    );
    let most = |of: fn(&super::shape::Shape) -> u32| shapes.iter().map(of).max().unwrap_or(0);
    writeln!(
        text,
        "# {} kinds of steps, each {rounds} times: prompts by up to {} tokens, up to {} answers, contexts of up to {} tokens.",
        shapes.len(),
        most(|shape| shape.chunk),
        most(|shape| shape.rows),
        most(|shape| shape.depth.max(shape.context)),
    )?;
    if *left_out > 0 {
        writeln!(text, "# {left_out} more kinds would have taken too long: see `--measure-s`.")?;
    }
    writeln!(
        text,
        "# These coefficients are off by {:.1} % in the median, at worst by {:+.1} %: {}.",
        100.0 * fit.error_median(),
        100.0 * error,
        shapes[worst],
    )?;
    if !fit.untold.is_empty() {
        writeln!(text, "# 0 because those steps do not tell them from others: {}.", fit.untold.join(", "))?;
    }
    writeln!(
        text,
        "# In a scenario of such workers: blocks = {pages}, block_tokens = {block_tokens}, step_tokens_max = {tokens_max}, \
         step_rows_max = {rows_max}."
    )?;
    text += &toml::to_string(&CostFile { costs: fit.model })?;
    Ok(text)
}
