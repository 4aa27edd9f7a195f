"""Finds a model: a folder, a GGUF file, or the name of a model on the Hugging Face Hub, which is downloaded once."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

from sad.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TOKENIZER = ("*.json", "*.jinja", "*.model", "*.txt")  # a tokenizer and the configuration; never code
_TIMEOUT = 10.0  # seconds until the Hub must answer


def model_folder(argument: str, value: str | Path, *, weights: bool = True) -> Path:
    """Returns the folder of a model, or its GGUF file.

    Args:
        argument: The argument's name for messages, such as "teacher".
        value: A folder, a GGUF file, or the name of a model on the Hub, such as "Qwen/Qwen3-8B". A folder takes precedence.
        weights: Whether the weights are needed, or only the configuration and the tokenizer.

    Raises:
        InputError: It is neither, and the Hub has no such model, does not grant access, or cannot be reached; or the file
            needs a package that is missing.
    """
    if str(value) and Path(value).is_dir():
        return Path(value)
    if is_gguf(value):
        if importlib.util.find_spec("gguf") is None:
            got = "an environment without it"
            raise InputError(argument, "the package gguf for a GGUF file", got, "Install it: pip install '.[gguf]'.")
        return Path(value)
    if Path(value).exists() or _NAME.fullmatch(str(value)) is None:
        remedy = "Pass the folder of a model, or its name on the Hugging Face Hub, such as Qwen/Qwen3-8B."
        raise InputError(argument, "a folder with a model", f"{str(value)!r}, which is not a folder", remedy)
    return _download(argument, str(value), weights)


def is_gguf(value: str | Path) -> bool:
    """Whether this is a GGUF file, the format of llama.cpp."""
    return Path(value).suffix.lower() == ".gguf" and Path(value).is_file()


def is_local(value: str | Path) -> bool:
    """Whether this is the folder or the GGUF file of a model on this machine."""
    return Path(value).is_dir() or is_gguf(value)


def pretrained_source(path: Path) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` that name the source of a model or of its tokenizer.

    Args:
        path: A folder or a GGUF file, as `model_folder` returns it.
    """
    source = {"local_files_only": True}
    if path.is_dir():
        return source | {"pretrained_model_name_or_path": path}
    return source | {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}


@functools.cache
def _download(argument: str, name: str, weights: bool) -> Path:
    """Returns the folder of a model of the Hub in the local cache, after downloading what it lacks."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    def refused(why: str, remedy: str) -> InputError:
        got = f"{name!r}, which is not a folder, and {why}"
        return InputError(argument, "a folder with a model, or a model of the Hugging Face Hub", got, remedy)

    try:
        patterns = list(_TOKENIZER)
        if constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(name, local_files_only=True))
        files = [file.rfilename for file in HfApi().model_info(name, timeout=_TIMEOUT).siblings or ()]
        if weights:
            patterns.append("*.safetensors" if any(file.endswith(".safetensors") for file in files) else "*.bin")
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError:
        remedy = f"Ask for access at https://huggingface.co/{name} and log in with: hf auth login"
        raise refused("the Hub does not grant you access to this model", remedy) from None
    except RepositoryNotFoundError:
        remedy = "Check the spelling. For a private model, log in with: hf auth login"
        raise refused("the Hub has no such model", remedy) from None
    except LocalEntryNotFoundError:
        remedy = "Check the spelling, or download the model where there is a network: hf download NAME --local-dir DIR"
        raise refused("it is not in the local cache of the Hub (HF_HUB_OFFLINE is set)", remedy) from None
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        remedy = "Check the spelling and the network, or pass a folder."
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise refused(f"the Hub cannot be reached ({reason})", remedy) from None
