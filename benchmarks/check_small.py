"""Compares every backend that runs here with float64 on the small edge cases of `sadkernels.selftest`.

    python benchmarks/check_small.py [--device cuda] [--backend triton]

It is made for a new GPU machine, and for compute-sanitizer: out-of-bounds accesses, races and reads of uninitialized memory
show under `compute-sanitizer --tool memcheck|racecheck|initcheck`.
"""

from __future__ import annotations

import argparse
import sys

import torch

from sadkernels import backends, selftest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device",
        type=torch.device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: the GPU if there is one",
    )
    parser.add_argument("--backend", choices=list(backends.PACKAGES), help="check only this backend; default: all")
    parser.add_argument("--few", action="store_true", help="check only small sizes, for tools that slow kernels down")
    parser.add_argument("--allow-missing", action="store_true", help="exit with code 0 if the backend cannot run here")
    args = parser.parse_args()
    device, wrong, ran = torch.device(args.device), 0, 0
    chosen = [args.backend] if args.backend else [name for name in backends.PACKAGES if name != "reference"]
    for backend in chosen:
        for op in selftest.OPS:
            if reason := backends.why_not(backend, op, device):
                print(f"{backend}, {op}: not run, {reason}")
                continue
            outcome = selftest.run(selftest.all_cases(op, small_only=args.few), backend, device)
            ran, wrong = ran + outcome.ran, wrong + len(outcome.failures)
            for line in outcome.failures:
                print(f"{backend}, {op}: WRONG, {line}")
            print(f"{backend}, {op}: done", flush=True)
    print(f"{ran} cases on {device}, {wrong} wrong")
    return 1 if wrong or not (ran or args.allow_missing) else 0


if __name__ == "__main__":
    sys.exit(main())
