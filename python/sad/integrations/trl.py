"""The span loss inside TRL's trainers. Needs `pip install trl`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from sad.errors import InputError
from sad.losses import fused_linear_span_kl
from sad.model_parts import forward_as
from sad.teacher_cache.reader import TeacherCache
from sad.training.collator import SpanCollator
from sad.training.loss_config import SpanLossConfig
from sad.training.loss_parts import head_options, parts_of
from sad.training.metrics import SpanMeter, span_metrics
from sad.training.span_loss_trainer import Dataset, SpanLossTrainer
from sad.trajectories.formats import ChatFormat, Format, get_format
from sad.trajectories.generated import label_generated
from sad.trajectories.spans import is_supervised

try:
    import datasets
    from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
except ImportError as error:
    raise InputError("sad.integrations.trl", "the package trl", "none", "Install it with: pip install trl") from error


class SpanSFTTrainer(SpanLossTrainer, SFTTrainer):
    r"""`trl.SFTTrainer` with the span loss instead of the cross-entropy on all tokens.

    With a teacher the loss is that of `sad.SADTrainer`. Without a teacher and with `ce_weight=1` it is the cross-entropy of
    the supervised tokens; if all tokens are supervised and the lambdas are 1, that is TRL's own loss.

    Args:
        model: The student, or its name or folder.
        args: A `trl.SFTConfig`. `remove_unused_columns` becomes false and the preparation of the dataset is skipped, because
            the examples are tokenized already.
        span_loss: The loss; the default is the paper's.
        teacher_model: The teacher, or its name or folder.
        teacher_cache: A `sad.TeacherCache` or its path, instead of `teacher_model`.
        data_collator: A `sad.SpanCollator`; the default has the `max_length` and `pad_to_multiple_of` of `args`.
        train_dataset: Examples with `input_ids` and `span_ids`, such as `sad.encode_all` returns; a list or a
            `datasets.Dataset`.
        eval_dataset: Examples of the same form, or a dict of them.
        **kwargs: Passed on to `trl.SFTTrainer`.

    Raises:
        InputError: The arguments contradict each other.
    """

    def __init__(
        self,
        model: str | nn.Module,
        args: SFTConfig,
        *,
        span_loss: SpanLossConfig | None = None,
        teacher_model: str | nn.Module | None = None,
        teacher_cache: TeacherCache | str | Path | None = None,
        data_collator: SpanCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        **kwargs: Any,
    ) -> None:
        config = SpanLossConfig() if span_loss is None else span_loss
        _check(args, config, data_collator, has_teacher=teacher_model is not None or teacher_cache is not None)
        if data_collator is None:
            data_collator = SpanCollator(
                max_length=args.max_length,
                pad_to_multiple_of=args.pad_to_multiple_of,
                teacher_cache=teacher_cache,
                observe=config.observe,
                turn_balance=config.turn_balance,
                turn_half_life=config.turn_half_life,
            )
        args.remove_unused_columns = False
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        train = _as_dataset(train_dataset)
        named = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        named = {name: _as_dataset(dataset) for name, dataset in named.items()}
        evaluate = named if isinstance(eval_dataset, dict) else named["eval_dataset"]
        self._loss_config = config  # read while the accelerator is created
        super().__init__(model, args, data_collator=data_collator, train_dataset=train, eval_dataset=evaluate, **kwargs)
        teacher = _loaded(teacher_model)
        options = {"device": args.device, "max_length": data_collator.max_length}
        self._set_span_loss(
            config, self.model, teacher, teacher_cache, data_collator, {"train_dataset": train, **named}, **options
        )
        self._start_meters(teacher)


class SpanDistillationTrainer(DistillationTrainer):
    r"""`trl.DistillationTrainer` with the span loss instead of the same weight on every token that the student wrote.

    The student writes completions, the teacher judges them. Their tokens are labelled as reasoning or action by the format
    of their text, without tokenizing it again; other tokens have no loss. TRL's `beta` chooses the divergence: 0 is
    KL(teacher || student), 1 is KL(student || teacher), between them it is the generalized Jensen-Shannon divergence. With
    all tokens in one kind of weight 1, the loss is TRL's own.

    Args:
        model: As for `trl.DistillationTrainer`, likewise `teacher_model`.
        teacher_model: The teacher.
        args: A `trl.DistillationConfig`. Its `beta` and `temperature` hold; those of `span_loss` must be the defaults.
        span_loss: The weights of the kinds, the backend and the size of chunks.
        format: The format of the completions, as for `sad.segment`.
        **kwargs: Passed on to `trl.DistillationTrainer`.

    Raises:
        InputError: The arguments contradict each other.
    """

    def __init__(
        self,
        model: str | nn.Module,
        teacher_model: str | nn.Module,
        args: DistillationConfig,
        *,
        span_loss: SpanLossConfig | None = None,
        format: str | Format | ChatFormat = "chat",
        **kwargs: Any,
    ) -> None:
        config = SpanLossConfig() if span_loss is None else span_loss
        used = {
            "lambda_reason", "lambda_act", "lambda_observe", "backend", "loss_chunk_bytes", "logit_scale", "logit_softcap",
        }  # fmt: skip
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name not in used and value != field.default:
                remedy = "Leave it out; `beta` and `temperature` are fields of DistillationConfig."
                raise InputError(f"span_loss.{field.name}", f"the default {field.default!r} here", repr(value), remedy)
        get_format(format)  # refuses an unknown name
        self._loss_config, self._format = config, format
        super().__init__(model, teacher_model, args, **kwargs)
        models = {"student": self.model, "teacher": self.accelerator.unwrap_model(self.teacher_model)}
        forced = dataclasses.replace(config, loss_from="hidden")
        self._parts = {name: parts_of(name, part, forced) for name, part in models.items()}
        self._span_meters = {"train": SpanMeter(), "eval": SpanMeter()}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds the span ids of the completions, and makes the number of supervised tokens the divisor of the loss."""
        output = super()._generate_and_score_completions(inputs)
        output["span_ids"] = self._labels(output)
        supervised = is_supervised(output["span_ids"], self._loss_config.observe).sum()
        output["num_items_in_batch"] = self.accelerator.gather(supervised).sum().float()
        return output

    def _labels(self, output: dict[str, Any]) -> Tensor:
        """Returns the span ids (B, C) of the completions."""
        masks = output["prompt_mask"].bool().cpu(), output["completion_mask"].bool().cpu()
        written = output.get("tool_mask", output["completion_mask"]).bool().cpu()
        prompts, completions = output["prompt_ids"].cpu(), output["completion_ids"].cpu()
        labels = torch.zeros_like(completions)
        for row in range(len(completions)):
            kept = masks[1][row]
            labels[row, kept] = torch.tensor(
                label_generated(
                    prompts[row][masks[0][row]].tolist(),
                    completions[row][kept].tolist(),
                    self._tokenizer,
                    self._format,
                    written=written[row][kept].tolist(),
                    observe=self._loss_config.observe,
                ),
                dtype=labels.dtype,
            )
        return labels.to(output["completion_ids"].device)

    def _compute_loss(
        self, unwrapped_student: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the loss, the sum of the student's entropies and the number of supervised tokens. TRL calls it inside the
        forward of the wrapped student."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        batch, config, args = {"input_ids": ids, "attention_mask": mask}, self._loss_config, self.args
        prompt = torch.zeros_like(inputs["prompt_ids"])
        span_ids = torch.cat([prompt, inputs["span_ids"]], dim=1)
        student, teacher = self._parts["student"], self._parts["teacher"]
        self.teacher_model.eval()
        with torch.no_grad(), forward_as(self.accelerator.unwrap_model(self.teacher_model), teacher.forward):
            teacher_hidden, teacher_head = self.teacher_model(**batch)
        hidden, head = student.forward(**batch)
        divergence = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(float(args.beta), "jsd")
        loss, stats = fused_linear_span_kl(
            hidden,
            head.weight,
            teacher_hidden,
            teacher_head.weight,
            span_ids,
            **head_options(head, teacher_head),
            lambda_reason=config.lambda_reason,
            lambda_act=config.lambda_act,
            lambda_observe=config.lambda_observe,
            temperature=args.temperature,
            divergence=divergence,
            beta=args.beta if divergence == "jsd" else 0.5,
            normalizer=None if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=ids.device),
            shift=True,
            return_stats=True,
            chunk_bytes=config.loss_chunk_bytes,
            backend=config.backend,
        )
        self._span_meters["train" if self.model.training else "eval"].add(stats)
        entropy, tokens = (sum(getattr(kind, name) for kind in stats) for name in ("student_entropy_sum", "tokens"))
        return loss, entropy.detach(), tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the losses of both kinds to a log."""
        mode = "train" if self.model.training else "eval"
        sums = self.accelerator.reduce(self._span_meters[mode].take(self.args.device), reduction="sum")
        prefix = "" if mode == "train" else "eval_"
        super().log({**logs, **{f"{prefix}{name}": x for name, x in span_metrics(sums).items()}}, start_time)


def _check(args: object, config: SpanLossConfig, collator: object, has_teacher: bool) -> None:
    """Checks the arguments before the trainer touches the output folder."""
    if not isinstance(args, SFTConfig):
        raise InputError("args", "a trl.SFTConfig", type(args).__name__, "Pass trl.SFTConfig(output_dir=...).")
    if args.packing or args.padding_free:
        remedy = "Set it to false: SpanCollator pads."
        raise InputError("packing" if args.packing else "padding_free", "false", "true", remedy)
    if collator is not None and not isinstance(collator, SpanCollator):
        raise InputError("data_collator", "a sad.SpanCollator", type(collator).__name__, "Leave it out, or pass one.")
    if config.nan_policy != "stop":
        remedy = "Use sad.SADTrainer, which can leave out steps."
        raise InputError("nan_policy", "stop inside TRL's trainers", config.nan_policy, remedy)
    if not has_teacher and config.ce_weight != 1.0:
        remedy = "Pass one of them, or SpanLossConfig(ce_weight=1.0) for the cross-entropy on the spans."
        raise InputError("teacher_model", "a teacher_model or a teacher_cache", "neither", remedy)


def _as_dataset(dataset: Dataset | None) -> Any:
    """Returns a list of examples as a `datasets.Dataset`, which TRL asks for, and anything else as it is."""
    return datasets.Dataset.from_list(list(dataset)) if isinstance(dataset, (list, tuple)) else dataset


def _loaded(teacher: str | nn.Module | None) -> nn.Module | PreTrainedModel | None:
    return AutoModelForCausalLM.from_pretrained(teacher, dtype="auto") if isinstance(teacher, str) else teacher
