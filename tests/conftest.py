"""Shared fixtures. Triton kernels run in its interpreter where there is no GPU, which Triton must know when imported."""

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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real trajectories, games and tokenizers beside the check-out."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real trajectories are not beside this check-out (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared_data: Path):
    """GPT-2's byte-level BPE with offsets."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random tensors in every test, whatever ran before."""
    torch.manual_seed(0)
