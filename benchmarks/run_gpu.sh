#!/usr/bin/env bash
# Checks, tests and measures the package on a GPU machine without a network, in less than ten minutes:
#
#     benchmarks/run_gpu.sh OUT_DIR               # --resume continues a run that was cut off; docs/benchmarks.md explains both
#     benchmarks/run_gpu.sh --rehearse OUT_DIR    # tiny sizes on the CPU, to try the script
#
# benchmarks/gpu_run/stages.py lists what runs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -u -m gpu_run.runner "$@"
