//! Products: every kernel in every mode, in random shapes.

use super::super::args::{GemmArgs, GemmMode, Ptr, WgmmaArgs};
use super::super::kernels::{Grid, Kernel};
use super::super::tensor_map;
use super::super::testing::{Harness, NONE, Random, assert_near, wide};
use super::{Bug, check_bugs};

const ROUNDS: u64 = 4;
/// Of f32 sums, which tensor cores round in their own way, and of bf16 results.
const SUM_TOLERANCE: f64 = 2e-5;
const BF16_TOLERANCE: f64 = 2e-3;

/// A kernel's tile and threads, as its source says.
#[derive(Clone, Copy)]
struct Shape {
    kernel: Kernel,
    rows: usize,
    outputs: usize,
    threads: u32,
}

const SKINNY: [Shape; 3] = [
    Shape { kernel: Kernel::Skinny16, rows: 16, outputs: 32, threads: 256 },
    Shape { kernel: Kernel::Skinny32, rows: 32, outputs: 64, threads: 256 },
    Shape { kernel: Kernel::Skinny64, rows: 64, outputs: 64, threads: 128 },
];
const TILES: [Shape; 2] = [
    Shape { kernel: Kernel::Gemm64, rows: 64, outputs: 128, threads: 256 },
    Shape { kernel: Kernel::Gemm128, rows: 128, outputs: 128, threads: 256 },
];
const WGMMA: [Shape; 2] = [
    Shape { kernel: Kernel::GemmWgmma128, rows: 128, outputs: 128, threads: 384 },
    Shape { kernel: Kernel::GemmWgmma256, rows: 128, outputs: 256, threads: 384 },
];

/// A product, or one of several experts.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    mode: GemmMode,
    gate: u32,
    bias: bool,
    splits: usize,
    /// 0: none.
    experts: usize,
    /// Whether rows of `a` are chosen by a list.
    gathered: bool,
    /// Columns of a row of the result beyond those computed.
    spare: usize,
    /// Tiles of rows in the grid, or blocks of a persistent one, if fewer than there are.
    grid_max: usize,
}

struct Operands {
    a: Vec<u16>,
    w: Vec<u16>,
    bias: Vec<f32>,
    rows: Vec<u32>,
    bounds: Vec<u32>,
    /// What was in the result before, as f32.
    out: Vec<f32>,
}

impl Case {
    fn random(random: &mut Random, shape: Shape, mode: GemmMode) -> Self {
        let (skinny, wgmma) =
            (shape.outputs <= 64, [Kernel::GemmWgmma128, Kernel::GemmWgmma256].contains(&shape.kernel));
        let often = |random: &mut Random, times: usize| random.within(0..times) == 0;
        let m_max = if skinny { shape.rows } else { 2 * shape.rows + 30 };
        let experts = if !wgmma && often(random, 3) { random.within(1..5) } else { 0 };
        let splits = mode == GemmMode::Store && (skinny || experts == 0) && often(random, 2);
        Self {
            m: if often(random, 4) { m_max } else { random.within(1..m_max + 1) },
            n: 32 * random.within(1..if wgmma { 20 } else { 10 }),
            k: 64 * random.within(1..10),
            mode,
            gate: random.within(0..3) as u32,
            bias: often(random, 2),
            splits: if splits { random.within(2..5) } else { 1 },
            experts,
            gathered: experts > 0 && often(random, 2),
            spare: if often(random, 2) { 8 * random.within(1..5) } else { 0 },
            grid_max: if often(random, 2) { random.within(1..4) } else { usize::MAX },
        }
    }

    fn operands(&self, random: &mut Random) -> Operands {
        let experts = self.experts.max(1);
        let mut bounds = vec![0];
        for expert in 0..experts {
            let rows = match self.experts {
                0 => self.m,
                _ if random.within(0..3) == 0 => 0,
                _ => random.within(1..self.m + 1),
            };
            bounds.push(bounds[expert] + rows as u32);
        }
        let total = bounds[experts] as usize;
        let a_rows = if self.gathered { self.m } else { total };
        Operands {
            a: random.bf16s(a_rows * self.k),
            w: random.bf16s(experts * self.n * self.k),
            bias: random.floats(experts * self.n).iter().map(|bias| 4.0 * bias).collect(),
            rows: (0..total).map(|_| random.within(0..self.m) as u32).collect(),
            bounds,
            out: random.floats(self.splits * self.part(total)),
        }
    }

