"""The options of `sad cache import`. This module imports neither PyTorch nor transformers, so `sad --help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from sad.errors import InputError
from sad.options import option
from sad.teacher_cache.options import DTYPES
from sad.trajectories.options import check_encoding, encoding_option

_INPUT, _CACHE = "Input", "Cache"


@dataclass(kw_only=True)
class ImportOptions:
    """The inputs and the format of a cache from the log-probabilities of another program.

    Raises:
        InputError: A value is out of range.
    """

    file: list[str] = option(help="Log-probabilities: JSON Lines (.gz too) or parquet.", positional=True)
    data: list[str] = option(help="Trajectories: a file or a folder. May be repeated.", group=_INPUT)
    tokenizer: str = option(help="Folder of the teacher's tokenizer.", group=_INPUT)
    model: str = option(help="Name of the teacher. It identifies the cache.", group=_CACHE)
    out: str = option(help="Folder of the cache, or a URL that fsspec can open.", group=_CACHE)
    top_k: int = option(64, help="Log-probabilities to store per supervised token.", group=_CACHE)
    dtype: str = option("uint16", help="Storage of the log-probabilities: uint16 or float32.", group=_CACHE)
    vocab_size: int | None = option(
        None,
        help="Columns of the teacher's softmax. Default: those in the config.json beside the tokenizer, or the tokenizer's.",
        group=_CACHE,
    )
    observe: bool = option(
        False, flag="--observe", help="Store observation tokens too, for --lambda-observe above 0.", group=_CACHE
    )
    format: str | None = encoding_option("format", _INPUT)
    source: str = encoding_option("source", _INPUT)
    long: str = encoding_option("long", _INPUT)
    long_context: float = encoding_option("long_context", _INPUT)
    long_head: int = encoding_option("long_head", _INPUT)
    unroll: str = encoding_option("unroll", _INPUT)
    kept_ids: str = encoding_option("kept_ids", _INPUT)
    chat_template: str | None = encoding_option("chat_template", _INPUT)
    on_error: str = encoding_option("on_error", _INPUT)
    max_length: int = option(512, help="Tokens per trajectory; must equal --max-length of `sad train`.", group=_INPUT)

    def __post_init__(self) -> None:
        for name, least in (("top_k", 1), ("max_length", 2)):
            if getattr(self, name) < least:
                remedy = "Choose a value in that range."
                raise InputError(name, f"a whole number >= {least}", str(getattr(self, name)), remedy)
        if self.dtype not in DTYPES:
            raise InputError("dtype", "one of " + ", ".join(DTYPES), repr(self.dtype), "Choose one of these.")
        check_encoding(self, self.max_length)
        for name in ("file", "data"):
            if not getattr(self, name):
                raise InputError(name, "a file", "nothing", "Name one or more.")
