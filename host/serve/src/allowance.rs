//! How much one key may use: requests and tokens in a minute, requests at once.
//!
//! `auth.rs` hands out a [`Pass`] for each request of a key; the journey charges its tokens. A bucket holds what may
//! be used at once and fills evenly, from empty to full in a minute. A prompt is charged when it is known, before
//! anything is computed; an output when it has ended, which may leave a debt that the next request waits for.
//! **Invariant:** arithmetic is exact, in integers; time is what the caller says it is.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::ctx::Moment;
use crate::request::Refusal;

/// One of what is counted, in millionths of a minute: a bucket of `n` a minute gains `n` of these a microsecond.
const ONE: i64 = 60_000_000;
/// Chosen: when a place among the running requests is free again is not known; agents' turns take about this long.
const CONCURRENT_RETRY_MS: u64 = 1000;

/// The limits of a key; 0 stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests in a minute.
    pub requests_per_minute: u32,
    /// Tokens in a minute.
    pub tokens_per_minute: u32,
    /// Requests at once.
    pub concurrent_max: u32,
}

/// What a key may use, and has used.
#[derive(Debug)]
pub struct Allowance {
    rates: Rates,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    running: u32,
}

/// A request that is counted among the running ones of its key, until this is dropped.
#[derive(Debug)]
pub struct Pass(Arc<Allowance>);

/// What is left of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    /// The limit, a minute.
    pub limit: u32,
    /// What may be used at once.
    pub remaining: u32,
    /// When all of it may be.
    pub full_in: Duration,
}

/// What is left of a key's limits; `None` where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meters {
    /// Of requests.
    pub requests: Option<Meter>,
    /// Of tokens.
    pub tokens: Option<Meter>,
}

impl Allowance {
    /// One of which nothing is used.
    pub fn new(rates: Rates, now: Moment) -> Self {
        let bucket = |per_minute: u32| (per_minute > 0).then(|| Bucket::full(per_minute, now));
        let (requests, tokens) = (bucket(rates.requests_per_minute), bucket(rates.tokens_per_minute));
        Self { rates, used: Mutex::new(Used { requests, tokens, running: 0 }) }
    }

    /// Its limits.
    pub fn rates(&self) -> Rates {
        self.rates
    }

    /// Counts a request. Errors: one of the limits is reached; then nothing is counted.
    pub fn enter(self: &Arc<Self>, now: Moment) -> Result<Pass, Refusal> {
        let mut used = self.used.lock();
        let max = self.rates.concurrent_max;
        if max > 0 && used.running >= max {
            let limit = format!("have {max} requests running at once");
            return Err(Refusal::OverLimit { limit, retry_after_ms: CONCURRENT_RETRY_MS });
        }
        // A key in debt is told so before its request is read, or costs anything.
        if let Some(tokens) = &mut used.tokens {
            tokens.check(1, now).map_err(|wait| self.tokens_spent(wait))?;
        }
        if let Some(requests) = &mut used.requests {
            requests.check(1, now).map_err(|wait| {
                let limit = format!("start {} requests a minute", self.rates.requests_per_minute);
                Refusal::OverLimit { limit, retry_after_ms: millis(wait) }
            })?;
            requests.take(1, now);
        }
        used.running += 1;
        Ok(Pass(Arc::clone(self)))
    }

    /// What is left.
    pub fn meters(&self, now: Moment) -> Meters {
        let mut used = self.used.lock();
        Meters {
            requests: used.requests.as_mut().map(|bucket| bucket.meter(now)),
            tokens: used.tokens.as_mut().map(|bucket| bucket.meter(now)),
        }
    }

    fn tokens_spent(&self, wait: Duration) -> Refusal {
        let limit = format!("use {} tokens a minute", self.rates.tokens_per_minute);
        Refusal::OverLimit { limit, retry_after_ms: millis(wait) }
    }
}