    /// Columns of a result that are computed, and those of a whole row.
    fn columns(&self) -> [usize; 2] {
        let columns = if self.mode == GemmMode::Gate { self.n / 2 } else { self.n };
        [columns, columns + self.spare]
    }

    /// Values of a part: a row more than there is, which nobody writes.
    fn part(&self, rows: usize) -> usize {
        (rows + 1) * self.columns()[1]
    }

    fn args(&self, rows: usize, at: [Ptr; 6]) -> GemmArgs {
        let [a, w, out, bias, a_rows, bounds] = at;
        let or_none = |wanted: bool, at: Ptr| if wanted { at } else { NONE };
        GemmArgs {
            a,
            w,
            out,
            bias: or_none(self.bias, bias),
            rows: or_none(self.gathered, a_rows),
            bounds: or_none(self.experts > 0, bounds),
            w_stride: (self.n * self.k) as u64,
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            out_stride: self.columns()[1] as u32,
            mode: self.mode as u32,
            gate: self.gate,
            splits: self.splits as u32,
            split_stride: self.part(rows) as u32,
        }
    }

    fn grid(&self, shape: Shape) -> Grid {
        let outputs = self.n.div_ceil(shape.outputs) as u32;
        let tiles = self.m.div_ceil(shape.rows);
        let (experts, splits) = (self.experts.max(1) as u32, self.splits as u32);
        let blocks = match shape.kernel {
            Kernel::Skinny16 | Kernel::Skinny32 | Kernel::Skinny64 => [outputs, splits, experts],
            Kernel::Gemm64 | Kernel::Gemm128 => {
                [outputs, tiles.min(self.grid_max) as u32, experts.max(splits)]
            }
            _ => [(tiles * outputs as usize * self.splits).min(self.grid_max) as u32, 1, 1],
        };
        Grid { blocks, threads: shape.threads, shared_bytes: shape.kernel.shared_bytes() }
    }
}

impl Operands {
    /// Row `row` of an expert's product, with its bias.
    fn product(&self, case: &Case, expert: usize, row: usize) -> Vec<f64> {
        let a_row = if case.gathered { self.rows[row] as usize } else { row };
        let a = &self.a[a_row * case.k..][..case.k];
        let output = |output: usize| {
            let output = expert * case.n + output;
            let w = &self.w[output * case.k..][..case.k];
            let sum: f64 = a.iter().zip(w).map(|(a, w)| wide(*a) * wide(*w)).sum();
            sum + if case.bias { f64::from(self.bias[output]) } else { 0.0 }
        };
        (0..case.n).map(output).collect()
    }

    /// What the result is to be, row after row, without spare columns.
    fn expected(&self, case: &Case) -> Vec<f64> {
        let [_, stride] = case.columns();
        let mut expected = Vec::new();
        for expert in 0..case.experts.max(1) {
            for row in self.bounds[expert] as usize..self.bounds[expert + 1] as usize {
                let product = self.product(case, expert, row);
                match case.mode {
                    GemmMode::Store => expected.extend(product),
                    GemmMode::Add => {
                        let before = &self.out[row * stride..];
                        expected.extend(product.iter().zip(before).map(|(sum, out)| sum + f64::from(*out)));
                    }
                    GemmMode::Gate => {
                        for panel in product.chunks_exact(32) {
                            let (gates, ups) = panel.split_at(16);
                            expected.extend(gates.iter().zip(ups).map(|(x, up)| gated(case.gate, *x, *up)));
                        }
                    }
                }
            }
        }
        expected
    }
}

/// SiLU, GELU by its tanh formula, or the clamped gate of gpt-oss.
fn gated(gate: u32, x: f64, up: f64) -> f64 {
    match gate {
        0 => x / (1.0 + (-x).exp()) * up,
        1 => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x / 2.0 * (1.0 + u.tanh()) * up
        }
        _ => {
            let x = x.min(7.0);
            x / (1.0 + (-1.702 * x).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
        }
    }
}

