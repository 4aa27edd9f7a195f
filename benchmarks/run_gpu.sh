#!/usr/bin/env bash
# Everything worth knowing from a bare GPU machine, in one command and under nine minutes:
#
#     benchmarks/run_gpu.sh OUT_DIR
#
# The machine needs Python with PyTorch and Triton, and nvcc for the CUDA backend; no network. Wheels of what else is wanted
# (pybind11, ninja, pytest, pytest-xdist, hypothesis; liger-kernel; trl with what it imports) are taken from $SAD_PEER_WHEELS,
# by default wheels/. Stages: install, check (every backend on small cases), tests, compute-sanitizer, two benchmarks. OUT_DIR
# gets a log per stage, bench.csv and bench-topk.csv row by row, and summary.txt. Exit code: 0, 1 if a stage that judges
# correctness failed, 2 without a GPU.
#
#     SAD_RUN_ON_CPU=1 benchmarks/run_gpu.sh OUT_DIR     # rehearse the script itself without a GPU, on quick sizes
set -u -o pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 OUT_DIR" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
WHEELS=${SAD_PEER_WHEELS:-wheels}
TOTAL=${SAD_RUN_SECONDS:-520} # of nine minutes; the rest is for what `timeout` needs to end a process
RESERVE=190 # seconds that the stages before the benches leave to them
SUMMARY=$OUT/summary.txt
FAILED=0
PROVED=0
: >"$SUMMARY"

say() { echo "$*" | tee -a "$SUMMARY"; }
left() { echo $((TOTAL - RESERVE - SECONDS)); }

# stage NAME LIMIT COMMAND...: runs it for at most LIMIT seconds and what is left in all, logs to NAME.log, notes how it ended.
stage() {
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    [ "$limit" -gt "$(left)" ] && limit=$(left)
    if [ "$limit" -lt 5 ]; then
        say "$name: not run, the time is spent"
        return 125
    fi
    timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    case $code in
    0) say "$name: passed, $((SECONDS - begin)) s" ;;
    124 | 137) say "$name: stopped after $((SECONDS - begin)) s, see $name.log" ;;
    *) say "$name: FAILED with code $code, see $name.log" ;;
    esac
    return $code
}

# judge CODE: a stage about correctness that failed makes the whole run fail; one that ran out of time proves nothing.
judge() {
    case $1 in
    0) PROVED=$((PROVED + 1)) ;;
    124 | 125 | 137) ;;
    *) FAILED=1 ;;
    esac
}

can_import() { "$PYTHON" -c "import $1" >/dev/null 2>&1; }

# --- the machine
if ! can_import torch; then
    say "no PyTorch in $PYTHON: nothing can be run"
    exit 2
fi
DEVICE=cuda SIZE=default
if ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    if [ "${SAD_RUN_ON_CPU:-}" != 1 ]; then
        say "PyTorch sees no GPU here: nothing was run (SAD_RUN_ON_CPU=1 rehearses on the CPU)"
        exit 2
    fi
    DEVICE=cpu SIZE=quick
fi
{
    nvidia-smi
    nvcc --version
    timeout 30 "$PYTHON" -m torch.utils.collect_env
} >"$OUT/machine.log" 2>&1
say "machine: $("$PYTHON" -c "import torch; c = torch.cuda; print(c.get_device_name() if c.is_available() else 'CPU', torch.__version__)")"

# --- install
if [ -d "$WHEELS" ] && compgen -G "$WHEELS/*.whl" >/dev/null; then
    stage wheels 60 "$PYTHON" -m pip install --no-index --find-links "$WHEELS" --no-deps "$WHEELS"/*.whl
else
    say "wheels: none in $WHEELS; peers that are not installed are reported as such"
fi
if [ "$DEVICE" = cuda ] && [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then # for this card alone: all of them take minutes
    TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
    export TORCH_CUDA_ARCH_LIST
fi
if ! stage install 150 "$PYTHON" -m pip install --no-index --no-build-isolation --no-deps -e .; then
    say "install: falls back to the source tree; compiled backends run only if they were built there before"
    export PYTHONPATH=python:.${PYTHONPATH:+:$PYTHONPATH}
fi

# --- correctness
stage check 90 "$PYTHON" benchmarks/check_small.py --device "$DEVICE"
judge $?

if ! can_import pytest || ! can_import hypothesis; then
    say "tests: not run, pytest or hypothesis is not installed"
elif ! "$PYTHON" -c "from sadkernels.native import extension; extension.load('cpu')" 2>/dev/null; then
    say "tests: not run, they need the CPU extension, which was not built here (pybind11, ninja and a C++ compiler build it)"
else
    SIDE_BY_SIDE=()
    can_import xdist && SIDE_BY_SIDE=(-n auto --dist loadfile)
    stage tests 150 env OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q --maxfail=3 --no-header -p no:cacheprovider \
        "${SIDE_BY_SIDE[@]}" tests/sadkernels
    judge $?
fi

if [ "$DEVICE" = cuda ] && command -v compute-sanitizer >/dev/null; then
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # the caching allocator's large blocks hide accesses out of bounds
    for backend in triton cuda; do
        for tool in memcheck racecheck initcheck; do
            stage "sanitizer-$backend-$tool" 40 compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "$PYTHON" benchmarks/check_small.py --device cuda --backend "$backend" --few --absent-is-fine
            judge $?
        done
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    say "sanitizer: not run, there is no compute-sanitizer here or no GPU"
fi

# --- bench: no case is begun in the last 40 seconds of what a benchmark has
# bench NAME SCRIPT LIMIT: a stage that writes NAME.csv, and stops at LIMIT seconds.
bench() {
    if [ "$3" -le 50 ]; then
        say "$1: not run, the time is spent"
        return
    fi
    stage "$1" "$3" "$PYTHON" "$2" --size "$SIZE" --device "$DEVICE" --seconds 4 --budget $(($3 - 40)) --out "$OUT/$1.csv"
    judge $?
}
RESERVE=0
bench bench benchmarks/bench_span_kl.py $(($(left) * 2 / 3))
bench bench-topk benchmarks/bench_topk_span_kl.py "$(left)"

if [ "$PROVED" -eq 0 ]; then
    FAILED=1
fi
if [ "$FAILED" -eq 0 ]; then
    say "passed: $PROVED stages that judge correctness, $SECONDS s in all"
else
    say "FAILED: $PROVED stages that judge correctness passed, $SECONDS s in all"
fi
exit "$FAILED"
