"""Cuts the vocabulary of a model and its tokenizer to the tokens in use, for small models with large heads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from sad.errors import InputError

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_BYTE_ALPHABET = 324  # its 256 characters are below this code point
_MODEL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def prune_vocabulary(model: Any, tokenizer: Any, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Removes the tokens that the texts do not use from a model, in place, and from a copy of its tokenizer.

    Special tokens, bytes and characters in use stay, and so do the tokens from which BPE builds those in use. So the
    texts have the same tokens as before, under other ids, and any other text can still be encoded with smaller tokens.

    Args:
        model: A causal language model.
        tokenizer: Its fast tokenizer, of the type BPE.
        texts: The texts.

    Returns:
        The new tokenizer. Its ids are those of the pruned model.

    Raises:
        InputError: The tokenizer is not of the type BPE.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    core = content["model"]
    if core["type"] != "BPE":
        raise InputError("teacher, prune_vocabulary", "a BPE tokenizer", core["type"], "Set prune_vocabulary to false.")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in core["merges"]]
    names = tokenizer.convert_ids_to_tokens(sorted({i for text in texts for i in tokenizer(text)["input_ids"]}))
    kept = _with_parts(set(names) & set(core["vocab"]), merges)
    kept |= {name for name in core["vocab"] if _is_byte(name) or name in tokenizer.all_special_tokens}
    kept |= {core["unk_token"]} & set(core["vocab"])
    old_ids = sorted({core["vocab"][name] for name in kept} | {item["id"] for item in content["added_tokens"]})
    new_ids = {old: new for new, old in enumerate(old_ids)}
    core["vocab"] = {name: new_ids[old] for name, old in core["vocab"].items() if old in new_ids}
    core["merges"] = [list(merge) for merge in merges if {*merge, "".join(merge)} <= set(core["vocab"])]
    for item in content["added_tokens"]:
        item["id"] = new_ids[item["id"]]
    _renumber(content.get("post_processor"), new_ids)
    special = {name: value for name in _SPECIAL if (value := getattr(tokenizer, name)) is not None}
    pruned = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), clean_up_tokenization_spaces=False, **special
    )
    _prune_model(model, old_ids, new_ids)
    return pruned


def _with_parts(names: set[str], merges: list[tuple[str, ...]]) -> set[str]:
    """Returns tokens and all tokens from which BPE builds them."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    found = set(names)
    for name in names:
        parts = list(name)
        found.update(parts)
        while len(parts) > 1:
            rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            found.add(parts[place])
    return found


def _is_byte(name: str) -> bool:
    """Whether a token stands for one byte: `<0x0A>`, or an entry of the byte alphabet of GPT-2."""
    return (len(name) == 1 and ord(name) < _BYTE_ALPHABET) or (
        len(name) == 6 and name.startswith("<0x") and name.endswith(">")
    )


def _renumber(processor: dict[str, Any] | None, new_ids: dict[int, int]) -> None:
    """Changes the ids of the special tokens that a post-processor adds."""
    if processor is None:
        return
    for part in processor.get("processors", []):
        _renumber(part, new_ids)
    for item in (processor.get("special_tokens") or {}).values():
        item["ids"] = [new_ids[old] for old in item["ids"]]


def _prune_model(model: Any, old_ids: list[int], new_ids: dict[int, int]) -> None:
    rows = torch.tensor(old_ids)
    for part in {model.get_input_embeddings(), model.get_output_embeddings()}:
        part.weight = nn.Parameter(part.weight.detach()[rows].clone())
        if getattr(part, "bias", None) is not None:
            part.bias = nn.Parameter(part.bias.detach()[rows].clone())
        for name in ("num_embeddings", "out_features"):
            if hasattr(part, name):
                setattr(part, name, len(rows))
        if getattr(part, "padding_idx", None) is not None:
            part.padding_idx = new_ids.get(part.padding_idx)
    model.config.get_text_config().vocab_size = len(rows)
    if hasattr(model, "vocab_size"):
        model.vocab_size = len(rows)
    for config in (model.config, model.generation_config):
        for name in _MODEL_IDS:
            value = getattr(config, name, None)
            if isinstance(value, list):
                setattr(config, name, [new_ids[one] for one in value if one in new_ids] or None)
            elif value is not None:
                setattr(config, name, new_ids.get(value))
    model.tie_weights()
