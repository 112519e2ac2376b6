//! `pointsman bench`: a load generator for OpenAI and Anthropic endpoints, with agents in mind.
//!
//! Sessions of many turns, each of which resends the whole history. A run is made of [`BenchArgs`] and
//! ends with a [`Report`]; the README beside says what each figure means.
//!
//! **Invariant:** everything is bounded: requests, requests in flight, sessions, kept samples, bytes of an answer.

mod options;
mod plan;

mod run;
mod session;

mod api;
mod conversation;
mod identity;
mod text;
mod workload;

mod calibrate;
mod caller;
mod failure;
mod hearing;
mod sse;

mod clock;
mod gate;
mod histogram;
mod progress;
mod tally;

mod error;
mod report;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use calibrate::Calibrated;
use caller::Caller;
use clock::{Alarms, Clock, Moment};
pub use error::LoadError;
use gate::{Ended, Gate};
pub use options::BenchArgs;
use plan::Plan;
use progress::Progress;
pub use report::Report;
use report::Seen;
use run::{InFlight, Run};
use tally::Tally;
use text::Writer;
use workload::Source;

/// Runs a load and writes the reports that were asked for.
///
/// Errors: [`LoadError`], all but [`LoadError::Write`] before anything is measured. Requests that fail are no error: the
/// report tells of them.
pub fn run(args: &BenchArgs) -> Result<Report, LoadError> {
    let (plan, source) = args.checked()?;
    let (json, html) = (plan.json.clone(), plan.html.clone());
    allow_connections();
    let report = runtime(plan.threads)?.block_on(bench(plan, source))?;
    if let Some(path) = json {
        write(&path, &report.json())?;
    }
    if let Some(path) = html {
        write(&path, &report.page())?;
    }
    Ok(report)
}

fn runtime(threads: usize) -> std::io::Result<Runtime> {
    // One thread without a scheduler between threads is what costs the server's cores least.
    let mut builder = if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.worker_threads(threads).enable_all().build()
}

/// Has as many files as this process may have: each request in flight is a connection, and shells give it 1,024.
fn allow_connections() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is refused, requests beyond the limit fail, and say why.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn write(path: &Path, text: &str) -> Result<(), LoadError> {
    std::fs::write(path, text).map_err(|source| LoadError::Write { path: path.to_owned(), source })
}

async fn bench(plan: Plan, source: Source) -> Result<Report, LoadError> {
    let clock = Clock::start();
    let alarms = Alarms::start(clock)?;
    let caller = Caller::new(&plan.target, clock)?;
    let model = match &plan.model {
        Some(model) => model.clone(),
        None => {
            let asked = caller.first_model().await;
            asked.map_err(|why| LoadError::Model { base: plan.target.base.clone(), why })?
        }
    };
    let head = plan.target.api.head(&model, &plan.extra);
    let calibrated = Calibrated::of(&plan, &head, &caller).await;
    let begun = clock.now();
    let run = Arc::new(Run {
        head,
        clock,
        alarms,
        caller,
        writer: Arc::new(Writer::new(calibrated.tokens_per_word)),
        source,
        gate: Gate::new(plan.bounds, begun),
        tally: Mutex::new(Tally::default()),
        in_flight: InFlight::default(),
        stop: watch::Sender::new(false),
        begun,
        plan,
    });
    let cpu = clock::cpu();
    let (ended, stopped) = conduct(&run).await?;
    let seen = Seen {
        ended,
        stopped,
        took: run.clock.now() - begun,
        cpu: clock::cpu() - cpu,
        unfinished: run.in_flight.now(),
        in_flight_max: run.in_flight.max(),
        calibrated,
        model,
    };
    let tally = std::mem::take(&mut *run.tally.lock());
    Ok(Report::new(&run, &tally, seen))
}

/// Runs until something ends it, and waits for what is in flight then, as long as that deserves. Says why it ended, and
/// when, if that was before its requests had.
async fn conduct(run: &Arc<Run>) -> Result<(Ended, Option<Moment>), LoadError> {
    let mut drive = std::pin::pin!(Arc::clone(run).drive());
    let interrupted = tokio::signal::ctrl_c();
    let mut interrupted = std::pin::pin!(interrupted);
    let mut progress = std::pin::pin!(Progress::new(run).show());
    let ended = tokio::select! {
        () = &mut drive => Ended::Sessions,
        ended = run.bounded() => ended,
        signal = &mut interrupted => { signal?; Ended::Interrupted },
        () = &mut progress => unreachable!("progress is shown until it is dropped"),
    };
    run.stop.send_replace(true);
    let stopped = run.clock.now();
    let grace = match ended {
        Ended::Sessions | Ended::Interrupted => Duration::ZERO,
        // Who asked for a number of requests wants all of them; each has its own limit.
        Ended::Requests => run.plan.target.timeout,
        Ended::Duration | Ended::Unreachable => run.plan.bounds.grace,
    };
    if ended != Ended::Sessions {
        tokio::select! {
            // What is still in flight then is cut, and told as unfinished.
            _ = tokio::time::timeout(grace, &mut drive) => {}
            signal = &mut interrupted, if ended != Ended::Interrupted => signal?,
            () = &mut progress => unreachable!("progress is shown until it is dropped"),
        }
    }
    // Sessions may have ended because no request may begin any more.
    let ended = match ended {
        Ended::Sessions => run.gate.over(stopped).unwrap_or(ended),
        ended => ended,
    };
    let is_cut = matches!(ended, Ended::Duration | Ended::Interrupted | Ended::Unreachable);
    Ok((ended, is_cut.then_some(stopped)))
}
