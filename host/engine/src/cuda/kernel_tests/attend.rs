//! Attention kernels against attention in f64.
//!
//! What a kernel may not read is NaN or a page that does not exist; what it may not write is compared afterwards.

use std::collections::BTreeSet;
use std::ops::Range;

use super::super::args::{AttendArgs, CombineItem, DecodeItem, PrefillItem};
use super::super::kernels::{Grid, Kernel};
use super::super::pass::{attend_kernels, item_tokens};
use super::super::testing::{Harness, NONE, Random, StepInputs, on_device, wide};
use super::{Bug, check_bugs};
use crate::pack;

const THREADS: u32 = 128;
const LAYERS: usize = 2;
const NAN: u16 = 0x7fff;
const PAGE_NONE: u32 = u32::MAX;
/// Tokens that are padding.
const PADDING: usize = 2;

#[derive(Clone, Copy, Debug)]
struct Shape {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    block_tokens: usize,
    /// Keys that a token sees.
    window: u32,
    sinks: bool,
    layer: usize,
}

impl Shape {
    fn draw(random: &mut Random) -> Self {
        let group = random.one_of(&[1, 2, 3, 4, 5, 8, 16, 20]);
        Self {
            kv_heads: random.within(1..if group > 8 { 3 } else { 4 }),
            group,
            head_dim: random.one_of(&[16, 24, 32, 64, 64, 80, 96, 128, 128, 200, 256]),
            block_tokens: random.one_of(&[1, 4, 7, 16, 16, 32]),
            window: if random.within(0..3) == 0 { random.within(1..300) as u32 } else { u32::MAX },
            sinks: random.within(0..3) == 0,
            layer: random.within(0..LAYERS),
        }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn oldest(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window as usize)
    }

    /// Values of a layer's keys, or values, in one page.
    fn plane(&self) -> usize {
        self.kv_heads * self.block_tokens * self.head_dim
    }

    fn page_stride(&self) -> usize {
        LAYERS * 2 * self.plane()
    }
}

/// New tokens of a sequence, the last of which has `context - 1` tokens before it.
#[derive(Clone, Copy, Debug)]
struct Span {
    context: usize,
    tokens: usize,
    decode: bool,
}

impl Span {
    fn draw(random: &mut Random, shape: &Shape) -> Self {
        let most = match shape.head_dim {
            _ if random.within(0..4) == 0 => 20,
            ..=128 => 700,
            _ => 300,
        };
        let context = random.within(1..most);
        let decode = random.within(0..2) == 0;
        let most = if decode { 2 } else { 2400 / shape.heads().max(16) };
        Self { context, tokens: random.within(1..most + 1).min(context), decode }
    }
}

struct Row {
    tokens: Range<usize>,
    position: usize,
    /// First entry of its page table.
    table: usize,
    decode: bool,
}

/// Sequences with their KV and queries.
struct Case {
    shape: Shape,
    scale: f32,
    rows: Vec<Row>,
    tables: Vec<u32>,
    kv: Vec<u16>,
    queries: Vec<u16>,
    sinks: Vec<f32>,
}

impl Case {
    /// Values depend on the seed and the spans, and not on pages.
    fn new(shape: Shape, spans: &[Span], seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (mut rows, mut tables, mut tokens) = (Vec::new(), Vec::new(), 0);
        for span in spans {
            rows.push(Row {
                tokens: tokens..tokens + span.tokens,
                position: span.context - span.tokens,
                table: tables.len(),
                decode: span.decode,
            });
            tokens += span.tokens;
            // One more than there is, so that a look beyond it shows.
            tables.extend(vec![PAGE_NONE; span.context.div_ceil(shape.block_tokens) + 1]);
        }
        let queries = tokens * shape.heads() * shape.head_dim;
        let padding = PADDING * shape.heads() * shape.head_dim;
        let mut case = Self {
            scale: (2.0 + 1.5 * random.float()) / (shape.head_dim as f32).sqrt(),
            kv: vec![NAN; tables.len() * shape.page_stride()],
            queries: (0..queries).map(|_| draw(&mut random)).chain(vec![NAN; padding]).collect(),
            sinks: (0..shape.heads()).map(|_| 3.0 * random.float()).collect(),
            shape,
            rows,
            tables,
        };
        case.fill(&mut random, seed);
        case
    }

