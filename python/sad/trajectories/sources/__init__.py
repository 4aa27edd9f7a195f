"""Sources of trajectories, one file each. Every file holds `SOURCES`, in the order in which they are registered."""

from sad.trajectories.sources import (
    adp,
    anthropic,
    atif,
    function_calling,
    gemini,
    langchain,
    native,
    openhands,
    responses,
    sharegpt,
    smolagents,
    sweagent,
    tau_bench,
    trl,
)
from sad.trajectories.sources.base import Source, get_source, recognize, register_source, sources

__all__ = ["Source", "get_source", "recognize", "register_source", "sources"]

# The last one registered is tried first: general shapes come before special ones.
for _module in (
    *(native, trl, sharegpt, function_calling, gemini, responses, anthropic),
    *(langchain, smolagents, tau_bench, atif, adp, openhands, sweagent),
):
    for _source in _module.SOURCES:
        register_source(_source)