impl Pass {
    /// Charges the tokens of a prompt. Errors: they are more than is left. A prompt that is larger than the whole
    /// limit comes in when nothing is used, or it never would.
    pub fn charge_prompt(&self, tokens: u32, now: Moment) -> Result<(), Refusal> {
        let mut used = self.0.used.lock();
        let Some(bucket) = &mut used.tokens else { return Ok(()) };
        bucket.check(tokens.min(bucket.per_minute), now).map_err(|wait| self.0.tokens_spent(wait))?;
        bucket.take(tokens, now);
        Ok(())
    }

    /// Charges the tokens of an output, whatever is left.
    pub fn charge_output(&self, tokens: u32, now: Moment) {
        if let Some(bucket) = &mut self.0.used.lock().tokens {
            bucket.take(tokens, now);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.used.lock().running -= 1;
    }
}

/// Rounded up: whoever comes again then is not a moment too early.
fn millis(wait: Duration) -> u64 {
    (wait.as_micros() as u64).div_ceil(1000)
}

/// What may be used of one thing.
#[derive(Debug)]
struct Bucket {
    per_minute: u32,
    /// Below zero after more was used than there was.
    level: i64,
    /// When it was filled last.
    at: Moment,
}

impl Bucket {
    fn full(per_minute: u32, now: Moment) -> Self {
        Self { per_minute, level: i64::from(per_minute) * ONE, at: now }
    }

