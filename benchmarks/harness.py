"""The command line that the benchmark scripts share. The measurements themselves are in `sadkernels.bench`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sadkernels.bench.cases import SIZES, Case, choose_cases, parse_case
from sadkernels.bench.measure import (
    QUICK_TIMING,
    DeviceLost,
    TimingConfig,
    ended_row,
    failed_backends,
    first_missing,
    measure_cases,
)
from sadkernels.bench.providers import NAMES
from sadkernels.bench.record import CsvLog, write_csv

__all__ = ["DEVICE_LOST", "RESULTS", "main", "write_csv"]

DEVICE_LOST = 3  # the exit code if the process can no longer use the GPU; a new process with --append continues
RESULTS = Path(__file__).parent / "results"
SHOWN = ("ms", "ms_warm", "times_pytorch", "peak_extra_mb", "retained_mb", "copy_fraction", "error")


def main(description: str, loss: str, topk: bool = False) -> int:
    """Measures the cases of a loss with the options of the command line.

    Args:
        description: The script's description for `--help`.
        loss: The loss's name, the first part of the CSV's name.
        topk: Whether to measure the cases with a top-k teacher.

    Returns:
        The exit code: 1 if a backend of `sad` was wrong or failed, `DEVICE_LOST`, otherwise 0.
    """
    args = _parser(description, loss).parse_args()
    device, quick = torch.device(args.device), args.size == "quick"
    out = args.out or RESULTS / f"{loss}_{'cpu' if device.type == 'cpu' else 'gpu'}.csv"
    cases = args.case or choose_cases(args.size, device.type, args.dtype, topk)
    config = QUICK_TIMING if quick else TimingConfig(args.seconds)
    config = config._replace(in_pairs=args.in_pairs or None)
    found, lost = [], False
    with CsvLog(out, str(device), append=args.append) as log:

        def report(row: dict[str, object]) -> None:
            log.write([row])
            found.append(row)
            figures = "  ".join(f"{key}={row[key]}" for key in SHOWN if row.get(key, "") != "")
            print(f"{row['case']}  {row['provider']}: {row['reason'] or row['status']}  {figures}", flush=True)

        if args.after_crash and (ended := first_missing(cases, args.provider, log.done)):
            row = ended_row(*ended, device)
            log.done[row["op"], row["case"], row["provider"]] = row["status"]
            report(row)
        options = {"only": args.provider, "quick": quick, "config": config, "budget": args.budget, "done": log.done}
        try:
            for rows in measure_cases(cases, device, **options):
                for row in rows:
                    report(row)
        except DeviceLost as reason:
            lost = True
            print(f"stopped: {reason}; --append continues in a new process", file=sys.stderr)
    failed = failed_backends(found)
    for row in failed:
        print(f"FAILED: {row['provider']} on {row['case']}: {row['reason']}", file=sys.stderr)
    print(f"{len(found)} rows, {len(failed)} failures of sad backends; {out}")
    return DEVICE_LOST if lost else 1 if failed else 0


def _parser(description: str, loss: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="default", help="cases to measure; default: %(default)s")
    parser.add_argument(
        "--case",
        type=_case,
        action="append",
        default=[],
        help="measure this case and not those of --size, for example 8192,50257,bf16,0.5 or 8192,50257,bf16,0.5,h=768:1600"
        " or 8192,50257,bf16,0.5,k=64 (rows, vocabulary, dtype, fraction supervised, hidden sizes, top-k); repeatable",
    )
    parser.add_argument(
        "--device",
        type=torch.device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:N; default: the GPU if there is one",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="dtype of all cases of --size")
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
    parser.add_argument("--in-pairs", action="store_true", help="time each provider alone with the baseline, as on a GPU")
    parser.add_argument("--append", action="store_true", help="keep the rows of the CSV file and measure only the others")
    parser.add_argument(
        "--after-crash", action="store_true", help="report the first missing row as failed: its provider ended the process"
    )
    parser.add_argument("--out", type=Path, help=f"CSV file; default: benchmarks/results/{loss}_DEVICE.csv")
    return parser


def _case(text: str) -> Case:
    try:
        return parse_case(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
