//! The `admit` slot: which requests come in, which wait at the door, which are turned away.
//!
//! **Invariant:** a request comes in, or is refused, within `limits.defer_ms_max`, whatever policies say; a
//! client that leaves meanwhile takes its place at the door with it.

use std::time::Duration;

use decide::House;
use policy::{AdmitView, Pin, Slot, Table, Verdict};

use crate::app::App;
use crate::door::{Count, Place};
use crate::request::Refusal;
use crate::telemetry::Admission;

/// Chosen: a policy that defers to the present must not spin.
const STEP_MIN: Duration = Duration::from_millis(1);
/// Chosen: a caller that is sent away for longer had better ask a person.
const RETRY_AFTER_S_MAX: u64 = 3600;

/// Asks about a request until it may come in. `request` is its row, which is told how long it waited.
pub async fn enter(app: &App, pin: &Pin, request: &mut Table) -> Result<Place, Refusal> {
    let tenant = decide::tenant(request);
    if !pin.asks(Slot::Admit) {
        return Ok(app.door.let_in(tenant));
    }
    let began = app.ctx.now();
    let mut place: Option<Place> = None;
    loop {
        let waited = app.ctx.now().saturating_sub(began);
        decide::set_waited(request, waited);
        let until_ms = match ask(app, pin, request, place.is_some())? {
            Answered::ComeIn(inside) => return Ok(inside),
            Answered::Wait { until_ms } => until_ms,
        };
        let wait = step(app, waited, until_ms)?;
        if place.is_none() {
            place = Some(wait_at_the_door(app, tenant, until_ms)?);
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = app.door.closed() => return Err(refused(app, Admission::Closed, Refusal::Draining)),
        }
    }
}

enum Answered {
    ComeIn(Place),
    Wait { until_ms: u64 },
}

/// Asks the chain once, and counts what it says.
fn ask(app: &App, pin: &Pin, request: &Table, waits: bool) -> Result<Answered, Refusal> {
    let tenant = decide::tenant(request);
    let _one_by_one = app.door.decide();
    let fleet = fleet(app, tenant, waits);
    let view = AdmitView { frame: app.frame(), request, fleet: &fleet };
    let decision = pin.admit(&view).map_err(|e| Refusal::Policy(e.to_string()))?;
    tracing::debug!(
        chain = %pin.chain(),
        decided_by = %decision.decided_by,
        verdict = ?decision.verdict,
        "admission decided"
    );
    match decision.verdict {
        Verdict::Admit => {
            app.metrics.admission(Admission::Admitted);
            Ok(Answered::ComeIn(app.door.let_in(tenant)))
        }
        Verdict::DeferUntil(until_ms) => Ok(Answered::Wait { until_ms }),
        Verdict::Reject { retry_after_ms, reason } => {
            let retry_after_s = retry_after_ms.div_ceil(1000).max(1);
            let decided_by = decision.decided_by.to_string();
            Err(refused(app, Admission::Rejected, Refusal::Rejected { decided_by, reason, retry_after_s }))
        }
    }
}

/// How long to wait before the next question. Errors: it waited as long as a request may.
fn step(app: &App, waited: Duration, until_ms: u64) -> Result<Duration, Refusal> {
    let limit = Duration::from_millis(app.config.limits.defer_ms_max);
    let left = limit.saturating_sub(waited);
    if left.is_zero() {
        let (waited_ms, retry_after_s) = (waited.as_millis() as u64, retry_after_s(app, until_ms));
        let refusal = Refusal::WaitedTooLong { waited_ms, retry_after_s };
        return Err(refused(app, Admission::WaitedTooLong, refusal));
    }
    app.metrics.admission(Admission::Deferred);
    let wanted = Duration::from_millis(until_ms.saturating_sub(app.ctx.unix_ms()));
    Ok(wanted.max(STEP_MIN).min(left))
}

fn wait_at_the_door(app: &App, tenant: u64, until_ms: u64) -> Result<Place, Refusal> {
    let waiting = app.config.limits.deferred_max;
    app.door.wait(tenant, waiting).ok_or_else(|| {
        let retry_after_s = retry_after_s(app, until_ms);
        refused(app, Admission::DoorFull, Refusal::DoorFull { waiting, retry_after_s })
    })
}

/// When the policy would have let it ask again.
fn retry_after_s(app: &App, until_ms: u64) -> u32 {
    until_ms.saturating_sub(app.ctx.unix_ms()).div_ceil(1000).clamp(1, RETRY_AFTER_S_MAX) as u32
}

fn refused(app: &App, admission: Admission, refusal: Refusal) -> Refusal {
    app.metrics.admission(admission);
    refusal
}

/// The host as a request at its door sees it: others, without itself.
fn fleet(app: &App, tenant: u64, waits: bool) -> Table {
    let (mut all, mut own) = app.door.count(tenant);
    if waits {
        [&mut all, &mut own].into_iter().for_each(|count: &mut Count| count.deferred -= 1);
    }
    let loads: Vec<_> = app.workers.iter().map(|worker| worker.load.read()).collect();
    let house = House {
        running: all.running,
        requests_max: app.config.limits.requests_max as u32,
        deferred: all.deferred,
        tenant_running: own.running,
        tenant_deferred: own.deferred,
    };
    decide::fleet(&house, &loads)
}
