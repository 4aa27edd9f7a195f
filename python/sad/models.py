"""Loads models and tokenizers from folders, and checks that they fit together; LoRA adapters and quantization."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sad.errors import InputError
from sad.hub import is_gguf, model_folder, pretrained_source

ALL_LINEAR = "all-linear"  # peft's name for every linear layer except the head
QUANTIZATIONS = ("8bit", "4bit")
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "vocab.txt")
_ADAPTER = "adapter_config.json"
_SHOWN = 3


def check_model_dir(name: str, path: str | Path) -> Path:
    """Checks that a folder holds a `config.json` and that its files can be read, and returns its path.

    A GGUF file holds its own configuration.

    Args:
        name: The argument's name for messages, such as "teacher".
        path: The folder, a GGUF file, or the name of a model on the Hugging Face Hub, which is downloaded once.

    Raises:
        InputError: It does not exist, holds no `config.json`, or a file of it belongs to another user and cannot be read.
    """
    path = model_folder(name, path)
    if path.is_dir() and not (path / "config.json").is_file():
        remedy = "Save the model there with `model.save_pretrained(...)`."
        if found := sorted(path.glob("*.gguf")):
            remedy = f"Pass the GGUF file: {found[0]}"
        raise InputError(name, "a folder with a config.json", f"{str(path)!r} without one", remedy)
    _check_readable(name, path)
    return path


def _check_readable(name: str, path: Path) -> None:
    """Checks that this user may read the files of a model. safetensors would say that there is no such file."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file() and not os.access(file, os.R_OK):
            got = f"{str(file)!r}, which this user may not read"
            raise InputError(name, "a folder of files that can be read", got, "Ask the owner of the file for permission.")


def check_dtype(name: str, dtype: str) -> None:
    """Checks that `dtype` is a name in `DTYPES`.

    Args:
        name: The argument's name for messages.
        dtype: The value.

    Raises:
        InputError: It is not.
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
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Loads a causal language model.

    Args:
        name: The argument's name for messages.
        path: A folder with a model, or with LoRA adapters, a GGUF file, or the name of a model on the Hugging Face Hub.
            Adapters name the folder of their base model. The weights of a GGUF file are dequantized.
        dtype: A name in `DTYPES`; "auto" keeps the dtype of the saved weights, and is float32 for a GGUF file.
        from_config: Start from random weights. The folder then needs only a `config.json`.
        seed: Random seed of these weights.
        quantization: "8bit" or "4bit" quantizes the weights of the linear layers, except the head, while loading.
        device: Device of a quantized model.
        trust_remote_code: Whether to run Python code in the folder, if its config names any.

    Raises:
        InputError: The folder holds no loadable model, or a package is missing.
    """
    path = model_folder(name, path)
    path = _check_adapter_dir(name, path) if Path(path, _ADAPTER).is_file() else check_model_dir(name, path)
    check_quantization(quantization)
    check_dtype(f"{name}_dtype", dtype)
    try:
        if from_config:
            config = AutoConfig.from_pretrained(**pretrained_source(path), trust_remote_code=trust_remote_code)
            torch.manual_seed(seed)
            chosen = torch.float32 if dtype == "auto" else DTYPES[dtype]
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).to(chosen)
        if is_gguf(path):
            return _load_gguf(name, path, dtype, quantization)
        if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
            remedy = "Save weights there."
            if name == "student":
                remedy = "Add --from-config to start from random weights, or save weights there."
            raise InputError(name, "a folder with model weights", f"only a config in {str(path)!r}", remedy)
        options = {"dtype": DTYPES[dtype], "local_files_only": True, "trust_remote_code": trust_remote_code}
        if quantization is not None:
            options |= {"quantization_config": quantization_config(quantization, DTYPES[dtype]), "device_map": {"": device}}
        return AutoModelForCausalLM.from_pretrained(path, **options)
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damaged weights and configs raise many types
        raise _not_loadable(name, f"a causal language model in {str(path)!r}", error) from error


