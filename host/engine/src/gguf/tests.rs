//! The reader against whole, broken and hostile files.
#![allow(unsafe_code, reason = "allocations are counted")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value;

use super::{GgufMetadata, Header};
use crate::encoding::Encoding;
use crate::{EngineError, Model, ModelFiles, WeightFormat};

/// Counts what each thread has allocated and not given back, and the most it ever had.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends may allocate after its counters are gone.
    let _ended = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        MOST.with(|most| most.set(most.get().max(live.get())));
    });
}

// SAFETY: every call is the system allocator's, with the caller's own promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: by the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: by the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes taken at once, at most, for each byte of the file: a tree node for each entry of 13 bytes, and a copy of each
/// name; plus what a message takes.
const GROWTH_MAX: usize = 40;
const MESSAGE_BYTES: usize = 4096;

/// Reads bytes as a header, whatever they are: neither panics nor takes memory without bound.
fn read(bytes: &[u8]) -> Result<Header, String> {
    LIVE.with(|live| live.set(0));
    MOST.with(|most| most.set(0));
    let header = Header::read(bytes);
    let most = MOST.with(Cell::get) as usize;
    let allowed = bytes.len() * GROWTH_MAX + MESSAGE_BYTES;
    assert!(most <= allowed, "{most} bytes taken for {}", bytes.len());
    header
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf").join(name)
}

/// A small file, part by part.
struct Writer(Vec<u8>);

impl Writer {
    fn new(tensors: u64, entries: u64) -> Self {
        let mut out = Self(b"GGUF".to_vec());
        out.u32(3);
        out.u64(tensors);
        out.u64(entries);
        out
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// A tensor of one dimension in F32.
    fn tensor(&mut self, name: &str, dim: u64, kind: u32, offset: u64) -> &mut Self {
        self.text(name).u32(1).u64(dim).u32(kind).u64(offset)
    }

    /// Ends the header; `len` bytes of data follow.
    fn data(&mut self, len: usize) -> &[u8] {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + len, 0);
        &self.0
    }
}

/// A small file with a value of every kind that matters, and two tensors.
fn small() -> Vec<u8> {
    let mut out = Writer::new(2, 4);
    out.text("general.architecture").u32(8).text("llama");
    out.text("llama.block_count").u32(4).u32(2);
    out.text("tokenizer.ggml.tokens").u32(9).u32(8).u64(3).text("a").text("bc").text("");
    out.text("tokenizer.ggml.scores").u32(9).u32(6).u64(2).u32(1.5f32.to_bits()).u32(0);
    out.tensor("one", 8, 0, 0).tensor("two", 32, 8, 32);
    out.data(66).to_vec()
}

fn check_refused(bytes: &[u8], reason: &str) {
    assert_eq!(read(bytes).unwrap_err(), reason);
}

#[test]
fn a_whole_file_gives_its_values_and_tensors() {
    let bytes = small();
    let header = read(&bytes).unwrap();
    let metadata = GgufMetadata { values: &header.values, bytes: &bytes };
    assert_eq!(metadata.text("general.architecture"), Some("llama"));
    assert_eq!(metadata.unsigned("llama.block_count"), Some(2));
    assert_eq!(metadata.texts("tokenizer.ggml.tokens").unwrap().collect::<Vec<_>>(), ["a", "bc", ""]);
    assert_eq!(metadata.numbers("tokenizer.ggml.scores").unwrap().collect::<Vec<_>>(), [1.5, 0.0]);
    assert_eq!((metadata.text("llama.block_count"), metadata.flag("absent")), (None, None));
    assert_eq!((header.tensors["two"].shape.as_slice(), header.tensors["two"].bytes.len()), (&[32][..], 34));
}

