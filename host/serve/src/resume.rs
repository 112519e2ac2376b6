//! Answers that go on where they were cut off: by a lost connection, or by the end of the process.
//!
//! A request with an `Idempotency-Key` has its tokens written down while they are generated. The same request with the same
//! key is given them again at once, and the rest as it is computed. Samplers draw by seed and position, so the answer
//! is the one that it would have been; KV that is gone is computed again.
//! **Invariant:** tokens are used only for the request, the prompt and the model that they were generated for.

use axum::http::HeaderMap;
use kv::Fingerprint;
use kv::checkpoint::{CheckpointError, Checkpoints, Found, Journal};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::prompt::Tokens;
use crate::request::{Prompt, Protocol, Refusal, Request};

/// Longest key. Chosen: four times a UUID with words around it.
const KEY_BYTES_MAX: usize = 255;
/// The header's name.
const HEADER: &str = "idempotency-key";

/// What a caller may ask for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    name: u128,
    /// Of what was asked under it.
    request: [u8; 32],
}

/// What is written down of a request beside its tokens.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    request: [u8; 32],
    prompt: [u8; 32],
    seed: u64,
}

/// An answer that is written down, and its tokens so far.
#[derive(Debug)]
pub struct Resumed {
    /// Takes the tokens that come; `None` where all are there.
    pub journal: Option<Journal>,
    /// Those that there are.
    pub tokens: Vec<u32>,
    /// What the sampler draws by.
    pub seed: u64,
}

impl IdempotencyKey {
    /// The key that a call shows, if any. `protocol` and `body` are what is asked under it.
    ///
    /// Errors: [`Refusal::Field`] for one that is empty, too long or no text.
    pub fn of(
        headers: &HeaderMap,
        tenant: &str,
        protocol: Protocol,
        body: &[u8],
    ) -> Result<Option<Self>, Refusal> {
        let Some(key) = headers.get(HEADER) else { return Ok(None) };
        let fits = |key: &&str| (1..=KEY_BYTES_MAX).contains(&key.len());
        let Some(key) = key.to_str().ok().filter(fits) else {
            let message = format!("the header `Idempotency-Key` has 1 to {KEY_BYTES_MAX} visible characters");
            return Err(Refusal::field("Idempotency-Key", message));
        };
        let name = digest([tenant.as_bytes(), key.as_bytes()]);
        let (name, _) = name.split_at(16);
        let name = u128::from_le_bytes(name.try_into().expect("half of a digest is 16 bytes"));
        Ok(Some(Self { name, request: digest([protocol.as_str().as_bytes(), body]) }))
    }
}

/// What there is of an answer, and a journal for the rest of it; `None` where nothing is written down.
///
/// Blocks on the disk. Errors: the key was used for another request, or is in use.
pub fn resumed(app: &App, request: &Request, prompt: &Prompt) -> Result<Option<Resumed>, Refusal> {
    let (Some(checkpoints), Some(key)) = (&app.checkpoints, request.idempotency) else { return Ok(None) };
    if request.choices != 1 || request.sampling.logprobs.is_some() || prompt.output_tokens_max == 0 {
        // Several answers, or what is told of tokens beside themselves, cannot be told again.
        return Ok(None);
    }
    let seed = request.sampling.seed;
    let prompt = of_prompt(app.fingerprint_of(prompt.adapter), &prompt.tokens);
    let header = Header { request: key.request, prompt, seed };
    tokio::task::block_in_place(|| take_up(checkpoints, key.name, &header, app.ctx.unix_ms()))
}

fn take_up(
    checkpoints: &Checkpoints,
    key: u128,
    header: &Header,
    now_ms: u64,
) -> Result<Option<Resumed>, Refusal> {
    let (found, journal) = match checkpoints.resume(key, now_ms) {
        Ok((found, journal)) => (found, Some(journal)),
        Err(CheckpointError::Ended { .. }) => match checkpoints.find(key, now_ms) {
            Some(found) => (found, None),
            None => return Ok(begun(checkpoints, key, header, now_ms)),
        },
        Err(CheckpointError::Busy { .. }) => return Err(Refusal::InProgress),
        Err(CheckpointError::Missing { .. }) => return Ok(begun(checkpoints, key, header, now_ms)),
        Err(error) => {
            tracing::warn!(%error, "an answer cannot be gone on with");
            return Ok(None);
        }
    };
    let Found { header: before, tokens, .. } = found;
    match serde_json::from_slice::<Header>(&before) {
        Ok(before) if before.request != header.request => {
            const MESSAGE: &str = "this `Idempotency-Key` was used for another request; use a new key for each request, and the \
                 same only to send the same bytes again";
            Err(Refusal::field("Idempotency-Key", MESSAGE))
        }
        Ok(before) if before.prompt == header.prompt => {
            Ok(Some(Resumed { journal, tokens, seed: before.seed }))
        }
        // Another model, or a prompt that tells the time.
        _ => {
            drop(journal);
            Ok(begun(checkpoints, key, header, now_ms))
        }
    }
}

/// A journal of an answer from its first token on. Without one the answer is given all the same.
fn begun(checkpoints: &Checkpoints, key: u128, header: &Header, now_ms: u64) -> Option<Resumed> {
    let bytes = serde_json::to_vec(header).unwrap_or_default();
    match checkpoints.begin(key, &bytes, now_ms) {
        Ok(journal) => Some(Resumed { journal: Some(journal), tokens: Vec::new(), seed: header.seed }),
        Err(error) => {
            tracing::warn!(%error, "an answer is not written down");
            None
        }
    }
}

fn of_prompt(fingerprint: Fingerprint, tokens: &Tokens) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(fingerprint.0.to_le_bytes());
    tokens.pieces().flatten().for_each(|token| hasher.update(token.to_le_bytes()));
    hasher.finalize().into()
}

/// The digest of parts, each with its length.
fn digest(parts: [&[u8]; 2]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}
