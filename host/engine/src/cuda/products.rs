//! Which kernel computes which product, and how it is spread over the device.
//!
//! | rows | kernel |
//! |---|---|
//! | up to 64 | `skinny`: weights are read once, straight into registers; inputs are cut in parts where there are few outputs |
//! | more | cuBLASLt where it was found; else tiles of 128 rows: on compute capability 9.0 by warpgroups, and in parts as above |
//! | of experts | tiles of 64 rows, those of an expert gathered by its list |

use std::sync::Arc;

use super::args::{GateArgs, GemmArgs, GemmMode, Ptr, WgmmaArgs};
use super::blas::Blas;
use super::driver::{Context, Failure};
use super::kernels::{Grid, Kernel, Kernels};
use super::pass::Pass;
use super::tensor_map;
use super::weights::Matrix;

/// A gate, and the bias before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gating {
    pub(crate) bias: Ptr,
    pub(crate) gate: u32,
}

/// What decides.
#[derive(Debug)]
pub(crate) struct Products {
    multiprocessors: usize,
    blas: Option<Blas>,
    /// Whether the device has products of warpgroups.
    warpgroups: bool,
}

/// A kernel for few rows, as its source says.
struct Skinny {
    kernel: Kernel,
    /// Rows that it takes at once.
    rows: usize,
    /// Outputs of a block.
    outputs: usize,
    threads: u32,
}

const SKINNY: [Skinny; 3] = [
    Skinny { kernel: Kernel::Skinny16, rows: 16, outputs: 32, threads: 256 },
    Skinny { kernel: Kernel::Skinny32, rows: 32, outputs: 64, threads: 256 },
    Skinny { kernel: Kernel::Skinny64, rows: 64, outputs: 64, threads: 128 },
];
const SKINNY_ROWS_MAX: usize = 64;

/// A tile of warpgroups, as their source says.
struct WideTile {
    kernel: Kernel,
    outputs: usize,
    /// What one takes beside the other; half would be what its products are.
    time: usize,
}

const WIDE_TILES: [WideTile; 2] = [
    WideTile { kernel: Kernel::GemmWgmma128, outputs: 128, time: 11 },
    WideTile { kernel: Kernel::GemmWgmma256, outputs: 256, time: 20 },
];
const WIDE_TILE_ROWS: usize = 128;
const WIDE_TILE_THREADS: u32 = 384;

impl WideTile {
    /// Tiles of a product.
    fn count(&self, m: usize, n: usize) -> usize {
        m.div_ceil(WIDE_TILE_ROWS) * n.div_ceil(self.outputs)
    }
}

/// The kernel for so few rows, if they are few.
fn skinny(m: usize) -> Option<&'static Skinny> {
    SKINNY.iter().find(|skinny| m <= skinny.rows)
}

impl Products {
    pub(crate) fn new(context: &Arc<Context>, kernels: &Kernels) -> Self {
        Self {
            multiprocessors: context.device.multiprocessors as usize,
            blas: Blas::open(context),
            warpgroups: WIDE_TILES.iter().all(|wide| kernels.has(wide.kernel)),
        }
    }

    /// Whether cuBLASLt computes products of many rows.
    pub(crate) fn has_blas(&self) -> bool {
        self.blas.is_some()
    }

    /// `out = a * transpose(w)` in f32, [parts, m, n]; gives how many parts there are, which are to be added.
    pub(crate) fn store(
        &self,
        pass: &Pass<'_>,
        (a, m): (Ptr, usize),
        w: &Matrix,
        out: Ptr,
    ) -> Result<usize, Failure> {
        let parts = self.parts(m, (w.n, w.k));
        let args =
            GemmArgs { splits: parts as u32, split_stride: (m * w.n) as u32, ..stored((a, m), w, out) };
        self.launch(pass, &args)?;
        Ok(parts)
    }