    /// Gives pages, in no order, to what the new tokens see, and writes KV there.
    fn fill(&mut self, random: &mut Random, seed: u64) {
        let mut order = Random::new(seed ^ 1);
        let mut free: Vec<u32> = (0..self.tables.len() as u32).collect();
        for row in 0..self.rows.len() {
            let Row { position, table, ref tokens, .. } = self.rows[row];
            for key in self.shape.oldest(position)..position + tokens.len() {
                let entry = table + key / self.shape.block_tokens;
                if self.tables[entry] == PAGE_NONE {
                    self.tables[entry] = free.swap_remove(order.within(0..free.len()));
                }
                for (kv_head, value) in (0..self.shape.kv_heads * 2).map(|i| (i / 2, i % 2)) {
                    let at = self.vector(row, key, kv_head, value);
                    self.kv[at].fill_with(|| draw(random));
                }
            }
        }
    }

    fn tokens(&self) -> usize {
        self.rows.last().map_or(0, |row| row.tokens.end)
    }

    /// Where a key (`value` 0) or value (1) stands.
    fn vector(&self, row: usize, key: usize, kv_head: usize, value: usize) -> Range<usize> {
        let shape = &self.shape;
        let page = self.tables[self.rows[row].table + key / shape.block_tokens] as usize;
        let slot = kv_head * shape.block_tokens + key % shape.block_tokens;
        let at =
            page * shape.page_stride() + (shape.layer * 2 + value) * shape.plane() + slot * shape.head_dim;
        at..at + shape.head_dim
    }

    /// One head of one token: its values, and the sums of their addends' magnitudes.
    fn expected(&self, row: usize, token: usize, head: usize) -> (Vec<f64>, Vec<f64>) {
        let shape = &self.shape;
        let (kv_head, head_dim) = (head / shape.group, shape.head_dim);
        let position = self.rows[row].position + token - self.rows[row].tokens.start;
        let query = &self.queries[(token * shape.heads() + head) * head_dim..][..head_dim];
        let keys = shape.oldest(position)..position + 1;
        let dot = |key: &[u16]| query.iter().zip(key).map(|(q, k)| wide(*q) * wide(*k)).sum::<f64>();
        let scores: Vec<f64> = keys
            .clone()
            .map(|key| dot(&self.kv[self.vector(row, key, kv_head, 0)]) * f64::from(self.scale))
            .collect();
        let sink = if shape.sinks { f64::from(self.sinks[head]) } else { f64::NEG_INFINITY };
        let largest = scores.iter().fold(sink, |largest, score| largest.max(*score));
        let all = scores.iter().map(|score| (score - largest).exp()).sum::<f64>() + (sink - largest).exp();
        let (mut sums, mut magnitudes) = (vec![0.0; head_dim], vec![0.0; head_dim]);
        for (key, score) in keys.zip(scores) {
            let weight = (score - largest).exp() / all;
            for (i, value) in self.kv[self.vector(row, key, kv_head, 1)].iter().enumerate() {
                sums[i] += weight * wide(*value);
                magnitudes[i] += (weight * wide(*value)).abs();
            }
        }
        (sums, magnitudes)
    }

    /// Weights are rounded to bf16, and so is the result: each by at most one part in 256. The root of the mean square is
    /// far less than these bounds together.
    fn check(&self, out: &[u16], out_stride: usize) {
        const ROUNDING: f64 = 1.01 / 256.0;
        let (shape, width) = (self.shape, self.shape.heads() * self.shape.head_dim);
        let (mut errors, mut bounds) = (0.0, 0.0);
        for (row, token) in
            self.rows.iter().enumerate().flat_map(|(row, r)| r.tokens.clone().map(move |t| (row, t)))
        {
            let got = &out[token * out_stride..][..out_stride];
            for head in 0..shape.heads() {
                let (sums, magnitudes) = self.expected(row, token, head);
                for (i, (sum, magnitude)) in sums.iter().zip(magnitudes).enumerate() {
                    let value = wide(got[head * shape.head_dim + i]);
                    let (error, bound) = ((value - sum).abs(), (sum.abs() + magnitude) * ROUNDING + 1e-5);
                    // Not `>`: a NaN is never near.
                    assert!(
                        error <= bound,
                        "token {token} head {head} value {i}: {value}, not {sum}: {shape:?}"
                    );
                    errors += error * error;
                    bounds += bound * bound;
                }
            }
            assert!(got[width..].iter().all(|value| *value == 0), "columns behind the last head: {shape:?}");
        }
        assert!(errors <= bounds * 0.25 * 0.25, "{} of {}: {shape:?}", errors.sqrt(), bounds.sqrt());
        assert!(
            out[self.tokens() * out_stride..].iter().all(|value| *value == u16::MAX),
            "padding: {shape:?}"
        );
    }
}

