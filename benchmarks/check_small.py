"""Every backend that runs here on small, awkward cases against float64: for a bare GPU machine and for compute-sanitizer.

    python benchmarks/check_small.py [--device cuda] [--backend triton]

The cases are those of `sadkernels.selftest`. A process that touches memory that is not its own, or reads what nobody wrote,
shows under `compute-sanitizer --tool memcheck|racecheck|initcheck`.
"""

from __future__ import annotations

import argparse
import sys

import torch

from sadkernels import backends, selftest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", choices=list(backends.PACKAGES), help="only this one")
    parser.add_argument("--few", action="store_true", help="the small sizes: for tools that slow kernels down")
    parser.add_argument("--absent-is-fine", action="store_true", help="exit code 0 if the backend is not there")
    args = parser.parse_args()
    device, bad, ran = torch.device(args.device), 0, 0
    chosen = [args.backend] if args.backend else [name for name in backends.PACKAGES if name != "reference"]
    for backend in chosen:
        for op in selftest.OPS:
            if reason := backends.why_not(backend, op, device):
                print(f"{backend}, {op}: not run, {reason}")
                continue
            outcome = selftest.run(selftest.all_cases(op, small_only=args.few), backend, device)
            ran, bad = ran + outcome.ran, bad + len(outcome.failures)
            for line in outcome.failures:
                print(f"{backend}, {op}: WRONG, {line}")
            print(f"{backend}, {op}: done", flush=True)
    print(f"{ran} cases on {device}, {bad} wrong")
    return 1 if bad or not (ran or args.absent_is_fine) else 0


if __name__ == "__main__":
    sys.exit(main())
