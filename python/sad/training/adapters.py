"""LoRA adapters on a student, and the teacher's weights in 8 or 4 bits: what peft and bitsandbytes do, by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from sad.errors import InputError

ALL_LINEAR = "all-linear"  # peft's name for every linear layer except the head
QUANTIZATIONS = ("8bit", "4bit")


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
