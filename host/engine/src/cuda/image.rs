//! Which of the compiled kernels a device loads. They are part of the binary: no compiler and no toolkit is needed to run.
//!
//! `kernels/README.md` says how they are made. `cubins.rs` holds them to their sources.

use super::kernels::Kernel;
use crate::EngineError;

/// The kernels, compiled, as `cuModuleLoadData` takes them.
pub(crate) struct Image {
    /// For logs: the architecture that it was compiled for.
    pub(crate) name: &'static str,
    /// A cubin, or PTX that ends with a zero byte.
    pub(crate) bytes: &'static [u8],
}

impl Image {
    /// Whether the kernel is part of it.
    pub(crate) fn has(&self, kernel: Kernel) -> bool {
        self.name == HOPPER || !kernel.name().starts_with(HOPPER_KERNELS)
    }
}

/// Hopper with its own matrix instructions, which no other architecture has: hence the `a`.
pub(super) const HOPPER: &str = "sm_90a";
/// How the names of kernels begin that are made of those.
const HOPPER_KERNELS: &str = "gemm_wgmma";

/// The architecture of the PTX that the driver compiles for devices that no cubin is for.
pub(super) const PTX: &str = "compute_80";

/// A cubin and the devices that it is for.
pub(super) struct Cubin {
    pub(super) arch: &'static str,
    /// Compute capabilities. A cubin runs on later minor versions of its major one, unless its name ends with `a`; but
    /// not between embedded devices (8.7, 10.1) and others. So each is named, and what is not compiles the PTX.
    pub(super) devices: &'static [(u32, u32)],
    bytes: &'static Aligned<[u8]>,
}

/// The driver reads a cubin's headers in place.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

macro_rules! compiled {
    ($file:literal) => {
        &Aligned(*include_bytes!(concat!("../../kernels/cubin/", $file)))
    };
}

pub(super) static CUBINS: [Cubin; 5] = [
    Cubin { arch: "sm_80", devices: &[(8, 0)], bytes: compiled!("sm_80.cubin") },
    // Compiled for 8.9 the kernels are the same, instruction by instruction.
    Cubin { arch: "sm_86", devices: &[(8, 6), (8, 9)], bytes: compiled!("sm_86.cubin") },
    Cubin { arch: HOPPER, devices: &[(9, 0)], bytes: compiled!("sm_90a.cubin") },
    // Not with an `a`: nothing in the kernels asks for it, and without it 10.3 and 12.1 run them too.
    Cubin { arch: "sm_100", devices: &[(10, 0), (10, 3)], bytes: compiled!("sm_100.cubin") },
    Cubin { arch: "sm_120", devices: &[(12, 0), (12, 1)], bytes: compiled!("sm_120.cubin") },
];

static PTX_TEXT: &str = concat!(include_str!("../../kernels/cubin/compute_80.ptx"), "\0");

/// The kernels for a device of this compute capability, (major, minor).
///
/// Errors: [`EngineError::Device`] for one that is too old.
pub(crate) fn image_for(compute: (u32, u32)) -> Result<Image, EngineError> {
    if compute < (8, 0) {
        let (major, minor) = compute;
        return Err(EngineError::Device(format!(
            "a device of compute capability {major}.{minor} multiplies no bf16 matrices; \
             8.0 (Ampere) or newer is needed"
        )));
    }
    let cubin = CUBINS.iter().find(|cubin| cubin.devices.contains(&compute));
    Ok(match cubin {
        Some(cubin) => Image { name: cubin.arch, bytes: &cubin.bytes.0 },
        None => Image { name: PTX, bytes: PTX_TEXT.as_bytes() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(compute: (u32, u32), arch: &str) {
        let image = image_for(compute).unwrap();
        assert_eq!(image.name, arch, "{compute:?}");
        let hopper: Vec<_> =
            Kernel::ALL.iter().filter(|kernel| kernel.name().starts_with("gemm_wgmma")).collect();
        assert!(!hopper.is_empty());
        for kernel in Kernel::ALL {
            assert_eq!(
                image.has(*kernel),
                compute == (9, 0) || !hopper.contains(&kernel),
                "{compute:?} {kernel:?}"
            );
        }
    }

    #[test]
    fn a_device_loads_the_cubin_that_is_made_for_it() {
        check((8, 0), "sm_80");
        check((8, 6), "sm_86");
        check((8, 9), "sm_86");
        check((9, 0), "sm_90a");
        check((10, 0), "sm_100");
        check((10, 3), "sm_100");
        check((12, 0), "sm_120");
        check((12, 1), "sm_120");
    }

    #[test]
    fn a_device_that_no_cubin_is_for_compiles_the_ptx() {
        for compute in [(8, 7), (8, 8), (9, 1), (10, 1), (11, 0), (12, 2), (13, 0)] {
            check(compute, "compute_80");
        }
    }

    #[test]
    fn a_device_without_bf16_matrices_is_refused_by_its_capability() {
        for compute in [(7, 0), (7, 5), (6, 1)] {
            let error = image_for(compute).err().unwrap().to_string();
            assert!(error.contains(&format!("capability {}.{}", compute.0, compute.1)), "{error}");
            assert!(error.contains("8.0 (Ampere) or newer"), "{error}");
        }
    }

    #[test]
    fn images_are_what_the_driver_takes() {
        for cubin in &CUBINS {
            let bytes = &cubin.bytes.0;
            assert!(bytes.starts_with(b"\x7fELF"), "{}", cubin.arch);
            assert!(bytes.as_ptr().addr().is_multiple_of(16), "{}", cubin.arch);
        }
        let text = PTX_TEXT.strip_suffix('\0').unwrap();
        assert!(text.contains(".target sm_80"));
        assert!(!text.contains('\0'));
    }
}
