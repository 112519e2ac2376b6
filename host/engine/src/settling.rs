//! Transfers between their start and the call that settles them.
//!
//! Called by every executor.
//! **Invariant:** a fence is settled once, and at most [`UNSETTLED_MAX`] are not.

use std::collections::VecDeque;

use crate::{EngineError, Fence, UNSETTLED_MAX};

/// Fences that were given out, and what those that nobody settled have of type `T`.
#[derive(Debug)]
pub(crate) struct Settling<T> {
    last: Fence,
    open: VecDeque<(Fence, T)>,
}

impl<T> Settling<T> {
    pub(crate) fn new() -> Self {
        Self { last: Fence(0), open: VecDeque::new() }
    }

    /// The fence given out last.
    pub(crate) fn last(&self) -> Fence {
        self.last
    }

    /// Whether one more transfer may start.
    ///
    /// Errors: [`EngineError::Transfer`] when too many are not settled.
    pub(crate) fn check_room(&self) -> Result<(), EngineError> {
        match self.open.len() {
            UNSETTLED_MAX.. => Err(EngineError::Transfer(format!(
                "{UNSETTLED_MAX} fences are not settled, the most there may be"
            ))),
            _ => Ok(()),
        }
    }

    /// A fence for a transfer that started.
    pub(crate) fn start(&mut self, transfer: T) -> Fence {
        assert!(self.open.len() < UNSETTLED_MAX, "the room was checked");
        self.last.0 += 1;
        self.open.push_back((self.last, transfer));
        self.last
    }

    /// A transfer that is not settled.
    ///
    /// Errors: [`EngineError::Transfer`] when there is none of this fence.
    pub(crate) fn get(&self, fence: Fence) -> Result<&T, EngineError> {
        self.at(fence).map(|at| &self.open[at].1)
    }

    /// Settles a fence.
    ///
    /// Errors: those of [`Self::get`].
    pub(crate) fn take(&mut self, fence: Fence) -> Result<T, EngineError> {
        let at = self.at(fence)?;
        let (_, transfer) = self.open.remove(at).expect("the place was just found");
        Ok(transfer)
    }

    /// Transfers that nobody settled, in order.
    pub(crate) fn open(&self) -> impl Iterator<Item = &T> {
        self.open.iter().map(|(_, transfer)| transfer)
    }

    fn at(&self, fence: Fence) -> Result<usize, EngineError> {
        let at = self.open.binary_search_by_key(&fence, |(open, _)| *open);
        at.map_err(|_| EngineError::Transfer(format!("fence {} is not outstanding", fence.0)))
    }
}
