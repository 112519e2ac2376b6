//! Rotary position embedding: frequencies and angles.

use std::f64::consts::PI;

/// Rotary embedding of queries and keys, rotate-half form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric row of frequencies.
    pub theta: f64,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// Stretching of rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
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
}

impl Rope {
    /// Angle a position adds, for each of the `head_dim / 2` pairs, in radians, f32.
    ///
    /// Source: RoFormer, arXiv 2104.09864, equation 15; `llama3` as in Hugging Face
    /// `modeling_rope_utils.py`, `_compute_llama3_parameters`.
    pub(crate) fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let pairs = head_dim / 2;
        (0..pairs).map(|pair| self.frequency(pair as f64 / pairs as f64) as f32).collect()
    }

    fn frequency(&self, share: f64) -> f64 {
        let base = self.theta.powf(-share);
        match self.scaling {
            RopeScaling::None => base,
            RopeScaling::Linear { factor } => base / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context * base / (2.0 * PI);
                if turns < low_freq_factor {
                    base / factor
                } else if turns > high_freq_factor {
                    base
                } else {
                    let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - ramp) * base / factor + ramp * base
                }
            }
        }
    }
}

/// Writes cosines then sines of one position: `out` [2, head_dim / 2] f32.
///
/// The angle is an f32 product, as in the reference implementation that models were trained with.
pub(crate) fn fill_angles(frequencies: &[f32], position: u32, out: &mut [f32]) {
    let (cos, sin) = out.split_at_mut(frequencies.len());
    for ((frequency, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
        (*sin, *cos) = (position as f32 * frequency).sin_cos();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None }.frequencies(64);
        let linear = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } }.frequencies(64);
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
        let plain = Rope { theta: 500_000.0, scaling: RopeScaling::None }.frequencies(128);
        let scaled = Rope { theta: 500_000.0, scaling }.frequencies(128);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-4);
        let ratios: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
        assert!(ratios.windows(2).all(|pair| pair[0] <= pair[1] + 1e-5));
    }
}
