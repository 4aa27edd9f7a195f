"""`sad study`: compare methods on the same data, students and tasks, with statistics and a report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sad.cli.flags import takes
from sad.options import option

if TYPE_CHECKING:
    from sad.study.config import Study


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """The configuration and the folder of a study."""

    config: Path = option(positional=True, help="YAML file of the study; see docs/study.md.")
    out: Path | None = option(None, help="Folder of the results. Default: the name of the file, with -study.")

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return Path(f"{self.config.stem}-study") if self.out is None else self.out


@dataclass(frozen=True, kw_only=True)
class StudyOptions(StudyFiles):
    """The options of `sad study`."""

    jobs: int | None = option(None, help="Cells that run side by side. Default: the cores divided by the threads of a cell.")
    report_only: bool = option(False, flag="--report-only", help="Write the report of the cells that are finished.")


@takes(StudyOptions)
def command(options: StudyOptions) -> None:
    """Train students with several methods, evaluate them on the same tasks, and compare.

    The file names methods, students, environments and seeds. Each combination is
    a cell. Cells run side by side as processes of their own, and every result is
    kept: an interrupted study continues where it was. The folder contains
    summary.json, report.html and report.md.
    """
    from rich.console import Console

    from sad import files, interrupts
    from sad.cli.study_table import live_table
    from sad.errors import InputError
    from sad.quiet import quiet_libraries
    from sad.study.cells import Results
    from sad.study.config import read_study
    from sad.study.prepare import prepare
    from sad.study.runner import run_cells

    study = read_study(options.config)
    jobs = max(1, (os.cpu_count() or 1) // study.threads) if options.jobs is None else options.jobs
    if jobs < 1:
        raise InputError("jobs", "at least 1", str(jobs), "Choose a larger number.")
    quiet_libraries()
    console, folder = Console(), options.folder
    interrupts.explain(lambda: f"Finished cells are kept in {folder}. Run the same command to go on.")
    with files.FolderLock(folder):
        if not options.report_only:
            prepare(study, folder, lambda line: console.print(line, highlight=False, markup=False))
            with live_table(console, jobs) as show:
                run_cells(study, options.config, folder, jobs, show)
        _write_reports(study, Results(folder, study), folder, console)


def _write_reports(study: Study, results: Any, folder: Path, console: Any) -> None:
    import json

    from sad import files
    from sad.report.study import markdown, page, terminal_table
    from sad.study.exhibits import exhibits
    from sad.study.summary import summarize
    from sad.study.timings import timings

    summary = summarize(study, results)
    files.write_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    measured = timings(study, results)
    files.write_file(folder / "report.html", page(summary, measured, exhibits(study, folder)))
    files.write_file(folder / "report.md", markdown(summary, measured))
    for table in terminal_table(summary):
        console.print(table)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, markup=False)
