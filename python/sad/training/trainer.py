"""`SADTrainer`: `transformers.Trainer` with the span loss, the curriculum, and the losses of both kinds in the log."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.utils import logging

from sad.errors import InputError
from sad.teacher_cache.reader import TeacherCache, open_cache
from sad.training import checkpoints
from sad.training.cached_loss import CachedLoss
from sad.training.collator import SpanCollator
from sad.training.config import SADConfig
from sad.training.curriculum import CurriculumSampler, curriculum_sampler
from sad.training.difficulty import measure_dataset, read_rows
from sad.training.finite import FiniteGuard
from sad.training.losses import SpanLoss, live_loss
from sad.training.metrics import MeanMeter, SpanMeter, Throughput, means, span_metrics, speed_metrics
from sad.training.teacher import place_teacher, teacher_logits
from sad.training.token_weights import weight_sum, weights_by_kind
from sad.trajectories.encode import cut_warning
from sad.trajectories.labels import span_ids_of
from sadkernels import backends
from sadkernels.spans import SpanKind, SpanStats

Dataset = Sequence[Mapping[str, Any]]

logger = logging.get_logger(__name__)


class SADTrainer(Trainer):
    r"""Distills a student from a teacher, or from a cache of one, on the labelled tokens of agent trajectories.

        L = (lambda_r sum_r KL(p_T || p_S) + lambda_a sum_a KL(p_T || p_S)) / (n_r + n_a)         (paper eqs. 4 to 6)

    With lambda_observe > 0 the observations are a third kind: lambda_o sum_o KL and n_o are added to the two sums.

    The counts n_r + n_a are those of the whole optimizer step, over all accumulated batches and all processes. So neither
    accumulation nor the number of processes changes the gradient. Everything else is `transformers.Trainer`.

    Args:
        model: The student, a causal language model. A PEFT model works too.
        teacher_model: A causal language model with the student's tokenizer. Its head may have another number of columns. The
            trainer puts it into eval mode and moves it to the training device, unless it was loaded with a device map.
        args: A `sad.SADConfig`.
        train_dataset: Indexable; mappings with `input_ids` and `span_ids`, such as `sad.encode_all` returns. With
            lambda_observe > 0 the labels must include observations (`sad.encode_all(..., observe=True)`).
        eval_dataset: A dataset of the same form, or a dict of them.
        data_collator: Default: `sad.SpanCollator` with the lengths in `args`. With a cache it must be a `SpanCollator` that
            reads the cache.
        processing_class: The tokenizer, which is saved with the model.
        teacher_cache: A `sad.TeacherCache` or its path, instead of `teacher_model`. It must hold the examples of all
            datasets. The loss is then `sad.fused_topk_span_kl`.
        teacher: Deprecated name of `teacher_model`.
        **kwargs: Passed on to `transformers.Trainer`.

    Raises:
        InputError: The arguments contradict each other, or the backend cannot run here.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the token count of the whole step

    def __init__(
        self,
        model: nn.Module,
        teacher_model: nn.Module | None = None,
        args: SADConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        data_collator: Callable | None = None,
        processing_class: Any = None,
        *,
        teacher_cache: TeacherCache | str | Path | None = None,
        teacher: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        teacher_model = _renamed(teacher, teacher_model)
        _check(model, teacher_model, args, teacher_cache)
        self.teacher_cache = None if teacher_cache is None else open_cache(teacher_cache)
        if data_collator is None:
            data_collator = SpanCollator(
                pad_to_multiple_of=args.pad_to_multiple_of,
                max_length=args.max_length,
                teacher_cache=self.teacher_cache,
                observe=args.observe,
                turn_balance=args.turn_balance,
                turn_half_life=args.turn_half_life,
            )
        _check_turn_balance(args, data_collator)
        _check_observations(args, train_dataset, data_collator)
        self._span_loss: SpanLoss
        if self.teacher_cache is None:
            self._span_loss = live_loss(args, model, teacher_model, rows_known=hasattr(train_dataset, "__len__"))
        else:
            self._span_loss = CachedLoss(args, model, self.teacher_cache, data_collator)
            named = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
            for name, dataset in {"train_dataset": train_dataset, **named}.items():
                if dataset is not None:
                    self.teacher_cache.check_examples(dataset, args.max_length, name)
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # transformers < 5.19 would otherwise divide the loss once more
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:
            remedy = "Use data parallelism: the label of a row is that of the next token, which is on another device."
            raise InputError("parallelism_config", "whole sequences on each device", "a split sequence", remedy)
        self.teacher_model = None if teacher_model is None else place_teacher(teacher_model, args.device)
        self.curriculum_sampler: CurriculumSampler | None = None
        self._logits_are_read = True  # in `compute_loss(return_outputs=True)`
        self._meters = {"train": SpanMeter(), "eval": SpanMeter()}
        self._contrastive, self._eval_loss, self._token_weights = MeanMeter(), MeanMeter(), MeanMeter(size=3)
        self._throughput = Throughput(args.device)
        self._staging: Path | None = None  # where a checkpoint is being saved
        self.finite_guard = FiniteGuard(self)
        self.add_callback(self.finite_guard)
        self.add_callback(_EpochSetter(self))
        self.add_callback(self._throughput)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains. `resume_from_checkpoint=True` takes the newest complete checkpoint in the output folder.

        Raises:
            InputError: The chosen checkpoint was damaged after its save.
            NonFiniteError: A loss, gradient or parameter is NaN or infinite (see `nan_policy`).
        """
        if resume_from_checkpoint is True:
            found = self.newest_checkpoint(logger.warning)
            resume_from_checkpoint = None if found is None else str(found)
        elif resume_from_checkpoint:
            checkpoints.check_complete(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # --- the loss ---

    def teacher_logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the teacher's logits (B, T, V) for `input_ids` and `attention_mask`, without a graph."""
        return teacher_logits(self.teacher_model, batch, self.accelerator)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Sums the weights of the supervised tokens of the optimizer step, over its batches and, if so configured, all
        processes. Without weights it is their number."""
        if not batch_samples:
            return None
        count = sum(weight_sum(batch, self.args.observe) for batch in batch_samples).to(device)
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
        """
        needs_logits = return_outputs and self._logits_are_read
        own = weight_sum(inputs, self.args.observe)
        normalizer = own if num_items_in_batch is None else num_items_in_batch
        output = self._span_loss(model, inputs, normalizer, self.accelerator, needs_logits=needs_logits)
        valid = torch.isfinite(output.loss.detach()) if model.training and self.args.nan_policy == "skip" else None
        self._meters["train" if model.training else "eval"].add(output.stats, valid)
        if not model.training:
            self._eval_loss.add(output.loss * normalizer, own)
        elif self.args.token_weighting != "none":
            self._token_weights.add(*weights_by_kind(inputs, output.token_weights, self.args.observe))
        loss = output.loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # gradients are averaged, not summed
        if output.contrastive is not None:
            self._contrastive.add(output.contrastive)
            loss = loss + self.args.contrastive_weight / self.current_gradient_accumulation_steps * output.contrastive
        if model.training:
            mask = inputs.get("attention_mask")
            self._throughput.add(torch.ones_like(inputs["input_ids"]) if mask is None else mask)
        return (loss, output.outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Computes the gradient of one batch. The loss of a batch that `nan_policy="skip"` leaves out is logged as 0."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.finite_guard.add(inputs, loss)
        return torch.nan_to_num(loss, 0.0, 0.0, 0.0) if self.args.nan_policy == "skip" else loss

    # --- the curriculum ---

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.curriculum or dataset is None or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(train_dataset)
        rows = read_rows(dataset, self.args.max_length)
        if (message := cut_warning(rows.supervised_cut, rows.supervised)) and self.is_world_process_zero():
            warnings.warn(message, stacklevel=2)
        sources = {"teacher": self.teacher_model, "cache": self.teacher_cache}
        measures = measure_dataset(dataset, rows, self.args, self.accelerator, **sources)
        lengths = [len(row) for row in rows.span_ids]
        batch_size = self.get_total_train_batch_size(self.args)
        self.curriculum_sampler = curriculum_sampler(self.args, measures, lengths, batch_size)
        return self.curriculum_sampler

    # --- evaluation and logs ---

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
            if self.args.contrastive_weight:
                [logs["contrastive_loss"]] = self._means(self._contrastive)
            if self.args.token_weighting != "none":
                names = (f"mean_weight_{kind}" for kind in SpanStats._fields)
                found = zip(names, self._means(self._token_weights))
                logs |= {name: value for name, value in found if not math.isnan(value)}
            logs |= speed_metrics(taken, sums[:, 1].sum().item(), self.get_tp_size())
            if self.args.nan_policy == "skip":
                self.finite_guard.read_flags()
                logs["skipped_steps"] = self.finite_guard.skipped
            if self.curriculum_sampler is not None and self.state.max_steps:
                progress = self.state.global_step / self.state.max_steps
                logs["curriculum_share"] = float(self.curriculum_sampler.admitted_share(progress))
        super().log(logs, start_time)

    # --- checkpoints ---

    def newest_checkpoint(self, say: Callable[[str], None]) -> Path | None:
        """Returns the newest complete checkpoint in the output folder, the same in all processes.

        Args:
            say: Receives one line per checkpoint that is skipped, in the main process.
        """
        main = self.accelerator.is_main_process
        found = [checkpoints.newest_complete(self.args.output_dir, say) if main else None]
        return broadcast_object_list(found)[0]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves a checkpoint in a hidden folder, and moves it to its place when it is complete."""
        with self._throughput.paused():
            self.finite_guard.check_all()
            run_folder = Path(self._get_output_dir(trial))
            staging = run_folder / checkpoints.STAGING_NAME
            name = f"checkpoint-{self.state.global_step}"
            if self.args.should_save:
                checkpoints.clear_staging(run_folder)
            self.accelerator.wait_for_everyone()
            self._staging, self._push_is_due = staging, False
            try:
                super()._save_checkpoint(model, trial)
                if self.state.best_global_step == self.state.global_step:  # the base class has stored the hidden folder
                    self.state.best_model_checkpoint = str(run_folder / name)
                    if self.args.should_save:
                        self.state.save_to_json(str(staging / name / "trainer_state.json"))
            except BaseException:
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)  # gives the space on a full disk back
                raise
            finally:
                self._staging = None
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish(staging / name, run_folder / name)
                staging.rmdir()
                checkpoints.rotate(run_folder, self.args.save_total_limit, self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()
            if self._push_is_due:
                self._push_from_checkpoint(str(run_folder / name))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._push_is_due = True  # when the folder has its name

    def _means(self, meter: MeanMeter) -> list[float]:
        """Returns the means of a meter over all processes, and resets it. Synchronizes the device once."""
        return means(self.accelerator.reduce(meter.take(self.args.device), reduction="sum"))

    def _sums(self, mode: str) -> Tensor:
        """Returns the sums of a meter over all processes, and resets it. Tensor-parallel processes count once."""
        return self.accelerator.reduce(self._meters[mode].take(self.args.device), reduction="sum") / self.get_tp_size()


class _EpochSetter(TrainerCallback):
    """Tells the curriculum which epoch begins. Accelerate does not reach the sampler after a resume on several processes."""

    def __init__(self, trainer: SADTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        if self._trainer.curriculum_sampler is not None:
            self._trainer.curriculum_sampler.set_epoch(int(state.epoch or 0))


def _renamed(teacher: nn.Module | None, teacher_model: nn.Module | None) -> nn.Module | None:
    if teacher is None:
        return teacher_model
    if teacher_model is not None:
        raise InputError("teacher", "only teacher_model", "both", "Remove teacher: it is the old name of teacher_model.")
    warnings.warn("SADTrainer(teacher=...) is deprecated. Use teacher_model=...", DeprecationWarning, stacklevel=3)
    return teacher


def _check(model: nn.Module, teacher_model: nn.Module | None, args: object, teacher_cache: object) -> None:
    """Checks the arguments before the trainer touches the output folder."""
    if not isinstance(args, SADConfig):
        raise InputError("args", "a sad.SADConfig", type(args).__name__, "Pass sad.SADConfig(output_dir=...).")
    if teacher_model is model:
        raise InputError("teacher_model", "another model than the student", "the same object", "Pass a copy of it.")
    if (teacher_model is None) == (teacher_cache is None):
        got = "neither" if teacher_model is None else "both"
        raise InputError("teacher_model", "a teacher_model or a teacher_cache", got, "Pass one of them.")
    try:
        backends.resolve(args.backend, "span_kl", args.device, torch.float32)
    except backends.BackendUnavailableError as error:
        got = f"{args.backend!r} ({error})"
        raise InputError("backend", "one that runs here", got, "Use backend='auto'.") from error


def _check_turn_balance(args: SADConfig, collator: Callable) -> None:
    """Checks that the collator weighs turns as the configuration says."""
    if not isinstance(collator, SpanCollator):
        if args.turn_balance != "none":
            remedy = "Pass a sad.SpanCollator, or set turn_balance to none and add `token_weights` in your own collator."
            raise InputError("data_collator", f"a SpanCollator with turn_balance {args.turn_balance}", "another", remedy)
        return
    for name in ("turn_balance", "turn_half_life") if args.turn_balance == "decay" else ("turn_balance",):
        if getattr(collator, name) != getattr(args, name):
            expected = f"SpanCollator({name}={getattr(args, name)!r}), as in the configuration"
            remedy = "Leave it out, or change one of the two."
            raise InputError("data_collator", expected, repr(getattr(collator, name)), remedy)


def _check_observations(args: SADConfig, dataset: Dataset | None, collator: Callable) -> None:
    """Checks that the collator supervises observations exactly if the loss does, and that the data have any."""
    if isinstance(collator, SpanCollator) and collator.observe != args.observe:
        expected = f"SpanCollator(observe={args.observe}), because lambda_observe is {args.lambda_observe}"
        raise InputError("data_collator", expected, f"observe={collator.observe}", "Leave it out, or change one of the two.")
    if not args.observe or dataset is None or not hasattr(dataset, "__len__") or not len(dataset):
        return
    labels = (span_ids_of([dataset[index]], args.max_length)[0] for index in range(len(dataset)))
    if not any((row == SpanKind.OBSERVE).any() for row in labels):
        expected = f"observation tokens (span id 3), because lambda_observe is {args.lambda_observe}"
        remedy = "Encode with sad.encode_all(..., observe=True) and check with `sad inspect`, or set lambda_observe to 0."
        raise InputError("train_dataset", expected, "none", remedy)
