#!/usr/bin/env bash
# Installs, checks, tests and measures the package on a new GPU machine, in less than nine minutes:
#
#     benchmarks/run_gpu.sh OUT_DIR
#
# The machine needs Python with PyTorch and Triton, and nvcc for the CUDA backend. It needs no network. Other packages are
# installed from the wheels in $SAD_PEER_WHEELS (default: wheels/): pybind11, ninja, pytest, pytest-xdist, hypothesis,
# liger-kernel, and trl with its dependencies. Stages: install, check (every backend on small cases), tests,
# compute-sanitizer, two benchmarks. The script writes to OUT_DIR one log per stage, bench.csv, bench-topk.csv (one row at a
# time) and summary.txt. Exit code: 0 on success, 1 if a stage that checks correctness failed, 2 without a GPU.
#
#     SAD_RUN_ON_CPU=1 benchmarks/run_gpu.sh OUT_DIR     # tries the script without a GPU, on quick sizes
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
TOTAL=${SAD_RUN_SECONDS:-520} # seconds; the rest of the nine minutes is for `timeout` to end a process
RESERVE=190 # seconds reserved for the benchmarks by the stages before them
SUMMARY=$OUT/summary.txt
FAILED=0
PROVED=0
: >"$SUMMARY"

say() { echo "$*" | tee -a "$SUMMARY"; }
left() { echo $((TOTAL - RESERVE - SECONDS)); }

# stage NAME LIMIT COMMAND...: runs the command for at most LIMIT seconds and the time left, writes NAME.log, reports the result.
stage() {
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    [ "$limit" -gt "$(left)" ] && limit=$(left)
    if [ "$limit" -lt 5 ]; then
        say "$name: not run, no time left"
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

# judge CODE: a failed correctness stage fails the whole run; a stage that ran out of time counts as neither.
judge() {
    case $1 in
    0) PROVED=$((PROVED + 1)) ;;
    124 | 125 | 137) ;;
    *) FAILED=1 ;;
    esac
}

can_import() { "$PYTHON" -c "import $1" >/dev/null 2>&1; }

# --- machine
if ! can_import torch; then
    say "$PYTHON has no PyTorch: nothing was run"
    exit 2
fi
DEVICE=cuda SIZE=default
if ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    if [ "${SAD_RUN_ON_CPU:-}" != 1 ]; then
        say "PyTorch sees no GPU here: nothing was run (SAD_RUN_ON_CPU=1 tries the script on the CPU)"
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
    say "wheels: none in $WHEELS; the benchmark reports libraries that are not installed"
fi
if [ "$DEVICE" = cuda ] && [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then # for this GPU only, because all architectures take minutes
    TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
    export TORCH_CUDA_ARCH_LIST
fi
if ! stage install 150 "$PYTHON" -m pip install --no-index --no-build-isolation --no-deps -e .; then
    say "install: uses the source tree; compiled backends run only if they were built there before"
    export PYTHONPATH=python:.${PYTHONPATH:+:$PYTHONPATH}
fi

# --- correctness
stage check 90 "$PYTHON" benchmarks/check_small.py --device "$DEVICE"
judge $?

if ! can_import pytest || ! can_import hypothesis; then
    say "tests: not run, pytest or hypothesis is not installed"
elif ! "$PYTHON" -c "from sadkernels.native import extension; extension.load('cpu')" 2>/dev/null; then
    say "tests: not run, the CPU extension is not built (the build needs pybind11, ninja and a C++ compiler)"
else
    XDIST=()
    can_import xdist && XDIST=(-n auto --dist loadfile)
    stage tests 150 env OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q --maxfail=3 --no-header -p no:cacheprovider \
        "${XDIST[@]}" tests/sadkernels
    judge $?
fi

if [ "$DEVICE" = cuda ] && command -v compute-sanitizer >/dev/null; then
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # large cached blocks hide out-of-bounds accesses
    for backend in triton cuda; do
        for tool in memcheck racecheck initcheck; do
            stage "sanitizer-$backend-$tool" 40 compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "$PYTHON" benchmarks/check_small.py --device cuda --backend "$backend" --few --allow-missing
            judge $?
        done
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    say "sanitizer: not run, it needs compute-sanitizer and a GPU"
fi

# --- bench: no case starts in the last 40 seconds of a benchmark's time
# bench NAME SCRIPT LIMIT: a stage that writes NAME.csv and stops at LIMIT seconds.
bench() {
    if [ "$3" -le 50 ]; then
        say "$1: not run, no time left"
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
    say "passed: $PROVED correctness stages, $SECONDS s in total"
else
    say "FAILED: $PROVED correctness stages passed, $SECONDS s in total"
fi
exit "$FAILED"
