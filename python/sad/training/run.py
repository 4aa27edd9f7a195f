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
from sad.errors import InputError
from sad.training import difficulty, prepare
from sad.training.config import SADConfig
from sad.training.run_folder import MetricsWriter, RunFolder
from sad.training.settings import as_yaml, make_config
from sad.training.trainer import SADTrainer
from sad.trajectories.encode import EncodedCorpus, encode_all
from sad.trajectories.trajectory import read_jsonl

_PROBES = 8  # trajectories on which the two tokenizers must agree


@dataclass
class RunOptions:
    """What a run needs besides `SADConfig`.

    Args:
        teacher: Folder of the teacher.
        student: Folder of the student.
        data: File of trajectories.
        eval_data: File of trajectories to evaluate on.
        format: How they are written, where the file does not say.
        from_config: Give the student random weights.
        teacher_dtype: A name in `prepare.DTYPES`.
        student_dtype: Likewise. AdamW at small learning rates loses its updates in 16 bits: use `bf16` of `SADConfig`
            for speed, not this.

    Raises:
        InputError: A path is missing or a value is of the wrong type.
    """

    teacher: str
    student: str
    data: str
    eval_data: str | None = None
    format: str | None = None
    from_config: bool = False
    teacher_dtype: str = "auto"
    student_dtype: str = "float32"

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.name in ("teacher", "student", "data"):
                remedy = f"Give --{item.name}, or `{item.name}:` in the file of --config."
                raise InputError(item.name, "a path", "nothing", remedy)
            kind, name = (bool, "true or false") if item.name == "from_config" else (str, "a string")
            if value is not None and not isinstance(value, kind):
                raise InputError(item.name, name, repr(value), "Mend the value.")
        for name in ("teacher_dtype", "student_dtype"):
            prepare.check_dtype(name, getattr(self, name))


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
    for name in ("teacher", "student"):
        prepare.check_model_dir(name, getattr(options, name))
    config = make_config(settings, out)
    main = config.process_index == 0
    files = {name: read_jsonl(path) for name in ("data", "eval_data") if (path := getattr(options, name)) is not None}
    probes = [trajectory.text for trajectory in files["data"] if trajectory.text][:_PROBES]
    tokenizer = prepare.shared_tokenizer(
        *(prepare.load_tokenizer(name, getattr(options, name)) for name in ("teacher", "student")), probes
    )
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

    PartialState().wait_for_everyone()  # every process has seen the folder empty before one writes into it
    trainer = SADTrainer(
        student,
        teacher,
        config,
        train_dataset=corpora["data"].examples,
        eval_dataset=corpora["eval_data"].examples if "eval_data" in corpora else None,
        processing_class=tokenizer,
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
        say(f"saved the student in {run.model}")
    return trainer


def _models(
    options: RunOptions, config: SADConfig, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Teacher and student, loaded, checked against the tokenizer and announced."""
    models = (
        prepare.load_model("teacher", options.teacher, dtype=options.teacher_dtype),
        prepare.load_model(
            "student", options.student, dtype=options.student_dtype, from_config=options.from_config, seed=config.seed
        ),
    )
    for name, model in zip(("teacher", "student"), models):
        prepare.check_fits(name, model, tokenizer, config.max_length)
        dtype = str(model.dtype).removeprefix("torch.")
        say(f"{name}: {type(model).__name__}, {model.num_parameters():,} parameters, {dtype}")
    return models


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
