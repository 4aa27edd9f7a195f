"""`sad study run-cell`: run one cell of a study, for any scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from sad.cli.flags import takes
from sad.cli.study import StudyFiles
from sad.options import option


@dataclass(frozen=True, kw_only=True)
class CellOptions(StudyFiles):
    """The options of `sad study run-cell`."""

    cell: str = option(help="Name of the cell, as `sad study prepare` prints it.")
    ends_with_stdin: bool = option(
        False,
        flag="--ends-with-stdin",
        help="End when the standard input is closed. So a killed runner leaves no cell.",
    )


@takes(CellOptions)
def command(options: CellOptions) -> None:
    """Run one cell of a study: train a student and evaluate it.

    The result is a folder below FOLDER/cells. A finished cell is not run again.
    """
    from sad.errors import InputError
    from sad.quiet import quiet_libraries
    from sad.study.cells import Results, all_cells, run_cell
    from sad.study.config import read_study

    if options.ends_with_stdin:
        _end_with_stdin()
    quiet_libraries()
    study = read_study(options.config)
    known, _ = all_cells(study, Results(options.folder, study))
    cells = {cell.name(study): cell for cell in known}
    if options.cell not in cells:
        expected = f"the name of one of {len(cells)} cells, such as {next(iter(cells), 'none')}"
        raise InputError("cell", expected, repr(options.cell), "See `sad study prepare`.")
    run_cell(study, options.folder, cells[options.cell])


def _end_with_stdin() -> None:
    """Ends the process when its standard input is closed."""
    import os
    import threading

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock the thread would hold when Python ends
            pass
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