#[test]
fn a_file_that_ends_early_is_refused_at_any_length() {
    let bytes = small();
    for len in 0..bytes.len() {
        assert!(read(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
    }
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    check_refused(
        Writer::new(1, u64::MAX).data(0),
        &format!("{} metadata entries do not fit in 8 bytes", u64::MAX),
    );
    check_refused(Writer::new(1 << 40, 0).data(0), "1099511627776 tensors do not fit in 8 bytes");
    let mut out = Writer::new(0, 1);
    out.text("key").u32(9).u32(4).u64(1 << 60);
    check_refused(out.data(0), "key `key`: 1152921504606846976 values of a list do not fit in 13 bytes");
    let mut out = Writer::new(0, 1);
    out.u64(1 << 50);
    check_refused(out.data(16), "a length of 1125899906842624 bytes where 16 are left");
}

#[test]
fn lists_of_lists_are_refused() {
    let mut out = Writer::new(0, 1);
    out.text("key").u32(9).u32(9).u64(1).u32(4).u64(1).u32(7);
    check_refused(out.data(64), "key `key`: lists of lists are not supported");
}

#[test]
fn tensors_outside_the_file_or_on_each_other_are_refused() {
    let mut out = Writer::new(1, 0);
    check_refused(out.tensor("a", 9, 0, 0).data(32), "truncated: tensor `a` [9] ends beyond byte 96");
    let mut out = Writer::new(1, 0);
    let reason = format!("truncated: tensor `a` [{}] ends beyond byte 96", u64::MAX);
    check_refused(out.tensor("a", u64::MAX, 0, 0).data(32), &reason);
    let mut out = Writer::new(1, 0);
    check_refused(
        out.tensor("a", 8, 0, u64::MAX - 31).data(32),
        "truncated: tensor `a` [8] ends beyond byte 96",
    );
    let mut out = Writer::new(2, 0);
    out.tensor("a", 16, 0, 0).tensor("b", 8, 0, 32);
    check_refused(out.data(64), "tensors `a` and `b` overlap");
    let mut out = Writer::new(2, 0);
    out.tensor("a", 8, 0, 0).tensor("a", 8, 0, 32);
    check_refused(out.data(64), "tensor `a` is there twice");
    let mut out = Writer::new(1, 0);
    check_refused(out.tensor("a", 8, 0, 4).data(64), "tensor `a` lies at 4, which is no multiple of 32");
    let mut out = Writer::new(1, 0);
    check_refused(out.tensor("a", 0, 0, 0).data(64), "tensor `a` has a dimension of no size");
}

#[test]
fn types_and_versions_without_a_reader_are_named() {
    let mut out = Writer::new(1, 0);
    check_refused(
        out.tensor("a", 256, 13, 0).data(64),
        "tensor `a` has type Q5_K, which is not supported (supported: F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q6_K, MXFP4)",
    );
    let mut out = Writer::new(1, 0);
    check_refused(
        out.tensor("a", 40, 8, 0).data(64),
        "tensor `a` has rows of 40 values, which are no blocks of 32",
    );
    let mut bytes = small();
    bytes[4] = 1;
    check_refused(&bytes, "GGUF version 1 is not supported (supported: 2 and 3)");
    bytes[0] = b'g';
    check_refused(&bytes, "does not begin with `GGUF`");
}

#[test]
fn alignment_is_a_power_of_two() {
    for alignment in [0, 24, 1 << 17] {
        let mut out = Writer::new(0, 1);
        out.text("general.alignment").u32(4).u32(alignment);
        check_refused(
            out.data(0),
            &format!("`general.alignment` {alignment} is not a power of two up to 65536"),
        );
    }
}

/// Blocks of every kind stand for the values that the `gguf` package gives them.
#[test]
fn blocks_decode_as_their_writer_does() {
    let json = std::fs::read(fixture("blocks.json")).unwrap();
    let kinds: Value = serde_json::from_slice(&json).unwrap();
    for (name, encoding) in [
        ("Q8_0", Encoding::Q8_0),
        ("Q4_0", Encoding::Q4_0),
        ("Q4_K", Encoding::Q4K),
        ("Q6_K", Encoding::Q6K),
        ("MXFP4", Encoding::Mxfp4Block),
    ] {
        let list = |part: &str| kinds[name][part].as_array().unwrap().clone();
        let bytes: Vec<u8> = list("bytes").iter().map(|byte| byte.as_u64().unwrap() as u8).collect();
        let values: Vec<f64> = list("values").iter().map(|value| value.as_f64().unwrap()).collect();
        let mut got = vec![0.0; encoding.block_values()];
        let blocks = bytes.chunks_exact(encoding.block_bytes());
        assert_eq!(blocks.len() * encoding.block_values(), values.len());
        for (block, expected) in blocks.zip(values.chunks_exact(encoding.block_values())) {
            encoding.decode(block, 0, &mut got);
            for (got, expected) in got.iter().zip(expected) {
                let difference = (f64::from(*got) - expected).abs();
                assert!(difference <= expected.abs() * 1e-6, "{name}: {got}, not {expected}");
            }
        }
    }
}

#[test]
fn blocks_can_be_had_as_they_lie_in_the_file() {
    let files = ModelFiles::open(&fixture("quantised.gguf")).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let tensor = files.tensors()[name].open(&files, name, &[96, 64]).unwrap();
    let (row, mut values) = (tensor.blocks(Encoding::Q8_0, 95).unwrap(), [0.0; 64]);
    tensor.row_f32(95, &mut values).unwrap();
    let scale = f64::from(half::f16::from_le_bytes([row[34], row[35]]));
    assert_eq!((row.len(), f64::from(values[32])), (68, scale * f64::from(row[36] as i8)));
    assert_eq!(tensor.blocks(Encoding::Q4_0, 95), None);
}

fn load(bytes: &[u8]) -> Result<Model, EngineError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Model::load(&ModelFiles::open(&path)?)
}

#[test]
fn an_unknown_architecture_is_told_with_those_we_know() {
    let mut out = Writer::new(0, 1);
    out.text("general.architecture").u32(8).text("mamba");
    let message = load(out.data(0)).unwrap_err().to_string();
    let expected = "architecture `mamba` is not supported (supported: llama, qwen2, qwen3, gemma3, phi3, olmo2, \
                    qwen3moe, gpt-oss)";
    assert!(message.ends_with(expected), "{message}");
}

#[test]
fn a_folder_with_one_gguf_file_is_that_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("gemma3.gguf"), dir.path().join("a.gguf")).unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    let metadata = files.gguf_metadata().unwrap();
    assert_eq!(metadata.text("tokenizer.chat_template"), Some("{{ messages }}"));
    assert_eq!(metadata.texts("tokenizer.ggml.tokens").unwrap().nth(7), Some("token 7"));
    assert_eq!(metadata.flag("tokenizer.ggml.add_bos_token"), Some(false));
    std::fs::copy(fixture("gemma3.gguf"), dir.path().join("b.gguf")).unwrap();
    let message = ModelFiles::open(dir.path()).err().unwrap().to_string();
    assert!(message.ends_with("holds 2 `.gguf` files: name one of them"), "{message}");
}