    fn fill(&mut self, now: Moment) {
        let us = now.saturating_sub(self.at).as_micros();
        let gain = i64::try_from(us).unwrap_or(i64::MAX).saturating_mul(self.per_minute.into());
        self.level = self.level.saturating_add(gain).min(i64::from(self.per_minute) * ONE);
        // Parts of a microsecond are kept for the next time.
        self.at += Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX));
    }

    /// Whether so much is there. Errors: the time until it is.
    fn check(&mut self, n: u32, now: Moment) -> Result<(), Duration> {
        self.fill(now);
        match self.until(i64::from(n) * ONE) {
            Duration::ZERO => Ok(()),
            wait => Err(wait),
        }
    }

    fn take(&mut self, n: u32, now: Moment) {
        self.fill(now);
        self.level = self.level.saturating_sub(i64::from(n) * ONE);
    }

    fn until(&self, level: i64) -> Duration {
        let lacking = level.saturating_sub(self.level).max(0) as u64;
        Duration::from_micros(lacking.div_ceil(self.per_minute.into()))
    }

    fn meter(&mut self, now: Moment) -> Meter {
        self.fill(now);
        Meter {
            limit: self.per_minute,
            remaining: (self.level / ONE).max(0) as u32,
            full_in: self.until(i64::from(self.per_minute) * ONE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allowance(requests_per_minute: u32, tokens_per_minute: u32, concurrent_max: u32) -> Arc<Allowance> {
        let rates = Rates { requests_per_minute, tokens_per_minute, concurrent_max };
        Arc::new(Allowance::new(rates, Moment::ZERO))
    }

    fn at(ms: u64) -> Moment {
        Duration::from_millis(ms)
    }

    /// Milliseconds after which to come again.
    fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>) -> u64 {
        match result {
            Err(Refusal::OverLimit { retry_after_ms, .. }) => retry_after_ms,
            other => panic!("{other:?} is no refusal for a limit"),
        }
    }

    #[test]
    fn a_minutes_requests_may_come_at_once_and_then_evenly() {
        let key = allowance(60, 0, 0);
        for _ in 0..60 {
            assert!(key.enter(at(0)).is_ok());
        }
        assert_eq!(refused(key.enter(at(0))), 1000);
        assert_eq!(refused(key.enter(at(999))), 1);
        assert!(key.enter(at(1000)).is_ok());
        assert_eq!(refused(key.enter(at(1001))), 999);
    }

    #[test]
    fn a_refused_request_is_not_counted() {
        let key = allowance(1, 100, 0);
        let pass = key.enter(at(0)).expect("the first comes in");
        pass.charge_prompt(100, at(0)).expect("the prompt fits");
        // In debt of nothing, but without a token; the bucket of requests is empty as well.
        assert_eq!(refused(key.enter(at(0))), 600);
        assert_eq!(refused(key.enter(at(600))), 59_400);
        assert!(key.enter(at(60_000)).is_ok());
    }

    #[test]
    fn no_more_run_at_once_than_may() {
        let key = allowance(0, 0, 2);
        let first = key.enter(at(0)).expect("there is room");
        let _second = key.enter(at(0)).expect("there is room");
        assert_eq!(refused(key.enter(at(0))), CONCURRENT_RETRY_MS);
        drop(first);
        assert!(key.enter(at(0)).is_ok());
    }

    #[test]
    fn an_output_may_leave_a_debt_that_the_next_request_waits_for() {
        let key = allowance(0, 6000, 0);
        let pass = key.enter(at(0)).expect("nothing is used");
        pass.charge_prompt(1000, at(0)).expect("it fits");
        pass.charge_output(6000, at(0));
        drop(pass);
        // 1000 tokens of debt and one more, at 100 a second.
        assert_eq!(refused(key.enter(at(0))), 10_010);
        assert!(key.enter(at(10_010)).is_ok());
    }

    #[test]
    fn a_prompt_larger_than_the_limit_comes_in_when_nothing_is_used() {
        let key = allowance(0, 600, 0);
        let pass = key.enter(at(0)).expect("nothing is used");
        pass.charge_prompt(700, at(0)).expect("nothing is used");
        assert_eq!(refused(pass.charge_prompt(700, at(0))), 70_000);
        assert_eq!(refused(pass.charge_prompt(100, at(10_000))), 10_000);
        pass.charge_prompt(700, at(70_000)).expect("the bucket is full again");
    }

    #[test]
    fn meters_say_what_is_left_and_when_all_of_it_is() {
        let key = allowance(60, 6000, 0);
        let pass = key.enter(at(0)).expect("nothing is used");
        pass.charge_prompt(1500, at(0)).expect("it fits");
        let meters = key.meters(at(0));
        let meter = |limit, remaining, ms| Some(Meter { limit, remaining, full_in: at(ms) });
        assert_eq!(meters, Meters { requests: meter(60, 59, 1000), tokens: meter(6000, 4500, 15_000) });
        pass.charge_output(9000, at(0));
        assert_eq!(
            key.meters(at(0)).tokens.map(|m| m.remaining),
            Some(0),
            "a debt is not shown as a huge number"
        );
        assert_eq!(allowance(0, 0, 3).meters(at(0)), Meters::default());
    }

    proptest! {
        /// Over any stretch of time no more comes in than a full bucket and what it gained; and whoever comes again
        /// when told to is let in.
        #[test]
        fn no_more_comes_in_than_the_rate_allows(
            per_minute in 1u32..100_000, steps in prop::collection::vec((0u64..3_000_000, 0u32..2000), 1..200),
        ) {
            let mut bucket = Bucket::full(per_minute, Moment::ZERO);
            let (mut now, mut taken) = (Moment::ZERO, 0u64);
            for (us, n) in steps {
                now += Duration::from_micros(us);
                let n = n.min(per_minute);
                match bucket.check(n, now) {
                    Ok(()) => { bucket.take(n, now); taken += u64::from(n); }
                    Err(wait) => prop_assert_eq!(bucket.check(n, now + wait), Ok(())),
                }
                // The clock of a bucket does not go back; the next step is counted from where it stands.
                now = now.max(bucket.at);
                let allowed = u128::from(per_minute) * (60_000_000 + now.as_micros()) / 60_000_000;
                prop_assert!(u128::from(taken) <= allowed, "{} of {}", taken, allowed);
            }
        }
    }
}