    /// The same in one part.
    pub(crate) fn store_whole(
        &self,
        pass: &Pass<'_>,
        a: (Ptr, usize),
        w: &Matrix,
        out: Ptr,
    ) -> Result<(), Failure> {
        self.launch(pass, &stored(a, w, out))
    }

    /// `out = gate(a * transpose(w) + bias)` in bf16, rows `stride` apart.
    pub(crate) fn gated(
        &self,
        pass: &Pass<'_>,
        a: (Ptr, usize),
        w: &Matrix,
        (gating, (out, stride)): (Gating, (Ptr, usize)),
    ) -> Result<(), Failure> {
        let whole = pass.buffers.gate_up.as_ref().map(|memory| stored(a, w, memory.ptr()));
        if let Some(whole) = whole.filter(|whole| whole.m as usize > SKINNY_ROWS_MAX)
            && self.by_blas(pass, &whole)?
        {
            let args = GateArgs {
                step: pass.step(),
                gate_up: whole.out,
                bias: gating.bias,
                out,
                width: whole.n / 2,
                gate_up_stride: whole.n,
                out_stride: stride as u32,
                gate: gating.gate,
            };
            return pass.kernels.launch(pass.stream, Kernel::Gate, Grid::row(a.1, GATE_THREADS), &args);
        }
        let plain = stored(a, w, out);
        self.launch(pass, &GemmArgs { out_stride: stride as u32, ..gate(plain, gating) })
    }

    /// Products of experts, each with its own rows: gated, or stored as they are. `args` has where rows come from.
    pub(crate) fn grouped(
        &self,
        pass: &Pass<'_>,
        (args, m, experts): (GemmArgs, usize, usize),
        w: &Matrix,
        (gating, (out, stride)): (Option<Gating>, (Ptr, usize)),
    ) -> Result<(), Failure> {
        let GemmArgs { rows, bounds, .. } = args;
        let plain = GemmArgs { rows, bounds, w_stride: (w.n * w.k) as u64, ..stored((args.a, m), w, out) };
        let args = gating.map_or(plain, |gating| gate(plain, gating));
        let args = GemmArgs { out_stride: stride as u32, ..args };
        // An expert has a share of the tokens; those that have more take turns.
        if let Some(skinny) = skinny(m) {
            return few(pass, skinny, (&args, experts));
        }
        let kernel = Kernel::Gemm64;
        pass.kernels.launch(pass.stream, kernel, tiles(kernel, &args, experts), &args)
    }

    /// Parts in which a product is computed.
    fn parts(&self, m: usize, (n, k): (usize, usize)) -> usize {
        // Enough blocks for every multiprocessor, as long as a part is worth its own result.
        let (blocks, tiles) = match skinny(m) {
            Some(Skinny { outputs, threads, .. }) => {
                (self.multiprocessors * THREADS_WANTED / *threads as usize, n.div_ceil(*outputs))
            }
            None if self.warpgroups && !self.has_blas() => (self.multiprocessors, WIDE_TILES[0].count(m, n)),
            None => return 1,
        };
        (blocks / tiles).clamp(1, (k / PART_INPUTS_MIN).clamp(1, PARTS_MAX))
    }

    fn launch(&self, pass: &Pass<'_>, args: &GemmArgs) -> Result<(), Failure> {
        let m = args.m as usize;
        if let Some(skinny) = skinny(m) {
            return few(pass, skinny, (args, 1));
        }
        if args.mode == GemmMode::Store as u32 && self.by_blas(pass, args)? {
            return Ok(());
        }
        if self.warpgroups {
            return self.by_warpgroups(pass, args);
        }
        let kernel = Kernel::Gemm128;
        pass.kernels.launch(pass.stream, kernel, tiles(kernel, args, 1), args)
    }

