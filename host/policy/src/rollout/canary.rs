//! Which side decides about a request while a candidate is tried.
//!
//! **Invariant:** the side depends on the candidate and the session alone; a larger share takes nobody back from
//! the candidate.

use super::lead::RolloutError;
use crate::generation::GenerationId;
use crate::report::GenerationState;
use crate::spec::{Match, Subject};
use serde::Serialize;

/// How a candidate is tried.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Mode {
    /// It is asked after the live answer and decides nothing.
    #[default]
    Shadow,
    /// It decides for some requests.
    Canary {
        /// Share of the sessions that match, above 0 and up to 100.
        percent: f64,
        /// The requests that it can get at all.
        #[serde(rename = "match")]
        matches: Match,
    },
}

impl Mode {
    /// Errors: a share that is none.
    pub(crate) fn check(&self) -> Result<(), RolloutError> {
        match self {
            Self::Canary { percent, .. } if !(*percent > 0.0 && *percent <= 100.0) => {
                Err(RolloutError::Percent(*percent))
            }
            Self::Canary { .. } | Self::Shadow => Ok(()),
        }
    }

    /// Where its candidate stands.
    pub(crate) fn state(&self) -> GenerationState {
        match self {
            Self::Shadow => GenerationState::Shadow,
            Self::Canary { .. } => GenerationState::Canary,
        }
    }

    /// Whether the candidate may decide about this request at all.
    pub(crate) fn fits(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Shadow => false,
            Self::Canary { matches, .. } => matches.fits(subject),
        }
    }
}

/// Whether the candidate decides for this session.
pub(crate) fn takes(candidate: GenerationId, percent: f64, session: u64) -> bool {
    share_of(candidate, session) * 100.0 < percent
}

/// Where a session lies between 0 and 1: anywhere, but always there for one candidate.
fn share_of(candidate: GenerationId, session: u64) -> f64 {
    // The finaliser of splitmix64: neighbours among ids end up far apart.
    let mut x = session ^ candidate.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^= x >> 31;
    (x >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canary(percent: f64) -> Mode {
        Mode::Canary { percent, matches: Match::default() }
    }

    #[test]
    fn a_share_outside_its_bounds_is_refused_by_name() {
        for percent in [0.0, -1.0, 100.1, f64::NAN, f64::INFINITY] {
            let error = canary(percent).check().expect_err("it is no share").to_string();
            assert!(error.contains("`percent`") && error.contains("100"), "{error}");
        }
        for percent in [0.01, 50.0, 100.0] {
            assert!(canary(percent).check().is_ok());
        }
    }

    #[test]
    fn only_a_canary_takes_and_only_what_fits() {
        let matches = Match { tenants: vec!["acme".to_owned()], ..Match::default() };
        let mode = Mode::Canary { percent: 100.0, matches };
        assert!(!mode.fits(&Subject::default()));
        assert!(mode.fits(&Subject { tenant: "acme", ..Subject::default() }));
        assert!(!Mode::Shadow.fits(&Subject::default()));
    }

    proptest! {
        /// Whatever the share, the sessions that the candidate takes are that many, always the same, and all of
        /// them again when the share grows.
        #[test]
        fn sessions_stay_on_their_side(id in 1u64..1000, percent in 0.5f64..99.0, more in 0.0f64..1.0) {
            let (before, after) = (percent, percent + (100.0 - percent) * more);
            let takes = |percent, session| takes(GenerationId(id), percent, session);
            let mut taken = 0u32;
            for session in 0..4000u64 {
                let side = takes(before, session);
                prop_assert_eq!(side, takes(before, session));
                prop_assert!(!side || takes(after, session));
                taken += u32::from(side);
            }
            let share = f64::from(taken) / 40.0;
            // Four standard deviations of 4,000 draws are at most 3.2 percent.
            prop_assert!((share - percent).abs() < 3.5, "{share} of {percent}");
        }
    }
}
