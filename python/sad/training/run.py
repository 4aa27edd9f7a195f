"""Runs `sad train`: from model folders and a trajectory file to a trained student in a run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

import sad
from sad import models
from sad.errors import InputError
from sad.teacher_cache.reader import TeacherCache
from sad.training import difficulty
from sad.training.cli_args import RunOptions, TrainOptions, as_yaml, make_config
from sad.training.config import SADConfig
from sad.training.trainer import SADTrainer
from sad.trajectories.encode import EncodedCorpus, encode_all
from sad.trajectories.read import read_trajectories

_PROBES = 8  # trajectories that both tokenizers must tokenize alike


def distill(options: TrainOptions, values: Mapping[str, Any], say: Callable[[str], None] = print) -> SADTrainer:
    """Trains the student and saves it, with records, in the folder `options.out`.

    All input is checked before the folder is written to. Under `torchrun` or `accelerate launch` every process calls this.

    Args:
        options: The models, the data and the output folder.
        values: Values of `SADConfig` fields; the others have their defaults.
        say: Receives progress messages, in one process only.

    Returns:
        The trainer, after training.

    Raises:
        InputError: An input cannot be used. The folder is unchanged.
    """
    options.check()
    if not isinstance(options.out, str):
        got = "nothing" if options.out is None else repr(options.out)
        raise InputError("out", "a path", got, "Pass --out.")
    run = RunFolder(options.out)
    if options.resume:
        run.check_resumable()
    else:
        run.check_new()
    cache = None if options.teacher_cache is None else TeacherCache(options.teacher_cache)
    names = ("teacher", "student") if cache is None else ("student",)
    for name in names:
        models.check_model_dir(name, getattr(options, name))
    config = make_config(values, options.out)
    if cache is not None:
        cache.check_observe(config.observe)
    main = config.process_index == 0
    announce = say if main else lambda message: None
    paths = {name: path for name in ("data", "eval_data") if (path := getattr(options, name)) is not None}
    files = {name: read_trajectories(path, options.source, say=announce) for name, path in paths.items()}
    probes = [trajectory.text for trajectory in files["data"] if trajectory.text][:_PROBES]
    tokenizers = {name: models.load_tokenizer(name, getattr(options, name)) for name in names}
    tokenizer = models.shared_tokenizer(tokenizers.get("teacher"), tokenizers["student"], probes)
    if cache is not None:
        cache.check_tokenizer(tokenizer)
        announce(f"{cache.path}: {cache}")
    corpora: dict[str, EncodedCorpus] = {}
    for name, trajectories in files.items():
        encoding = {"format": options.format, "max_length": config.max_length, "observe": config.observe}
        corpora[name] = encode_all(trajectories, tokenizer, **encoding)
        announce(f"{getattr(options, name)}: read {len(trajectories)} trajectories; {corpora[name].summary()}")
        if not corpora[name].examples:
            remedy = "Check the spans with `sad inspect`; --format names the format of the file."
            raise InputError(getattr(options, name), "trajectories with reasoning or actions", "none", remedy)
    digest = difficulty.read_rows(corpora["data"].examples, config.max_length).digest
    if options.resume:
        run.check_same_data(digest)
    teacher, student = _load_models(options, config, tokenizer, announce)
    if options.lora_rank is not None:
        lora = (options.lora_rank, options.lora_alpha, options.lora_targets)
        student = models.add_adapters(student, options.student, *lora, seed=config.seed)
        announce(f"adapters: {student.get_nb_trainable_parameters()[0]:,} trainable parameters")

    PartialState().wait_for_everyone()  # every process checks the folder before one of them writes to it
    trainer = SADTrainer(
        student,
        teacher,
        config,
        train_dataset=corpora["data"].examples,
        eval_dataset=corpora["eval_data"].examples if "eval_data" in corpora else None,
        processing_class=tokenizer,
        teacher_cache=cache,
        callbacks=[MetricsWriter(run.metrics)],
    )
    if main:
        run.write_config({item.name: getattr(options, item.name) for item in fields(RunOptions)} | as_yaml(config, values))
        run.write_run(_record(corpora, {name: len(read) for name, read in files.items()}, digest))
    checkpoint = run.last_checkpoint() if options.resume else None
    if options.resume:
        announce(f"resuming from {checkpoint}" if checkpoint else f"{run.path} has no checkpoint yet; starting again")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(run.model))
    announce(f"saved the {'student' if options.lora_rank is None else 'adapters'} in {run.model}")
    return trainer


class RunFolder:
    """The paths and records of a run folder.

        config.yaml       options and fields; `sad train --config` reads it back
        run.json          versions, and counts of the data
        metrics.jsonl     one line per log
        curriculum.json   difficulties of the trajectories
        checkpoint-N/     checkpoints to resume from
        model/            the trained student with its tokenizer

    Args:
        path: The folder; it may be missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.run, self.metrics = (self.path / n for n in ("config.yaml", "run.json", "metrics.jsonl"))
        self.model = self.path / "model"

    def check_new(self) -> None:
        """Checks that the folder is missing or empty.

        Raises:
            InputError: It is not.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError("out", "a folder", f"{str(self.path)!r}, which is a file", "Choose another name.")
        if self.path.is_dir() and any(self.path.iterdir()):
            remedy = "Choose another folder, or continue the run in it with --resume."
            raise InputError("out", "a new or empty folder", f"{str(self.path)!r}, which holds files", remedy)

    def check_resumable(self) -> None:
        """Checks that the folder holds a run.

        Raises:
            InputError: It does not.
        """
        if not self.config.is_file():
            remedy = "Remove --resume to start a run there."
            raise InputError("out", "the folder of a run to resume", f"{str(self.path)!r} without config.yaml", remedy)

    def last_checkpoint(self) -> str | None:
        """Returns the folder of the last checkpoint, or None if there is none."""
        return get_last_checkpoint(str(self.path))

    def write_config(self, values: dict[str, Any]) -> None:
        """Writes `config.yaml`."""
        _write(self.config, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def write_run(self, record: dict[str, Any]) -> None:
        """Writes `run.json`."""
        _write(self.run, json.dumps(record, indent=2) + "\n")

    def check_same_data(self, digest: str) -> None:
        """Checks that the run started with these tokens and labels.

        Args:
            digest: Hash of the current data.

        Raises:
            InputError: It started with others.
        """
        started = json.loads(self.run.read_text()).get("data_sha256") if self.run.is_file() else None
        if started not in (None, digest):
            remedy = "Resume with the same file, format and max_length, or start a new run."
            raise InputError("data", f"the tokens and labels of the run in {self.path}", "others", remedy)


class MetricsWriter(TrainerCallback):
    """Appends every log to `metrics.jsonl`. A resumed run first removes the lines after its checkpoint.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero and self._path.is_file():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            _write(self._path, "".join(kept))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and logs:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _load_models(
    options: RunOptions, config: SADConfig, tokenizer: PreTrainedTokenizerBase, announce: Callable[[str], None]
) -> tuple[PreTrainedModel | None, PreTrainedModel]:
    """Loads the teacher, if there is one, and the student, and checks that they fit the tokenizer."""
    loaded = {}
    if options.teacher is not None:
        loaded["teacher"] = models.load_model(
            "teacher",
            options.teacher,
            dtype=options.teacher_dtype,
            quantization=options.teacher_quantization,
            device=config.device,
        )
    loaded["student"] = models.load_model(
        "student", options.student, dtype=options.student_dtype, from_config=options.from_config, seed=config.seed
    )
    for name, model in loaded.items():
        models.check_fits(name, model, tokenizer, config.max_length)
        dtype = str(model.dtype).removeprefix("torch.")
        announce(f"{name}: {type(model).__name__}, {model.num_parameters():,} parameters, {dtype}")
    return loaded.get("teacher"), loaded["student"]


def _record(corpora: dict[str, EncodedCorpus], read: dict[str, int], digest: str) -> dict[str, Any]:
    """Returns the content of `run.json`: versions, and counts of the trajectories of each file."""
    versions = {"sad": sad.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    counts = {
        name: {
            "read": read[name],
            "used": len(corpus.examples),
            "truncated": corpus.truncated,
            "empty": corpus.empty,
            "unparsed": len(corpus.unparsed),
        }
        for name, corpus in corpora.items()
    }
    return {**versions, **counts, "data_sha256": digest}


def _write(path: Path, text: str) -> None:
    """Writes a file that appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, path)
