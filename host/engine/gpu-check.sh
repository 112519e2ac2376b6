#!/usr/bin/env bash
# Checks the CUDA executor on a machine with a GPU. That machine needs no Rust: the tests come as one program, built elsewhere by
#     cargo test --release -p engine --lib --no-run          (and stripped)
# and this script is run in the repository's root:
#     host/engine/gpu-check.sh PROGRAM [FOLDER FOR OUTPUT]
set -uo pipefail
program="$(realpath "$1")"
out="${2:-gpu-check}"
mkdir -p "$out"
export POINTSMAN_GPU=1 POINTSMAN_FIXTURES="$PWD/host/engine/fixtures"
failed=0
run() {
    local name="$1"
    shift
    echo "== $name"
    if ! timeout 540 "$@" >"$out/$name.txt" 2>&1; then
        echo "$name FAILED"
        failed=1
    fi
    tail -n "${LINES_SHOWN:-12}" "$out/$name.txt"
}

nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv | tee "$out/device.txt"
# Every kernel, and with them every intrinsic, against f64; then whole models against the references; one test at a time.
run kernels "$program" cuda::kernel_tests:: --test-threads 1
run models "$program" cuda::tests:: --test-threads 1 --nocapture
# What the emulator cannot see. Slow: a few tests of each kind.
if command -v compute-sanitizer >/dev/null; then
    run memcheck compute-sanitizer --tool memcheck --error-exitcode 9 "$program" cuda::kernel_tests:: --test-threads 1
    run racecheck compute-sanitizer --tool racecheck --error-exitcode 9 "$program" cuda::kernel_tests::attend --test-threads 1
else
    echo "== compute-sanitizer is not installed: not run"
fi
LINES_SHOWN=60
run speeds "$program" --ignored --nocapture --test-threads 1 --exact cuda::measure::speeds
run start "$program" --ignored --nocapture --test-threads 1 --exact cuda::measure::start
if python3 -c 'import torch' 2>/dev/null; then
    run torch python3 host/engine/peer_torch.py
fi
exit "$failed"
