"""One offline replay by DynoSim: TRACE FORMAT MODE. Prints one JSON line."""
import json
import sys
import time

from dynamo._core import run_mocker_trace_replay

trace, form, mode = sys.argv[1:]
block = 64 if form == "weka" else 512
engine = {"block_size": block, "num_gpu_blocks": 16384, "max_num_seqs": 256, "max_num_batched_tokens": 8192}
settings = {"trace_block_size": 512}
if form == "weka":
    settings = {"execution_model": "mock", "agentic_lanes": 32}
start = time.perf_counter()
report = run_mocker_trace_replay(
    [trace],
    extra_engine_args={"engine": engine},
    num_workers=8,
    router_mode=mode,
    arrival_speedup_ratio=1.0,
    trace_format=form,
    capture_planner_details=False,
    **settings,
)
wall = time.perf_counter() - start
told = dict(report.summary)
print(
    json.dumps(
        {
            "reuse": told["prefix_cache_reused_ratio"],
            "ttft_ms_mean": told["mean_ttft_ms"],
            "ttft_ms_p99": told["p99_ttft_ms"],
            "wall_s": wall,
        }
    )
)
