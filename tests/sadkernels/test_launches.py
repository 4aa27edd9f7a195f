"""The launches of a call on a GPU: PyTorch's operators and Triton's kernels that the op starts, counted on a CPU."""

from __future__ import annotations

import collections
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sadkernels.divergence import DivergenceConfig
from sadkernels.ops import linear_span_kl, span_kl
from sadkernels.ops.row_weights import LossOptions
from sadkernels.tokens import Tokens
from sadkernels.triton.launch import Launch
from tests.sadkernels.test_linear_on_gpus import gpu  # noqa: F401

B, T, V, H = 2, 24, 64, 16
NO_LAUNCH = {"as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "narrow"}
NO_LAUNCH |= {"new_empty", "new_empty_strided"}
NO_LAUNCH |= {"permute", "select", "slice", "split", "squeeze", "t", "unbind", "unsqueeze", "view", "_unsafe_view", "alias"}
TWO_LAUNCHES = {"constant_pad_nd", "nonzero"}


class Counter(TorchDispatchMode):
    """Counts launches by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names: collections.Counter[str] = collections.Counter()
        run = Launch.run

        def counted(launch: Launch, device: torch.device) -> None:
            self.names[launch.kernel.__name__] += 1
            with _disable_current_modes():  # the interpreter copies tensors
                run(launch, device)

        monkeypatch.setattr(Launch, "run", counted)

    def __torch_dispatch__(self, function, types_, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name not in NO_LAUNCH:
            self.names[name] += 1 + (name in TWO_LAUNCHES)
        return function(*args, **(kwargs or {}))


def tokens(normalizer: bool) -> Tokens:
    ids = (torch.arange(B * T) % 3).view(B, T)
    return Tokens(ids, normalizer=torch.tensor(7.0, dtype=torch.float64).expand(3) if normalizer else None)


def loss_options(reduction: str = "mean", stats: bool = True) -> LossOptions:
    return LossOptions(1.0, 0.5, 0.0, reduction, True, stats, False, "triton")


@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("normalizer", [False, True])
def test_a_call_on_logits(monkeypatch, stats, reduction, normalizer):
    o = span_kl.Options(loss_options(reduction, stats), DivergenceConfig(V), "")
    student, teacher = torch.randn(2, B, T, V).bfloat16()
    x = span_kl.Inputs(student, teacher, tokens(normalizer and reduction == "mean"))
    with Counter(monkeypatch) as counter:
        if reduction == "none":
            span_kl.OP.forward(x, o)
        else:
            span_kl.OP.forward_backward(x, o, [True])
    assert counter.names["span_kl_kernel"] == 2, "ordinary and deferred rows"
    assert 4 <= counter.names.total() <= 7, counter.names


def test_a_chunk(monkeypatch, gpu):  # noqa: F811
    """The difference between four chunks and one, per chunk; the products of `gpu` are one launch each."""
    monkeypatch.setattr("sadkernels.ops.chunked.GPU_ROW_MULTIPLE", 1)
    config, totals = DivergenceConfig(V), []
    head, hidden = torch.randn(V, H).bfloat16(), torch.randn(B, T, H).bfloat16()
    for chunk_bytes in (None, 8 * V * 10):
        o = linear_span_kl.Options(loss_options(), config, chunk_bytes)
        x = linear_span_kl.Inputs(hidden, head, None, hidden, head, None, tokens(True), None)
        gpu.calls.clear()
        with monkeypatch.context() as patch, Counter(patch) as counter:
            patch.setattr(gpu, "mm", uncounted(gpu.mm))
            patch.setattr(gpu, "addmm", uncounted(gpu.addmm))
            linear_span_kl.OP.forward_backward(x, o, [True, True, False])
        totals.append((counter.names + collections.Counter(gpu.calls), gpu.calls.count("addmm") + 1))
    (one, chunks_of_one), (many, chunks) = totals
    assert chunks_of_one == 1 and chunks > 2
    assert (many.total() - one.total()) / (chunks - 1) <= 12, many - one


def uncounted(function) -> types.FunctionType:
    def call(*args, **kwargs):
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call
