"""`SADTrainer`: transformers' `Trainer` with the span loss, the curriculum, and both losses in the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from sad.errors import InputError
from sad.losses import fused_span_kl
from sad.teacher_cache.reader import TeacherCache, open_cache
from sad.training.cached_loss import CachedLoss
from sad.training.collator import LABELS, SpanCollator
from sad.training.config import SADConfig
from sad.training.curriculum import CurriculumSampler
from sad.training.curriculum_of_run import sampler_of
from sad.training.hidden_loss import split_models
from sad.training.metrics import MeanMeter, SpanMeter, mean_loss, span_metrics
from sad.training.throughput import Throughput, speed_metrics
from sadkernels import backends
from sadkernels.spans import SpanKind

Dataset = Sequence[Mapping[str, Any]]


class _EpochSetter(TrainerCallback):
    """Tells the curriculum which epoch begins. Accelerate does too, but after a resume on several processes its own way
    to the sampler is one wrapper too short."""

    def __init__(self, trainer: SADTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        if self._trainer.curriculum_sampler is not None:
            self._trainer.curriculum_sampler.set_epoch(int(state.epoch or 0))


def _check_backend(args: SADConfig) -> None:
    try:
        backends.resolve(args.backend, "span_kl", args.device, torch.float32)
    except backends.BackendUnavailableError as error:
        remedy = "Use backend='auto', which takes what there is."
        raise InputError("backend", "one that runs here", f"{args.backend!r} ({error})", remedy) from error


class SADTrainer(Trainer):
    r"""Distils a student from a live teacher, or a cache of one, on the labelled tokens of agent trajectories.

        L = (lambda_r sum_r KL(p_T || p_S) + lambda_a sum_a KL(p_T || p_S)) / (n_r + n_a)         (eqs. 4 to 6)

    where the counts n_r + n_a are those of the whole optimizer step: over all accumulated batches and all processes, so
    that neither changes the gradient. Everything else is `transformers.Trainer`.

    Args:
        model: The student, a causal language model. May be a PEFT model.
        teacher: A causal language model of the same tokenizer; its head may be padded to another size. It is put into
            eval mode and, unless it was loaded with a device map, onto the training device, once per process. None with a
            cache.
        args: `SADConfig`.
        train_dataset: Indexable, of mappings with `input_ids` and `span_ids` (what `sad.encode_all` gives).
        eval_dataset: The same, or a dict of such.
        data_collator: Default: `SpanCollator` with the lengths of `args`. With a cache it must be one that reads it.
        processing_class: The tokenizer, to be saved with the model.
        teacher_cache: `sad.TeacherCache` or its path, in place of the teacher, of which the KL then knows the likeliest
            tokens (`sad.fused_topk_span_kl`). Must hold the examples of both datasets.
        **kwargs: Passed on to `transformers.Trainer`.

    Raises:
        InputError: The arguments do not fit together, or the backend cannot run here.
    """

    loss_is_scaled_for_ga = True  # by the token count of the whole step, in `compute_loss`

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None = None,
        args: SADConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        data_collator: Callable | None = None,
        processing_class: Any = None,
        *,
        teacher_cache: TeacherCache | str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, SADConfig):
            raise InputError("args", "a sad.SADConfig", type(args).__name__, "Build one: SADConfig(output_dir=...).")
        if teacher is model:
            raise InputError("teacher", "another model than the student", "the same object", "Pass a copy of it.")
        if (teacher is None) == (teacher_cache is None):
            got = "neither" if teacher is None else "both"
            raise InputError("teacher", "a teacher or a teacher_cache", got, "Pass one of them.")
        _check_backend(args)
        cache = None if teacher_cache is None else open_cache(teacher_cache)
        if data_collator is None:
            lengths = {"pad_to_multiple_of": args.pad_to_multiple_of, "max_length": args.max_length}
            data_collator = SpanCollator(**lengths, teacher_cache=cache)
        self.teacher_cache = cache
        self._cached = None if cache is None else CachedLoss(model, cache, args, data_collator)
        self._parts = None if teacher is None else split_models(model, teacher, args.loss_from)
        if cache is not None:
            named = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
            for name, dataset in {"train_dataset": train_dataset, **named}.items():
                if dataset is not None:
                    cache.check_examples(dataset, args.max_length, name)
        elif args.contrastive_weight and (self._parts is None or args.n_gpu > 1):
            got = f"{args.contrastive_weight} with a loss from logits"
            remedy = "It needs models of a body and a head, and one process for each GPU; or set it to 0."
            raise InputError("contrastive_weight", "a loss from hidden states for it", got, remedy)
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # before 5.19: what keeps the base class from dividing the loss once more
        self.teacher = None if teacher is None else self._place_teacher(teacher)
        self.curriculum_sampler: CurriculumSampler | None = None
        self._outputs_are_read = True  # those that `compute_loss` is asked for
        self._meters = {"train": SpanMeter(), "eval": SpanMeter()}
        self._contrastive, self._throughput = MeanMeter(), Throughput(args.device)
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:
            remedy = "The label of a row is that of the next token, which lies on another device. Use data parallelism."
            raise InputError("parallelism_config", "whole sequences on each device", "a split sequence", remedy)
        self.add_callback(_EpochSetter(self))
        self.add_callback(self._throughput)

    # --- the teacher ---

    def _place_teacher(self, teacher: nn.Module) -> nn.Module:
        """In eval mode, whole on every device, in its own dtype. Accelerate's `prepare_model` has nothing to add in
        evaluation mode: it shards nothing, and casts the logits to float32 under mixed precision."""
        if any(hasattr(parameter, "ds_id") for parameter in teacher.parameters()):
            remedy = "Load it before the SADConfig is made, or train with ZeRO stage 2 or FSDP."
            raise InputError("teacher", "a model with all its weights", "one that ZeRO stage 3 took apart", remedy)
        teacher.eval()
        placed = getattr(teacher, "hf_device_map", None) is not None or getattr(teacher, "is_quantized", False)
        return teacher if placed else teacher.to(self.args.device)

    @torch.no_grad()
    def teacher_logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, T, V) for a batch of `input_ids` and `attention_mask`, without a graph and without a cache."""
        options = {"use_cache": False} if hasattr(self.teacher, "config") else {}
        with self.accelerator.autocast():
            return self.teacher(**batch, **options).logits

    # --- the loss ---

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Supervised tokens of the optimizer step, over its batches and, if so configured, the processes."""
        rows = [batch["span_ids"][..., 1:] for batch in batch_samples]
        if not rows:
            return None
        count = sum(((row == SpanKind.REASON) | (row == SpanKind.ACT)).sum() for row in rows).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count / self.get_tp_size()  # tensor-parallel processes see the same tokens

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The span loss of one batch, divided by the tokens of the whole step; its statistics go to the meter.

        With `contrastive_weight`, and only in training, plus that term of the batch, divided by the number of batches that
        this process accumulates: over the step it is the mean of all batches of all processes.
        """
        batch = {name: x for name, x in inputs.items() if name not in LABELS | {"skip_logits"}}
        options = {
            "lambda_reason": self.args.lambda_reason,
            "lambda_act": self.args.lambda_act,
            "temperature": self.args.temperature,
            "normalizer": num_items_in_batch,
            "shift": True,
            "return_stats": True,
            "backend": self.args.backend,
        }
        contrastive = None
        wants_logits = (return_outputs and self._outputs_are_read) or isinstance(model, nn.DataParallel)
        in_place = self.args.inplace_backward and not return_outputs
        if self._cached is not None and (wants_logits or not self._cached.from_hidden):
            outputs = model(**batch)
            loss, stats = self._cached.from_logits(outputs.logits, inputs, inplace_backward=in_place, **options)
        elif self._cached is not None:
            options["chunk_bytes"] = self.args.loss_chunk_bytes
            loss, stats = self._cached.loss(model, batch, inputs, self.accelerator, **options)
            outputs = {}
        elif self._parts is None or wants_logits:
            teacher_logits = self.teacher_logits(batch)
            outputs = model(**batch)
            given = (outputs.logits, teacher_logits, inputs["span_ids"])
            loss, stats = fused_span_kl(*given, inplace_backward=in_place, **options)
        else:
            # Batches of iterable datasets may be cut by accelerate, which knows nothing of row numbers; evaluation may wait.
            knows_rows = model.training and hasattr(self.train_dataset, "__len__")
            options |= {"rows": inputs.get("loss_rows") if knows_rows else None, "chunk_bytes": self.args.loss_chunk_bytes}
            if self.args.contrastive_weight and model.training:
                options["contrastive_temperature"] = self.args.contrastive_temperature
            given = (model, batch, inputs["span_ids"], self.accelerator)
            loss, stats, contrastive = self._parts.loss(*given, **options)
            outputs = {}
        self._meters["train" if model.training else "eval"].add(stats)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # gradients are averaged, not added
        if contrastive is not None:
            self._contrastive.add(contrastive)
            loss = loss + self.args.contrastive_weight / self.current_gradient_accumulation_steps * contrastive
        if model.training:
            mask = batch.get("attention_mask")
            self._throughput.add(torch.ones_like(batch["input_ids"]) if mask is None else mask)
        return (loss, outputs) if return_outputs else loss

    # --- the curriculum ---

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.curriculum or dataset is None or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(train_dataset)
        self.curriculum_sampler = sampler_of(self, dataset)
        return self.curriculum_sampler

    # --- evaluation and logs ---

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The base class's, after the examples that fill up the last batch of several processes lost their labels."""
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0:
            size = len(inputs["span_ids"])
            real = min(max(state.remainder - self.accelerator.process_index * size, 0), size)
            span_ids = inputs["span_ids"].clone()
            span_ids[real:] = SpanKind.NONE
            inputs = {**inputs, "span_ids": span_ids}
        self._outputs_are_read = not prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._outputs_are_read = True

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Adds both span losses, and makes the loss the mean over tokens, whatever the batches and processes."""
        self._meters["eval"] = SpanMeter()
        with self._throughput.paused():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self._taken("eval")
        loss = mean_loss(sums, self.args.lambda_reason, self.args.lambda_act)
        output.metrics[f"{metric_key_prefix}_loss"] = loss.item()
        output.metrics.update({f"{metric_key_prefix}_{name}": x for name, x in span_metrics(sums).items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to a training log what the meters hold: both span losses, agreement, entropies, tokens, speed and memory."""
        if "loss" in logs:
            sums, taken = self._taken("train"), self.accelerator.gather(self._throughput.take()).view(-1, 3)
            logs = {**logs, **span_metrics(sums)}
            if self.args.contrastive_weight:
                total, batches = self.accelerator.reduce(self._contrastive.take(self.args.device), reduction="sum").tolist()
                logs["contrastive_loss"] = total / max(batches, 1)
            logs |= speed_metrics(taken, sums[:, 1].sum().item(), self.get_tp_size())
            if self.curriculum_sampler is not None and self.state.max_steps:
                progress = self.state.global_step / self.state.max_steps
                logs["curriculum_share"] = float(self.curriculum_sampler.admitted_share(progress))
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._throughput.paused():
            super()._save_checkpoint(*args, **kwargs)

    def _taken(self, mode: str) -> Tensor:
        """The meter's sums over all processes."""
        return self.accelerator.reduce(self._meters[mode].take(self.args.device), reduction="sum")
