//! What computes for each worker: which devices are used, and executors on them.
//!
//! Asked at start, and by a worker whose device was lost. The weights stay in memory of the host, to be put on a device again.
//! **Invariant:** a machine that lacks a device that is asked for serves all the same, on those that it has or on its cores,
//! unless the devices are required.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::{
    CpuConfig, CpuExec, CudaConfig, CudaDevice, CudaExec, EngineError, Executor, Model, ModelFiles, Pace,
    SimConfig, SimExec, WeightFormat,
};

use crate::app::StartError;
use crate::config::{Adapter, Config, Device, Engine, Kv, Schedule, cuda_name};
use crate::ctx::Ctx;
use crate::model::{ServedModel, draft_files};
use crate::worker::{Executors, Make, draft_step_tokens_max};

/// How often the log says how far the weights are loaded.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What computes for one worker.
pub struct Ready {
    /// Its executors.
    pub executors: Executors,
    /// Makes others like them.
    pub make: Make,
}

/// Loads the weights, and makes executors for each worker.
///
/// Cost: reads all weights. Errors: those of the model's files, and of devices that are required.
pub fn open(config: &Config, model: &ServedModel, ctx: &Ctx) -> Result<Vec<Ready>, StartError> {
    open_first(config, model, ctx, config.engine.workers)
}

/// As [`open`], for the first so many of the workers alone: each gets what it gets among all of them.
pub fn open_first(
    config: &Config,
    model: &ServedModel,
    ctx: &Ctx,
    workers: usize,
) -> Result<Vec<Ready>, StartError> {
    let mut devices = usable(&config.engine, engine::cuda_devices)?;
    let source = Arc::new(Source::load(config, model, ctx)?);
    // Each turn is the last, or leaves out a device.
    loop {
        let Failed { device, error } = match first(&source, &devices, workers) {
            Ok(ready) => return Ok(ready),
            Err(failed) => failed,
        };
        match (device, &error) {
            (Some(device), EngineError::Device(_) | EngineError::Lost { .. }) => {
                devices.retain(|other| *other != device);
                lack(&config.engine, &format!("`{}`: {error}", cuda_name(device)), &devices)?;
            }
            _ => return Err(error.into()),
        }
    }
}

/// Those of the devices that are asked for that are there; none where the CPU computes, or nobody.
fn usable(
    engine: &Engine,
    there: impl FnOnce() -> Result<Vec<CudaDevice>, EngineError>,
) -> Result<Vec<u32>, StartError> {
    let asked = engine.device.cuda();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let there = match there() {
        Ok(there) => there,
        Err(error) => {
            lack(engine, &error.to_string(), &[])?;
            return Ok(Vec::new());
        }
    };
    let is_there = |asked: &u32| there.iter().any(|device| device.index == *asked);
    let (devices, missing): (Vec<u32>, Vec<u32>) = asked.iter().partition(|asked| is_there(asked));
    if !missing.is_empty() {
        let list = |devices: &mut dyn Iterator<Item = String>| devices.collect::<Vec<_>>().join("`, `");
        let missing = list(&mut missing.iter().copied().map(cuda_name));
        let has = match there.is_empty() {
            true => "no CUDA device".to_owned(),
            false => format!("`{}`", list(&mut there.iter().map(|device| cuda_name(device.index)))),
        };
        lack(engine, &format!("`{missing}` is not there; this machine has {has}"), &devices)?;
    }
    Ok(devices)
}

/// Something that is asked for is not there: an error where it is required, else said in the log. `left`: what computes
/// instead; none means the CPU.
fn lack(engine: &Engine, problem: &str, left: &[u32]) -> Result<(), StartError> {
    if engine.device_required {
        return Err(StartError::Device(problem.to_owned()));
    }
    match left.is_empty() {
        true => tracing::warn!(error = problem, "no CUDA device can be used; the CPU computes instead"),
        false => {
            tracing::warn!(error = problem, "a CUDA device cannot be used; the others compute instead");
        }
    }
    Ok(())
}

/// Executors for the first so many workers; all take turns over the devices.
fn first(source: &Arc<Source>, devices: &[u32], count: usize) -> Result<Vec<Ready>, Failed> {
    let workers = source.engine.workers;
    let ready = |worker: usize| {
        let device = devices.get(worker % devices.len().max(1)).copied();
        let place = device.map(|device| {
            // Those behind it at the same place of the list.
            let followers = (workers - 1 - worker) / devices.len();
            Place { device, followers: followers as u32 }
        });
        let decodes = source.engine.role(worker).decodes();
        let mut maker = Maker { source: Arc::clone(source), place, decodes, kv_bytes: 0 };
        let executors = maker.make().map_err(|error| Failed { device, error })?;
        Ok(Ready { executors, make: Box::new(move || maker.make()) })
    };
    (0..count).map(ready).collect()
}

/// Threads of a worker that computes on this machine's cores.
pub fn threads_per_worker(engine: &Engine) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match engine.threads_per_worker {
        0 => (cores / engine.workers).max(1),
        n => n,
    }
}

