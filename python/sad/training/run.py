"""Runs `sad train`: from model folders and a trajectory file to a trained student in a run folder."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

import sad
from sad import files, models
from sad.errors import InputError
from sad.teacher_cache.reader import TeacherCache
from sad.training import difficulty
from sad.training.cli_args import RunOptions, TrainOptions, as_yaml, make_config
from sad.training.config import SADConfig
from sad.training.data_files import evaluation_sets, expand_paths
from sad.training.model_card import model_card
from sad.training.progress import LogTable, step_line
from sad.training.trainer import SADTrainer, check_teacher
from sad.trajectories.encode import EncodedCorpus, Encoding, encode_all
from sad.trajectories.options import encoding_keywords
from sad.trajectories.read import read_data
from sad.trajectories.refused import Refused
from sad.trajectories.tokenizers import set_chat_template
from sad.trajectories.trajectory import Trajectory

_PROBES = 8  # trajectories that both tokenizers must tokenize alike


def distill(options: TrainOptions, values: Mapping[str, Any], say: Callable[[str], None] = print) -> SADTrainer:
    """Trains the student and saves it, with records, in the folder `options.out`. The process locks the folder meanwhile.

    All input is checked before the folder is written to. Under `torchrun` or `accelerate launch` every process calls this.

    Args:
        options: The models, the data and the output folder.
        values: Values of `SADConfig` fields; the others have their defaults.
        say: Receives progress messages, in one process only.

    Returns:
        The trainer, after training.

    Raises:
        InputError: An input cannot be used, or another process writes to the folder. The folder is unchanged.
        NonFiniteError: A loss, gradient or parameter is NaN or infinite. Earlier checkpoints are kept.
    """
    with contextlib.ExitStack() as stack:
        return _distill(options, values, say, stack)


def _distill(
    options: TrainOptions, values: Mapping[str, Any], say: Callable[[str], None], stack: contextlib.ExitStack
) -> SADTrainer:
    options.check(needs_teacher=values.get("ce_weight") != 1.0)
    if not isinstance(options.out, str):
        got = "nothing" if options.out is None else repr(options.out)
        raise InputError("out", "a path", got, "Pass --out.")
    run = RunFolder(options.out)
    if options.resume:
        run.check_resumable()
    else:
        run.check_new()
    cache = None if options.teacher_cache is None else TeacherCache(options.teacher_cache)
    names = ("student",) if options.teacher is None else ("teacher", "student")
    for name in names:
        models.check_model_dir(name, getattr(options, name))
    config = make_config(values, options.out)
    check_teacher(config, options.teacher is not None or cache is not None)
    if cache is not None:
        cache.check_observe(config.observe)
    encoding = {**encoding_keywords(options), "max_length": config.max_length, "observe": config.observe}
    Encoding(**encoding)  # refuses options before the files are read
    main = config.process_index == 0
    announce = say if main else lambda message: None
    if options.resume and main:  # a new folder is locked later, because bad input must not create it
        stack.enter_context(files.FolderLock(run.path))
    paths = {"data": expand_paths("data", options.data), **evaluation_sets(options.eval_data)}
    read = {name: _read(found, options, announce) for name, found in paths.items()}
    probes = [trajectory.text for trajectory in read["data"][0] if trajectory.text][:_PROBES]
    tokenizers = {name: models.load_tokenizer(name, getattr(options, name)) for name in names}
    tokenizer = models.shared_tokenizer(tokenizers.get("teacher"), tokenizers["student"], probes)
    if cache is not None:
        cache.check_tokenizer(tokenizer)
        announce(f"{cache.path}: {cache}")
    set_chat_template(tokenizer, options.chat_template)
    corpora: dict[str, EncodedCorpus] = {}
    for name, (trajectories, refused) in read.items():
        corpora[name] = encode_all(
            trajectories, tokenizer, **encoding, on_error=options.on_error, refused=refused, say=announce
        )
        files_read = ", ".join(paths[name])
        announce(f"{files_read}: read {len(trajectories)} trajectories; {corpora[name].summary()}")
        if not corpora[name].examples:
            remedy = "Check the spans with `sad inspect`; --format names the format of the file."
            if corpora[name].supervised:
                remedy = f"--max-length {config.max_length} cuts all of it: raise it, or pass --long window."
            raise InputError(files_read, "trajectories with reasoning or actions", "none", remedy)
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
        eval_dataset=_evaluation_datasets(corpora),
        processing_class=tokenizer,
        teacher_cache=cache,
        callbacks=[MetricsWriter(run.metrics)],
    )
    LogTable.install(trainer)
    announce(step_line(trainer))
    trainer.finite_guard.example_names = corpora["data"].ids
    if main:
        if not options.resume:
            stack.enter_context(files.FolderLock(run.path))
            run.check_new()
        files.remove_partials(run.path)
        run.write_config({item.name: getattr(options, item.name) for item in fields(RunOptions)} | as_yaml(config, values))
        counts = {name: len(kept) + len(refused) for name, (kept, refused) in read.items()}
        run.write_run(_record(corpora, counts, digest))
    checkpoint = trainer.newest_checkpoint(announce) if options.resume else None
    if options.resume:
        announce(f"resuming from {checkpoint}" if checkpoint else f"{run.path} has no checkpoint yet; starting again")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    _save_model(trainer, run.model, _facts(corpora, paths), _command(options, values))
    announce(f"saved the {'student' if options.lora_rank is None else 'adapters'} in {run.model}")
    return trainer


def _read(
    paths: Sequence[str], options: RunOptions, announce: Callable[[str], None]
) -> tuple[list[Trajectory], list[Refused]]:
    """Returns the trajectories of all files, and the records that were refused."""
    parts = [read_data(path, options.source, options.on_error, announce) for path in paths]
    return [item for kept, _ in parts for item in kept], [item for _, refused in parts for item in refused]


def _evaluation_datasets(corpora: Mapping[str, EncodedCorpus]) -> Any:
    """Returns the examples of the evaluation set, or of each one by its name, or None."""
    if "eval_data" in corpora:
        return corpora["eval_data"].examples
    named = {name.removeprefix("eval_data_"): corpus.examples for name, corpus in corpora.items() if name != "data"}
    return named or None


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
        if self.path.is_dir() and any(path.name != files.LOCK_NAME for path in self.path.iterdir()):
            remedy = "Choose another folder, or continue the run in it with --resume."
            raise InputError("out", "a new or empty folder", f"{str(self.path)!r}, which holds files", remedy)

    def check_resumable(self) -> None:
        """Checks that the folder holds a run, and that its `config.yaml` is as the run wrote it.

        Raises:
            InputError: It does not, or the file was changed.
        """
        if not self.config.is_file():
            remedy = "Remove --resume to start a run there."
            raise InputError("out", "the folder of a run to resume", f"{str(self.path)!r} without config.yaml", remedy)

        if not files.is_sealed_lines(self.config.read_text(encoding="utf-8", errors="replace")):
            got = "a file that was changed after the run wrote it"
            remedy = "Undo the change, and pass other values as flags; or start a new run with --config."
            raise InputError(str(self.config), "the file as the run wrote it", got, remedy)

    def write_config(self, values: dict[str, Any]) -> None:
        """Writes `config.yaml`, with a checksum in its first line."""
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        files.write_file(self.config, files.seal_lines(text))

    def write_run(self, record: dict[str, Any]) -> None:
        """Writes `run.json`, with a checksum."""
        files.write_record(self.run, record, indent=2)

    def check_same_data(self, digest: str) -> None:
        """Checks that the run started with these tokens and labels.

        Args:
            digest: Hash of the current data.

        Raises:
            InputError: It started with others.
        """
        remedy = "Delete the file to resume without this check, if the data are the same."
        started = files.read_record(self.run, remedy).get("data_sha256") if self.run.is_file() else None
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
            files.write_file(self._path, "".join(kept))

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
            "refused": len(corpus.refused),
            "supervised": corpus.supervised,
            "supervised_cut": corpus.supervised_cut,
        }
        for name, corpus in corpora.items()
    }
    return {**versions, **counts, "data_sha256": digest}


def _facts(corpora: Mapping[str, EncodedCorpus], paths: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Returns what the model card says about the data."""
    corpus = corpora["data"]
    return {
        "data": ", ".join(Path(path).name for path in paths["data"]),
        "training examples": len(corpus.examples),
        "supervised tokens": corpus.supervised - corpus.supervised_cut,
    }


def _command(options: TrainOptions, values: Mapping[str, Any]) -> str:
    """Returns the command of the run. Paths are shortened to their last part."""
    parts = ["sad", "train"]
    for item in fields(RunOptions):
        value = getattr(options, item.name)
        default = item.default_factory() if item.default is MISSING else item.default
        if value == default:
            continue
        for one in value if isinstance(value, list) else [value]:
            path = isinstance(one, str) and Path(one).exists()
            parts += [f"--{item.name.replace('_', '-')}", *([] if one is True else [Path(one).name if path else str(one)])]
    for name, value in values.items():
        if value is not None and not isinstance(value, (dict, list)):
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)


def _save_model(trainer: SADTrainer, target: Path, facts: Mapping[str, Any], command: str) -> None:
    """Saves the trained model with its card in a hidden folder, and moves it to its place when it is complete."""
    staged = target.with_name(f".{target.name}.partial")
    if trainer.args.should_save and staged.exists():
        shutil.rmtree(staged)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(staged))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        model_card(trainer, command=command, data=facts).save(staged / "README.md")
        files.publish_folder(staged, target)
