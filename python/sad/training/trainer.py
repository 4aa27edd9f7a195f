"""`SADTrainer`: `transformers.Trainer` with the span loss, the curriculum, and the losses of both kinds in the log."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from sad import models
from sad.errors import InputError
from sad.teacher_cache.reader import TeacherCache, open_cache
from sad.training import checkpoints
from sad.training.collator import SpanCollator
from sad.training.config import SADConfig
from sad.training.curriculum import CurriculumSampler, curriculum_sampler
from sad.training.difficulty import measure_dataset, read_rows
from sad.training.finite import FiniteGuard
from sad.training.hub_push import PushesToHub
from sad.training.loss_config import SpanLossConfig
from sad.training.model_card import model_card
from sad.training.on_policy import OnPolicySource, check_on_policy
from sad.training.packing import why_not_packed
from sad.training.peers import reports_lost_process
from sad.training.prefetch import reading_workers
from sad.training.span_loss_trainer import Dataset, SpanLossTrainer, choose_loss
from sad.trajectories.corpus import cut_warning

logger = logging.get_logger(__name__)


class SADTrainer(SpanLossTrainer, PushesToHub, Trainer):
    r"""Distills a student from a teacher, or from a cache of one, on the labelled tokens of agent trajectories.

        L = (lambda_r sum_r KL(p_T || p_S) + lambda_a sum_a KL(p_T || p_S)) / (n_r + n_a)         (paper eqs. 4 to 6)

    With lambda_observe > 0 the observations are a third kind: lambda_o sum_o KL and n_o are added to the two sums.

    The counts n_r + n_a are those of the whole optimizer step, over all accumulated batches and all processes. So neither
    accumulation nor the number of processes changes the gradient. Everything else is `transformers.Trainer`.

    Args:
        model: The student, a causal language model, or its folder or its name on the Hugging Face Hub; then it is loaded in
            float32. A PEFT model works too.
        teacher_model: A causal language model with the student's tokenizer, or its folder or name. Its head may have another
            number of columns. The trainer puts it into eval mode and moves it to the training device, unless it was loaded
            with a device map. With `ce_weight=1` it may be left out: the loss is the cross-entropy on the trajectories.
        args: A `sad.SADConfig`.
        train_dataset: Indexable; mappings with `input_ids` and `span_ids`, such as `sad.encode_all` returns. With
            lambda_observe > 0 the labels must include observations (`sad.encode_all(..., observe=True)`).
        eval_dataset: A dataset of the same form, or a dict of them.
        data_collator: Default: `sad.SpanCollator` with the lengths in `args`. With a cache it must be a `SpanCollator` that
            reads the cache.
        processing_class: The tokenizer, which is saved with the model.
        teacher_cache: A `sad.TeacherCache` or its path, instead of `teacher_model`. It must hold the examples of all
            datasets. With log-probabilities the loss is `sad.fused_topk_span_kl`; with hidden states it is the teacher's.
        teacher: Deprecated name of `teacher_model`.
        peft_config: A `peft.LoraConfig` or another configuration of peft: adapters are added to the student, whose own
            weights are frozen.
        rollouts: A source of the student's own trajectories, `sad.EnvRollouts` or `sad.PrefixReplay` (on-policy
            distillation): they replace a share of the batches, which `args` schedules. It needs a `teacher_model`.
        **kwargs: Passed on to `transformers.Trainer`.

    Raises:
        InputError: The arguments contradict each other, a model cannot be loaded, or the backend cannot run here.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        teacher_model: nn.Module | str | Path | None = None,
        args: SADConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        data_collator: Callable | None = None,
        processing_class: Any = None,
        *,
        teacher_cache: TeacherCache | str | Path | None = None,
        teacher: nn.Module | None = None,
        peft_config: Any = None,
        rollouts: OnPolicySource | None = None,
        **kwargs: Any,
    ) -> None:
        teacher_model = _renamed(teacher, teacher_model)
        _check(teacher_model, args, teacher_cache)
        check_on_policy(args, rollouts, teacher_model, train_dataset)
        if isinstance(teacher_model, (str, Path)):
            teacher_model = models.load_model("teacher_model", teacher_model)
        if isinstance(model, (str, Path)):
            processing_class = models.load_tokenizer("model", model) if processing_class is None else processing_class
            model = models.load_model("model", model, dtype="float32")
        if peft_config is not None:
            model = models.with_adapters(model, peft_config)
        if args.curriculum and train_dataset is not None and not hasattr(train_dataset, "__len__"):
            logger.warning("The curriculum is off: it needs a train_dataset with a length, and this one is a stream.")
        cache = None if teacher_cache is None else open_cache(teacher_cache)
        if data_collator is None:
            data_collator = SpanCollator(
                pad_to_multiple_of=args.pad_to_multiple_of,
                max_length=args.max_length,
                teacher_cache=cache,
                observe=args.observe,
                turn_balance=args.turn_balance,
                turn_half_life=args.turn_half_life,
                packing=_packing(args, model, teacher_model, train_dataset),
            )
        named = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        datasets = {"train_dataset": train_dataset, **named}
        options = {"device": args.device, "max_length": args.max_length, "gpus": args.n_gpu}
        self._set_span_loss(args, model, teacher_model, cache, data_collator, datasets, **options)
        if rollouts is not None:
            own = {item.name: getattr(args, item.name) for item in dataclasses.fields(SpanLossConfig)}
            config = SpanLossConfig(**own | {"divergence": args.on_policy_divergence})
            self._on_policy_loss = choose_loss(
                config, model, teacher_model, None, data_collator, device=args.device, rows_known=True
            )
        args.dataloader_num_workers = reading_workers(args, cache)
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._start_meters(teacher_model)
        self.curriculum_sampler: CurriculumSampler | None = None
        self._staging: Path | None = None  # where a checkpoint is being saved
        self.finite_guard = FiniteGuard(self)
        self.add_callback(self.finite_guard)
        self.add_callback(_EpochSetter(self))
        self.rollouts = rollouts
        if rollouts is not None:
            rollouts.attach(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains. `resume_from_checkpoint=True` takes the newest complete checkpoint in the output folder.

        Raises:
            InputError: The chosen checkpoint was damaged after its save.
            NonFiniteError: A loss, gradient or parameter is NaN or infinite (see `nan_policy`).
            LostProcessError: Another process of the run has ended.
        """
        if resume_from_checkpoint is True:
            found = self.newest_checkpoint(logger.warning)
            resume_from_checkpoint = None if found is None else str(found)
        elif resume_from_checkpoint:
            checkpoints.check_complete(resume_from_checkpoint)
        if resume_from_checkpoint:
            self.check_strategy(resume_from_checkpoint)
        with reports_lost_process():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Computes the gradient of one batch. The loss of a batch that `nan_policy="skip"` leaves out is logged as 0."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.finite_guard.add(inputs, loss)
        return torch.nan_to_num(loss, 0.0, 0.0, 0.0) if self.args.nan_policy == "skip" else loss

    # --- the data ---

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Returns the batches of an optimizer step, some of them replaced by the student's own, and their token count."""
        if self.rollouts is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self.rollouts.mixed(list(itertools.islice(epoch_iterator, num_batches)))
        return batches, self._get_num_items_in_batch(batches, device)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Returns the data loader of an evaluation. Its batches are not packed: one row is one example."""
        with self._unpacked():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Returns the data loader of predictions. Its batches are not packed: one row is one example."""
        with self._unpacked():
            return super().get_test_dataloader(*args, **kwargs)

    @contextlib.contextmanager
    def _unpacked(self) -> Iterator[None]:
        collator = self.data_collator
        if isinstance(collator, SpanCollator):
            self.data_collator = copy.copy(collator)
            self.data_collator.packing = "never"
        try:
            yield
        finally:
            self.data_collator = collator

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

    def _own_logs(self) -> dict[str, float]:
        logs: dict[str, float] = {}
        if self.args.nan_policy == "skip":
            self.finite_guard.read_flags()
            logs["skipped_steps"] = self.finite_guard.skipped
        if self.curriculum_sampler is not None and self.state.max_steps:
            progress = self.state.global_step / self.state.max_steps
            logs["curriculum_share"] = float(self.curriculum_sampler.admitted_share(progress))
        return logs if self.rollouts is None else logs | self.rollouts.logs()

    # --- checkpoints ---

    def newest_checkpoint(self, say: Callable[[str], None]) -> Path | None:
        """Returns the newest complete checkpoint in the output folder, the same in all processes.

        Args:
            say: Receives one line per checkpoint that is skipped, in the main process.
        """
        main = self.accelerator.is_main_process
        found = [checkpoints.newest_complete(self.args.output_dir, say) if main else None]
        return broadcast_object_list(found)[0]

    def check_strategy(self, checkpoint: str | Path) -> None:
        """Checks that this run can load the weights and the optimizer of a checkpoint: they depend on how it was saved.

        Raises:
            InputError: It was saved with another strategy, or by another number of processes with DeepSpeed.
        """
        strategy = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else "one model per process"
        checkpoints.check_strategy(checkpoint, strategy, self.args.world_size)

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

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model card into the output folder: method, teacher, data, losses and settings."""
        if self.is_world_process_zero():
            self.write_model_card(Path(self.args.output_dir))

    def write_model_card(self, folder: Path) -> None:
        """Writes the model card into a folder."""
        model_card(self).save(folder / "README.md")

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._push_is_due = True  # when the folder has its name


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


def _packing(args: SADConfig, student: nn.Module, teacher: nn.Module | None, train_dataset: Dataset | None) -> str:
    """Returns how the batches of the training are packed.

    Raises:
        InputError: `packing` is "always", and the models or other options do not allow it.
    """
    if args.packing == "never":
        return "never"
    conflicts = {
        "contrastive_weight": args.contrastive_weight > 0,
        "token_weighting": args.token_weighting == "step_divergence",
        "train_dataset, which is a stream": train_dataset is not None and not hasattr(train_dataset, "__len__"),
        "several GPUs in one process": args.n_gpu > 1,
    }
    why = next((f"not possible with {name}" for name, here in conflicts.items() if here), None)
    for name, model in (("student", student), ("teacher", teacher)):
        if why is None and model is not None and (reason := why_not_packed(model)) is not None:
            why = f"the {name} cannot read packed rows: {reason}"
    if why is None:
        return args.packing
    if args.packing == "always":
        raise InputError("packing", "auto or never here", f"'always' ({why})", "Set it to auto.")
    logger.info("Trajectories are not packed: %s.", why)
    return "never"


def _check(teacher_model: nn.Module | None, args: object, teacher_cache: object) -> None:
    """Checks the arguments before the trainer touches the output folder."""
    if not isinstance(args, SADConfig):
        raise InputError("args", "a sad.SADConfig", type(args).__name__, "Pass sad.SADConfig(output_dir=...).")
    check_teacher(args, teacher_model is not None or teacher_cache is not None)


def check_teacher(args: SADConfig, given: bool) -> None:
    """Checks that there is a teacher or a cache of one if the configuration needs it.

    Raises:
        InputError: There is none.
    """
    if given:
        return
    if args.ce_weight != 1.0:
        remedy = "Pass one of them, or set ce_weight to 1 to train on the cross-entropy alone."
        raise InputError("teacher_model", "a teacher_model or a teacher_cache", "neither", remedy)
    if args.curriculum and args.curriculum_gamma:
        remedy = "Set it to 0, or set curriculum to false."
        raise InputError("curriculum_gamma", "0 without a teacher", str(args.curriculum_gamma), remedy)
