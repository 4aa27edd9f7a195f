"""The model card of a student: method, teacher, data, losses and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData

import sad
from sad.training.config import OWN_FIELDS, SADConfig

if TYPE_CHECKING:
    from sad.training.span_loss_trainer import SpanLossTrainer

_PAPER = "https://arxiv.org/abs/2505.13820"
_SHOWN = (
    *("loss", "loss_reason", "loss_act", "loss_observe", "agreement_reason", "agreement_act"),
    *("on_policy_loss_reason", "on_policy_loss_act", "rollout_success"),
)
_RECIPE = (
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "bf16",
)


def model_card(trainer: SpanLossTrainer, *, command: str | None = None, data: Mapping[str, Any] | None = None) -> ModelCard:
    """Returns the card of a trained student.

    Folders are named by their last part only, so that no path of the machine is published.

    Args:
        trainer: The trainer, a `sad.SADTrainer`, after the training.
        command: The command that trained it.
        data: What is known about the data, by name.
    """
    args, name = trainer.args, _name_of(trainer.model)
    facts = {"student": name, "teacher": _teacher(trainer), "loss": _loss(args), **(data or {})}
    if getattr(trainer, "rollouts", None) is not None:
        facts["own trajectories"] = (
            f"{args.on_policy_divergence}, share of the batches from {args.on_policy_start} to {args.on_policy_share}"
        )
    dataset = trainer.train_dataset
    if "training examples" not in facts and hasattr(dataset, "__len__"):
        facts["training examples"] = len(dataset)
    facts["steps"] = trainer.state.global_step
    versions = {"sad": sad.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    parts = [
        f"# {name}, distilled",
        "A student that was trained with structured agent distillation: it matches its teacher's next-token distribution on "
        f"the reasoning and on the actions of agent trajectories, weighted apart ([paper]({_PAPER}), eqs. 4 to 6).",
        _table(("", ""), facts.items()),
        "## Losses",
        _losses(trainer.state.log_history) or "No training was logged.",
        "Losses are in nats per token; those of one kind are not weighted. Agreement is the share of tokens for which "
        "student and teacher have the same most likely token.",
        "## Settings",
        _table(("field", "value"), _settings(args).items()),
        *(["## Command", f"    {command}"] if command else []),
        "Versions: " + ", ".join(f"{package} {version}" for package, version in versions.items()) + ".",
    ]
    header = ModelCardData(
        library_name="transformers", tags=["structured-agent-distillation"], base_model=_hub_name(trainer.model)
    )
    return ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _name_of(model: Any) -> str:
    config = getattr(model, "config", None)
    path = getattr(config, "_name_or_path", "") or ""
    return Path(path).name or type(model).__name__


def _hub_name(model: Any) -> str | None:
    """Returns the name of a model on the Hub, or None for a folder."""
    path = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    return path if path.count("/") == 1 and not Path(path).exists() else None


def _teacher(trainer: SpanLossTrainer) -> str:
    if trainer.teacher_model is not None:
        return _hub_name(trainer.teacher_model) or _name_of(trainer.teacher_model)
    return "none" if trainer.teacher_cache is None else f"a cache: {trainer.teacher_cache}"


def _loss(args: SADConfig) -> str:
    if args.ce_weight == 1.0:
        return "cross-entropy on the supervised tokens"
    mixed = f", {args.ce_weight} of cross-entropy" if args.ce_weight else ""
    return f"{args.divergence}, lambda {args.lambda_reason} on reasoning, {args.lambda_act} on actions{mixed}"


def _settings(args: SADConfig) -> dict[str, Any]:
    """Returns the recipe, and the fields of SAD that differ from their defaults."""
    defaults = {item.name: item.default for item in dataclasses.fields(args)}
    own = {name: getattr(args, name) for name in OWN_FIELDS if getattr(args, name) != defaults[name]}
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    recipe = {name: getattr(args, name) for name in _RECIPE}
    recipe["lr_scheduler_type"] = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    return recipe | {"trajectories per step": batch} | own


def _losses(history: list[dict[str, Any]]) -> str | None:
    """Returns a table of the first and last training log and of the last evaluations, or None without a log."""
    training = [entry for entry in history if "loss" in entry]
    if not training:
        return None
    rows = {"first log": training[0], "last log": training[-1]}
    for entry in history:
        for key in entry:
            if key.startswith("eval_") and key.endswith("_loss"):
                prefix = key.removesuffix("loss")
                rows[prefix.strip("_").replace("_", " ")] = {
                    name: entry[prefix + name] for name in _SHOWN if prefix + name in entry
                }
    names = [name for name in _SHOWN if any(name in row for row in rows.values())]
    cells = ([title, *(f"{row[name]:.4f}" if name in row else "" for name in names)] for title, row in rows.items())
    return _table(("", *names), cells)


def _table(heads: tuple[str, ...], rows: Any) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
