"""`sad study prepare`: make the data and the teachers that the cells of a study share."""

from __future__ import annotations

import typer

from sad.cli.flags import takes
from sad.cli.study import StudyFiles


@takes(StudyFiles)
def command(options: StudyFiles) -> None:
    """Make what the cells of a study share: data, teachers, pretrained students.

    `sad study` does it too. Run it first if another scheduler runs the cells. It
    prints the names of the cells whose learning rate is known.
    """
    from sad import files
    from sad.quiet import quiet_libraries
    from sad.study.cells import Results, all_cells
    from sad.study.config import read_study
    from sad.study.prepare import prepare

    study = read_study(options.config)
    quiet_libraries()
    with files.FolderLock(options.folder):
        prepare(study, options.folder, lambda line: typer.echo(line, err=True))
    results = Results(options.folder, study)
    known, waiting = all_cells(study, results)
    for cell in known:
        if results.read(cell) is None:
            typer.echo(cell.name(study))
    if waiting:
        typer.echo(f"{waiting} more cells after these, when the learning rates are chosen: run it again.", err=True)
