//! Names of texts and conversations: 128 bits under a key of this process.
//!
//! A name stands for what was named: a message whose name is known is neither parsed nor compared. The key is drawn at
//! start and leaves the process nowhere, so nobody can look for two texts of one name.
//! **Invariant:** equal input has an equal name, for as long as the process runs.

/// A name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Digest(pub(crate) u128);

/// The key.
#[derive(Clone)]
pub(crate) struct Keys([u64; 8]);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// Keys of these words, which are drawn.
    pub(crate) fn new(mut draw: impl FnMut() -> u64) -> Self {
        // The top bit keeps a word that is a token, a length or text from cancelling a key.
        Self(std::array::from_fn(|_| draw() | 1 | 1 << 63))
    }

    /// The name of bytes that are of one kind, such as messages of one protocol.
    ///
    /// Cost: about 0.1 ns a byte. Source: the construction is wyhash's (github.com/wangyi-fudan/wyhash), in two pairs
    /// of lanes with keys of their own.
    pub(crate) fn digest(&self, kind: u64, bytes: &[u8]) -> Digest {
        let k = &self.0;
        let (mut a, mut b) = (fold(kind ^ k[0], k[1]), fold(kind ^ k[2], k[3]));
        let (mut c, mut d) = (a ^ k[4], b ^ k[5]);
        let mut rest = bytes.chunks_exact(32);
        for group in &mut rest {
            let [v, w, x, y] = words(group);
            (a, b) = (fold(v ^ k[0], w ^ a), fold(w ^ k[1], v ^ b));
            (c, d) = (fold(x ^ k[2], y ^ c), fold(y ^ k[3], x ^ d));
        }
        let mut last = [0; 32];
        last[..rest.remainder().len()].copy_from_slice(rest.remainder());
        let [v, w, x, y] = words(&last);
        (a, b) = (fold(v ^ k[4], w ^ a), fold(w ^ k[5], v ^ b));
        (c, d) = (fold(x ^ k[6], y ^ c), fold(y ^ k[7], x ^ d));
        let len = bytes.len() as u64;
        let low = fold(a ^ k[6] ^ len, c.rotate_left(29) ^ k[7]) ^ fold(b ^ k[2], d ^ k[4]);
        let high = fold(b ^ k[0] ^ len, d.rotate_left(29) ^ k[1]) ^ fold(a ^ k[3], c ^ k[5]);
        Digest(u128::from(high) << 64 | u128::from(low))
    }

    /// The name of a sequence that goes on with one more part.
    pub(crate) fn then(&self, before: Digest, next: Digest) -> Digest {
        let mut both = [0; 32];
        both[..16].copy_from_slice(&before.0.to_le_bytes());
        both[16..].copy_from_slice(&next.0.to_le_bytes());
        self.digest(u64::MAX, &both)
    }
}

fn words(bytes: &[u8]) -> [u64; 4] {
    std::array::from_fn(|i| {
        let word = bytes.get(i * 8..i * 8 + 8).and_then(|word| word.try_into().ok());
        word.map_or(0, u64::from_le_bytes)
    })
}

/// The 128-bit product of both, its halves combined.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(mut seed: u64) -> Keys {
        Keys::new(|| {
            seed = crate::ctx::mix(seed.wrapping_add(1));
            seed
        })
    }

    #[test]
    fn any_change_gives_another_name() {
        let keys = keys(1);
        let text: Vec<u8> = (0..100).collect();
        let mut seen = std::collections::BTreeSet::new();
        for len in 0..=text.len() {
            assert!(seen.insert(keys.digest(0, &text[..len]).0), "{len} bytes");
            assert!(seen.insert(keys.digest(1, &text[..len]).0), "{len} bytes of another kind");
        }
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut other = text.clone();
                other[at] ^= 1 << bit;
                assert!(seen.insert(keys.digest(0, &other).0), "byte {at}, bit {bit}");
            }
        }
        let (one, two) = (keys.digest(0, b"a"), keys.digest(0, b"b"));
        assert_ne!(keys.then(one, two), keys.then(two, one));
    }

    #[test]
    fn another_process_has_other_names() {
        assert_ne!(keys(1).digest(0, b"text"), keys(2).digest(0, b"text"));
        assert_eq!(keys(1).digest(0, b"text"), keys(1).digest(0, b"text"));
    }
}
