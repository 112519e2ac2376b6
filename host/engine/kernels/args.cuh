// What kernels are given: one struct a kernel, passed by value. `src/cuda/args.rs` has the same structs; a test compares
// their sizes through the stand-in driver.
//
// Sizes that all kernels rely on:
//   - a matrix of weights is row-major [n, k] bf16: n outputs, a multiple of 32; k inputs, a multiple of 64. What the
//     model does not have is zero.
//   - activations that are multiplied are row-major [m, k] bf16 with the same k; values beyond the model's are zero.
//   - head_dim is a multiple of 8 and at most 256; the width of a norm, and of the residual stream, is a multiple of 4.
//   - pointers are aligned to 256 bytes, strides are in values unless a name says bytes.
//   - KV pages are [page][layer][K|V][kv_head][slot][head_dim] in bf16.
#pragma once

// A token id with this bit set is instead the place of a token in `drawn`, which an earlier step drew.
#define TOKEN_DRAWN 0x80000000u
// A page that does not exist: the token is padding and its KV is written nowhere.
#define PAGE_NONE 0xffffffffu

// ---------------------------------------------------------------------------------------------------------------
// A step's inputs, uploaded in one piece: this header, then arrays at byte offsets from it (multiples of 16).
// ---------------------------------------------------------------------------------------------------------------

struct __align__(16) Step {
    u32 tokens;         // new tokens of all rows; launches cover at least as many, the others are padding
    u32 rows;           // sequences
    u32 samples;        // rows of logits
    u32 prefill_items;  // entries of the prefill list
    u32 decode_items[2];  // entries of the decode lists: of layers that see everything, and of those with a window
    u32 combines;       // entries of the combine lists: one for each token that is attended to by decode items
    u32 spare;
    u32 ids_at;         // u32 [tokens]: token ids, see TOKEN_DRAWN
    u32 positions_at;   // u32 [tokens]
    u32 token_pages_at; // u32 [tokens]: the page that holds the token's KV; its slot is position % block_tokens
    u32 tables_at;      // u32 [..]: page tables of all rows, one after the other
    u32 prefill_at;     // PrefillItem [prefill_items]
    u32 decode_at[2];   // DecodeItem [decode_items]
    u32 combine_at[2];  // CombineItem [combines], for each decode list
    u32 sample_tokens_at;  // u32 [samples]: the token whose hidden state gives the logits
    u32 samples_at;     // SampleSpec [samples]
    u32 edits_at;       // LogitEdit [..], of all samples
    u32 masks_at;       // u32 [..]: mask words, of all samples
    u32 spare_at[3];
};

// Some tokens of one row whose attention is computed together, for every KV head (blockIdx.y).
struct PrefillItem {
    u32 first_token;  // place in the batch
    u32 tokens;       // at most the queries of a tile over the heads of a group
    u32 position;     // of the first
    u32 table;        // first entry of the row's page table, in the array at tables_at
};

// One token of a row over a range of its keys, for every KV head (blockIdx.y).
struct DecodeItem {
    u32 token;     // place in the batch
    u32 position;  // it sees the keys up to its own
    u32 table;     // as in PrefillItem
    u32 first_key;
    u32 end_key;   // at most position + 1
    u32 partial;   // where its part goes, in `partials` of AttendArgs
    u32 parts;     // parts of this token; of 1, the result is written at once and there is nothing to combine
    u32 spare;
};

// The parts of one token.
struct CombineItem {
    u32 token;
    u32 partial;  // of the first part; the others follow
    u32 parts;
    u32 spare;
};

