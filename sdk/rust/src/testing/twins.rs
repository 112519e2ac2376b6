//! Two instances of a policy that know nothing of each other, asked the same.
//!
//! A policy is a function of its settings, its past and the view, so the two must agree.

use super::policy;
use super::store::{Stored, replace};
use crate::slot::Policy;
use std::fmt::Debug;

/// An instance with a store of its own.
#[derive(Debug)]
pub(super) struct Instance<P> {
    policy: P,
    stored: Stored,
}

impl<P: Policy> Instance<P> {
    /// One that has learned nothing.
    pub(super) fn cold(config: &str) -> Self {
        Self::after(config, Stored::EMPTY)
    }

    /// One that finds this in its store.
    fn after(config: &str, stored: Stored) -> Self {
        let thread = replace(stored);
        let policy = policy(config);
        Self { policy, stored: replace(thread) }
    }

    /// One that finds in its store what this one left there.
    pub(super) fn successor(&self, config: &str) -> Self {
        Self::after(config, self.stored.clone())
    }

    /// Asks it, with its store in the place of the thread's.
    pub(super) fn ask<R>(&mut self, ask: impl FnOnce(&mut P) -> R) -> R {
        let thread = replace(std::mem::replace(&mut self.stored, Stored::EMPTY));
        let answer = ask(&mut self.policy);
        self.stored = replace(thread);
        answer
    }
}

/// Two instances with equal settings.
pub(super) struct Twins<P>(Instance<P>, Instance<P>);

impl<P: Policy> Twins<P> {
    pub(super) fn new(config: &str) -> Self {
        Self(Instance::cold(config), Instance::cold(config))
    }

    /// What both answer; `case` names the question where they disagree.
    #[track_caller]
    pub(super) fn ask<R: PartialEq + Debug>(&mut self, case: &str, ask: impl Fn(&mut P) -> R) -> R {
        let answer = self.0.ask(&ask);
        assert_eq!(answer, self.1.ask(&ask), "{case}: two instances disagree");
        answer
    }
}
