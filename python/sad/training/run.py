"""Runs `sad train`: from model folders and a trajectory file to a trained student in a run folder."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import sad
from sad import files, interrupts, models
from sad.errors import InputError
from sad.model_parts import model_digest
from sad.teacher_cache.reader import TeacherCache
from sad.training import difficulty
from sad.training.checkpoints import list_checkpoints
from sad.training.cli_args import RunOptions, TrainOptions, as_yaml, is_secret, make_config
from sad.training.config import SADConfig
from sad.training.data_files import evaluation_sets, expand_paths
from sad.training.model_card import model_card
from sad.training.on_policy import OnPolicySource
from sad.training.peers import launched_processes
from sad.training.progress import LogTable, step_line
from sad.training.run_folder import MetricsWriter, RunFolder
from sad.training.sharding import check_launch
from sad.training.stopping import SignalStop
from sad.training.trainer import SADTrainer, check_teacher
from sad.trajectories.command_options import encoding_keywords
from sad.trajectories.corpus import EncodedCorpus
from sad.trajectories.encode import encode_all
from sad.trajectories.read import read_data
from sad.trajectories.refused import Refused
from sad.trajectories.trajectory import Trajectory

_STEP_FIELDS = ("per_device_train_batch_size", "gradient_accumulation_steps")
_PROBES = 8  # trajectories that both tokenizers must tokenize alike


MakeRollouts = Callable[[RunOptions, SADConfig, PreTrainedTokenizerBase, list[Trajectory]], OnPolicySource | None]


def distill(
    options: TrainOptions,
    values: Mapping[str, Any],
    say: Callable[[str], None] = print,
    make_rollouts: MakeRollouts = lambda options, config, tokenizer, trajectories: None,
) -> SADTrainer:
    """Trains the student and saves it, with records, in the folder `options.out`. The process locks the folder meanwhile.

    All input is checked before the folder is written to. Under `torchrun` or `accelerate launch` every process calls this.

    Args:
        options: The models, the data and the output folder.
        values: Values of `SADConfig` fields; the others have their defaults.
        say: Receives progress messages, in one process only.
        make_rollouts: Makes the source of the student's own trajectories, or returns None.

    Returns:
        The trainer, after training.

    Raises:
        InputError: An input cannot be used, or another process writes to the folder. The folder is unchanged.
        NonFiniteError: A loss, gradient or parameter is NaN or infinite. Earlier checkpoints are kept.
        Interrupted: A signal has ended the training, after a checkpoint was saved.
    """
    with contextlib.ExitStack() as stack:
        return _distill(options, values, say, make_rollouts, stack)


def _distill(
    options: TrainOptions,
    values: Mapping[str, Any],
    say: Callable[[str], None],
    make_rollouts: MakeRollouts,
    stack: contextlib.ExitStack,
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
    moved = ""
    if options.resume:
        values, moved = run.for_these_processes(values)
    config = make_config(values, options.out)
    check_launch(config)
    check_teacher(config, options.teacher is not None or cache is not None)
    if cache is not None:
        cache.check_observe(config.observe)
    encoding_keywords(options, config.max_length)  # refuses options before the files are read
    main = config.process_index == 0
    announce = say if main else lambda message: None
    if moved:
        announce(f"resuming on {moved}")
    if options.resume and main:  # a new folder is locked later, because bad input must not create it
        stack.enter_context(files.FolderLock(run.path))
    paths = {"data": expand_paths("data", options.data), **evaluation_sets(options.eval_data)}
    read = {name: _read(found, options, announce) for name, found in paths.items()}
    probes = [trajectory.text for trajectory in read["data"][0] if trajectory.text][:_PROBES]
    trust = options.trust_remote_code
    tokenizers = {name: models.load_tokenizer(name, getattr(options, name), trust_remote_code=trust) for name in names}
    tokenizer = models.shared_tokenizer(tokenizers.get("teacher"), tokenizers["student"], probes)
    if cache is not None:
        cache.check_tokenizer(tokenizer)
        announce(f"{cache.path}: {cache}")
    encoding = encoding_keywords(options, config.max_length, tokenizer)
    corpora: dict[str, EncodedCorpus] = {}
    for name, (trajectories, refused) in read.items():
        corpora[name] = encode_all(
            trajectories, tokenizer, **encoding, observe=config.observe, refused=refused, say=announce
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
    rollouts = make_rollouts(options, config, tokenizer, read["data"][0])
    teacher, student = _load_models(options, config, tokenizer, announce)
    teacher_digest = None if teacher is None else model_digest(teacher)
    if cache is not None:
        teacher_digest = cache.metadata.teacher
    if options.resume:
        run.check_same_teacher(teacher_digest)
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
        rollouts=rollouts,
        callbacks=[MetricsWriter(run.metrics)],
    )
    LogTable.install(trainer)
    announce(step_line(trainer))
    trainer.finite_guard.example_names = corpora["data"].ids
    checkpoint = trainer.newest_checkpoint(announce) if options.resume else None
    if checkpoint is not None:
        trainer.check_strategy(checkpoint)
    if main:
        if not options.resume:
            stack.enter_context(files.FolderLock(run.path))
            run.check_new()
        files.remove_partials(run.path)
        run.write_config({item.name: getattr(options, item.name) for item in fields(RunOptions)} | as_yaml(config, values))
        counts = {name: len(kept) + len(refused) for name, (kept, refused) in read.items()}
        record = _record(corpora, counts, digest)
        run.write_run(record | {"teacher_sha256": teacher_digest, "steps": _step_sizes(config)})
    if options.resume:
        announce(f"resuming from {checkpoint}" if checkpoint else f"{run.path} has no checkpoint yet; starting again")
    interrupts.explain(lambda: _kept(run))
    stop = SignalStop(trainer.finite_guard, main)
    trainer.add_callback(stop)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    stop.raise_if_stopped()
    _save_model(trainer, run.model, _facts(corpora, paths), _command(options, values))
    announce(f"saved the {'student' if options.lora_rank is None else 'adapters'} in {run.model}")
    if config.push_to_hub:
        trainer.push_folder(run.model, "Model save")
        announce(f"pushed it to {trainer.hub_model_id}")
    return trainer


def _kept(run: RunFolder) -> str:
    """Says what an interrupted run keeps."""
    saved = list_checkpoints(run.path)
    kept = f"The last checkpoint is {saved[0]}." if saved else f"{run.path} has no checkpoint yet."
    return f"{kept} Continue with: sad train --resume --out {shlex.quote(str(run.path))}"


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
            trust_remote_code=options.trust_remote_code,
        )
    loaded["student"] = models.load_model(
        "student",
        options.student,
        dtype=options.student_dtype,
        from_config=options.from_config,
        seed=config.seed,
        trust_remote_code=options.trust_remote_code,
    )
    for name, model in loaded.items():
        models.check_fits(name, model, tokenizer, config.max_length)
        dtype = str(model.dtype).removeprefix("torch.")
        announce(f"{name}: {type(model).__name__}, {model.num_parameters():,} parameters, {dtype}")
    return loaded.get("teacher"), loaded["student"]


def _step_sizes(config: SADConfig) -> tuple[int, int, int]:
    """Returns processes, trajectories per batch and accumulated batches."""
    return (launched_processes(), *(getattr(config, name) for name in _STEP_FIELDS))


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
        if value is not None and not isinstance(value, (dict, list)) and not is_secret(name):
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)


def _save_model(trainer: SADTrainer, target: Path, facts: Mapping[str, Any], command: str) -> None:
    """Saves the trained model with its card in a hidden folder, and moves it to its place when it is complete."""
    staged = target.with_name(f".{target.name}.partial")
    if trainer.args.should_save and staged.exists():
        shutil.rmtree(staged)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(staged), _internal_call=True)  # which does not push
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        model_card(trainer, command=command, data=facts).save(staged / "README.md")
        files.publish_folder(staged, target)
