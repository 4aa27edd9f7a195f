"""Where the scripts here write, and config: the harness itself is `sadkernels.bench`, which every installation has."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sadkernels.bench.cases import SIZES, choose
from sadkernels.bench.measure import QUICK, Effort
from sadkernels.bench.providers import NAMES
from sadkernels.bench.record import CsvLog, write_csv
from sadkernels.bench.run import broken, run

__all__ = ["RESULTS", "main", "write_csv"]

RESULTS = Path(__file__).parent / "results"
SHOWN = ("ms", "ms_warm", "times_pytorch", "peak_extra_mb", "retained_mb", "copy_fraction", "error")


def main(description: str, loss: str, listed: bool = False) -> int:
    """Measures the cases of a loss as the command line says; the exit code is 1 if one of ours was wrong.

    Args:
        description: What the script is for.
        loss: The name in the CSV's.
        listed: Whether the cases are those of listed columns.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="in all cases")
    parser.add_argument("--provider", choices=NAMES, action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--seconds", type=float, default=Effort().seconds, help="for the timing of one case, about")
    parser.add_argument("--budget", type=float, help="seconds after which no further case is begun")
    parser.add_argument("--out", type=Path, help=f"CSV, overwritten; by default results/{loss}_DEVICE.csv")
    args = parser.parse_args()
    device, quick = torch.device(args.device), args.size == "quick"
    out = args.out or RESULTS / f"{loss}_{'cpu' if device.type == 'cpu' else 'gpu'}.csv"
    effort = QUICK if quick else Effort(args.seconds)
    found = []
    with CsvLog(out, str(device)) as log:
        for rows in run(
            choose(args.size, device.type, args.dtype, listed),
            device,
            only=args.provider,
            quick=quick,
            effort=effort,
            budget=args.budget,
        ):
            log.write(rows)
            found += rows
            for row in rows:
                figures = "  ".join(f"{key}={row[key]}" for key in SHOWN if row.get(key, "") != "")
                print(f"{row['case']}  {row['provider']}: {row['reason'] or row['status']}  {figures}", flush=True)
    bad = broken(found)
    for row in bad:
        print(f"BROKEN: {row['provider']} on {row['case']}: {row['reason']}", file=sys.stderr)
    print(f"{len(found)} rows, {len(bad)} of ours broken; {out}")
    return 1 if bad else 0
