"""One training run, from folders and a file to a trained student: what `sad train` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import sad
from sad import models
from sad.errors import InputError
from sad.teacher_cache.reader import TeacherCache
from sad.training import difficulty
from sad.training.cli_args import as_yaml, make_config
from sad.training.config import SADConfig
from sad.training.run_folder import MetricsWriter, RunFolder
from sad.training.trainer import SADTrainer
from sad.trajectories.encode import EncodedCorpus, encode_all
from sad.trajectories.trajectory import read_jsonl

_PROBES = 8  # trajectories on which the two tokenizers must agree
_KINDS = {
    "from_config": (bool, "true or false"),
    "lora_rank": (int, "a whole number"),
    "lora_alpha": ((int, float), "a number"),
}  # of the options that are no strings


@dataclass
class RunOptions:
    """What a run needs besides `SADConfig`.

    Args:
        teacher: Folder of the teacher, or None with a cache.
        student: Folder of the student.
        data: File of trajectories.
        eval_data: File of trajectories to evaluate on.
        teacher_cache: Folder or URL of a teacher cache, in place of the teacher.
        format: How they are written, where the file does not say.
        from_config: Give the student random weights.
        teacher_dtype: A name in `models.DTYPES`.
        student_dtype: Likewise. AdamW at small learning rates loses its updates in 16 bits: use `bf16` of `SADConfig`
            for speed, not this.
        teacher_quantization: "8bit" or "4bit": the teacher's linear layers are made so by bitsandbytes.
        lora_rank: Train adapters of this rank on a frozen student, which `student_dtype` may then have in 16 bits.
        lora_alpha: What they add is scaled by alpha / rank; twice the rank if not given.
        lora_targets: Names of layers with commas between; every linear layer except the head if not given.

    Raises:
        InputError: A path is missing or a value is of the wrong type.
    """

    teacher: str | None
    student: str
    data: str
    eval_data: str | None = None
    teacher_cache: str | None = None
    format: str | None = None
    from_config: bool = False
    teacher_dtype: str = "auto"
    student_dtype: str = "float32"
    teacher_quantization: str | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: str | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            replaced = item.name == "teacher" and self.teacher_cache is not None
            if value is None and item.name in ("teacher", "student", "data") and not replaced:
                remedy = f"Give --{item.name}, or `{item.name}:` in the file of --config."
                raise InputError(item.name, "a path", "nothing", remedy)
            kind, name = _KINDS.get(item.name, (str, "a string"))
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
                raise InputError(item.name, name, repr(value), "Mend the value.")
        beside = self.teacher or self.teacher_quantization
        if self.teacher_cache is not None and beside is not None:
            raise InputError("teacher_cache", "no teacher beside it", repr(beside), "Give a teacher, or a cache of one.")
        for name in ("teacher_dtype", "student_dtype"):
            models.check_dtype(name, getattr(self, name))
        models.check_quantization(self.teacher_quantization)
        models.check_lora(self.lora_rank, self.lora_alpha, self.lora_targets)
        if self.lora_rank is not None and self.from_config:
            remedy = "Save that student first: its random weights would be lost, and the adapters with them."
            raise InputError("from_config", "a student with saved weights under adapters", "true", remedy)


def distil(
    options: RunOptions,
    settings: Mapping[str, Any],
    out: str | Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> SADTrainer:
    """Trains the student and saves it, with records, in the folder `out`.

    Everything that can be wrong with the input is found before the folder is touched. Under `torchrun` or
    `accelerate launch` every process calls this.

    Args:
        options: Where things are.
        settings: How to train: values of `SADConfig` fields; others have their defaults.
        out: The run's folder, new or empty.
        resume: Continue the run in that folder from its last checkpoint, or from the beginning if it has none.
        say: Told what was read and written, in one process only.

    Returns:
        The trainer, after training.

    Raises:
        InputError: Something cannot be used; the folder is as it was.
    """
    run = RunFolder(out)
    if resume:
        run.check_resumable()
    else:
        run.check_new()
    cache = None if options.teacher_cache is None else TeacherCache(options.teacher_cache)
    names = ("teacher", "student") if cache is None else ("student",)
    for name in names:
        models.check_model_dir(name, getattr(options, name))
    config = make_config(settings, out)
    main = config.process_index == 0
    files = {name: read_jsonl(path) for name in ("data", "eval_data") if (path := getattr(options, name)) is not None}
    probes = [trajectory.text for trajectory in files["data"] if trajectory.text][:_PROBES]
    tokenizers = {name: models.load_tokenizer(name, getattr(options, name)) for name in names}
    tokenizer = models.shared_tokenizer(tokenizers.get("teacher"), tokenizers["student"], probes)
    if cache is not None:
        cache.check_tokenizer(tokenizer)
        if main:
            say(f"{cache.path}: {cache}")
    corpora: dict[str, EncodedCorpus] = {}
    for name, trajectories in files.items():
        corpora[name] = encode_all(trajectories, tokenizer, format=options.format, max_length=config.max_length)
        if main:
            say(f"{getattr(options, name)}: read {len(trajectories)} trajectories; {corpora[name].summary()}")
        if not corpora[name].examples:
            remedy = "See with `sad inspect` what was found; --format says how the file is written."
            raise InputError(getattr(options, name), "trajectories with reasoning or actions", "none", remedy)
    digest = difficulty.read_rows(corpora["data"].examples, config.max_length).digest
    if resume:
        run.check_same_data(digest)
    teacher, student = _models(options, config, tokenizer, say if main else lambda message: None)
    if options.lora_rank is not None:
        lora = (options.lora_rank, options.lora_alpha, options.lora_targets)
        student = models.add_adapters(student, options.student, *lora, seed=config.seed)
        if main:
            say(f"adapters: {student.get_nb_trainable_parameters()[0]:,} parameters are trained")

    PartialState().wait_for_everyone()  # every process has seen the folder empty before one writes into it
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
        run.write_config({**asdict(options), **as_yaml(config, settings)})
        run.write_run(_record(corpora, {name: len(read) for name, read in files.items()}, digest))
    checkpoint = run.last_checkpoint() if resume else None
    if main and resume:
        say(f"resuming from {checkpoint}" if checkpoint else f"{run.path} has no checkpoint yet: from the beginning")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(run.model))
    if main:
        say(f"saved the {'student' if options.lora_rank is None else 'adapters'} in {run.model}")
    return trainer


def _models(
    options: RunOptions, config: SADConfig, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> tuple[PreTrainedModel | None, PreTrainedModel]:
    """Teacher, if there is one, and student, loaded, checked against the tokenizer and announced."""
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
        say(f"{name}: {type(model).__name__}, {model.num_parameters():,} parameters, {dtype}")
    return loaded.get("teacher"), loaded["student"]


def _record(corpora: dict[str, EncodedCorpus], read: dict[str, int], digest: str) -> dict[str, Any]:
    """What `run.json` says: versions, and how many trajectories of each file were read, used, cut, or had nothing."""
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
