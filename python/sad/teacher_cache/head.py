"""The teacher's head in a cache of hidden states: one file, written before the rows.

The file has the weight (V, H) and the bias (V,) in the dtype of the loaded teacher. They are never rounded: the head is
stored once, so its bytes matter little, and an error in it would be in every row. The metadata of all files of a cache hold
the head's digest, so the rows of one teacher are never read with the head of another.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from sad import files
from sad.errors import InputError
from sad.model_parts import Head, split_model
from sad.teacher_cache.metadata import CacheMetadata, metadata_from_json
from sad.teacher_cache.storage import HEAD_NAME, CacheFolder, damaged

_LENGTH_BYTES = 8  # of the length of the header, at the start of a safetensors file


def head_of(teacher: nn.Module, columns: int) -> Head:
    """Returns the first columns of a teacher's head.

    Args:
        teacher: A causal language model.
        columns: V.

    Raises:
        InputError: The teacher has no separate backbone and linear head.
    """
    try:
        head = split_model(teacher).head()
    except ValueError as error:
        remedy = "Make a cache of log-probabilities: leave --hidden out."
        raise InputError(
            "teacher", "a model with a separate backbone and linear head", f"one without: {error}", remedy
        ) from error
    bias = None if head.bias is None else head.bias.detach()[:columns]
    return head._replace(weight=head.weight.detach()[:columns], bias=bias)


def hidden_metadata(head: Head) -> dict[str, Any]:
    """Returns the fields of `CacheMetadata` that describe a cache with this head."""
    columns, width = head.weight.shape
    return {"vocab_size": columns, "hidden_size": width, "head": head_digest(head)}


def head_digest(head: Head) -> str:
    """Returns a SHA-256 of all numbers of a head, with their shapes and dtype."""
    tensors = _tensors(head)
    digest = hashlib.sha256(json.dumps([head.scale, head.softcap]).encode())
    for name, x in tensors.items():
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        digest.update(x.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_head(folder: CacheFolder, head: Head, metadata: CacheMetadata) -> None:
    """Writes the head of a cache, unless the folder has it already."""
    try:
        read_head(folder, metadata)
    except InputError:
        record = files.seal({**metadata.to_json(), "logit_scale": head.scale, "logit_softcap": head.softcap})
        folder.write(HEAD_NAME, safetensors.torch.save(_tensors(head), metadata={"sad": json.dumps(record)}))


def read_head(folder: CacheFolder, metadata: CacheMetadata) -> Head:
    """Reads the head of a cache into CPU memory.

    Raises:
        InputError: The file is missing or damaged, or it is the head of another cache.
    """
    file = folder.display_path(HEAD_NAME)
    try:
        data = folder.read(HEAD_NAME)
    except FileNotFoundError as error:
        raise damaged(file, "no such file") from error
    try:
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        record = json.loads(json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])["__metadata__"]["sad"])
        tensors = safetensors.torch.load(data)
        head = Head(tensors["weight"], tensors.get("bias"), record["logit_scale"], record["logit_softcap"])
        digest = head_digest(head)
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise damaged(file, f"a file that cannot be read ({error})") from error
    if digest != metadata.head:
        raise damaged(file, "other numbers than the head with which the cache was made")
    return head


def head_metadata(folder: CacheFolder) -> CacheMetadata | None:
    """Returns the metadata in the header of the head's file, or None if the file is not of a cache."""
    try:
        [start] = folder.read_ranges(HEAD_NAME, [(0, _LENGTH_BYTES)])
        end = _LENGTH_BYTES + int.from_bytes(bytes(start), "little")
        [header] = folder.read_ranges(HEAD_NAME, [(_LENGTH_BYTES, end)])
        record = json.loads(json.loads(bytes(header))["__metadata__"]["sad"])
        return metadata_from_json(folder.display_path(HEAD_NAME), record) if files.is_sealed(record) else None
    except (ValueError, KeyError, TypeError, OSError):  # `InputError` is a ValueError
        return None


def _tensors(head: Head) -> dict[str, torch.Tensor]:
    named = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    return {name: x.cpu().contiguous() for name, x in named.items()}