// How one row of logits is drawn from; as `SampleSpec` of the executor, with the random number drawn already.
struct __align__(16) SampleSpec {
    u64 uniform;       // the random number in [0, 1), times 2^64; its low 11 bits are zero
    float temperature; // 0 is greedy
    float top_p;       // 1 keeps all
    float min_p;       // 0 keeps all
    float repetition;  // factor of LogitEdits that say so
    u32 top_k;         // 0 keeps all
    u32 edits;         // entries from `first_edit` on; no token twice
    u32 first_edit;
    u32 mask;          // first word of its mask in the array at masks_at
    u32 mask_words;    // 0: every token is allowed; a token beyond the last word is not
    u32 report;        // 0: no log-probability; n + 1: that of the token, and the n likeliest
    u32 spare[4];
};

// A change to one logit, in this order: bias added, repetition penalty, then `penalty` subtracted.
struct __align__(16) LogitEdit {
    u32 token;
    float bias;
    float penalty;  // presence and frequency penalties, summed
    u32 repeated;   // whether the repetition penalty counts
};

// Most alternatives that a kernel reports.
#define TOP_MAX 32

// What was drawn.
struct Drawn {
    u32 token;
    float logprob;
    u32 top_tokens[TOP_MAX];
    float top_logprobs[TOP_MAX];
};

// ---------------------------------------------------------------------------------------------------------------
// Kernels. `cap` is what a launch covers, at least the step's own number.
// ---------------------------------------------------------------------------------------------------------------

// embed: x[t] = table[ids[t]] * scale, f32 [cap, stride]; padding tokens and columns become zero.
// Grid: cap tokens. Block: 128.
struct EmbedArgs {
    const Step* step;
    const bf16* table;  // [vocab, stride]
    const u32* drawn;   // tokens of the step before
    float* x;
    u32 stride;
    float scale;
};

// angles: cosines then sines of every token and rope: out[rope][t][head_dim].
// The angle is the f32 product position * frequency, as the CPU executor has it; sin and cos of it within 2e-7.
// Grid: (cap tokens, ropes). Block: 64.
struct AnglesArgs {
    const Step* step;
    const float* frequencies;  // [ropes, head_dim / 2]
    const float* magnitudes;   // [ropes]
    float* angles;             // [ropes, cap, head_dim]
    u32 head_dim;
    u32 cap;
};

// row_norm: out[t] = bf16(rmsnorm(x[t]) * weight), or bf16(x[t]) when `weight` is null. Columns from `width` on are
// zero.
// Grid: cap tokens. Block: 256 or 512. Rows of up to 16 columns a thread are read once.
struct NormArgs {
    const Step* step;
    const float* x;       // [cap, x_stride]
    const float* weight;  // [width] or null
    bf16* out;            // [cap, out_stride]
    u32 width;
    u32 x_stride;
    u32 out_stride;
    float eps;
};

// add_norm: b = sum of the parts of branch[t], + bias; x[t] += branch_norm ? rmsnorm(b) * branch_norm : b; then as
// `row_norm` into `out`, if there is one. Grid and block: as `row_norm`.
struct AddNormArgs {
    const Step* step;
    float* x;                  // [cap, x_stride]
    const float* branch;       // [parts, cap, x_stride]: what products wrote, in parts that are added in order
    const float* bias;         // [width] or null
    const float* branch_norm;  // [width] or null
    const float* weight;       // as in NormArgs
    bf16* out;                 // [cap, out_stride] or null
    u32 parts;
    u32 part_stride;           // values from one part to the next
    u32 width;
    u32 x_stride;
    u32 out_stride;
    float eps;
};

// pick_norm: as `row_norm` for the tokens at sample_tokens_at: out[s] = rmsnorm(x[sample_tokens[s]]) * weight.
// Rows from step->samples on become zero. Grid: cap samples. Block: as `row_norm`. Args: NormArgs.

