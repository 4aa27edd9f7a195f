"""Applies the encoding options of a command: the keyword arguments of `sad.encode_all`, and the chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sad.trajectories.formats import resolve_format
from sad.trajectories.options import check_encoding
from sad.trajectories.sources import get_source
from sad.trajectories.tokenizers import read_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoding_keywords(
    options: Any, max_length: int | None, tokenizer: PreTrainedTokenizerBase | None = None
) -> dict[str, Any]:
    """Checks all encoding options of a command, applies the chat template, and returns the keyword arguments of the rest.

    Call it before the files of trajectories are read, so that a wrong option costs no time; and again with the tokenizer.

    Args:
        options: The options of the command. They have all names of `ENCODING_OPTIONS`.
        max_length: Maximum number of tokens per example. None: no limit.
        tokenizer: Its chat template is replaced by that of the options, if they name one.

    Returns:
        Keyword arguments of `sad.encode_all` and `inspect_trajectories`.

    Raises:
        InputError: A value is out of range, the format or the source is unknown, or the chat template cannot be read.
    """
    check_encoding(options, max_length)
    if options.source != "auto":
        get_source(options.source)
    template = None if options.chat_template is None else read_chat_template(options.chat_template)
    if tokenizer is not None and template is not None:
        tokenizer.chat_template = template
    names = ("long", "long_context", "long_head", "unroll", "kept_ids", "on_error")
    chosen = {name: getattr(options, name) for name in names}
    return {**chosen, "format": resolve_format(options.format), "max_length": max_length}