def _load_gguf(name: str, path: Path, dtype: str, quantization: str | None) -> PreTrainedModel:
    """Loads a GGUF file as a plain model: with dequantized weights, which can be trained and saved."""
    if quantization is not None:
        remedy = "Remove it, or quantize the model's folder of safetensors weights."
        raise InputError(f"{name}_quantization", "None for a GGUF file", repr(quantization), remedy)
    options: dict[str, Any] = {"dtype": torch.float32 if dtype == "auto" else DTYPES[dtype]}
    if hasattr(transformers, "GgufConfig"):  # newer versions of transformers may keep the weights packed otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**pretrained_source(path), **options)
    model.config.name_or_path = str(path)
    # The weights are plain tensors. transformers still takes the model for a quantized one, and refuses to train it.
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _not_loadable(name: str, expected: str, error: Exception) -> InputError:
    """Returns the error for a folder that cannot be loaded. Code in the folder is not run unasked."""
    if "trust_remote_code" in str(error):
        got = "a config that names Python code in the folder"
        remedy = "Pass --trust-remote-code if you have read this code and trust it: it runs with all your rights."
        return InputError(name, expected, got, remedy)
    got = f"{type(error).__name__}: {str(error)[:2000].rstrip('.')}"
    return InputError(name, expected, got, "Copy or save the folder again. `transformers` shows the whole error.")


