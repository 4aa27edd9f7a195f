"""`sad cache import`: makes a teacher cache from the log-probabilities that another program wrote."""

from __future__ import annotations

import typer

from sad.cli.flags import takes
from sad.teacher_cache.import_options import ImportOptions


@takes(ImportOptions)
def command(options: ImportOptions) -> None:
    """Make a teacher cache from log-probabilities in a file, by token id.

    A record has input_ids, token_ids and logprobs. Every example of --data needs a record with its tokens; docs/cache.md
    documents the columns. To continue an interrupted run, repeat the command.
    """
    from sad.teacher_cache.outside import import_file

    import_file(options, say=typer.echo)
