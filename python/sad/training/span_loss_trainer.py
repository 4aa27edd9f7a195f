"""What a trainer needs for the span loss, as a mixin for `transformers.Trainer` and the trainers built on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from sad.errors import InputError
from sad.teacher_cache.reader import TeacherCache, open_cache
from sad.training.cached_loss import cached_loss
from sad.training.collator import SpanCollator
from sad.training.imitation import ImitationLoss
from sad.training.loss_config import SpanLossConfig
from sad.training.loss_parts import SpanLoss
from sad.training.losses import live_loss
from sad.training.metrics import MeanMeter, SpanMeter, Throughput, means, span_metrics, speed_metrics
from sad.training.sharding import check_launch, fsdp_plugin, release_gathered, use_fsdp_on_cpu
from sad.training.teacher import place_teacher, teacher_logits
from sad.training.token_weights import weight_sum, weights_by_kind, without_unseen
from sad.trajectories.labels import span_ids_of
from sadkernels import backends
from sadkernels.spans import SpanKind, SpanStats

Dataset = Sequence[Mapping[str, Any]]
ON_POLICY = "on_policy"  # entry of a batch of the student's own trajectories, and prefix of their names in the log


class SpanLossTrainer:
    """Computes the span loss of a batch, counts its tokens over the whole optimizer step, and logs it by kind.

    A subclass derives from this class and from a trainer, in this order. Its `__init__` calls `_set_span_loss` before the
    trainer's, and `_start_meters` after it.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the token count of the whole step

    def _set_span_loss(
        self,
        config: SpanLossConfig,
        student: nn.Module,
        teacher: nn.Module | None,
        cache: TeacherCache | str | Path | None,
        collator: Callable,
        datasets: Mapping[str, Dataset | None],
        *,
        device: torch.device,
        max_length: int | None,
        gpus: int = 1,
    ) -> None:
        """Chooses how the loss is computed.

        Args:
            config: The configuration.
            student: The student, before it is wrapped.
            teacher: The teacher. Without it and without a cache the loss is the cross-entropy alone.
            cache: The teacher cache or its path, instead of the teacher.
            collator: The data collator.
            datasets: The datasets by name; the first is that of the training.
            device: The training device.
            max_length: Maximum number of tokens per example.
            gpus: Number of GPUs of this process; with more than one, `nn.DataParallel` splits batches.

        Raises:
            InputError: The arguments contradict each other, or the backend cannot run here.
        """
        _check_turn_balance(config, collator)
        train_dataset = next(iter(datasets.values()))
        _check_observations(config, train_dataset, collator, max_length)
        self._loss_config = config
        self.teacher_cache = None if cache is None else open_cache(cache)
        options = {"device": device, "rows_known": hasattr(train_dataset, "__len__"), "gpus": gpus}
        self._span_loss = choose_loss(config, student, teacher, self.teacher_cache, collator, **options)
        self._on_policy_loss: SpanLoss | None = None
        if self.teacher_cache is not None:
            for name, dataset in datasets.items():
                if dataset is not None:
                    self.teacher_cache.check_examples(dataset, max_length, name)

    def _start_meters(self, teacher: nn.Module | None) -> None:
        """Places the teacher and creates the meters, when the trainer has its device and accelerator.

        Raises:
            InputError: The sequences or the rows of a cache are split over devices.
        """
        self.model_accepts_loss_kwargs = True  # transformers < 5.19 would otherwise divide the loss once more
        split = "a split sequence" if self.get_cp_size() > 1 or self.get_sp_size() > 1 else None
        for name, model in (("student", self.model), ("teacher", teacher)):
            if "sequence_parallel" in (getattr(model, "tp_plan", None) or {}).values():
                split = f"a tp_plan of the {name} with sequence_parallel"
        if split:
            remedy = "Use data parallelism: the label of a row is that of the next token, which is on another device."
            raise InputError("parallelism_config", "whole sequences on each device", split, remedy)
        self.teacher_model = None
        if teacher is not None:
            self.teacher_model = place_teacher(teacher, self.accelerator, shard=self._loss_config.teacher_sharding)
        if self.teacher_cache is not None and self.accelerator.dispatch_batches:
            remedy = "Leave dispatch_batches out: it splits batches without their loss_rows."
            raise InputError("accelerator_config", "no dispatch_batches with a teacher cache", "true", remedy)
        self._logits_are_read = True  # in `compute_loss(return_outputs=True)`
        self._meters = {"train": SpanMeter(), "on_policy": SpanMeter(), "eval": SpanMeter()}
        self._contrastive, self._eval_loss, self._token_weights = MeanMeter(), MeanMeter(), MeanMeter(size=3)
        self._throughput = Throughput(self.args.device)
        self.add_callback(self._throughput)

    def create_accelerator_and_postprocess(self) -> None:
        """Creates the accelerator. FSDP2 works on CPUs too, and a launch whose processes would train alone is refused.

        Raises:
            InputError: The processes would train alone, or the configuration asks for what the strategy cannot do.
        """
        check_launch(self.args)
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled and self._loss_config.nan_policy == "skip":
            remedy = "Set it to stop, or use FSDP2."
            raise InputError("nan_policy", "stop with DeepSpeed, which applies every gradient itself", "skip", remedy)
        use_fsdp_on_cpu(self.accelerator, fsdp_plugin(self.args))
        self.is_fsdp_enabled = self.is_fsdp_enabled or self.accelerator.distributed_type == DistributedType.FSDP

    def teacher_logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the teacher's logits (B, T, V) for `input_ids` and `attention_mask`, without a graph."""
        return teacher_logits(self.teacher_model, batch, self.accelerator)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Sums the weights of the supervised tokens of the optimizer step, over its batches and, if so configured, all
        processes. Without weights it is their number."""
        if not batch_samples:
            return None
        count = sum(weight_sum(without_unseen(batch), self._loss_config.observe) for batch in batch_samples).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count / self.get_tp_size()  # tensor-parallel processes share each batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Returns the loss of one batch, divided by the supervised tokens of the whole step, or by the sum of their weights.

        In training, `contrastive_weight` adds the contrastive term of the batch, divided by the number of accumulated
        batches. Over the step that is the mean of all batches of all processes.

        A batch of the student's own trajectories has the entry `on_policy`. Its loss has a divergence and a log of its own.
        """
        own_play = inputs.get(ON_POLICY, False)
        inputs = without_unseen({name: x for name, x in inputs.items() if name != ON_POLICY})
        span_loss = self._on_policy_loss if own_play else self._span_loss
        needs_logits = return_outputs and self._logits_are_read
        own = weight_sum(inputs, self._loss_config.observe)
        normalizer = own if num_items_in_batch is None else num_items_in_batch
        output = span_loss(model, inputs, normalizer, self.accelerator, needs_logits=needs_logits)
        valid = torch.isfinite(output.loss.detach()) if model.training and self._loss_config.nan_policy == "skip" else None
        meter = ("on_policy" if own_play else "train") if model.training else "eval"
        self._meters[meter].add(output.stats, valid)
        if not model.training:
            self._eval_loss.add(output.loss * normalizer, own)
        elif self._loss_config.token_weighting != "none":
            self._token_weights.add(*weights_by_kind(inputs, output.token_weights, self._loss_config.observe))
        loss = output.loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # gradients are averaged, not summed
        if output.contrastive is not None:
            self._contrastive.add(output.contrastive)
            weight = self._loss_config.contrastive_weight / self.current_gradient_accumulation_steps
            loss = loss + weight * output.contrastive
        if model.training:
            mask = inputs.get("attention_mask", inputs.get("token_mask"))
            self._throughput.add(torch.ones_like(inputs["input_ids"]) if mask is None else mask)
        return (loss, output.outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Removes the labels of the examples that accelerate repeats to fill the last batch, then calls the base class."""
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0:
            size, index = len(inputs["span_ids"]), self.accelerator.process_index // self.get_tp_size()
            real = min(max(state.remainder - index * size, 0), size)
            span_ids = inputs["span_ids"].clone()
            span_ids[real:] = SpanKind.NONE
            inputs = {**inputs, "span_ids": span_ids}
        self._logits_are_read = not prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._logits_are_read = True

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Adds the losses of both kinds, and makes the loss the mean over tokens for any batch size and process count."""
        self._meters["eval"], self._eval_loss = SpanMeter(), MeanMeter()
        with self._throughput.paused():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        release_gathered(self.model_wrapped)
        sums = self._sums("eval")
        [loss] = self._means(self._eval_loss)
        output.metrics[f"{metric_key_prefix}_loss"] = 0.0 if math.isnan(loss) and not sums[:, 1].any() else loss
        output.metrics.update({f"{metric_key_prefix}_{name}": x for name, x in span_metrics(sums).items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds losses of both kinds, agreement, entropies, tokens, speed and memory to a training log."""
        if "loss" in logs:
            sums, taken = self._sums("train"), self.accelerator.gather(self._throughput.take()).view(-1, 3)
            logs = {**logs, **span_metrics(sums)}
            if self._on_policy_loss is not None:
                own = self._sums("on_policy")
                logs |= {f"{ON_POLICY}_{name}": value for name, value in span_metrics(own).items()}
                sums = sums + own
            if self._loss_config.contrastive_weight:
                [logs["contrastive_loss"]] = self._means(self._contrastive)
            if self._loss_config.token_weighting != "none":
                names = (f"mean_weight_{kind}" for kind in SpanStats._fields)
                found = zip(names, self._means(self._token_weights))
                logs |= {name: value for name, value in found if not math.isnan(value)}
            logs |= speed_metrics(taken, sums[:, 1].sum().item(), self.get_tp_size())
            logs |= self._own_logs()
        super().log(logs, start_time)

    def _own_logs(self) -> dict[str, float]:
        """Returns what a subclass adds to a training log."""
        return {}

    def _means(self, meter: MeanMeter) -> list[float]:
        """Returns the means of a meter over all processes, and resets it. Synchronizes the device once."""
        return means(self.accelerator.reduce(meter.take(self.args.device), reduction="sum"))

    def _sums(self, mode: str) -> Tensor:
        """Returns the sums of a meter over all processes, and resets it. Tensor-parallel processes count once."""
        return self.accelerator.reduce(self._meters[mode].take(self.args.device), reduction="sum") / self.get_tp_size()


def choose_loss(
    config: SpanLossConfig,
    student: nn.Module,
    teacher: nn.Module | None,
    cache: TeacherCache | None,
    collator: Callable | None,
    *,
    device: torch.device,
    rows_known: bool,
    gpus: int = 1,
) -> SpanLoss:
    """Chooses between the losses from a live teacher, from a cache, and without a teacher.

    Args:
        config: The configuration.
        student: The student, before it is wrapped.
        teacher: The teacher, or None.
        cache: The teacher cache, or None.
        collator: The data collator, which reads the cache.
        device: The training device.
        rows_known: Whether `loss_rows` of a training batch are right; see `sad.training.losses.HiddenLoss`.
        gpus: Number of GPUs of this process.

    Raises:
        InputError: The arguments contradict each other, or the backend cannot run here.
    """
    if teacher is student:
        raise InputError("teacher_model", "another model than the student", "the same object", "Pass a copy of it.")
    if teacher is not None and cache is not None:
        raise InputError("teacher_model", "a teacher_model or a teacher_cache", "both", "Pass one of them.")
    try:
        backends.resolve(config.backend, "span_kl", device, torch.float32)
    except backends.BackendUnavailableError as error:
        got = f"{config.backend!r} ({error})"
        raise InputError("backend", "one that runs here", got, "Use backend='auto'.") from error
    if cache is not None:
        return cached_loss(config, student, cache, collator, device=device, gpus=gpus)
    if teacher is None:
        return ImitationLoss(config, student, rows_known=rows_known)
    return live_loss(config, student, teacher, rows_known=rows_known, gpus=gpus)


def _check_turn_balance(config: SpanLossConfig, collator: Callable) -> None:
    """Checks that the collator weighs turns as the configuration says."""
    if not isinstance(collator, SpanCollator):
        if config.turn_balance != "none":
            remedy = "Pass a sad.SpanCollator, or set turn_balance to none and add `token_weights` in your own collator."
            raise InputError("data_collator", f"a SpanCollator with turn_balance {config.turn_balance}", "another", remedy)
        return
    for name in ("turn_balance", "turn_half_life") if config.turn_balance == "decay" else ("turn_balance",):
        if getattr(collator, name) != getattr(config, name):
            expected = f"SpanCollator({name}={getattr(config, name)!r}), as in the configuration"
            remedy = "Leave it out, or change one of the two."
            raise InputError("data_collator", expected, repr(getattr(collator, name)), remedy)


def _check_observations(config: SpanLossConfig, dataset: Dataset | None, collator: Callable, max_length: int | None) -> None:
    """Checks that the collator supervises observations exactly if the loss does, and that the data have any."""
    if isinstance(collator, SpanCollator) and collator.observe != config.observe:
        expected = f"SpanCollator(observe={config.observe}), because lambda_observe is {config.lambda_observe}"
        raise InputError("data_collator", expected, f"observe={collator.observe}", "Leave it out, or change one of the two.")
    if not config.observe or dataset is None or not hasattr(dataset, "__len__") or not len(dataset):
        return
    labels = (span_ids_of([dataset[index]], max_length)[0] for index in range(len(dataset)))
    if not any((row == SpanKind.OBSERVE).any() for row in labels):
        expected = f"observation tokens (span id 3), because lambda_observe is {config.lambda_observe}"
        remedy = "Encode with sad.encode_all(..., observe=True) and check with `sad inspect`, or set lambda_observe to 0."
        raise InputError("train_dataset", expected, "none", remedy)
