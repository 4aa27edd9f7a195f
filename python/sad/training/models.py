"""Teacher, student and tokenizer from folders, checked to belong together before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sad.errors import InputError
from sad.training.adapters import check_package, check_quantization, quantization_config

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "vocab.txt")
_ADAPTER = "adapter_config.json"
_SHOWN = 3


def check_model_dir(name: str, path: str | Path) -> Path:
    """A folder with a `config.json`.

    Args:
        name: What the user calls it: "teacher", "student".
        path: The folder.

    Raises:
        InputError: There is none.
    """
    path = Path(path)
    if not path.is_dir():
        remedy = "A model of the Hugging Face hub becomes a folder with: hf download NAME --local-dir DIR"
        raise InputError(name, "a folder with a model", f"{str(path)!r}, which is not a folder", remedy)
    if not (path / "config.json").is_file():
        remedy = "Save the model there with `model.save_pretrained(...)`."
        raise InputError(name, "a folder with a config.json", f"{str(path)!r} without one", remedy)
    return path


def check_dtype(name: str, dtype: str) -> None:
    """A name in `DTYPES`.

    Raises:
        InputError: It is none.
    """
    if dtype not in DTYPES:
        raise InputError(name, "one of " + ", ".join(DTYPES), repr(dtype), "Choose one of these.")


def load_model(
    name: str,
    path: str | Path,
    *,
    dtype: str = "auto",
    from_config: bool = False,
    seed: int = 0,
    quantization: str | None = None,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """A causal language model from a folder, or from a folder of LoRA adapters, which name the folder of theirs.

    Args:
        name: What the user calls it, for messages.
        path: The folder.
        dtype: A name in `DTYPES`; "auto" is that of the saved weights.
        from_config: Start from random weights, drawn with `seed`; the folder needs no weights then.
        seed: Of the random weights.
        quantization: "8bit" or "4bit": weights of linear layers, except the head, are made so while loading.
        device: Where a quantized model goes.

    Raises:
        InputError: The folder holds no model that can be loaded, or a package for it is missing.
    """
    path = _check_adapter_dir(name, path) if Path(path, _ADAPTER).is_file() else check_model_dir(name, path)
    check_quantization(quantization)
    check_dtype(f"{name}_dtype", dtype)
    try:
        if from_config:
            config = AutoConfig.from_pretrained(path)
            torch.manual_seed(seed)
            chosen = torch.float32 if dtype == "auto" else DTYPES[dtype]
            return AutoModelForCausalLM.from_config(config).to(chosen)
        if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
            remedy = "Save the weights there."
            if name == "student":
                remedy = "Add --from-config to start from random weights, or save weights there."
            raise InputError(name, "a folder with model weights", f"only a config in {str(path)!r}", remedy)
        options = {"dtype": DTYPES[dtype], "local_files_only": True}
        if quantization is not None:
            options |= {"quantization_config": quantization_config(quantization, DTYPES[dtype]), "device_map": {"": device}}
        return AutoModelForCausalLM.from_pretrained(path, **options)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        remedy = "Load it with AutoModelForCausalLM.from_pretrained to see the whole error."
        raise InputError(name, f"a causal language model in {str(path)!r}", str(error), remedy) from error


def _check_adapter_dir(name: str, path: str | Path) -> Path:
    """The folder, where peft is installed and the model that the adapters belong to is in its place."""
    check_package(name, "peft", "lora")
    base = json.loads(Path(path, _ADAPTER).read_text()).get("base_model_name_or_path")
    if base is None or not Path(base).is_dir():
        remedy = f"Write where it is as base_model_name_or_path in {Path(path, _ADAPTER)}."
        raise InputError(name, "adapters of a model in a folder", f"adapters of {base!r}, which is none", remedy)
    return Path(path)


def load_tokenizer(name: str, path: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a model's folder; None where the folder has none.

    Raises:
        InputError: There is one that cannot be loaded.
    """
    path = Path(path)
    if not any((path / file).is_file() for file in _TOKENIZER):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # of many kinds, from transformers and from the Rust tokenizers
        remedy = "Load it with AutoTokenizer.from_pretrained to see the whole error."
        raise InputError(f"{name}'s tokenizer", f"a tokenizer in {str(path)!r}", str(error), remedy) from error


def shared_tokenizer(
    teacher: PreTrainedTokenizerBase | None, student: PreTrainedTokenizerBase | None, probes: Sequence[str] = ()
) -> PreTrainedTokenizerBase:
    """The one tokenizer of both models. Their distributions can be compared token by token only if it is one.

    Args:
        teacher: The teacher's tokenizer, None if its folder has none.
        student: The student's, likewise. Where one has none, the other's is taken on trust.
        probes: Texts that both must cut alike; equal vocabularies with other merges do not.

    Raises:
        InputError: The two differ, or there is none.
    """
    if teacher is None or student is None:
        if teacher is None and student is None:
            remedy = "Save it there with `tokenizer.save_pretrained(...)`."
            raise InputError("student's tokenizer", "a tokenizer in the student's or teacher's folder", "none", remedy)
        return student or teacher
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        by_id = [{index: token for token, index in vocabulary.items()} for vocabulary in (theirs, ours)]
        differ = sorted(i for i in by_id[0].keys() | by_id[1].keys() if by_id[0].get(i) != by_id[1].get(i))
        shown = "; ".join(f"id {i}: {by_id[0].get(i)!r} and {by_id[1].get(i)!r}" for i in differ[:_SHOWN])
        raise _differ(f"{len(theirs)} and {len(ours)} entries, {len(differ)} ids differ, the first ({shown})")
    for text in probes:
        cut = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for tokenizer in (teacher, student)]
        if cut[0] != cut[1]:
            first = next((i for i, (a, b) in enumerate(zip(*cut)) if a != b), min(map(len, cut)))
            words = [student.convert_ids_to_tokens(ids[first : first + 2]) for ids in cut]
            raise _differ(f"one vocabulary but other cuts: token {first} of {text[:40]!r}... is {words[0]} and {words[1]}")
    return student


def _differ(got: str) -> InputError:
    remedy = "Choose a student of the teacher's family: span distillation compares distributions over one vocabulary."
    return InputError("student's tokenizer", "the teacher's tokenizer", f"(teacher and student) {got}", remedy)


def check_fits(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """The model knows all of the tokenizer's ids and as many positions as trajectories have.

    Raises:
        InputError: It does not.
    """
    rows, needed = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values()) + 1
    if rows < needed:
        remedy = "Call `model.resize_token_embeddings(...)`, or use the tokenizer that belongs to the model."
        raise InputError(name, f"embeddings for the tokenizer's {needed} ids", str(rows), remedy)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        remedy = f"Set max_length to at most {positions}."
        raise InputError("max_length", f"at most the {name}'s {positions} positions", str(max_length), remedy)