// rope_kv: bias, norms and rope of queries and keys; queries go to `q`, keys and values to their pages.
// A token that is padding (its place is >= step->tokens, or its page is PAGE_NONE) writes no KV and zero queries.
// Grid: (cap tokens, parts of the heads). Block: 256, a warp for each head until all are done.
struct RopeKvArgs {
    const Step* step;
    const float* qkv;     // [parts, cap, qkv_stride]: queries, keys, values; parts are added in order
    const float* bias;    // [(heads + 2 kv_heads) head_dim] or null
    const float* q_norm;  // [head_dim], or [heads head_dim] when norm_whole; or null
    const float* k_norm;  // the same of keys
    const float* angles;  // of this layer's rope: [cap, head_dim]
    bf16* q;              // [cap, heads, head_dim]
    bf16* kv;             // this layer's part of page 0
    u64 page_stride;      // values from one page to the next
    u32 parts;
    u32 part_stride;
    u32 qkv_stride;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    u32 block_tokens;
    u32 norm_whole;       // whether a norm is over all heads as one
    float eps;
    u32 spare;
};

// attend_decode_HD, attend_prefill_HD (HD: 64, 128, 256; head_dim is at most HD): causal attention over KV pages.
// attend_combine: adds the parts of attend_decode.
// The softmax begins with the head's sink, if there are sinks, as a key whose value is zero (in one part alone: the one
// that holds the oldest key that the token sees). Weights are rounded to bf16, sums are f32.
// Columns of `out` from heads * head_dim on are zero; rows of padding stay as they are.
// Grid: (any number, kv_heads), and any number for attend_combine: blocks take items in turn. Block: 128, with the dynamic
// shared memory that DecodeShape and PrefillShape say.
struct AttendArgs {
    const Step* step;
    const bf16* q;       // [cap, heads, head_dim]
    const bf16* kv;      // this layer's part of page 0
    const float* sinks;  // [heads] or null
    bf16* out;           // [cap, out_stride]: [heads, head_dim]
    float* partials;     // [partials, heads, head_dim + 2]: sums not yet divided, then their maximum (of
                         // exponents of 2) and their weight
    u64 page_stride;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    u32 block_tokens;
    u32 out_stride;
    u32 window;          // keys a token sees, its own included; 0xffffffff for all
    u32 list;            // which decode and combine list
    float scale;
};

// Products: out = a * transpose(w), f32 sums. `mode` says what becomes of them.
#define GEMM_STORE 0  // f32 out[m][out_stride]
#define GEMM_ADD 1    // f32 out[m][out_stride] += ..
#define GEMM_GATE 2   // bf16 out[m][out_stride] of gate and up: rows of w alternate, 16 of gate and 16 of up;
                      // columns from n / 2 on become zero
#define GATE_SILU 0
#define GATE_GELU 1
#define GATE_CLAMPED 2
struct GemmArgs {
    const bf16* a;      // [m, k]; or [.., k] when `rows` says which
    const bf16* w;      // [n, k]; of expert e at w + e * w_stride
    void* out;
    const float* bias;  // [n] or null; added in all modes, before a gate, in part 0. Of expert e at bias + e * n
    const u32* rows;    // which row of `a` is row i of the product; null: i. Experts alone
    const u32* bounds;  // [experts + 1]: the rows i of expert e (blockIdx.z) are bounds[e] .. bounds[e + 1]; null: 0 .. m
    u64 w_stride;
    u32 m;
    u32 n;
    u32 k;
    u32 out_stride;
    u32 mode;
    u32 gate;
    u32 splits;         // parts of k, computed apart: part p at out + p * split_stride; GEMM_STORE alone, else 1
    u32 split_stride;
};

// skinny_N (N: 16, 32, 64): at most N rows, of a product or of each expert; weights are streamed once.
// gemm_64, gemm_128: tiles of so many rows. Grids, blocks and shared memory: `gemm.cu`.

// gemm_wgmma_128, gemm_wgmma_256: the same without rows and bounds, for compute capability 9.0 alone; tiles of 128 rows
// and so many outputs. Both maps have boxes of 64 values of k by 128 rows, in the 128-byte swizzle.
struct WgmmaArgs {
    TensorMap a_map;
    TensorMap w_map;
    GemmArgs gemm;
};

