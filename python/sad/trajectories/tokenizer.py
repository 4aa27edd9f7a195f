"""Loads and checks tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sad.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer that tells where in the text its tokens are.

    Raises:
        InputError: It is a slow one, or has no vocabulary.
    """
    if not getattr(tokenizer, "is_fast", False):
        remedy = "Load it with AutoTokenizer.from_pretrained(..., use_fast=True); labels are placed by its offsets."
        raise InputError("tokenizer", "a fast tokenizer", type(tokenizer).__name__, remedy)
    if len(tokenizer) < 2:  # what a GPT2TokenizerFast(vocab_file=..., merges_file=...) gives, without complaint
        remedy = "Load the folder with AutoTokenizer.from_pretrained."
        raise InputError("tokenizer", "a tokenizer with a vocabulary", f"one of {len(tokenizer)} entries", remedy)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a folder, or of a model's name on the Hugging Face Hub.

    Raises:
        InputError: There is none, or only a slow one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # from OSError to whatever a tokenizer file's content makes its parser raise
        got = f"{name!r} ({type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''})"
        remedy = "Give a folder with tokenizer.json (or its vocabulary files and tokenizer_config.json)."
        raise InputError("tokenizer", "a folder or model name with a tokenizer", got, remedy) from error
    check_tokenizer(tokenizer)
    return tokenizer
