//! Hashes: of weights for a model's fingerprint, and of counters for made-up numbers.

/// The golden ratio in 64 bits, odd.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of splitmix64: a bijection that scatters every bit.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

pub(crate) fn digest_bytes(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| mix(hash.wrapping_add(GOLDEN) ^ u64::from(*byte)))
}

/// Four independent multiply chains, so that it runs at memory speed.
pub(crate) fn digest_values(hash: u64, values: &[u16]) -> u64 {
    let mut lanes = [hash, hash ^ GOLDEN, !hash, hash.rotate_left(32)];
    let blocks = values.chunks_exact(16);
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, four) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            let word = four.iter().fold(0u64, |word, value| word << 16 | u64::from(*value));
            *lane = (*lane ^ word).wrapping_mul(GOLDEN).rotate_left(29);
        }
    }
    let hash = lanes.iter().fold(values.len() as u64, |hash, lane| mix(hash.wrapping_add(GOLDEN) ^ lane));
    rest.iter().fold(hash, |hash, value| mix(hash.wrapping_add(GOLDEN) ^ u64::from(*value)))
}

/// The bits of f32 values, one by one.
pub(crate) fn digest_floats(hash: u64, values: &[f32]) -> u64 {
    values.iter().fold(hash, |hash, value| mix(hash ^ u64::from(value.to_bits())))
}