/// Why there is no executor.
struct Failed {
    device: Option<u32>,
    error: EngineError,
}

/// What executors are made of.
struct Source {
    engine: Engine,
    kv: Kv,
    schedule: Schedule,
    context_max: u32,
    /// Memory for KV of the draft model.
    draft_mib: u64,
    models: Models,
}

/// The served model, and the draft model if there is one.
enum Models {
    Real { served: Arc<Model>, draft: Option<Arc<Model>> },
    Sim { served: Box<SimConfig>, draft: bool },
}

impl Source {
    fn load(config: &Config, model: &ServedModel, ctx: &Ctx) -> Result<Self, StartError> {
        let draft = draft_files(&config.model, model)?;
        let models = match config.engine.device {
            Device::Sim => {
                Models::Sim { served: Box::new(sim_config(config, model)), draft: draft.is_some() }
            }
            Device::Cpu | Device::Cuda(_) => {
                let load = |files| load(files, config.engine.weights.into(), ctx).map(Arc::new);
                let served = Arc::new(weights(config, model, ctx)?);
                Models::Real { served, draft: draft.as_ref().map(load).transpose()? }
            }
        };
        Ok(Self {
            engine: config.engine.clone(),
            kv: config.kv.clone(),
            schedule: config.schedule.clone(),
            context_max: config.model.context_tokens_max,
            draft_mib: config.model.draft.memory_mib_per_worker,
            models,
        })
    }

    fn draft(&self, place: Option<Place>) -> Result<Option<Box<dyn Executor>>, EngineError> {
        match (&self.models, place) {
            (Models::Real { draft: None, .. } | Models::Sim { draft: false, .. }, _) => Ok(None),
            (Models::Real { draft: Some(model), .. }, None) => self.cpu(model, self.draft_mib).map(Some),
            (Models::Real { draft: Some(model), .. }, Some(place)) => {
                let rows = self.schedule.step_rows_max;
                let tokens = self.schedule.step_tokens_max.max(draft_step_tokens_max(rows));
                self.cuda(model, place, (self.draft_mib << 20, tokens)).map(Some)
            }
            (Models::Sim { served, .. }, _) => {
                // It costs nothing, and says what the served one says.
                let free = SimConfig {
                    step_us: 0.0,
                    prefill_us_per_token: 0.0,
                    decode_us_per_row: 0.0,
                    lost_after_steps: 0,
                    ..SimConfig::clone(served)
                };
                Ok(Some(Box::new(SimExec::new(free)?)))
            }
        }
    }

    /// `kv_bytes`: memory for KV on a GPU; 0 takes what is free.
    fn served(&self, place: Option<Place>, kv_bytes: u64) -> Result<Box<dyn Executor>, EngineError> {
        match (&self.models, place) {
            (Models::Real { served, .. }, None) => self.cpu(served, self.kv.memory_mib_per_worker),
            (Models::Real { served, .. }, Some(place)) => {
                self.cuda(served, place, (kv_bytes, self.schedule.step_tokens_max))
            }
            (Models::Sim { served, .. }, _) => Ok(Box::new(SimExec::new(SimConfig::clone(served))?)),
        }
    }

    /// An executor on this machine's cores, whose KV takes so much memory.
    fn cpu(&self, model: &Arc<Model>, kv_mib: u64) -> Result<Box<dyn Executor>, EngineError> {
        let threads = threads_per_worker(&self.engine);
        let block_tokens = self.kv.block_tokens;
        let pages = (kv_mib << 20) / model.config.page_bytes(block_tokens);
        let cpu = CpuConfig {
            threads,
            pages: u32::try_from(pages).unwrap_or(u32::MAX).max(1),
            block_tokens,
            context_max: self.context_max,
            ..CpuConfig::default()
        };
        Ok(Box::new(CpuExec::new(Arc::clone(model), cpu)?))
    }

    /// An executor on a GPU, with so much memory for KV or a share of what is free there, for steps of so many tokens.
    fn cuda(
        &self,
        model: &Arc<Model>,
        Place { device, followers }: Place,
        (kv_bytes, step_tokens_max): (u64, u32),
    ) -> Result<Box<dyn Executor>, EngineError> {
        let cuda = CudaConfig {
            device,
            kv_bytes,
            followers,
            reserve_bytes: self.kv.gpu_reserve_mib << 20,
            block_tokens: self.kv.block_tokens,
            context_max: self.context_max,
            step_tokens_max,
            step_rows_max: self.schedule.step_rows_max,
        };
        Ok(Box::new(CudaExec::new(model, cuda)?))
    }
}

/// Where on a GPU an executor is made.
#[derive(Clone, Copy)]
struct Place {
    device: u32,
    /// Workers that have the same device and come after this one.
    followers: u32,
}

