"""`sad cache`: stores a teacher's top-k log-probabilities or hidden states for trajectories on disk."""

from __future__ import annotations

import typer

from sad.cli.flags import takes
from sad.teacher_cache.options import CacheOptions


@takes(CacheOptions)
def command(options: CacheOptions) -> None:
    """Store a teacher's output on disk, so that students train without the teacher.

    The cache holds supervised tokens only: the top-k tokens with their log-probabilities, the probability of all other
    tokens, and the entropy. With --hidden it holds the last hidden states, the entropy, and the teacher's head. To continue
    an interrupted run, repeat the command. To extend a finished cache, run the command with other files of trajectories.
    """
    from sad.teacher_cache.make import make_cache

    make_cache(options, say=typer.echo)