    /// Has warpgroups compute a product, in the tiles that take less time.
    fn by_warpgroups(&self, pass: &Pass<'_>, args: &GemmArgs) -> Result<(), Failure> {
        let [m, n, k] = [args.m, args.n, args.k].map(|size| size as usize);
        let blocks = |wide: &WideTile| wide.count(m, n) * args.splits as usize;
        let time = |wide: &&WideTile| blocks(wide).div_ceil(self.multiprocessors) * wide.time;
        let wide = WIDE_TILES.iter().min_by_key(time).expect("there are two");
        let blocks = blocks(wide).min(self.multiprocessors);
        let shared_bytes = wide.kernel.shared_bytes();
        let grid = Grid { shared_bytes, ..Grid::row(blocks, WIDE_TILE_THREADS) };
        let args = WgmmaArgs {
            a_map: tensor_map::matrix(args.a, m, k)?,
            w_map: tensor_map::matrix(args.w, n, k)?,
            gemm: *args,
            spare: [0; 10],
        };
        pass.kernels.launch(pass.stream, wide.kernel, grid, &args)
    }

    /// Has cuBLASLt store a product, if it does.
    fn by_blas(&self, pass: &Pass<'_>, args: &GemmArgs) -> Result<bool, Failure> {
        let Some(blas) = &self.blas else { return Ok(false) };
        // Rows up to a multiple are computed too, so that there are fewer plans; buffers hold them.
        let m = (args.m as usize).next_multiple_of(ROWS_MULTIPLE);
        blas.product(pass.stream, [m, args.n as usize, args.k as usize], (args.a, args.w, args.out))
    }

    /// Rows of all parts together, of a product of at most so many rows with an [n, k] matrix.
    pub(crate) fn parts_rows_max(&self, rows_max: usize, shape: (usize, usize)) -> usize {
        (1..=rows_max).map(|m| m * self.parts(m, shape)).max().unwrap_or(0)
    }
}

/// Threads of a multiprocessor that products of few rows are to keep busy.
const THREADS_WANTED: usize = 512;
/// A part is worth its own result from so many inputs on.
const PART_INPUTS_MIN: usize = 512;
const PARTS_MAX: usize = 8;
/// Outputs and threads of a tile.
const TILE_OUTPUTS: u32 = 128;
const TILE_THREADS: u32 = 256;
const GATE_THREADS: u32 = 256;
/// Rows of activations that there is memory for are a multiple of this.
pub(crate) const ROWS_MULTIPLE: usize = 64;

/// A product of few rows, or of experts with few each.
fn few(pass: &Pass<'_>, skinny: &Skinny, (args, experts): (&GemmArgs, usize)) -> Result<(), Failure> {
    let blocks = [args.n.div_ceil(skinny.outputs as u32), args.splits, experts as u32];
    let grid = Grid { blocks, threads: skinny.threads, shared_bytes: skinny.kernel.shared_bytes() };
    pass.kernels.launch(pass.stream, skinny.kernel, grid, args)
}

/// Tiles of rows and outputs, for each expert.
fn tiles(kernel: Kernel, args: &GemmArgs, experts: usize) -> Grid {
    let rows = if kernel == Kernel::Gemm64 { 64 } else { 128 };
    let blocks = [args.n.div_ceil(TILE_OUTPUTS), args.m.div_ceil(rows), experts as u32];
    Grid { blocks, threads: TILE_THREADS, shared_bytes: kernel.shared_bytes() }
}

fn stored((a, m): (Ptr, usize), w: &Matrix, out: Ptr) -> GemmArgs {
    GemmArgs {
        a,
        w: w.memory.ptr(),
        out,
        m: m as u32,
        n: w.n as u32,
        k: w.k as u32,
        out_stride: w.n as u32,
        mode: GemmMode::Store as u32,
        splits: 1,
        ..GemmArgs::default()
    }
}

fn gate(args: GemmArgs, gating: Gating) -> GemmArgs {
    GemmArgs { mode: GemmMode::Gate as u32, bias: gating.bias, gate: gating.gate, ..args }
}