#[test]
fn a_block_whose_scale_is_not_finite_is_refused_in_every_form() {
    let mut bytes = std::fs::read(fixture("quantised.gguf")).unwrap();
    let place = Header::read(&bytes).unwrap().tensors["blk.1.ffn_up.weight"].bytes.start;
    // The second block of row 4: its scale is infinite, its first value a number.
    let block = place + 4 * 68 + 34;
    bytes[block..block + 3].copy_from_slice(&[0, 0x7c, 5]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    for format in [WeightFormat::Bf16, WeightFormat::Int8] {
        let message = Model::load_as(&ModelFiles::open(&path).unwrap(), format).unwrap_err().to_string();
        let expected = "model.gguf: tensor `model.layers.1.mlp.up_proj.weight` is infinite at [4, 32]";
        assert!(message.ends_with(expected), "{format:?}: {message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the bytes, reading ends, within bounds.
    #[test]
    fn arbitrary_bytes_end_in_a_reason(body in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _refused = read(&body);
        let _refused = read(&[b"GGUF\x03\0\0\0".as_slice(), &body].concat());
    }

    /// Whatever is written over a whole file, reading ends, within bounds, and what is read lies within the file.
    #[test]
    fn a_changed_file_is_read_within_its_bounds(
        changes in proptest::collection::vec((0usize..500, any::<u64>(), 0u32..64), 1..6)
    ) {
        let mut bytes = small();
        for (at, value, shift) in changes {
            // Lengths and counts of every magnitude.
            let at = at % (bytes.len() - 8);
            bytes[at..at + 8].copy_from_slice(&(value >> shift).to_le_bytes());
        }
        if let Ok(header) = read(&bytes) {
            prop_assert!(header.tensors.values().all(|tensor| tensor.bytes.end <= bytes.len()));
            let metadata = GgufMetadata { values: &header.values, bytes: &bytes };
            for key in metadata.keys() {
                metadata.texts(key).map(Iterator::count);
                metadata.numbers(key).map(Iterator::count);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever a header says, a model is loaded or refused.
    #[test]
    fn a_model_with_a_changed_header_is_loaded_or_refused(
        changes in proptest::collection::vec((0usize..16_000, any::<u64>(), 0u32..64), 1..4)
    ) {
        for name in ["phi3.gguf", "gpt_oss.gguf"] {
            let mut bytes = std::fs::read(fixture(name)).unwrap();
            for (at, value, shift) in &changes {
                bytes[*at..at + 1 + *shift as usize / 8].fill((value >> shift) as u8);
            }
            let _refused = load(&bytes);
        }
    }
}
