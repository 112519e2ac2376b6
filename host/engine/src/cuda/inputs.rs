//! What a step's kernels read, put together on the host and uploaded in one piece.
//!
//! ```text
//! | header | header of each further chunk of logits | ids | positions | pages of tokens | page tables |
//! | prefill items | decode items, twice | combine items, twice | sampled tokens | draws | edits | masks |
//! ```
//!
//! Headers have the places of the arrays, so that one launch, recorded once, serves steps of any size.
//! **Invariant:** depends on the plan and the sizes alone; whatever is not in the plan is padding.

use std::collections::BTreeMap;
use std::ops::Range;

use super::args::{CombineItem, DecodeItem, DrawSpec, LogitEdit, Plain, PrefillItem, Step, TOP_MAX};
use super::memory::bytes_of;
use crate::plan::{SampleSpec, StepPlan};
use crate::sample::uniform_bits;

/// Rows of at most so many new tokens are attended to token by token, with their keys cut in parts that are computed side
/// by side; longer ones share what they read. Chosen: a tried guess of a few tokens over a long context would otherwise
/// keep one block for each KV head busy.
const DECODE_TOKENS_MAX: usize = 8;
/// Keys of a part, up to a context of so many tokens. They depend on the context alone, so that a token's result does not
/// depend on the batch. Chosen: one sequence fills a device from about 4,000 tokens on; parts cost their result's write.
const PART_KEYS: [(usize, usize); 3] = [(1024, 128), (8192, 256), (usize::MAX, 512)];

/// What inputs are built for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Bytes that there are.
    pub(crate) bytes: usize,
    pub(crate) block_tokens: usize,
    /// Query tokens of a prefill item.
    pub(crate) item_tokens: usize,
    /// Keys a token of a layer with a window sees, its own included; none without such layers.
    pub(crate) window: Option<usize>,
    /// Parts of decode items that there is memory for.
    pub(crate) parts_max: usize,
    /// Rows of logits that are computed at once.
    pub(crate) chunk_samples: usize,
    pub(crate) vocab: usize,
}

/// The inputs of one step.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// Bytes of them.
    pub(crate) len: usize,
    pub(crate) header: Step,
    /// Samples of each chunk of logits.
    pub(crate) chunks: Vec<Range<usize>>,
    /// Samples that are drawn by the host.
    pub(crate) by_host: Vec<usize>,
    /// Whether log-probabilities are to be copied back.
    pub(crate) reports: bool,
}

/// The header of a chunk stands behind that of the step, and is at this distance for the first.
pub(crate) fn chunk_at(chunk: usize) -> usize {
    (chunk + 1) * size_of::<Step>()
}

impl Inputs {
    /// Writes the inputs of a checked plan to `out`; none when they do not fit.
    pub(crate) fn build(plan: &StepPlan<'_>, sizes: &Sizes, out: &mut [u8]) -> Option<Self> {
        let samples = plan.samples.len();
        // A graph draws even where nothing is to be drawn: the first chunk is always there.
        let chunks: Vec<_> = (0..samples.max(1))
            .step_by(sizes.chunk_samples)
            .map(|first| first..samples.min(first + sizes.chunk_samples))
            .collect();
        let mut writer = Writer { out, at: chunk_at(chunks.len()) };
        let mut header = Step {
            tokens: plan.tokens.len() as u32,
            rows: plan.rows.len() as u32,
            samples: samples as u32,
            ..Step::default()
        };
        let tokens = Tokens::of(plan, sizes);
        header.ids_at = writer.put(plan.tokens)?;
        header.positions_at = writer.put(&tokens.positions)?;
        header.token_pages_at = writer.put(&tokens.pages)?;
        header.tables_at = writer.put_each(plan.pages.iter().map(|page| page.0))?;
        let items = Items::of(plan, sizes)?;
        header.prefill_items = items.prefill.len() as u32;
        header.prefill_at = writer.put(&items.prefill)?;
        for (list, (decode, combine)) in items.decode.iter().zip(&items.combine).enumerate() {
            header.decode_items[list] = decode.len() as u32;
            header.decode_at[list] = writer.put(decode)?;
            header.combine_at[list] = writer.put(combine)?;
            header.combines = header.combines.max(combine.len() as u32);
        }
        header.sample_tokens_at = writer.put(&tokens.sampled)?;
        let draws = Draws::of(plan, (writer.left(), sizes.vocab));
        header.samples_at = writer.put(&draws.specs)?;
        header.edits_at = writer.put(&draws.edits)?;
        header.masks_at = writer.put(&draws.masks)?;
        let len = writer.at;
        write_headers(header, &chunks, out);
        Some(Self { len, header, chunks, by_host: draws.by_host, reports: draws.reports })
    }
}

