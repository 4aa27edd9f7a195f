"""Loads and checks the tokenizer that labels the tokens of trajectories, and reads chat templates."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sad.errors import InputError
from sad.hub import model_folder, pretrained_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a tokenizer can return the character offsets of its tokens.

    Raises:
        InputError: The tokenizer is slow, or it has no vocabulary.
    """
    if not getattr(tokenizer, "is_fast", False):
        remedy = "Load it with AutoTokenizer.from_pretrained(..., use_fast=True); the labels need its offsets."
        raise InputError("tokenizer", "a fast tokenizer", type(tokenizer).__name__, remedy)
    if len(tokenizer) < 2:  # GPT2TokenizerFast(vocab_file=..., merges_file=...) returns one without an error
        remedy = "Load the folder with AutoTokenizer.from_pretrained."
        raise InputError("tokenizer", "a tokenizer with a vocabulary", f"one of {len(tokenizer)} entries", remedy)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads a fast tokenizer from a folder or a GGUF file, or by the name of a model on the Hugging Face Hub.

    Raises:
        InputError: There is no tokenizer, or only a slow one.
    """
    from transformers import AutoTokenizer

    try:
        folder = model_folder("tokenizer", name, weights=False)
        tokenizer = AutoTokenizer.from_pretrained(**pretrained_source(folder), trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # an OSError, or any exception of the parser of a tokenizer file
        got = f"{name!r} ({type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''})"
        remedy = "Pass a folder with tokenizer.json (or its vocabulary files and tokenizer_config.json)."
        raise InputError("tokenizer", "a folder or model name with a tokenizer", got, remedy) from error
    check_tokenizer(tokenizer)
    return tokenizer


def read_chat_template(path: str | os.PathLike[str]) -> str:
    """Returns the chat template in a file (Jinja).

    Raises:
        InputError: The file cannot be read, or is not a template.
    """
    from jinja2 import Environment, TemplateError

    try:
        template = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "chat_template", "a file with a chat template", f"{str(path)!r} ({error})", "Check the path."
        ) from None
    try:  # {% generation %} is a tag of transformers
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", template))
    except TemplateError as error:
        raise InputError("chat_template", "a Jinja template", f"{str(path)!r} ({error})", "Fix the template.") from None
    return template
