"""The examples of a cache: trajectories with the tokens and labels that a training has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sad.errors import InputError
from sad.models import load_tokenizer
from sad.trajectories.command_options import encoding_keywords
from sad.trajectories.encode import encode_all
from sad.trajectories.read import read_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sad.teacher_cache.import_options import ImportOptions
    from sad.teacher_cache.options import CacheOptions


def read_examples(
    options: CacheOptions | ImportOptions, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> list[dict[str, list[int]]]:
    """Returns the labelled examples of all data files. Sets the chat template of the tokenizer.

    Args:
        options: Data files, and how trajectories become examples.
        tokenizer: The teacher's tokenizer.
        say: Receives one line per file.

    Raises:
        InputError: A file cannot be read, or there is no example.
    """
    encoding = encoding_keywords(options, options.max_length, tokenizer)
    examples = []
    for path in options.data:
        trajectories, refused = read_data(path, options.source, options.on_error, say)
        corpus = encode_all(trajectories, tokenizer, **encoding, observe=options.observe, refused=refused, say=say)
        say(f"{path}: read {len(trajectories)} trajectories; {corpus.summary()}")
        examples += corpus.examples
    if not examples:
        remedy = "Check the data with `sad inspect`, and set their format with --format."
        raise InputError("data", "trajectories with reasoning or actions", "none", remedy)
    return examples


def load_cache_tokenizer(folder: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a model.

    Args:
        folder: The model's folder, or its name on the Hugging Face Hub.
        trust_remote_code: Whether to run code in the folder.

    Raises:
        InputError: There is none.
    """
    tokenizer = load_tokenizer("teacher", folder, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        remedy = "Give a folder with a tokenizer, such as the student's, with --tokenizer."
        raise InputError("teacher's tokenizer", "a folder with a tokenizer", f"none in {folder!r}", remedy)
    return tokenizer
