//! Rotary position embedding: frequencies and angles.

use std::f64::consts::PI;

/// Rotary embedding of queries and keys, rotate-half form.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric row of frequencies.
    pub theta: f64,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// Stretching of rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Stretch of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are stretched fully.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before stretching.
        original_context: f64,
    },
    /// As [`Self::Llama3`], with a ramp over pairs instead of wavelengths, and longer vectors.
    Yarn {
        /// Stretch of the low frequencies.
        factor: f64,
        /// Pairs that turn more often than this over the original context are kept.
        beta_fast: f64,
        /// Pairs that turn less often than this over the original context are stretched fully.
        beta_slow: f64,
        /// Context length before stretching.
        original_context: f64,
        /// Whether the ramp begins and ends at whole pairs.
        truncate: bool,
        /// Factor of every rotated vector.
        magnitude: f64,
    },
    /// Each frequency divided by its own number.
    PerPair {
        /// One number for each pair.
        factors: Vec<f64>,
        /// Factor of every rotated vector.
        magnitude: f64,
    },
}

/// What positions turn by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frequencies {
    /// Angle a position adds, for each of the `head_dim / 2` pairs, in radians, f32.
    pub(crate) pairs: Vec<f32>,
    /// Factor of every rotated vector.
    pub(crate) magnitude: f32,
}

impl Rope {
    /// Frequencies for vectors of `head_dim`.
    ///
    /// Source: RoFormer, arXiv 2104.09864, equation 15; YaRN, arXiv 2309.00071, section 3; the rest as in
    /// Hugging Face `modeling_rope_utils.py`.
    pub(crate) fn frequencies(&self, head_dim: usize) -> Frequencies {
        let pairs = (0..head_dim / 2).map(|pair| self.frequency(pair, head_dim) as f32).collect();
        let magnitude = match &self.scaling {
            RopeScaling::Yarn { magnitude, .. } | RopeScaling::PerPair { magnitude, .. } => *magnitude,
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
        };
        Frequencies { pairs, magnitude: magnitude as f32 }
    }

    /// What the frequencies need of the other sizes; the text says what is wrong.
    pub(crate) fn check(&self, head_dim: usize) -> Result<(), String> {
        match &self.scaling {
            RopeScaling::PerPair { factors, .. } if factors.len() != head_dim / 2 => {
                Err(format!("{} rope factors for {} pairs of a head", factors.len(), head_dim / 2))
            }
            _ => Ok(()),
        }
    }

    fn frequency(&self, pair: usize, head_dim: usize) -> f64 {
        let base = self.theta.powf(-((2 * pair) as f64 / head_dim as f64));
        match &self.scaling {
            RopeScaling::None => base,
            RopeScaling::Linear { factor } => base / factor,
            RopeScaling::PerPair { factors, .. } => base / factors[pair],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context * base / (2.0 * PI);
                if turns < *low_freq_factor {
                    base / factor
                } else if turns > *high_freq_factor {
                    base
                } else {
                    let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - ramp) * base / factor + ramp * base
                }
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } => {
                // The pair, as a fraction, that turns `turns` times over the original context.
                let dim = head_dim as f64;
                let pair_of =
                    |turns: f64| dim * (original_context / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (low, high) = match truncate {
                    true => (pair_of(*beta_fast).floor(), pair_of(*beta_slow).ceil()),
                    false => (pair_of(*beta_fast), pair_of(*beta_slow)),
                };
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                let stretched = ((pair as f64 - low) / width).clamp(0.0, 1.0);
                stretched * base / factor + (1.0 - stretched) * base
            }
        }
    }
}

/// Writes cosines then sines of one position: `out` [2, head_dim / 2] f32.
///
/// The angle is an f32 product, as in the reference implementation that models were trained with.
pub(crate) fn fill_angles(frequencies: &Frequencies, position: u32, out: &mut [f32]) {
    let Frequencies { pairs, magnitude } = frequencies;
    let (cos, sin) = out.split_at_mut(pairs.len());
    for ((frequency, cos), sin) in pairs.iter().zip(cos).zip(sin) {
        (*sin, *cos) = (position as f32 * frequency).sin_cos();
        (*sin, *cos) = (*sin * magnitude, *cos * magnitude);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None }.frequencies(64).pairs;
        let linear =
            Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } }.frequencies(64).pairs;
        assert!(plain.iter().zip(&linear).all(|(p, l)| (p / l - 4.0).abs() < 1e-5));
        assert_eq!(plain[0], 1.0);
    }

    #[test]
    fn llama3_scaling_keeps_high_and_stretches_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let plain = Rope { theta: 500_000.0, scaling: RopeScaling::None }.frequencies(128).pairs;
        let scaled = Rope { theta: 500_000.0, scaling }.frequencies(128).pairs;
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-4);
        let ratios: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
        assert!(ratios.windows(2).all(|pair| pair[0] <= pair[1] + 1e-5));
    }

    /// The numbers of gpt-oss. Its golden fixture compares the whole; this names the part that is wrong.
    #[test]
    fn yarn_keeps_fast_pairs_and_stretches_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 32.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 4096.0,
            truncate: false,
            magnitude: 1.346_573_6,
        };
        let plain = Rope { theta: 150_000.0, scaling: RopeScaling::None }.frequencies(64).pairs;
        let yarn = Rope { theta: 150_000.0, scaling }.frequencies(64);
        let ratios: Vec<f32> = plain.iter().zip(&yarn.pairs).map(|(p, y)| p / y).collect();
        assert_eq!((ratios[0], yarn.magnitude), (1.0, 1.346_573_6));
        assert!((ratios[31] - 32.0).abs() < 1e-3, "{ratios:?}");
        assert!(ratios.windows(2).all(|pair| pair[0] <= pair[1] + 1e-5));
    }

    #[test]
    fn factors_that_are_not_one_for_each_pair_are_refused() {
        let scaling = RopeScaling::PerPair { factors: vec![1.0; 30], magnitude: 1.0 };
        let reason = Rope { theta: 10_000.0, scaling }.check(64).unwrap_err();
        assert_eq!(reason, "30 rope factors for 32 pairs of a head");
    }
}