/// Makes the executors of one worker.
struct Maker {
    source: Arc<Source>,
    /// `None` on this machine's cores, or nowhere.
    place: Option<Place>,
    /// Whether it answers: who computes prompts alone draws nothing, and needs no draft model.
    decodes: bool,
    /// Memory that the KV of the first one took on a GPU; 0 until then.
    kv_bytes: u64,
}

impl Maker {
    fn make(&mut self) -> Result<Executors, EngineError> {
        // The draft model comes first: pages of the served one may take all that is left of a GPU.
        let draft = if self.decodes { self.source.draft(self.place)? } else { None };
        let kv_bytes = match self.kv_bytes {
            0 => self.source.kv.gpu_memory_mib_per_worker << 20,
            // Its successor has as many pages, whatever is free then.
            taken => taken,
        };
        let served = self.source.served(self.place, kv_bytes)?;
        let shape = served.caps().kv;
        self.kv_bytes = u64::from(shape.pages) * shape.page_bytes;
        Ok(Executors { served, draft })
    }
}

/// Loads the weights; while that takes long, the log says how far it is.
fn load(files: &ModelFiles, format: WeightFormat, ctx: &Ctx) -> Result<Model, EngineError> {
    let mut told = ctx.now();
    Model::load_telling(files, format, &mut |share| {
        if ctx.now().saturating_sub(told) >= PROGRESS_EVERY {
            told = ctx.now();
            tracing::info!(percent = (share * 100.0) as u32, "loading weights");
        }
    })
}

/// The model with its adapters.
fn weights(config: &Config, model: &ServedModel, ctx: &Ctx) -> Result<Model, StartError> {
    let mut weights = load(&model.files, config.engine.weights.into(), ctx)?;
    for Adapter { name, source } in &config.model.adapters {
        let refused = |source| StartError::Adapter { name: name.clone(), source };
        weights.add_adapter(Path::new(source)).map_err(refused)?;
    }
    Ok(weights)
}

fn sim_config(config: &Config, model: &ServedModel) -> SimConfig {
    let sim = &config.engine.sim;
    let block_tokens = config.kv.block_tokens;
    // A simulated page costs no memory; as many as a model of 64 KiB a token would have.
    let pages = (config.kv.memory_mib_per_worker << 20) / (u64::from(block_tokens) << 16);
    SimConfig {
        pages: u32::try_from(pages)
            .unwrap_or(u32::MAX)
            .max(config.model.context_tokens_max.div_ceil(block_tokens)),
        block_tokens,
        context_max: config.model.context_tokens_max,
        vocab: model.tokenizer.vocab_size(),
        tokens: model.tokenizer.text_tokens(),
        step_us: sim.step_us,
        prefill_us_per_token: sim.prefill_us_per_token,
        decode_us_per_row: sim.decode_us_per_row,
        adapters: config.model.adapters.len() as u32,
        lost_after_steps: sim.lost_after_steps,
        pace: Pace::Real,
        ..SimConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        (asked, required): (&str, bool),
        there: Result<&[u32], &str>,
        expected: Result<&[u32], &[&str]>,
    ) {
        let text = format!("device = {asked}\ndevice_required = {required}\nworkers = 4");
        let engine: Engine = toml::from_str(&text).expect(&text);
        let device = |index: &u32| CudaDevice {
            index: *index,
            name: "GPU".to_owned(),
            compute: (9, 0),
            memory_bytes: 80 << 30,
            multiprocessors: 132,
        };
        let there = || match there {
            Ok(there) => Ok(there.iter().map(device).collect()),
            Err(why) => Err(EngineError::Device(why.to_owned())),
        };
        match (usable(&engine, there), expected) {
            (Ok(devices), Ok(expected)) => assert_eq!(devices, expected, "{text}"),
            (Err(error), Err(words)) => {
                for word in words {
                    assert!(error.to_string().contains(word), "{text}: `{word}` is missing in {error}");
                }
            }
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn devices_that_are_not_there_are_left_out_or_refused() {
        let none = Err("there is no driver");
        check(("\"cpu\"", true), none, Ok(&[]));
        check(("\"cuda\"", false), none, Ok(&[]));
        check(("\"cuda\"", true), none, Err(&["`engine.device`", "there is no driver", "device_required"]));
        check(("\"cuda:1\"", true), Ok(&[0, 1]), Ok(&[1]));
        check(("\"cuda:1\"", false), Ok(&[0]), Ok(&[]));
        check(("\"cuda:1\"", true), Ok(&[0]), Err(&["`cuda:1` is not there", "has `cuda:0`"]));
        check(("\"cuda\"", true), Ok(&[]), Err(&["`cuda:0` is not there", "no CUDA device"]));
        let three = "[\"cuda:2\", \"cuda:0\", \"cuda:5\"]";
        check((three, false), Ok(&[0, 1, 2]), Ok(&[2, 0]));
        check(
            (three, true),
            Ok(&[0, 1]),
            Err(&["`cuda:2`, `cuda:5` is not there", "has `cuda:0`, `cuda:1`"]),
        );
    }
}