/// A bf16 value whose mean is not zero, so that a key too many or too few shows.
fn draw(random: &mut Random) -> u16 {
    pack::narrow(1.7 * random.float() + 0.2)
}

/// What blocks compute.
#[derive(Default)]
struct Items {
    prefill: Vec<PrefillItem>,
    decode: Vec<DecodeItem>,
    combine: Vec<CombineItem>,
}

impl Items {
    /// Parts of decoded tokens are random, and so is whether prefill items are larger than a block's queries.
    fn cut(case: &Case, random: &mut Random) -> Self {
        let mut items = Self::default();
        for row in &case.rows {
            if row.decode {
                for token in row.tokens.clone() {
                    items.decode(case, row, token, random);
                }
                continue;
            }
            let usual = item_tokens(case.shape.head_dim, case.shape.group);
            items.prefill(row, if random.within(0..4) == 0 { usual * 2 + 1 } else { usual });
        }
        items
    }

    fn prefill(&mut self, row: &Row, step: usize) {
        self.prefill.extend(row.tokens.clone().step_by(step).map(|first| PrefillItem {
            first_token: first as u32,
            tokens: step.min(row.tokens.end - first) as u32,
            position: (row.position + first - row.tokens.start) as u32,
            table: row.table as u32,
        }));
    }

    fn decode(&mut self, case: &Case, row: &Row, token: usize, random: &mut Random) {
        let position = row.position + token - row.tokens.start;
        let oldest = case.shape.oldest(position);
        let first = if random.within(0..4) == 0 { 0 } else { oldest };
        let mut cuts = BTreeSet::from([first, position + 1]);
        if random.within(0..2) == 0 {
            cuts.extend((0..random.within(1..5)).map(|_| random.within(first..position + 1)));
        }
        let cuts: Vec<usize> = cuts.into_iter().collect();
        let partial = self.combine.last().map_or(0, |last| last.partial + last.parts);
        let parts = cuts.len() as u32 - 1;
        for (index, keys) in cuts.windows(2).enumerate() {
            self.decode.push(DecodeItem {
                token: token as u32,
                position: position as u32,
                table: row.table as u32,
                first_key: keys[0] as u32,
                end_key: keys[1] as u32,
                partial: partial + index as u32,
                parts,
                spare: 0,
            });
        }
        self.combine.push(CombineItem { token: token as u32, partial, parts, spare: 0 });
    }
}

/// Computes a case; gives what was written, and its stride.
fn run(harness: &Harness, case: &Case, items: &Items, random: &mut Random) -> (Vec<u16>, usize) {
    let shape = &case.shape;
    let list = random.within(0..2);
    let mut step = StepInputs::default();
    step.header.tokens = case.tokens() as u32;
    step.header.tables_at = step.put(&case.tables);
    step.header.prefill_items = items.prefill.len() as u32;
    step.header.prefill_at = step.put(&items.prefill);
    step.header.decode_items[list] = items.decode.len() as u32;
    step.header.decode_at[list] = step.put(&items.decode);
    step.header.combines = items.combine.len() as u32;
    step.header.combine_at[list] = step.put(&items.combine);
    let parts = items.combine.last().map_or(1, |last| last.partial + last.parts) as usize;
    let out_stride = (shape.heads() * shape.head_dim).next_multiple_of(64) + random.one_of(&[0, 64]);
    let (step, q, kv) = (step.upload(harness), harness.upload(&case.queries), harness.upload(&case.kv));
    let sinks = harness.upload(&case.sinks);
    let out = harness.poisoned::<u16>((case.tokens() + PADDING) * out_stride);
    let partials = harness.poisoned::<f32>(parts * shape.heads() * (shape.head_dim + 2));
    let args = AttendArgs {
        step: step.ptr(),
        q: q.ptr(),
        kv: kv.ptr().at(shape.layer * 2 * shape.plane() * size_of::<u16>()),
        sinks: if shape.sinks { sinks.ptr() } else { NONE },
        out: out.ptr(),
        partials: partials.ptr(),
        page_stride: shape.page_stride() as u64,
        heads: shape.heads() as u32,
        kv_heads: shape.kv_heads as u32,
        head_dim: shape.head_dim as u32,
        block_tokens: shape.block_tokens as u32,
        out_stride: out_stride as u32,
        window: shape.window,
        list: list as u32,
        scale: case.scale,
    };
    for kernel in attend_kernels(shape.head_dim) {
        let blocks = [random.within(1..6) as u32, shape.kv_heads as u32, 1];
        harness.launch(kernel, Grid { blocks, threads: THREADS, shared_bytes: kernel.shared_bytes() }, &args);
    }
    harness.launch(Kernel::AttendCombine, Grid::row(random.within(1..4), THREADS), &args);
    (harness.download(&out), out_stride)
}

