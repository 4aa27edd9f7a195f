"""The inputs of all attacks, made once, and the results of undisturbed commands."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from sad import files
from sad.trajectories.trajectory import write_jsonl
from tests.sad.training import tiny
from tests.soak.commands import sad

STEPS = 6


class Task(NamedTuple):
    """A command that writes files and can be continued.

    Attributes:
        name: `train`, `cached` (a training from a cache), `cache`, `collect`, `eval` or `inspect`.
        words: The arguments; OUT stands for the output path.
        resume: Arguments that continue it; None if the command is repeated as it is.
        out: Name of the output.
    """

    name: str
    words: tuple[str, ...]
    resume: tuple[str, ...] | None
    out: str

    def start(self, out: Path) -> list[str]:
        return [str(out) if word == "OUT" else word for word in self.words]

    def again(self, out: Path) -> list[str]:
        return [str(out) if word == "OUT" else word for word in (self.words if self.resume is None else self.resume)]

    def result(self, out: Path) -> bytes:
        """Returns the bytes of the result without what may differ between runs."""
        if self.name in ("train", "cached"):
            return (out / "model" / "model.safetensors").read_bytes()
        if self.name == "cache":
            return repr(_cache_rows(out)).encode()
        return re.sub(rb'"(seconds|resumed_episodes)": [\d.e-]+', b"", out.read_bytes())

    def begun(self, out: Path) -> bool:
        """Whether `again` continues the command. A run that has not written its config is not a run yet."""
        return (out / "config.yaml").is_file() if self.name in ("train", "cached") else True

    def finished(self, out: Path) -> bool:
        """Whether the output exists, so that a repeated command would be refused."""
        return (out / "model").exists() if self.name in ("train", "cached") else out.exists() and self.name != "cache"


class Inputs:
    """Models, trajectories, a cache and finished runs.

    Args:
        folder: An empty folder.

    Attributes:
        tasks: The commands by name.
        expected: Their results by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, seed, sharpness in (("teacher", 1, 30.0), ("student", 2, 1.0)):
            tiny.model(seed=seed, sharpness=sharpness).save_pretrained(folder / name)
            tiny.tokenizer().save_pretrained(folder / name)
            files.share_files(folder / name)
        write_jsonl(folder / "data.jsonl", tiny.trajectories(8))
        data, teacher, student, cache = (str(folder / x) for x in ("data.jsonl", "teacher", "student", "cache"))
        fast = ["--use-cpu", "--max-length", "96"]
        fields = ["--disable-tqdm", "true", "--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "1"]
        fields += ["--max-steps", str(STEPS), "--learning-rate", "1e-2", "--logging-steps", "2", "--save-strategy", "steps"]
        fields += ["--save-steps", "2", "--save-total-limit", "2", "--report-to", "none"]
        train = ["train", "--student", student, "--data", data, *fast, *fields, "--out", "OUT"]
        env = ["--env", "household", "--option", "size=small", "--tasks", "3", "--max-steps", "2", "--max-turn-tokens", "6"]
        play = ["--model", student, *env, "--batch-size", "2", "--prompt", "none"]
        again = ("train", "--resume", "--out", "OUT")
        tasks = (
            Task(
                "cache",
                ("cache", "--teacher", teacher, "--data", data, *fast, "--top-k", "8", "--out", "OUT"),
                None,
                "cache",
            ),
            Task("train", (*train, "--teacher", teacher), again, "run"),
            Task("cached", (*train, "--teacher-cache", cache), again, "cached"),
            Task(
                "collect", ("collect", *play, "--out", "OUT"), ("collect", *play, "--resume", "--out", "OUT"), "played.jsonl"
            ),
            Task("eval", ("eval", *play, "--out", "OUT"), ("eval", *play, "--resume", "--out", "OUT"), "eval.json"),
            Task("inspect", ("inspect", data, "--tokenizer", student, "--html", "OUT"), None, "page.html"),
        )
        self.tasks = {task.name: task for task in tasks}
        self.expected: dict[str, bytes] = {}
        for task in tasks:
            sad(*task.start(folder / task.out), log=folder / "log").check(0)
            self.expected[task.name] = task.result(folder / task.out)

    def half_done(self, name: str, out: Path) -> None:
        """Writes what an interrupted command has left."""
        made = self.folder / self.tasks[name].out
        if name == "collect":
            from sad.agents.resumable import ResumableFile
            from sad.trajectories.read import read_jsonl

            settings = out.with_name(f"{out.name}.settings.json")
            shutil.copy(made.with_name(f"{made.name}.settings.json"), settings)
            import json

            file = ResumableFile(out, json.loads(settings.read_text()))
            for trajectory in read_jsonl(made)[:2]:
                file.add(trajectory)
            file.close()
            return
        shutil.copytree(made, out)
        if name in ("train", "cached"):
            shutil.rmtree(out / "model")
            shutil.rmtree(out / f"checkpoint-{STEPS}")


def _cache_rows(path: Path) -> list[str]:
    """Returns the rows of a cache, rounded, because the batches of a continued run have other shapes."""
    from sad.teacher_cache.storage import CacheFolder, read_header, read_index, read_rows

    folder, found = CacheFolder(path), []
    for shard in read_index(folder).shards:
        header, first = read_header(folder, shard.name, shard.size), 0
        for entry in shard.entries:
            rows = read_rows(folder, shard.name, header, first, entry)
            first += entry.rows
            found.append(f"{entry.digest} {rows.ids[:, 0].tolist()} {rows.entropy.round(2).tolist()}")
    return sorted(found)


def set_up_process() -> None:
    """Prepares this process for forks: one thread, no progress of libraries, everything imported."""
    import warnings

    import torch
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    import sad.cli.agents
    import sad.cli.main
    import sad.teacher_cache.make
    import sad.training.run  # noqa: F401
