"""Runs the stages one after the other, each in its own process with a limit, and records how each ended.

OUT_DIR gets six files: `stages.csv` (one row per stage, with card, driver and clocks), `run.log` (the output of all stages),
and one CSV file per topic, whose rows are written as soon as they are measured.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from gpu_run import machine, stages
from gpu_run.processes import Outcome, Running, run
from gpu_run.stages import Stage

DEVICE_LOST = 3  # exit code of the benchmark, see harness.py
_ATTEMPTS = 4  # of a benchmark whose providers end its process
_SHORTEST = 5  # seconds; no stage starts with less
FIELDS = ("stage", "status", "seconds", "attempts", "rows", "reason", "at_second", *machine.COLUMNS)


class Run:
    """One run of the stages.

    Args:
        out: Folder for the results.
        environment: Environment variables of the stages.
        for_benchmarks: Those of the benchmarks. Default: the same.
        limit: Seconds for everything.
        resume: Whether to keep the results in `out` and leave out the stages that have passed.
        build: The build of the CUDA extension, if one was started.
    """

    def __init__(
        self,
        out: Path,
        environment: dict[str, str],
        limit: float,
        resume: bool = False,
        build: Running | None = None,
        for_benchmarks: dict[str, str] | None = None,
    ) -> None:
        self._begin = time.monotonic()
        self._out, self._environment, self._limit, self._build = out, environment, limit, build
        self._for_benchmarks = for_benchmarks or environment
        self._build_ended: Outcome | None = None
        self._passed = _resume(out) if resume else _clear(out)
        self._log = open(out / "run.log", "a", encoding="utf-8")
        self.failed: list[str] = []

    def stage(self, stage: Stage) -> str:
        """Runs one stage if it has not passed before, records it, and returns its status."""
        if stage.name in self._passed:
            self._say(f"{stage.name}: passed in an earlier run")
            return "passed"
        reason = stage.missing or (self._why_no_build(stage) if stage.needs_build else "")
        if not reason and self._left() < _SHORTEST:
            reason = "no time left"
        if reason:
            self._record(stage, "not run", Outcome(None, 0.0), 0, reason)
            return "not run"
        self._say(f"--- {stage.name}, at {time.monotonic() - self._begin:.0f} s: {' '.join(stage.command)}")
        outcome, attempts = self._attempts(stage)
        status = _status(outcome)
        self._record(stage, status, outcome, attempts, "" if outcome.code in (0, None) else f"exit code {outcome.code}")
        if status != stage.expected and (stage.proves or stage.expected != "passed") and status != "stopped":
            self.failed.append(stage.name)
        return status

    def close(self) -> None:
        """Stops the build if it still runs."""
        if self._build is not None:
            self._build.stop()
        self._log.close()

    def _attempts(self, stage: Stage) -> tuple[Outcome, int]:
        """Runs a stage. Starts a benchmark again, for the rows that are missing, if a provider has ended its process."""
        command = list(stage.command)
        if stage.csv:
            command += ["--append", "--out", str(self._out / stage.csv)]
        environment = self._for_benchmarks if stage.is_benchmark else self._environment
        begin, failed = time.monotonic(), False
        for attempt in range(1, _ATTEMPTS + 1):
            used = time.monotonic() - begin
            outcome = run(command, min(stage.limit - used, self._left()), self._log, environment)
            failed |= outcome.code != 0
            again = stage.is_benchmark and outcome.code is not None and (outcome.code < 0 or outcome.code == DEVICE_LOST)
            if not again or attempt == _ATTEMPTS or self._left() < _SHORTEST:
                break
            if outcome.code < 0 and "--after-crash" not in command:
                command.append("--after-crash")
            elif outcome.code == DEVICE_LOST and "--after-crash" in command:
                command.remove("--after-crash")
        code = 1 if outcome.code == 0 and failed else outcome.code
        return Outcome(code, time.monotonic() - begin), attempt

    def _why_no_build(self, stage: Stage) -> str:
        """Waits for the CUDA extension and returns why a stage cannot use it, or ""."""
        if self._build is None:
            return "the CUDA extension is not built, see run.log"
        if self._build_ended is None:
            self._build_ended = self._build.wait(min(120, max(10, self._left() - stage.limit)))
            self._say(f"build: exit code {self._build_ended.code} after {self._build_ended.seconds:.0f} s")
        return "" if self._build_ended.code == 0 else "the CUDA extension is not built, see run.log"

    def _left(self) -> float:
        return self._limit - (time.monotonic() - self._begin)

    def _record(self, stage: Stage, status: str, outcome: Outcome, attempts: int, reason: str) -> None:
        path = self._out / "stages.csv"
        is_new = not path.exists()
        with open(path, "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, FIELDS)
            if is_new:
                writer.writeheader()
            row = {"stage": stage.name, "status": status, "seconds": round(outcome.seconds, 1), "attempts": attempts}
            row |= {"rows": len(_rows(self._out / stage.csv)) if stage.csv else "", "reason": reason}
            writer.writerow(row | {"at_second": round(time.monotonic() - self._begin)} | machine.describe())
        self._say(f"{stage.name}: {status}{', ' * bool(reason)}{reason}, {outcome.seconds:.0f} s")

    def _say(self, line: str) -> None:
        print(line, flush=True)
        self._log.write(line + "\n")
        self._log.flush()


def _status(outcome: Outcome) -> str:
    if outcome.code is None:
        return "stopped"
    return "passed" if outcome.code == 0 else "crashed" if outcome.code < 0 else "failed"


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _clear(out: Path) -> set[str]:
    """Removes the results of an earlier run."""
    for name in ("stages.csv", "run.log", stages.SPAN_KL, stages.LINEAR, stages.TOPK, stages.PLAN):
        (out / name).unlink(missing_ok=True)
    return set()


def _resume(out: Path) -> set[str]:
    """Returns the stages that have passed, and removes the rows of the CSV files that must be measured again."""
    for name in (stages.SPAN_KL, stages.LINEAR, stages.TOPK):
        if rows := _rows(out / name):
            with open(out / f"{name}.partial", "w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(rows[0]), extrasaction="ignore")
                writer.writeheader()
                writer.writerows(row for row in rows if row["status"] == "ok" and None not in row.values())
            (out / f"{name}.partial").replace(out / name)
    return {row["stage"] for row in _rows(out / "stages.csv") if row["status"] == "passed"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 on success, 1 if a stage that proves correctness failed, 2 if the machine has no GPU."""
    parser = argparse.ArgumentParser(prog="run_gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="keep the results in OUT_DIR and run what is missing")
    parser.add_argument("--wheels", type=Path, default=machine.ROOT / "wheels", help="folder of wheels; default: wheels")
    parser.add_argument("--seconds", type=float, default=540, help="limit of the whole run; default: %(default)g")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="run only this stage; repeatable")
    parser.add_argument("--rehearse", action="store_true", help="run tiny sizes on the CPU, to try the script")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    capability = None if options.rehearse else machine.compute_capability()
    if not options.rehearse and capability is None:
        parser.error("PyTorch sees no GPU; --rehearse tries the script on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    os.chdir(machine.ROOT)
    with tempfile.TemporaryDirectory() as site, open(Path(site) / "build.log", "w+", encoding="utf-8") as build_log:
        environment = machine.install(options.wheels, Path(site), build_log)
        sys.path.append(site)  # the stages ask which packages are there
        build = None if options.rehearse else machine.start_build(capability, environment, build_log)
        left = options.seconds - (time.monotonic() - begin)
        run = Run(out, environment, left, options.resume, build, machine.with_stubs(environment, Path(site)))
        try:
            table = stages.rehearsal_stages(Path(site)) if options.rehearse else stages.gpu_stages()
            for stage in _chosen(table, options.only):
                run.stage(stage)
        finally:
            run.close()
            _append(build_log, out / "run.log")
    print(f"failed: {', '.join(run.failed)}" if run.failed else "no stage found a fault", flush=True)
    return 1 if run.failed else 0


def _chosen(table: list[Stage], only: list[str]) -> list[Stage]:
    if unknown := set(only) - {stage.name for stage in table}:
        names = ", ".join(stage.name for stage in table)
        raise SystemExit(f"--only: expected one of {names}, got {', '.join(sorted(unknown))}")
    return [stage for stage in table if not only or stage.name in only]


def _append(log: IO[str], path: Path) -> None:
    log.flush()
    log.seek(0)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write("--- installation and build\n" + log.read())


if __name__ == "__main__":
    sys.exit(main())
