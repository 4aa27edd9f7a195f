"""The tokenizer and the optimizer of models from random weights."""

from __future__ import annotations

import torch

from sad.scratch.models import train_tokenizer
from sad.scratch.muon import orthogonalize

TEXTS = [f"You see mug {k}.\nReasoning: I need mug {k}.\nAction: take mug {k}\n" for k in range(24)]


def test_tokenizer_is_lossless_with_exact_offsets() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    for text in [*TEXTS[:3], "never seen: ünïcode, \t tabs — and “quotes”\n"]:
        encoding = tokenizer(text, return_offsets_mapping=True)
        assert tokenizer.decode(encoding["input_ids"], clean_up_tokenization_spaces=False) == text
    pieces = [TEXTS[0][start:end] for start, end in tokenizer(TEXTS[0], return_offsets_mapping=True)["offset_mapping"]]
    assert "".join(pieces) == TEXTS[0]


def test_orthogonal_updates_keep_the_singular_vectors() -> None:
    for shape in ((3, 24, 24), (2, 48, 16), (2, 16, 48)):
        matrices = torch.randn(shape)
        result = orthogonalize(matrices)
        values = torch.linalg.svdvals(result)
        assert values.max() < 1.25 and values.median() > 0.6
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        core = u.mT @ result @ vh.mT  # diagonal in the basis of the input
        assert (core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3
