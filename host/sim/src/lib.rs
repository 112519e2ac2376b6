//! A fleet in virtual time: the host's own router, index, scheduler, page pool and policy chain over workers whose steps take
//! the time that a cost model says.
//!
//! Called by `pointsman simulate` and by benchmarks.
//! **Invariant:** no clock is read; the same setup, workloads and chain give the same results, to the bit.

mod baseline;
mod caller;
mod compare;
mod cost;
mod fault;
mod fit;
mod fleet;
mod log;
mod names;
mod parts;
mod plot;
mod results;
mod scenario;
mod sequence;
mod series;
mod setup;
mod tier;
mod time;
mod worker;
mod workload;

use std::sync::Arc;

use policy::{ChainSpec, Generations, Metering, Runtime, RuntimeConfig};

pub use baseline::{BASELINES, chain as baseline};
pub use compare::{Comparison, Difference, compare};
pub use cost::{Batch, CostModel, Device, ModelShape};
pub use fault::{Fault, FaultKind};
pub use fit::{Fit, FitError, TimedStep};
pub use plot::plot;
pub use results::{Failures, Results, Status, Summary, Times, WorkerResult};
pub use scenario::{AgentsSetting, ArrivalsKind, PromptsSetting, Scenario, TierSetting, WorkloadSetting};
pub use series::Bin;
pub use setup::{DoorLimits, Setup, SimError, WORKERS_MAX};
pub use tier::TierKind;
pub use workload::{Arrivals, CallerHints, Workload};

/// A chain that is compiled, and decides in any number of simulations.
pub struct Chain {
    name: String,
    spec: ChainSpec,
    runtime: Arc<Runtime>,
}

impl Chain {
    /// A chain for fleets of at most so many workers.
    ///
    /// Errors: [`SimError::Policy`] when the sandbox does not start, [`SimError::Chain`] when a component cannot decide.
    pub fn new(name: impl Into<String>, spec: ChainSpec, workers: usize) -> Result<Self, SimError> {
        let instances = (workers as u32 + 1).saturating_mul(2 + spec.plugins.len() as u32);
        let config = RuntimeConfig {
            // What a policy may spend is counted in instructions: the same on every machine.
            metering: Metering::Fuel,
            instances_max: instances.max(RuntimeConfig::default().instances_max),
            ..RuntimeConfig::default()
        };
        let chain = Self { name: name.into(), spec, runtime: Runtime::new(config)? };
        // Components are compiled here, once for all simulations.
        chain.start(1)?;
        Ok(chain)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn start(&self, workers: usize) -> Result<Arc<Generations>, SimError> {
        let started = Generations::start(Arc::clone(&self.runtime), self.spec.clone(), workers);
        started.map_err(|source| SimError::Chain { chain: self.name.clone(), source })
    }
}

/// Has a fleet work through its workloads.
///
/// Cost: some microseconds a request, and those of the chain.
/// Errors: [`SimError`].
pub fn simulate(setup: &Setup, workloads: &[Workload], chain: &Chain) -> Result<Results, SimError> {
    setup.check()?;
    let generations = chain.start(setup.workers)?;
    let results = fleet::Fleet::new(setup, workloads, (&chain.name, &generations))?.run();
    Ok(Results { failures: results::Failures::of(&generations), ..results })
}

#[cfg(test)]
mod tests;
