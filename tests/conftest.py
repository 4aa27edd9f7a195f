"""Shared fixtures. Without a GPU, Triton kernels run in the interpreter; Triton reads this setting when it is imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


# First, so that no worker is left with one at the end.
SLOW_FILES = ("test_sanitizers.py", "test_build.py", "test_fuzz.py", "test_soak.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in SLOW_FILES)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded trajectories, games and tokenizers next to the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no recorded trajectories next to the repository (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared_data: Path):
    """The fast tokenizer of GPT-2, a byte-level BPE."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seeds PyTorch, so that a test gets the same random tensors in any order of tests."""
    torch.manual_seed(0)
