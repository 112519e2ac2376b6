//! What becomes of an executor whose device fails, call by call: on the stand-in driver, which fails where it is told to.

use std::sync::Arc;

use kv::{Arena, PageIdx};

use super::standin;
use super::testing::{device, on_device};
use super::tests::try_step;
use crate::cpu::golden::fixture;
use crate::{CudaConfig, CudaExec, EngineError, Executor, Fence, Model, ModelFiles, Xfer, cuda_devices};

const OUT_OF_MEMORY: i32 = 2;
const NO_DEVICE: i32 = 100;
const LAUNCH_FAILED: i32 = 719;
const UNKNOWN: i32 = 999;

fn model() -> Arc<Model> {
    Arc::new(Model::load(&ModelFiles::open(&fixture("llama_linear")).unwrap()).unwrap())
}

fn start(model: &Arc<Model>) -> Result<CudaExec, EngineError> {
    let config =
        CudaConfig { kv_bytes: 1 << 20, step_tokens_max: 32, step_rows_max: 2, ..CudaConfig::default() };
    CudaExec::new(model, config)
}

fn works(exec: &mut CudaExec) {
    assert_eq!(try_step(exec, (&[3, 4, 5], 0), &[0]).unwrap().len(), 1);
}

/// A process that has the stand-in and nothing of a device.
fn stand_in() -> Option<std::sync::MutexGuard<'static, ()>> {
    if on_device() { None } else { device() }
}

/// The first, second and every further call of a function fails, until one start has no such call any more.
#[test]
fn a_call_that_fails_at_start_is_named_and_leaves_nothing_behind() {
    let Some(_device) = stand_in() else { return };
    let model = model();
    for (call, code, steps) in [
        ("cuMemAlloc_v2", OUT_OF_MEMORY, 1),
        ("cuMemHostAlloc", OUT_OF_MEMORY, 1),
        ("cuModuleLoadData", LAUNCH_FAILED, 1),
        ("cuModuleGetFunction", LAUNCH_FAILED, 9),
        ("cuStreamCreate", LAUNCH_FAILED, 1),
        ("cuEventCreate", LAUNCH_FAILED, 1),
        ("cuMemcpyHtoDAsync_v2", LAUNCH_FAILED, 5),
        ("cuLaunchKernel", LAUNCH_FAILED, 13),
        ("cuStreamBeginCapture_v2", LAUNCH_FAILED, 1),
        ("cuGraphInstantiateWithFlags", OUT_OF_MEMORY, 1),
        ("cuStreamSynchronize", LAUNCH_FAILED, 5),
    ] {
        let mut failed = 0;
        for nth in (1..).step_by(steps) {
            standin::reset();
            standin::fail(call, nth, code);
            match start(&model) {
                // Memory for KV pages is asked for again, with less of it.
                Ok(exec) if call == "cuMemAlloc_v2" && exec.caps().kv.pages > 1 => break,
                Ok(_) => break,
                Err(EngineError::DeviceMemory { device, reason, .. }) => {
                    assert_eq!(code, OUT_OF_MEMORY, "{call} {nth}");
                    assert!(
                        device.starts_with("cuda:0") && reason.contains("OUT_OF_MEMORY"),
                        "{device} {reason}"
                    );
                }
                Err(EngineError::Lost { call: named, reason, .. }) => {
                    // A stream that is broken may say so in a later call.
                    assert!(code == LAUNCH_FAILED, "{call} {nth}: {named}: {reason}");
                }
                Err(error) => panic!("{call} {nth}: {error}"),
            }
            failed += 1;
            assert!(failed < 500, "{call}: no end");
        }
        assert!(failed > 0, "{call} is never called");
        standin::reset();
        works(&mut start(&model).unwrap_or_else(|error| panic!("after {call}: {error}")));
    }
}