/// Writes the step's header and that of every chunk, whose arrays begin at its first sample.
fn write_headers(header: Step, chunks: &[Range<usize>], out: &mut [u8]) {
    out[..size_of::<Step>()].copy_from_slice(bytes_of(&[header]));
    for (index, chunk) in chunks.iter().enumerate() {
        let at = chunk_at(index) as u32;
        let own = Step {
            samples: chunk.len() as u32,
            sample_tokens_at: header.sample_tokens_at + 4 * chunk.start as u32 - at,
            samples_at: header.samples_at + (size_of::<DrawSpec>() * chunk.start) as u32 - at,
            edits_at: header.edits_at - at,
            masks_at: header.masks_at - at,
            ..Step::default()
        };
        out[at as usize..][..size_of::<Step>()].copy_from_slice(bytes_of(&[own]));
    }
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    /// Appends an array; its place, or none when there is no room.
    fn put<T: Plain>(&mut self, values: &[T]) -> Option<u32> {
        let (at, bytes) = (self.at.next_multiple_of(16), bytes_of(values));
        self.out.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
        self.at = at + bytes.len();
        u32::try_from(at).ok()
    }

    fn put_each(&mut self, values: impl ExactSizeIterator<Item = u32>) -> Option<u32> {
        let at = self.at.next_multiple_of(16);
        let out = self.out.get_mut(at..at + 4 * values.len())?;
        for (value, out) in values.zip(out.chunks_exact_mut(4)) {
            out.copy_from_slice(&value.to_ne_bytes());
        }
        self.at = at + out.len();
        u32::try_from(at).ok()
    }

    /// Bytes that there is room for.
    fn left(&self) -> usize {
        self.out.len().saturating_sub(self.at)
    }
}

/// What is known of each token.
struct Tokens {
    positions: Vec<u32>,
    pages: Vec<u32>,
    /// The token of each sample.
    sampled: Vec<u32>,
}

impl Tokens {
    fn of(plan: &StepPlan<'_>, sizes: &Sizes) -> Self {
        let count = plan.tokens.len();
        let mut tokens = Self {
            positions: Vec::with_capacity(count),
            pages: Vec::with_capacity(count),
            sampled: vec![0; plan.samples.len()],
        };
        for row in plan.rows {
            for position in (row.position..).take(row.tokens.len()) {
                tokens.positions.push(position);
                let block = position as usize / sizes.block_tokens;
                tokens.pages.push(plan.pages[row.pages.start as usize + block].0);
            }
            let first = row.tokens.end - row.samples.len() as u32;
            for (token, sample) in (first..).zip(row.samples.clone()) {
                tokens.sampled[sample as usize] = token;
            }
        }
        tokens
    }
}

/// The work lists of attention.
struct Items {
    prefill: Vec<PrefillItem>,
    /// Of layers that see everything, and of those with a window.
    decode: [Vec<DecodeItem>; 2],
    combine: [Vec<CombineItem>; 2],
}

impl Items {
    /// None when there is no memory for the parts, however long they are.
    fn of(plan: &StepPlan<'_>, sizes: &Sizes) -> Option<Self> {
        let mut scale = 1;
        loop {
            let items = Self::cut(plan, sizes, scale);
            let parts =
                items.combine.iter().flat_map(|list| list.last()).map(|last| last.partial + last.parts).max();
            match parts {
                Some(parts) if parts as usize > sizes.parts_max => scale *= 2,
                _ => return Some(items),
            }
            if scale > 1 << 20 {
                return None;
            }
        }
    }

    /// Cuts attention in items, with parts `scale` times as long as usual.
    fn cut(plan: &StepPlan<'_>, sizes: &Sizes, scale: usize) -> Self {
        let mut items = Self {
            prefill: Vec::new(),
            decode: [const { Vec::new() }; 2],
            combine: [const { Vec::new() }; 2],
        };
        for row in plan.rows {
            let table = row.pages.start;
            if row.tokens.len() <= DECODE_TOKENS_MAX {
                for (token, position) in row.tokens.clone().zip(row.position..) {
                    let windows = [Some(usize::MAX), sizes.window];
                    for (list, window) in
                        windows.into_iter().enumerate().filter_map(|(list, w)| Some((list, w?)))
                    {
                        items.add_token(list, (token, position, table), window, scale);
                    }
                }
                continue;
            }
            for first in row.tokens.clone().step_by(sizes.item_tokens) {
                items.prefill.push(PrefillItem {
                    first_token: first,
                    tokens: (row.tokens.end - first).min(sizes.item_tokens as u32),
                    position: row.position + first - row.tokens.start,
                    table,
                });
            }
        }
        items
    }