def _check_adapter_dir(name: str, path: str | Path) -> Path:
    """Checks that peft is installed and that the base model of the adapters exists, and returns the folder."""
    check_package(name, "peft", "lora")
    try:
        base = json.loads(Path(path, _ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        got = f"{type(error).__name__}: {error}"
        raise InputError(str(Path(path, _ADAPTER)), "a JSON object", got, "Copy or save the adapters again.") from None
    if not isinstance(base, str) or not Path(base).is_dir():
        remedy = f"Set base_model_name_or_path in {Path(path, _ADAPTER)} to the folder of the base model."
        raise InputError(name, "adapters whose base model is a folder", f"adapters of {base!r}", remedy)
    _check_readable(name, Path(path))
    _check_readable(name, Path(base))
    return Path(path)


def load_tokenizer(name: str, path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """Loads the tokenizer in a model's folder. Returns None if the folder has none.

    Args:
        name: The argument's name for messages.
        path: The folder, a GGUF file, or the name of a model on the Hugging Face Hub.
        trust_remote_code: Whether to run Python code in the folder, if its config names any.

    Raises:
        InputError: The tokenizer cannot be loaded.
    """
    path = model_folder(name, path, weights=False)
    if path.is_dir() and not any((path / file).is_file() for file in _TOKENIZER):
        return None
    try:
        return AutoTokenizer.from_pretrained(**pretrained_source(path), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and the Rust tokenizers raise many types
        raise _not_loadable(f"{name}'s tokenizer", f"a tokenizer in {str(path)!r}", error) from error


def shared_tokenizer(
    teacher: PreTrainedTokenizerBase | None, student: PreTrainedTokenizerBase | None, probes: Sequence[str] = ()
) -> PreTrainedTokenizerBase:
    """Returns the tokenizer that both models share. Their distributions are comparable per token only if it is the same.

    Args:
        teacher: The teacher's tokenizer, or None if its folder has none.
        student: The student's tokenizer, or None. If one of them is None, the other is used without a check.
        probes: Texts that both must tokenize alike. Equal vocabularies may still have different merges.

    Raises:
        InputError: The two differ, or both are None.
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
            got = f"token {first} of {text[:40]!r}... is {words[0]} and {words[1]}"
            raise _differ(f"one vocabulary but different merges: {got}")
    return student


def _differ(got: str) -> InputError:
    remedy = "Choose a student of the teacher's family: span distillation compares distributions over one vocabulary."
    return InputError("student's tokenizer", "the teacher's tokenizer", f"(teacher and student) {got}", remedy)


def check_fits(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Checks that a model has embeddings for all token ids, and positions for all tokens of a trajectory.

    Args:
        name: The argument's name for messages.
        model: The model.
        tokenizer: The tokenizer.
        max_length: Maximum number of tokens per trajectory.

    Raises:
        InputError: It does not.
    """
    weight = model.get_input_embeddings().weight
    # ZeRO stage 3 leaves an empty tensor, and keeps the shape beside it.
    rows, needed = getattr(weight, "ds_shape", weight.shape)[0], max(tokenizer.get_vocab().values()) + 1
    if rows < needed:
        remedy = "Call `model.resize_token_embeddings(...)`, or use the tokenizer of the model."
        raise InputError(name, f"embeddings for the tokenizer's {needed} ids", str(rows), remedy)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        remedy = f"Set max_length to at most {positions}."
        raise InputError("max_length", f"at most the {name}'s {positions} positions", str(max_length), remedy)


def check_lora(rank: int | None, alpha: float | None, targets: str | None) -> None:
    """Checks the options of LoRA adapters, and that peft is installed.

    Args:
        rank: Rank of the adapters, or None for no adapters.
        alpha: Scale of the adapters times the rank.
        targets: `ALL_LINEAR`, or layer names separated by commas.

    Raises:
        InputError: A value is out of range or lacks a rank, or peft is missing.
    """
    if rank is None:
        for name, value in (("lora_alpha", alpha), ("lora_targets", targets)):
            if value is not None:
                raise InputError(name, "None without lora_rank", repr(value), "Pass --lora-rank, or remove it.")
        return
    if rank < 1:
        raise InputError("lora_rank", "a whole number >= 1", repr(rank), "16 is usual.")
    if alpha is not None and not alpha > 0:
        raise InputError("lora_alpha", "a number > 0", repr(alpha), "Twice the rank is usual.")
    if targets is not None and not all(name.strip() for name in targets.split(",")):
        raise InputError("lora_targets", "names separated by commas", repr(targets), f"Write q_proj,v_proj or {ALL_LINEAR}.")
    check_package("lora_rank", "peft", "lora")


def check_quantization(bits: str | None) -> None:
    """Checks that `bits` is a name in `QUANTIZATIONS` or None, and that bitsandbytes is installed.

    Raises:
        InputError: It is not, or bitsandbytes is missing.
    """
    if bits is None:
        return
    if bits not in QUANTIZATIONS:
        expected = "one of " + ", ".join(QUANTIZATIONS)
        raise InputError("teacher_quantization", expected, repr(bits), "Choose one of these, or remove it.")
    check_package("teacher_quantization", "bitsandbytes", "quantized")


def check_package(argument: str, package: str, extra: str) -> None:
    """Checks that a package is installed.

    Args:
        argument: The argument that needs it, for messages.
        package: The package.
        extra: The extra of this project that installs it.

    Raises:
        InputError: It is missing.
    """
    if importlib.util.find_spec(package) is None:
        remedy = f"Install it: pip install '.[{extra}]'."
        raise InputError(argument, f"the package {package}", "an environment without it", remedy)


def add_adapters(
    student: PreTrainedModel, base: str | Path, rank: int, alpha: float | None, targets: str | None, seed: int
) -> nn.Module:
    """Wraps the student in a PEFT model with LoRA adapters, and freezes its own weights.

    The adapters are float32. Initially they do not change the outputs.

    Args:
        student: The loaded student.
        base: The student's folder. The saved adapters hold its absolute path.
        rank: Rank r of the adapters.
        alpha: The adapters' output is scaled by alpha / r. Default: 2 r.
        targets: As for `check_lora`. Default: `ALL_LINEAR`.
        seed: Seed for the random initialization of the LoRA matrices.

    Raises:
        InputError: The student has no such layers.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if is_gguf(base):
        remedy = "Save the model as a folder first (docs/training.md#gguf-files): saved adapters must name one."
        raise InputError("student", "a folder with lora_rank", f"the GGUF file {str(base)!r}", remedy)

    chosen = ALL_LINEAR if targets in (None, ALL_LINEAR) else [name.strip() for name in targets.split(",")]
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=chosen,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in student.modules()),  # the layers of GPT-2
    )
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(student, lora)
    except ValueError as error:
        linear = (nn.Linear, Conv1D)
        known = sorted({name.rpartition(".")[2] for name, module in student.named_modules() if isinstance(module, linear)})
        remedy = f"Its linear layers are {', '.join(known)}."
        raise InputError("lora_targets", "layers of the student", repr(targets), remedy) from error
    adapted.peft_config["default"].base_model_name_or_path = str(Path(base).resolve())
    return adapted


def with_adapters(student: nn.Module, config: Any) -> nn.Module:
    """Wraps the student in a PEFT model.

    Args:
        student: The student.
        config: A configuration of peft.

    Raises:
        InputError: peft is missing, or the student is a PEFT model already.
    """
    check_package("peft_config", "peft", "lora")
    from peft import PeftModel, get_peft_model

    if isinstance(student, PeftModel):
        raise InputError("peft_config", "None for a model with adapters", type(config).__name__, "Remove one of them.")
    return get_peft_model(student, config)


def quantization_config(bits: str, dtype: torch.dtype | str) -> BitsAndBytesConfig:
    """Returns the bitsandbytes configuration for `from_pretrained`: LLM.int8 or NF4. The head is not quantized.

    Args:
        bits: A name in `QUANTIZATIONS`.
        dtype: Dtype of the other weights, and of the matrix products with NF4 weights; "auto" means bfloat16 there.
    """
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if dtype == "auto" else dtype
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