fn launch(harness: &Harness, shape: Shape, grid: Grid, args: GemmArgs) {
    if !WGMMA.map(|wgmma| wgmma.kernel).contains(&shape.kernel) {
        return harness.launch(shape.kernel, grid, &args);
    }
    let map = |at: Ptr, rows: u32| tensor_map::matrix(at, rows as usize, args.k as usize).unwrap();
    let args =
        WgmmaArgs { a_map: map(args.a, args.m), w_map: map(args.w, args.n), gemm: args, spare: [0; 10] };
    harness.launch(shape.kernel, grid, &args);
}

fn check(harness: &Harness, shape: Shape, case: &Case, random: &mut Random) {
    let what = format!("{} {case:?}", shape.kernel.name());
    let operands = case.operands(random);
    let total = *operands.bounds.last().unwrap() as usize;
    let memory = (harness.upload(&operands.a), harness.upload(&operands.w), harness.upload(&operands.bias));
    let lists = (harness.upload(&operands.rows), harness.upload(&operands.bounds));
    let expected = operands.expected(case);
    let [columns, stride] = case.columns();
    let run = |out: Ptr| {
        let at = [memory.0.ptr(), memory.1.ptr(), out, memory.2.ptr(), lists.0.ptr(), lists.1.ptr()];
        launch(harness, shape, case.grid(shape), case.args(total, at));
    };
    if case.mode == GemmMode::Gate {
        let out = harness.poisoned::<u16>(case.part(total));
        run(out.ptr());
        let out = harness.download::<u16>(&out);
        let rows = || out.chunks_exact(stride).take(total);
        let got: Vec<f64> = rows().flat_map(|row| row[..columns].iter().map(|value| wide(*value))).collect();
        assert_near(&what, &got, &expected, BF16_TOLERANCE);
        assert!(rows().all(|row| row[columns..].iter().all(|value| *value == 0)), "{what}: spare columns");
        assert!(out[total * stride..].iter().all(|value| *value == u16::MAX), "{what}: beyond the rows");
        return;
    }
    let before = &operands.out;
    let out = harness.upload(before);
    run(out.ptr());
    let out = harness.download::<f32>(&out);
    let mut got = vec![0.0; expected.len()];
    for (out, before) in out.chunks_exact(case.part(total)).zip(before.chunks_exact(case.part(total))) {
        for (row, (out, before)) in out.chunks_exact(stride).zip(before.chunks_exact(stride)).enumerate() {
            let computed = if row < total { columns } else { 0 };
            for (got, out) in got.iter_mut().skip(row * columns).zip(&out[..computed]) {
                *got += f64::from(*out);
            }
            assert!(out[computed..] == before[computed..], "{what}: beyond the columns of row {row}");
        }
    }
    assert_near(&what, &got, &expected, SUM_TOLERANCE);
}

/// Random shapes, and the smallest and the largest that there are to be.
fn check_all(shapes: &[Shape]) {
    let Some(harness) = Harness::open() else { return };
    for shape in shapes.iter().filter(|shape| harness.kernels.has(shape.kernel)) {
        for mode in [GemmMode::Store, GemmMode::Add, GemmMode::Gate] {
            let mut random = Random::new(mode as u64 + 10 * shape.rows as u64);
            let plain =
                Case { splits: 1, experts: 0, gathered: false, ..Case::random(&mut random, *shape, mode) };
            check(&harness, *shape, &Case { m: 1, n: 32, k: 64, ..plain }, &mut random);
            // More steps of k than any pipeline has stages, and tiles that are not full.
            check(&harness, *shape, &Case { m: shape.rows - 3, n: 288, k: 1024, ..plain }, &mut random);
            for _ in 0..ROUNDS {
                let case = Case::random(&mut random, *shape, mode);
                check(&harness, *shape, &case, &mut random);
            }
        }
    }
}

#[test]
fn products_of_few_rows_agree_with_sums_in_f64() {
    check_all(&SKINNY);
}

#[test]
fn tiles_agree_with_sums_in_f64() {
    check_all(&TILES);
}

#[test]
fn tiles_of_warpgroups_agree_with_sums_in_f64() {
    check_all(&WGMMA);
}