// gate: out = gate(gate_up + bias), as GEMM_GATE does after a product that stored. Grid: (cap tokens, parts of a row).
// Block: 256.
struct GateArgs {
    const Step* step;
    const float* gate_up;  // [cap, 2 * out_stride], 16 of gate and 16 of up
    const float* bias;     // the same order, or null
    bf16* out;             // [cap, out_stride]
    u32 width;             // values of a row of `out` that are computed, a multiple of 16; the rest are zero
    u32 gate_up_stride;
    u32 out_stride;
    u32 gate;
};

// score: the scores of every token and expert, f32: rmsnorm(x) * norm (or x) times the router's weights, + bias.
// Grid: (tokens / 8, experts / 8), or (tokens / 8, experts / 32) from 64 tokens on, rounded up. Block: 256.
// route: the best experts of every token by its scores. Grid: cap tokens / 4, rounded up. Block: 128.
// Of equal experts the first is better. Chosen experts are in the order of their index; weights are their shares in the
// softmax of all, or of theirs when `normalized`. Padding tokens choose no expert (0xffffffff).
struct RouteArgs {
    const Step* step;
    const float* x;        // [cap, x_stride]
    const float* norm;     // [width] or null
    const float* router;   // [experts, width]
    const float* bias;     // [experts] or null
    float* scores;         // [cap, experts]
    u32* chosen;           // [cap, active]
    float* shares;         // [cap, active]
    u32 width;
    u32 x_stride;
    u32 experts;           // at most 512
    u32 active;            // at most 16
    u32 normalized;
    float eps;
    u32 cap;
    u32 spare;
};

// sort_experts: pairs (token, choice) by expert, in order of tokens; fewer than 65,536 tokens. One block of 1,024.
struct SortArgs {
    const Step* step;
    const u32* chosen;  // [cap, active]
    u32* bounds;        // [experts + 1]
    u32* rows;          // [cap * active]: the token of each place
    u32* places;        // [cap, active]: the place of each pair
    u32 experts;
    u32 active;
};

// add_experts: x[t] += sum over its choices, in order, of share * (down[place] + bias[expert]); then as `row_norm` into
// `out`, if there is one. Grid and block: as `row_norm`.
struct AddExpertsArgs {
    const Step* step;
    float* x;             // [cap, x_stride]
    const float* down;    // [cap * active, x_stride]
    const float* bias;    // [experts, bias_stride] or null
    const u32* chosen;
    const u32* places;
    const float* shares;
    const float* weight;  // as in NormArgs
    bf16* out;            // [cap, out_stride] or null
    u32 active;
    u32 width;
    u32 x_stride;
    u32 out_stride;
    u32 bias_stride;
    float eps;
};

// sample: draws from logits, which are used up. Grid: cap samples. Block: 1,024.
// Order: report of the raw logits, edits, mask, temperature, top-k, top-p, min-p, draw; as `src/sample.rs`. Edits are
// used up, too: each has the raw logit in the place of its bias afterwards.
struct SampleArgs {
    const Step* step;
    float* logits;     // [cap, stride]
    Drawn* out;        // [cap]
    u32* drawn;        // [cap]: the tokens again, for the next step
    u32 vocab;
    u32 stride;
};

// copy_blocks: to[i] = from[i] for pairs of byte offsets. Grid: (pairs, parts of a block). Block: 256.
struct CopyArgs {
    const u8* from;
    u8* to;
    const u64* pairs;  // [pairs, 2]: offset in `from`, offset in `to`; multiples of 16
    u64 bytes;         // of a block, a multiple of 16
};

// unpack: panels of 32 rows as `src/pack.rs` has them, to row-major [rows, stride]. Grid: panels. Block: 256.
struct UnpackArgs {
    const bf16* packed;  // [panels, cols / 2, 32, 2]
    bf16* out;           // row 0 of the first panel; columns from `cols` on become zero
    u32 cols;
    u32 stride;
};
