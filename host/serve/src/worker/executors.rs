//! The executors of a worker, how they are made again, and what stands in their place until then.
//!
//! **Invariant:** an executor that takes another one's place has its KV layout and its fingerprints, so that no name of a
//! block, no page and no limit changes.

use engine::{Caps, EngineError, Executor, Fence, Moved, StepOut, StepPlan, Ticket, Xfer};

/// What computes for one worker.
pub struct Executors {
    /// The served model.
    pub served: Box<dyn Executor>,
    /// The draft model, if there is one.
    pub draft: Option<Box<dyn Executor>>,
}

/// Makes executors for a worker: alike each time. Those before them are gone by then.
pub type Make = Box<dyn FnMut() -> Result<Executors, EngineError> + Send>;

/// Whether an executor can compute nothing more after this; else the call was refused, and others are not.
pub(super) fn is_fatal(error: &EngineError) -> bool {
    !matches!(error, EngineError::Plan(_) | EngineError::Transfer(_))
}

/// Says how an executor differs from the one whose place it is to take.
pub(super) fn check_alike(before: &Caps, now: &Caps) -> Result<(), EngineError> {
    let differs = |what: &str| {
        Err(EngineError::Config(format!("`{}` came back with another {what} than it had", now.name)))
    };
    match () {
        () if before.kv != now.kv => differs("KV layout"),
        () if before.fingerprint != now.fingerprint || before.adapters != now.adapters => differs("model"),
        () if before.context_max != now.context_max || before.vocab != now.vocab => differs("limit"),
        () => Ok(()),
    }
}

/// The place of an executor that was lost: every call fails.
pub(super) struct Gone {
    caps: Caps,
    reason: String,
}

impl Gone {
    pub(super) fn new(caps: Caps, reason: String) -> Self {
        Self { caps, reason }
    }

    fn lost<T>(&self, call: &'static str) -> Result<T, EngineError> {
        Err(EngineError::Lost { device: self.caps.name.clone(), call, reason: self.reason.clone() })
    }
}

impl Executor for Gone {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn submit(&mut self, _: &StepPlan<'_>) -> Result<Ticket, EngineError> {
        self.lost("submit")
    }

    fn poll(&mut self, _: Ticket, _: bool) -> Result<Option<StepOut>, EngineError> {
        self.lost("poll")
    }

    fn transfer(&mut self, _: Vec<Xfer>, _: Fence) -> Result<Fence, EngineError> {
        self.lost("transfer")
    }

    fn settle(&mut self, _: Fence, _: bool) -> Result<Option<Moved>, EngineError> {
        self.lost("settle")
    }
}
