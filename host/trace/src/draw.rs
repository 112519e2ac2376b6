//! Numbers by chance, the same in every run.

/// A deterministic source of numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// The source of a seed.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// Any number.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Below `end`, which is not 0. The bias is below 2^-32 for the sizes that are drawn here.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// Uniform in (0, 1).
    pub fn share(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Whether something happens that has this chance.
    pub fn happens(&mut self, chance: f64) -> bool {
        self.share() < chance
    }

    /// The time between two arrivals of a Poisson process, whose mean it is.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.share().ln()
    }

    /// Log-normal with this median and this spread of its logarithm.
    pub fn around(&mut self, median: f64, spread: f64) -> f64 {
        // Box and Muller, 1958.
        let normal = (-2.0 * self.share().ln()).sqrt() * (std::f64::consts::TAU * self.share()).cos();
        median * (spread * normal).exp()
    }
}

/// The finaliser of splitmix64: spreads numbers that differ in few bits.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