/// A call that fails later loses the executor: the same error from then on, and a new one works.
#[test]
fn a_device_that_is_lost_stays_lost_until_it_is_opened_anew() {
    let Some(_device) = stand_in() else { return };
    let model = model();
    for call in [
        "cuMemcpyHtoDAsync_v2",
        "cuGraphLaunch",
        "cuLaunchKernel",
        "cuMemcpyDtoHAsync_v2",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuCtxSetCurrent",
        "kernel sample",
        "kernel attend_prefill_64",
    ] {
        let mut exec = start(&model).unwrap();
        works(&mut exec);
        standin::fail(call, 1, LAUNCH_FAILED);
        // A prompt is launched kernel by kernel, a token as a graph.
        let prompt: Vec<u32> = (3..23).collect();
        let rows = [(&prompt[..], 0), (&prompt[..1], 20)];
        let mut errors = rows
            .iter()
            .filter_map(|&(tokens, position)| try_step(&mut exec, (tokens, position), &[0, 1]).err());
        let error = errors.next().unwrap_or_else(|| panic!("{call} did not fail"));
        drop(errors);
        let EngineError::Lost { device, reason, .. } = &error else { panic!("{call}: {error}") };
        assert!(device.starts_with("cuda:0 (") && reason.contains("LAUNCH_FAILED"), "{call}: {error}");
        let arena = Arena::new(2, exec.caps().kv.block_bytes as usize).unwrap();
        let save = Xfer::Save { from: PageIdx(0), to: arena.take().unwrap() };
        let again = [
            try_step(&mut exec, (&[3], 0), &[0]).unwrap_err(),
            exec.transfer(vec![save], Fence(0)).unwrap_err(),
        ];
        assert!(again.iter().all(|again| again.to_string() == error.to_string()), "{call}: {again:?}");
        assert_eq!(arena.free(), 2, "slots are given up");
        drop(exec);
        works(&mut start(&model).unwrap_or_else(|error| panic!("after {call}: {error}")));
    }
}

#[test]
fn a_transfer_that_fails_gives_its_slots_up() {
    let Some(_device) = stand_in() else { return };
    let model = model();
    for call in ["cuMemcpyDtoHAsync_v2", "cuStreamWaitEvent", "cuEventRecord", "cuEventSynchronize"] {
        let mut exec = start(&model).unwrap();
        works(&mut exec);
        let arena = Arena::new(4, exec.caps().kv.block_bytes as usize).unwrap();
        let saves =
            (0..4).map(|page| Xfer::Save { from: PageIdx(page), to: arena.take().unwrap() }).collect();
        standin::fail(call, 1, LAUNCH_FAILED);
        let moved = exec.transfer(saves, Fence(0)).and_then(|fence| exec.settle(fence, true));
        assert!(matches!(moved, Err(EngineError::Lost { .. })), "{call}");
        drop(exec);
        assert_eq!(arena.free(), 4, "{call}");
    }
}

#[test]
fn what_is_wrong_with_a_driver_is_said() {
    let Some(_device) = stand_in() else { return };
    let model = model();
    let message = |expected: &str| {
        let error = start(&model).err().expect("no device").to_string();
        assert_eq!(error, format!("no CUDA device: {expected}"));
        standin::reset();
    };
    standin::fail("cuInit", 1, NO_DEVICE);
    message("the driver sees no device");
    standin::fail("cuInit", 1, UNKNOWN);
    message("the driver's cuInit failed: CUDA_ERROR_UNKNOWN (unknown error)");
    standin::fail("cuDeviceGetCount", 1, NO_DEVICE);
    message(
        "the driver's cuDeviceGetCount failed: CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)",
    );
    standin::set("devices", 0);
    message("the driver sees no device");
    standin::set("capability", 75);
    message("cuda:0 (stand-in) has compute capability 7.5; 8.0 or newer is needed");
    standin::set("devices", 2);
    assert_eq!(cuda_devices().unwrap().len(), 2);
    let config = CudaConfig { device: 2, ..CudaConfig::default() };
    let error = CudaExec::new(&model, config).err().unwrap().to_string();
    assert_eq!(error, "no CUDA device: cuda:2 does not exist; the driver sees 2 from cuda:0 on");
    standin::reset();
}

/// Other capabilities take another cubin, or the PTX.
#[test]
fn every_capability_runs() {
    let Some(_device) = stand_in() else { return };
    for capability in [80, 86, 87, 89, 90, 100, 110, 120] {
        standin::reset();
        standin::set("capability", capability);
        works(&mut start(&model()).unwrap_or_else(|error| panic!("{capability}: {error}")));
    }
    standin::reset();
}
