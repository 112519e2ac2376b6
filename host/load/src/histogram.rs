//! Counts of microseconds, exact to less than a hundredth.
//!
//! **Invariant:** a value lies in one bucket, and a bucket is at most 1/128 of its values wide.

/// Chosen: 128 buckets for each doubling are finer than a clock that is asked over a network, and take 24 KiB.
const STEPS: u32 = 128;
const BUCKETS: usize = STEPS as usize * 27;

/// A log-linear histogram.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum_us: u64,
    min_us: u32,
    max_us: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, sum_us: 0, min_us: u32::MAX, max_us: 0 }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, us: u32) {
        self.buckets[bucket(us)] += 1;
        self.count += 1;
        self.sum_us += u64::from(us);
        self.min_us = self.min_us.min(us);
        self.max_us = self.max_us.max(us);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn mean_us(&self) -> f64 {
        self.sum_us as f64 / self.count.max(1) as f64
    }

    /// The value at a rank, by the same rule as [`super::report::quantile`]: the least that `share` of all do not exceed.
    pub(crate) fn quantile_us(&self, share: f64) -> f64 {
        let rank = ((share * self.count as f64).ceil() as u64).max(1);
        if rank >= self.count {
            return f64::from(self.max_us);
        }
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        let middle = found.map_or(0.0, middle_us);
        middle.clamp(f64::from(self.min_us.min(self.max_us)), f64::from(self.max_us))
    }
}

/// Values below 256 have their own; above, each doubling is cut into 128.
fn bucket(us: u32) -> usize {
    let shift = (us | 0xFF).ilog2() - 7;
    (shift * STEPS + (us >> shift)) as usize
}

fn middle_us(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    if bucket < 2 * u64::from(STEPS) {
        return bucket as f64;
    }
    let shift = bucket / u64::from(STEPS) - 1;
    let low = (bucket % u64::from(STEPS) + u64::from(STEPS)) << shift;
    low as f64 + ((1_u64 << shift) - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Quantiles agree with a sorted list to less than a hundredth.
        #[test]
        fn quantiles_match_a_sorted_list(
            mut values in prop::collection::vec(prop_oneof![0_u32..300, any::<u32>(), 0_u32..1_000_000], 1..200),
            share in 0.01_f64..1.0,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|us| histogram.add(*us));
            values.sort_unstable();
            let rank = ((share * values.len() as f64).ceil() as usize).max(1);
            let (exact, found) = (f64::from(values[rank - 1]), histogram.quantile_us(share));
            prop_assert!((exact - found).abs() <= exact / 100.0, "{exact} {found}");
            prop_assert_eq!(Some(histogram.quantile_us(1.0)), values.last().map(|max| f64::from(*max)));
        }
    }
}
