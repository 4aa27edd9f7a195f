"""Every Python example of the README and the docs runs, in the order of its page."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sad
from sad.envs import registry
from sad.trajectories import formats
from sad.trajectories.sources import base

from .sad.training import tiny

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [path for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))] if _BLOCK.search(path.read_text())]
# Text in an example -> why this test does not run it.
NOT_RUN = {
    "alfworld-official": "needs the official engine",
    'make("alfworld"': "needs the game files",
    '"webshop"': "needs the catalog; tests/sad/envs/test_webshop_real.py runs it",
    'make("hotpotqa"': "needs the questions; tests/sad/envs/test_hotpotqa_real.py runs it",
    "import spacy": "needs spaCy",
    "DistributedConfig": "needs two processes; tests/sad/training/tensor_parallel_worker.py runs it",
    "torch.distributed.group": "needs several processes",
    ".gguf": "needs the file; tests/sad/test_gguf.py runs it",
    "EnvRollouts": "needs a model with a longer context; tests/sad/on_policy runs it",
    "SpanDistillationTrainer": "generates with TRL; tests/sad/integrations/test_trl.py runs it",
}
# Sizes of an example that a test can afford.
SMALLER = {"8, 512, 50257": "2, 16, 101", "(8, 512)": "(2, 16)", "max_steps=1000, bf16=True": "max_steps=2, use_cpu=True"}
SMALLER |= {'SFTConfig(output_dir="out")': 'SFTConfig(output_dir="out", max_steps=1, use_cpu=True, report_to="none")'}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the models and trajectories that the examples name."""
    folder = tmp_path_factory.mktemp("docs")
    tokenizer = tiny.tokenizer()
    for name in ("models/student", "models/teacher", "demo-run/teacher"):
        tiny.model(vocabulary=len(tokenizer)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    text = "You see a fridge.\nReasoning: It may be inside.\nAction: open fridge\nThe fridge is open.\n"
    trajectories = [sad.Trajectory(f"kitchen-{number}", text, format="sad") for number in range(4)]
    for name in ("trajectories.jsonl", "logs.jsonl", "logs/one.jsonl"):
        sad.write_jsonl(folder / name, trajectories)
    return folder


@pytest.fixture
def prepared(folder: Path, monkeypatch) -> dict[str, Any]:
    """The objects that a page takes as given. The working folder is `folder`. What an example registers is forgotten."""
    import transformers

    monkeypatch.chdir(folder)
    for module, name in ((formats, "_FORMATS"), (base, "_SOURCES"), (registry, "_ENVS")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    tokenizer = tiny.tokenizer()
    student, teacher = (tiny.model(vocabulary=len(tokenizer), seed=seed) for seed in (0, 1))
    load = transformers.AutoTokenizer.from_pretrained
    local = lambda name, *args, **kwargs: load("models/student" if name == "gpt2" else name, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", local)
    monkeypatch.setattr(sad, "encode_all", _without_format(sad.encode_all))
    config = sad.SADConfig(output_dir="out", max_steps=1, use_cpu=True, report_to="none")
    corpus = sad.encode_all(sad.read_trajectories("trajectories.jsonl"), tokenizer)
    return {
        "sad": sad,
        "torch": torch,
        "AutoModelForCausalLM": transformers.AutoModelForCausalLM,
        "tokenizer": tokenizer,
        "model": student,
        "student": student,
        "teacher": teacher,
        "config": config,
        "corpus": corpus,
        "example": corpus.examples[0],
    }


def _without_format(encode_all: Any) -> Any:
    """The trajectories of this test are of one format, those of the examples of several."""
    return lambda *args, **kwargs: encode_all(*args, **{key: value for key, value in kwargs.items() if key != "format"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path, prepared: dict[str, Any], capsys) -> None:
    blocks = _BLOCK.findall(page.read_text())
    ran = 0
    for number, block in enumerate(blocks):
        if any(text in block for text in NOT_RUN):
            continue
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        exec(compile(block, f"{page.name}, example {number + 1}", "exec"), prepared)
        ran += 1
    if not ran:
        pytest.skip("; ".join(why for text, why in NOT_RUN.items() if any(text in block for block in blocks)))
    assert os.getcwd() != str(ROOT)


def test_no_reason_is_left_over() -> None:
    blocks = [block for page in PAGES for block in _BLOCK.findall(page.read_text())]
    for text in (*NOT_RUN, *SMALLER):
        assert any(text in block for block in blocks), f"no example has {text!r} any more"