fn check(harness: &Harness, shape: Shape, spans: &[Span], seed: u64) {
    let mut random = Random::new(seed ^ 2);
    let case = Case::new(shape, spans, seed);
    let items = Items::cut(&case, &mut random);
    let (out, out_stride) = run(harness, &case, &items, &mut random);
    case.check(&out, out_stride);
}

/// Calls a test with seeds; a device takes more of them.
fn each(few: u64, test: impl Fn(&Harness, &mut Random, u64)) {
    let Some(harness) = Harness::open() else { return };
    for seed in 0..if on_device() { few * 50 } else { few } {
        test(&harness, &mut Random::new(seed), seed);
    }
}

/// Several sequences of any shape, decoded and prefilled side by side.
#[test]
fn attention_agrees_with_f64() {
    each(16, |harness, random, seed| {
        let shape = Shape::draw(random);
        let spans: Vec<Span> = (0..random.within(1..4)).map(|_| Span::draw(random, &shape)).collect();
        check(harness, shape, &spans, seed);
    });
}

/// More heads than a product has rows, and more than a block's queries.
#[test]
fn large_groups_are_computed_in_turns() {
    each(4, |harness, random, seed| {
        let group = random.one_of(&[17, 35, 140]);
        let shape =
            Shape { group, kv_heads: 1, head_dim: random.one_of(&[16, 72, 136]), ..Shape::draw(random) };
        let spans = [
            Span { context: random.within(2..200), tokens: 2, decode: true },
            Span { context: random.within(3..200), tokens: 3, decode: false },
        ];
        check(harness, shape, &spans, seed);
    });
}

/// Windows that begin in the middle of a tile, at its first key and at its last.
#[test]
fn windows_begin_anywhere_in_a_tile() {
    each(12, |harness, random, seed| {
        let window = random.one_of(&[1, 2, 15, 16, 17, 63, 64, 65, 128]);
        let shape = Shape { group: 4, kv_heads: 1, window, ..Shape::draw(random) };
        let spans = [
            Span { context: random.within(190..260), tokens: random.within(1..70), decode: false },
            Span { context: random.within(60..260), tokens: 3, decode: true },
        ];
        check(harness, shape, &spans, seed);
    });
}

/// A token's result depends on what is before it, and not on items, pages or blocks.
#[test]
fn a_prompt_cut_otherwise_gives_the_same_bits() {
    each(6, |harness, random, seed| {
        let window = random.one_of(&[u32::MAX, 100]);
        let shape = Shape { window, ..Shape::draw(random) };
        let tokens = random.within(2..1 + 1600 / shape.heads().max(16));
        let span = Span { context: tokens + random.within(0..150), tokens, decode: false };
        let results = [shape.block_tokens, 16].map(|block_tokens| {
            let case = Case::new(Shape { block_tokens, ..shape }, &[span], seed);
            let mut items = Items::default();
            items.prefill(&case.rows[0], random.within(1..tokens + 1));
            let (out, out_stride) = run(harness, &case, &items, random);
            case.check(&out, out_stride);
            let rows = out.chunks_exact(out_stride).take(tokens);
            rows.map(|row| row[..shape.heads() * shape.head_dim].to_vec()).collect::<Vec<_>>()
        });
        assert!(results[0] == results[1], "{shape:?} {span:?}");
    });
}

/// Nothing to do is nothing written.
#[test]
fn no_items_write_nothing() {
    each(2, |harness, random, seed| {
        let case = Case::new(Shape::draw(random), &[Span { context: 1, tokens: 1, decode: true }], seed);
        let (out, _) = run(harness, &case, &Items::default(), random);
        assert!(out.iter().all(|value| *value == u16::MAX));
    });
}

