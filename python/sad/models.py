"""Teacher, student and tokenizer from folders, checked to belong together before anything is trained."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
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

ALL_LINEAR = "all-linear"  # peft's name for every linear layer except the head
QUANTIZATIONS = ("8bit", "4bit")
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


def check_lora(rank: int | None, alpha: float | None, targets: str | None) -> None:
    """Values that peft takes, and peft.

    Args:
        rank: Of the adapters, None for none.
        alpha: Their scale times the rank.
        targets: `ALL_LINEAR`, or names of layers with commas between.

    Raises:
        InputError: A value is out of range or stands alone, or peft is missing.
    """
    if rank is None:
        for name, value in (("lora_alpha", alpha), ("lora_targets", targets)):
            if value is not None:
                raise InputError(name, "a rank beside it", repr(value), "Give --lora-rank, or leave it out.")
        return
    if rank < 1:
        raise InputError("lora_rank", "a whole number >= 1", repr(rank), "16 is usual.")
    if alpha is not None and not alpha > 0:
        raise InputError("lora_alpha", "a number > 0", repr(alpha), "Twice the rank is usual.")
    if targets is not None and not all(name.strip() for name in targets.split(",")):
        raise InputError("lora_targets", "names with commas between", repr(targets), f"Write q_proj,v_proj or {ALL_LINEAR}.")
    check_package("lora_rank", "peft", "lora")


def check_quantization(bits: str | None) -> None:
    """A name in `QUANTIZATIONS`, or None, and bitsandbytes.

    Raises:
        InputError: It is none, or bitsandbytes is missing.
    """
    if bits is None:
        return
    if bits not in QUANTIZATIONS:
        expected = "one of " + ", ".join(QUANTIZATIONS)
        raise InputError("teacher_quantization", expected, repr(bits), "Choose one of these, or leave it out.")
    check_package("teacher_quantization", "bitsandbytes", "quantized")


def check_package(argument: str, package: str, extra: str) -> None:
    """The package that an argument needs.

    Raises:
        InputError: It is not installed; the message names the extra that brings it.
    """
    if importlib.util.find_spec(package) is None:
        remedy = f"Install it: pip install 'structured-agent-distillation[{extra}]'."
        raise InputError(argument, f"the package {package} for it", "an environment without", remedy)


def add_adapters(
    student: PreTrainedModel, base: str | Path, rank: int, alpha: float | None, targets: str | None, seed: int
) -> nn.Module:
    """A PEFT model around the student, whose own weights are frozen. The adapters are float32, and change nothing yet.

    Args:
        student: As loaded.
        base: Its folder; the saved adapters name it, so that they find the student from any working directory.
        rank: r.
        alpha: What the adapters add is scaled by alpha / r; None: alpha = 2 r.
        targets: As for `check_lora`; None: `ALL_LINEAR`.
        seed: Of their random half.

    Raises:
        InputError: The student has no such layers.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    chosen = ALL_LINEAR if targets in (None, ALL_LINEAR) else [name.strip() for name in targets.split(",")]
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=chosen,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in student.modules()),  # GPT-2's layers
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


def quantization_config(bits: str, dtype: torch.dtype | str) -> BitsAndBytesConfig:
    """For `from_pretrained`: LLM.int8, or NF4 with products in `dtype` ("auto": bfloat16). The head is not quantized.

    Args:
        bits: A name in `QUANTIZATIONS`.
        dtype: Of the rest of the model.
    """
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if dtype == "auto" else dtype
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