    fn add_token(
        &mut self,
        list: usize,
        (token, position, table): (u32, u32, u32),
        window: usize,
        scale: usize,
    ) {
        let end = position as usize + 1;
        let first = end.saturating_sub(window);
        let (_, part) = PART_KEYS[PART_KEYS.iter().position(|(context, _)| end <= *context).unwrap_or(2)];
        let part = part * scale;
        let parts = (end - first).div_ceil(part) as u32;
        let partial = self.combine[list].last().map_or(0, |last| last.partial + last.parts);
        for (index, key) in (first..end).step_by(part).enumerate() {
            self.decode[list].push(DecodeItem {
                token,
                position,
                table,
                first_key: key as u32,
                end_key: end.min(key + part) as u32,
                partial: partial + index as u32,
                parts,
                spare: 0,
            });
        }
        self.combine[list].push(CombineItem { token, partial, parts, spare: 0 });
    }
}

/// How samples are drawn.
struct Draws {
    specs: Vec<DrawSpec>,
    edits: Vec<LogitEdit>,
    masks: Vec<u32>,
    by_host: Vec<usize>,
    reports: bool,
}

impl Draws {
    /// A sample whose report, edits or mask does not fit is drawn by the host, greedily on the device meanwhile.
    fn of(plan: &StepPlan<'_>, (bytes, vocab): (usize, usize)) -> Self {
        let mut draws = Self {
            specs: Vec::new(),
            edits: Vec::new(),
            masks: Vec::new(),
            by_host: Vec::new(),
            reports: false,
        };
        let mut left = bytes.saturating_sub((plan.samples.len() + 1) * size_of::<DrawSpec>());
        for (index, spec) in plan.samples.iter().enumerate() {
            let edits = edits_of(spec, vocab);
            let words = spec.mask.map_or(&[][..], |mask| mask.0);
            let needs = size_of_val(&edits[..]) + size_of_val(words);
            let alternatives = spec.params.logprobs.unwrap_or(0) as usize;
            if needs > left || alternatives > TOP_MAX {
                draws.by_host.push(index);
                draws.specs.push(DrawSpec { top_p: 1.0, repetition: 1.0, ..DrawSpec::default() });
                continue;
            }
            left -= needs;
            draws.add(spec, &edits, words);
        }
        draws
    }

    fn add(&mut self, spec: &SampleSpec<'_>, edits: &[LogitEdit], words: &[u32]) {
        let params = spec.params;
        self.reports |= params.logprobs.is_some();
        self.specs.push(DrawSpec {
            uniform: uniform_bits(params.seed, spec.position.into()) << 11,
            temperature: params.temperature,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition: params.repetition_penalty,
            top_k: params.top_k,
            edits: edits.len() as u32,
            first_edit: self.edits.len() as u32,
            mask: self.masks.len() as u32,
            mask_words: words.len() as u32,
            report: params.logprobs.map_or(0, |count| count + 1),
            spare: [0; 4],
        });
        self.edits.extend_from_slice(edits);
        self.masks.extend_from_slice(words);
    }
}

/// What happens to single logits, by token.
fn edits_of(spec: &SampleSpec<'_>, vocab: usize) -> Vec<LogitEdit> {
    let params = spec.params;
    let mut edits = BTreeMap::new();
    let plain = |token| LogitEdit { token, ..LogitEdit::default() };
    for (token, bias) in &params.logit_bias {
        edits.entry(*token).or_insert_with(|| plain(*token)).bias += bias;
    }
    if params.repetition_penalty != 1.0 {
        for token in spec.prompt.iter().chain(spec.output) {
            edits.entry(*token).or_insert_with(|| plain(*token)).repeated = 1;
        }
    }
    if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
        let mut seen = std::collections::BTreeSet::new();
        for token in spec.output {
            let edit = edits.entry(*token).or_insert_with(|| plain(*token));
            edit.penalty += params.frequency_penalty;
            if seen.insert(*token) {
                edit.penalty += params.presence_penalty;
            }
        }
    }
    edits.into_values().filter(|edit| (edit.token as usize) < vocab).collect()
}