const BUGS: &[Bug] = &[
    // Values are used before they are there.
    ("attend_decode.cu", "FLYING = AHEAD * 2 - 2;", "FLYING = AHEAD * 2 - 1;"),
    // Places are overwritten while lanes read them, and too early.
    (
        "attend_decode.cu",
        "            // Tile 2 takes the places of tile 0.\n            __syncwarp();\n",
        "",
    ),
    ("attend_decode.cu", "put_places(tile + AHEAD + 1, next);", "put_places(tile + AHEAD, next);"),
    // Every warp, then every part, has the sink.
    ("attend_decode.cu", "args.sinks && warp_index() == 0 &&", "args.sinks &&"),
    ("attend_decode.cu", "item.first_key <= oldest && oldest < item.end_key", "oldest < item.end_key"),
    // Warps overwrite what others read.
    ("attend_decode.cu", "    // The next queries overwrite the sums.\n    __syncthreads();\n", ""),
    // Parts weigh the same whatever their maxima are.
    (
        "attend_decode.cu",
        "part * stride + 1] * exp2_fast(states[part * stride] - maximum)",
        "part * stride + 1]",
    ),
    // Columns behind the last head stay as they are.
    ("attend_decode.cu", "        clear_tail(args, item.token, threadIdx.x, THREADS);\n", ""),
    ("attend_tiles.cuh", "                weight[half] *= keep;\n", ""),
    // Dimensions and rows in the wrong order.
    (
        "attend_tiles.cuh",
        "lane_index() % 8 + lane_index() / 16 * 8, lane_index() / 8 % 2",
        "lane_index() % 16, lane_index() / 16",
    ),
    ("attend_tiles.cuh", "(lane_index() % CHUNKS ^ row % 8)", "(lane_index() % CHUNKS)"),
    // What no key has given is subtracted from itself.
    (
        "attend_tiles.cuh",
        "maximum[half] == minus_infinity() ? 0.0f : maximum[half] * factor",
        "maximum[half] * factor",
    ),
    (
        "attend_prefill.cu",
        "        cp_wait<0>();\n        __syncthreads();\n        copy(",
        "        cp_wait<0>();\n        copy(",
    ),
    (
        "attend_prefill.cu",
        "places[stage * COPIED + lane_copied] = next;",
        "places[(stage ^ 1) * COPIED + lane_copied] = next;",
    ),
    ("attend_prefill.cu", "    // The next queries overwrite these.\n    __syncthreads();\n", ""),
];

const BUGS_OF_WINDOWS: &[Bug] = &[
    // A key beyond the last counts.
    ("attend_decode.cu", "        if (live < KEYS) {", "        if (live + 2 < KEYS) {"),
    // One key too many.
    (
        "attend_tiles.cuh",
        "position < window ? 0 : position - window + 1;",
        "position < window ? 0 : position - window;",
    ),
    ("attend_decode.cu", "(item.first_key < oldest ? oldest : item.first_key)", "item.first_key"),
    ("attend_prefill.cu", "position[e / 2] - key < window", "position[e / 2] - key <= window"),
    // A tile that is not masked.
    ("attend_prefill.cu", "|| first_key < masked_until;", ";"),
    ("attend_prefill.cu", "first_key + KEYS > masked_from ||", "first_key + KEYS > masked_from + 16 ||"),
    // Pages behind the window are read.
    (
        "attend_prefill.cu",
        "lane_copied < oldest ? NOWHERE : place(first_tile)",
        "lane_copied < 0 ? NOWHERE : place(first_tile)",
    ),
];

const BUGS_OF_GROUPS: &[Bug] = &[
    (
        "attend_decode.cu",
        "            // Sums of the first half have been read.\n            __syncthreads();\n",
        "",
    ),
    ("attend_decode.cu", "const u32 first = unit % sets * QUERIES;", "const u32 first = 0;"),
    ("attend_prefill.cu", "query += PrefillShape<HD>::BLOCK_QUERIES", "query += work.queries"),
];

/// Tiles that begin where the item's window does.
const BUGS_OF_CUTS: &[Bug] =
    &[("attend_prefill.cu", "first_tile = oldest / KEYS * KEYS;", "first_tile = oldest;")];

#[test]
#[ignore = "builds the kernels once for each bug"]
fn bugs_in_attention_are_found() {
    let bugs: &[(&str, &[Bug])] = &[
        ("attention_agrees_with_f64", BUGS),
        ("windows_begin_anywhere_in_a_tile", BUGS_OF_WINDOWS),
        ("large_groups_are_computed_in_turns", BUGS_OF_GROUPS),
        ("a_prompt_cut_otherwise_gives_the_same_bits", BUGS_OF_CUTS),
    ];
    check_bugs("attend", bugs);
}
