"""The command line that the benchmark scripts share. The measurements themselves are in `sadkernels.bench`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sadkernels.bench.cases import SIZES, choose_cases
from sadkernels.bench.measure import QUICK_TIMING, TimingConfig, failed_backends, measure_cases
from sadkernels.bench.providers import NAMES
from sadkernels.bench.record import CsvLog, write_csv

__all__ = ["RESULTS", "main", "write_csv"]

RESULTS = Path(__file__).parent / "results"
SHOWN = ("ms", "ms_warm", "times_pytorch", "peak_extra_mb", "retained_mb", "copy_fraction", "error")


def main(description: str, loss: str, topk: bool = False) -> int:
    """Measures the cases of a loss with the options of the command line.

    Args:
        description: The script's description for `--help`.
        loss: The loss's name, the first part of the CSV's name.
        topk: Whether to measure the cases with a top-k teacher.

    Returns:
        The exit code: 1 if a backend of `sad` was wrong or failed, otherwise 0.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="default", help="cases to measure; default: %(default)s")
    parser.add_argument(
        "--device",
        type=torch.device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:N; default: the GPU if there is one",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="dtype of all cases")
    parser.add_argument(
        "--provider", choices=NAMES, action="append", default=[], help="measure only this provider; repeatable"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=TimingConfig().seconds,
        help="approximate timing of one case, in seconds; default: %(default)g",
    )
    parser.add_argument("--budget", type=float, help="seconds after which no further case starts; default: no limit")
    parser.add_argument("--out", type=Path, help=f"CSV file, overwritten; default: benchmarks/results/{loss}_DEVICE.csv")
    args = parser.parse_args()
    device, quick = torch.device(args.device), args.size == "quick"
    out = args.out or RESULTS / f"{loss}_{'cpu' if device.type == 'cpu' else 'gpu'}.csv"
    cases = choose_cases(args.size, device.type, args.dtype, topk)
    config = QUICK_TIMING if quick else TimingConfig(args.seconds)
    found = []
    with CsvLog(out, str(device)) as log:
        for rows in measure_cases(cases, device, only=args.provider, quick=quick, config=config, budget=args.budget):
            log.write(rows)
            found += rows
            for row in rows:
                figures = "  ".join(f"{key}={row[key]}" for key in SHOWN if row.get(key, "") != "")
                print(f"{row['case']}  {row['provider']}: {row['reason'] or row['status']}  {figures}", flush=True)
    failed = failed_backends(found)
    for row in failed:
        print(f"FAILED: {row['provider']} on {row['case']}: {row['reason']}", file=sys.stderr)
    print(f"{len(found)} rows, {len(failed)} failures of sad backends; {out}")
    return 1 if failed else 0