const BUGS_OF_FEW_ROWS: &[Bug] = &[
    // A product takes its values of k in another order from `a` than from w.
    ("gemm.cu", "{low.z, high.z, low.w, high.w}", "{low.z, low.w, high.z, high.w}"),
    // Warps are added before all of them are there.
    ("gemm.cu", "    __syncthreads();\n    add_warps<Shape>", "    add_warps<Shape>"),
    // The last unit is the first again.
    ("gemm.cu", "from.advance(64 * Shape::WARPS_K);", "from.advance(64);"),
    // A part begins one unit late where units do not divide.
    ("gemm.cu", "units * part / args.splits;", "(units * part + args.splits - 1) / args.splits;"),
    // Rows that are not there.
    ("gemm.cu", "from.live[i][half] = row < share.end_row;", "from.live[i][half] = row <= share.end_row;"),
    // Each part has the bias.
    ("gemm_output.cuh", "if (args.bias && part == 0) {", "if (args.bias) {"),
    // Gate and up of neighbouring columns.
    (
        "gemm_output.cuh",
        "gate.of(sums[2 * j + 1], sums[2 * j + 5])",
        "gate.of(sums[2 * j + 1], sums[2 * j + 4])",
    ),
];

const BUGS_OF_TILES: &[Bug] = &[
    // A stage is multiplied before its copies are there.
    ("gemm.cu", "cp_wait<Shape::STAGES - 2>();", "cp_wait<Shape::STAGES - 1>();"),
    // A stage is filled while others still multiply it.
    ("gemm.cu", "is filled next.\n        __syncthreads();", "is filled next."),
    // The same from one tile to the next.
    ("gemm.cu", "// The stages are filled again.\n        __syncthreads();", ""),
    // Lanes address other matrices of w than ldmatrix gives them.
    ("gemm.cu", "w_part = lane / 8 % 2;", "w_part = lane / 16;"),
    // Rows of other experts, or of nobody, are overwritten.
    (
        "gemm.cu",
        "if (own_row + 16 * i + 8 * half < share.end_row) {",
        "if (own_row + 16 * i < share.end_row) {",
    ),
    // The list of rows is not followed.
    ("gemm.cu", "return args.rows ? args.rows[row] : row;", "return row;"),
    // All experts have the weights of the first.
    ("gemm.cu", "from.w = args.w + expert * args.w_stride + (u64)(column", "from.w = args.w + (u64)(column"),
    // Columns that no weights are for keep what was there.
    ("gemm_output.cuh", "if (column + PANEL == n) {", "if (column + PANEL > n) {"),
];

const BUGS_OF_WARPGROUPS: &[Bug] = &[
    // A stage is given back while it may still be multiplied.
    ("gemm_wgmma.cu", "wgmma_wait<1>();", "wgmma_wait<2>();"),
    // Sums are written before the last step is done.
    ("gemm_wgmma.cu", "wgmma_wait<0>();", "wgmma_wait<1>();"),
    // A stage is filled before it is empty.
    ("gemm_wgmma.cu", "            mbar_wait(&shared.empty[ring.stage], ring.parity ^ 1);\n", ""),
    // A stage is multiplied before it is full.
    ("gemm_wgmma.cu", "        mbar_wait(&shared.full[ring.stage], ring.parity);\n", ""),
    // Fewer bytes are waited for than are copied.
    ("gemm_wgmma.cu", "mbar_expect(full, Shape::STAGE_BYTES);", "mbar_expect(full, Shape::STAGE_BYTES / 2);"),
    // The next 16 values of k are further on.
    ("gemm_wgmma.cu", "wgmma_tile(sums, a + 2 * k, w + 2 * k);", "wgmma_tile(sums, a + 2 * k, w + k);"),
    // The phase of the barriers is not turned.
    ("gemm_wgmma.cu", "parity ^= 1;", "parity = 0;"),
    // One warp is not waited for.
    ("gemm_wgmma.cu", "CONSUMER_WARPS = 8;", "CONSUMER_WARPS = 7;"),
];

#[test]
#[ignore = "builds the kernels once for each bug"]
fn bugs_in_products_are_found() {
    let bugs: &[(&str, &[Bug])] = &[
        ("products_of_few_rows_agree_with_sums_in_f64", BUGS_OF_FEW_ROWS),
        ("tiles_agree_with_sums_in_f64", BUGS_OF_TILES),
        ("tiles_of_warpgroups_agree_with_sums_in_f64", BUGS_OF_WARPGROUPS),
    ];
    check_bugs("gemm", bugs);
}
