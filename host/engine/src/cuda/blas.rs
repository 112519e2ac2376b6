//! cuBLASLt, where it is installed: products of many rows.
//!
//! It is looked for where the loader looks, and where toolkits and Python packages put it; it is not shipped. What it does not do, our
//! own kernels do.
//! **Invariant:** a plan is made once for a shape, and holds all that a product needs but its addresses.
#![allow(unsafe_code, reason = "the library's interface is C")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUresult;

use super::args::Ptr;
use super::driver::{Context, Failure};
use super::memory::DeviceMemory;
use super::stream::Stream;

/// Names a folder that is searched first.
const FOLDER_VARIABLE: &str = "POINTSMAN_CUDA_LIBS";
/// Names of the library, newest first.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
/// Memory that a product may use, as the library's documentation asks for on compute capability 9.0.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Plans kept; each is for one number of rows.
const PLANS_MAX: usize = 512;

/// The library, opened.
#[derive(Debug)]
pub(crate) struct Blas {
    context: Arc<Context>,
    handle: sys::cublasLtHandle_t,
    workspace: DeviceMemory,
    /// By (m, n, k); none where the library has nothing.
    plans: RefCell<BTreeMap<[usize; 3], Option<Plan>>>,
}

// SAFETY: one owner uses it at a time, and the library ties a handle to no thread.
unsafe impl Send for Blas {}

impl Blas {
    /// Opens the library; none where it is not installed or does not start.
    pub(crate) fn open(context: &Arc<Context>) -> Option<Self> {
        // SAFETY: opening a library runs its initialisers, which is what it is installed for.
        let present = find().is_some() || unsafe { sys::is_culib_present() };
        if !present {
            return None;
        }
        let handle = result::create_handle().ok()?;
        let workspace = DeviceMemory::new(context, WORKSPACE_BYTES).ok()?;
        Some(Self { context: Arc::clone(context), handle, workspace, plans: RefCell::default() })
    }

    /// `out [m, n] f32 = a [m, k] * transpose(w [n, k])`, both bf16; false where the library has no plan for it.
    ///
    /// Cost: about 50 us the first time for a shape.
    pub(crate) fn product(
        &self,
        stream: &Stream,
        shape: [usize; 3],
        (a, w, out): (Ptr, Ptr, Ptr),
    ) -> Result<bool, Failure> {
        let mut plans = self.plans.borrow_mut();
        if plans.len() >= PLANS_MAX && !plans.contains_key(&shape) {
            plans.clear();
        }
        let Some(plan) = plans.entry(shape).or_insert_with(|| Plan::new(self.handle, shape)) else {
            return Ok(false);
        };
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: addresses have as many values as the layouts say, in this device's memory; scales are read at once.
        let done = unsafe {
            result::matmul(
                self.handle,
                plan.objects.product,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&zero).cast(),
                w.0 as *const _,
                plan.objects.layouts[0],
                a.0 as *const _,
                plan.objects.layouts[1],
                out.0 as *const _,
                plan.objects.layouts[2],
                out.0 as *mut _,
                plan.objects.layouts[2],
                &raw const plan.algorithm,
                self.workspace.ptr().0 as *mut _,
                self.workspace.bytes(),
                stream.handle().cast(),
            )
        };
        let failed = |_| Failure { call: "cublasLtMatmul", code: CUresult::CUDA_ERROR_LAUNCH_FAILED };
        done.map(|()| true).map_err(failed)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        let _ = self.context.bind();
        self.plans.borrow_mut().clear();
        // SAFETY: the handle was made by `open`, and is not used after.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// All that a product of one shape needs.
#[derive(Debug)]
struct Plan {
    objects: Objects,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// Descriptions that the library made.
#[derive(Debug)]
struct Objects {
    product: sys::cublasLtMatmulDesc_t,
    /// Of w, a and out. The library counts columns first, so that it sees each of them transposed.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, [m, n, k]: [usize; 3]) -> Option<Self> {
        use sys::cudaDataType as Type;
        let layout = |kind, rows: usize, columns: usize| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64).ok()
        };
        let layouts = [
            layout(Type::CUDA_R_16BF, k, n)?,
            layout(Type::CUDA_R_16BF, k, m)?,
            layout(Type::CUDA_R_32F, n, m)?,
        ];
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product = result::create_matmul_desc(compute, Type::CUDA_R_32F).ok()?;
        let preference = result::create_matmul_pref().ok()?;
        // `CUBLAS_OP_T`, which the bindings lack.
        let transposed = 1i32;
        // SAFETY: attributes are set with values of their own types and sizes, on objects that were just made.
        let found = unsafe {
            let transa = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
            result::set_matmul_desc_attribute(product, transa, std::ptr::from_ref(&transposed).cast(), 4)
                .and_then(|()| {
                    let bytes =
                        sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
                    let workspace = WORKSPACE_BYTES;
                    result::set_matmul_pref_attribute(
                        preference,
                        bytes,
                        std::ptr::from_ref(&workspace).cast(),
                        8,
                    )
                })
                .and_then(|()| {
                    let [w, a, out] = layouts;
                    result::get_matmul_algo_heuristic(handle, product, w, a, out, out, preference)
                })
        };
        // SAFETY: it was just made, and is not used after.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        let objects = Objects { product, layouts };
        found.ok().map(|found| Self { objects, algorithm: found.algo })
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // SAFETY: they were made by `Plan::new`, and are not used after.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// Opens the library where toolkits and Python packages put it; opened once by its path, it is found by its name.
fn find() -> Option<PathBuf> {
    let folders =
        std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from).into_iter().chain(toolkits()).chain(packages());
    folders.flat_map(|folder| NAMES.map(|name| folder.join(name))).find(|path| {
        // SAFETY: as in `open`. The library stays open for the life of the process.
        path.exists() && unsafe { libloading::Library::new(path) }.map(std::mem::forget).is_ok()
    })
}

fn toolkits() -> impl Iterator<Item = PathBuf> {
    let below = entries(Path::new("/usr/local")).filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("cuda"))
    });
    below.map(|path| path.join("lib64")).chain([PathBuf::from("/usr/lib/x86_64-linux-gnu")])
}

/// Folders of the packages `nvidia-cublas` in the usual places of Python.
fn packages() -> impl Iterator<Item = PathBuf> {
    let roots =
        ["/usr/local/lib", "/usr/lib", "/opt/conda/lib", "/opt/venv/lib"].into_iter().map(PathBuf::from);
    let own = std::env::var_os("VIRTUAL_ENV").map(|folder| PathBuf::from(folder).join("lib"));
    roots.chain(own).flat_map(|root| entries(&root)).flat_map(|python| {
        ["site-packages", "dist-packages"].into_iter().flat_map(move |site| {
            ["cu13/lib", "cublas/lib"].map(|below| python.join(site).join("nvidia").join(below))
        })
    })
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}
