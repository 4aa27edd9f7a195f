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


# The files that take longest, in this order. They come first, so that all workers end at the same time.
SLOW_FILES = (
    "cuda/test_sanitizers.py",
    "cuda/test_build.py",
    "sadkernels/test_numerics_edges.py",
    "fuzz/test_fuzz.py",
    "soak/test_soak.py",
    "study/test_cells.py",
    "triton/test_compiled.py",
    "tests/test_docs.py",
    "sadkernels/test_topk_span_kl.py",
    "sadkernels/test_span_kl.py",
    "sadkernels/test_span_kl_autograd.py",
    "training/test_distributed.py",
    "training/test_trainer.py",
    "training/test_losses.py",
    "training/test_observations.py",
    "cli/test_train.py",
    "cli/test_reliability.py",
    "planner/test_plan.py",
    "planner/test_check_plan.py",
    "training/test_distributed_sharded.py",
    "trajectories/test_cases.py",
    "training/test_reliability.py",
    "on_policy/test_rollouts.py",
    "tests/test_site.py",
)


def _position(item: pytest.Item) -> int:
    name = f"{item.path.parent.name}/{item.path.name}"
    return SLOW_FILES.index(name) if name in SLOW_FILES else len(SLOW_FILES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_position)


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
