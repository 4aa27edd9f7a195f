"""Inputs with a broadcast dimension, whose stride is 0. A wrong alignment stops the emulation of CUDA."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sad
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, run, truth

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
VOCAB = 15  # rows of 3 x 15 elements start at every distance from a multiple of 16 bytes
IDS = torch.tensor([[1, 2, 1], [2, 0, 2]])
DIVERGENCES = [{"divergence": "forward_kl"}, {"divergence": "reverse_kl"}, {"divergence": "jsd", "beta": 0.3}]


def broadcast(dim: int, dtype: torch.dtype, vocab: int = VOCAB) -> Tensor:
    """Returns (2, 3, V) logits in which a leading dimension has stride 0, or the first two dimensions for `dim` 2."""
    shape = [(1, 3), (2, 1), (1, 1)][dim]
    return logits(shape[0] * shape[1], vocab, dtype).view(*shape, vocab).expand(2, 3, vocab)


def whole(dtype: torch.dtype, vocab: int = VOCAB) -> Tensor:
    return logits(6, vocab, dtype).view(2, 3, vocab)


@pytest.mark.parametrize("options", DIVERGENCES, ids=lambda x: x["divergence"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtypes", [(BF16, BF16), (FP32, FP32), (FP16, BF16), (BF16, FP32), (FP32, BF16)], ids=str)
@pytest.mark.parametrize("sides", ["teacher", "student", "both"])
def test_span_kl(backend, sides, dtypes, reduction, options):
    """The dimension that is broadcast differs from case to case."""
    for dim in (0, 1, 2):
        student = whole(dtypes[0]) if sides == "teacher" else broadcast(dim, dtypes[0])
        teacher = (
            whole(dtypes[1]) if sides == "student" else broadcast(dim if sides == "teacher" else 1 - dim // 2, dtypes[1])
        )
        case = {"reduction": reduction, **options}
        got = run(student, teacher, IDS, backend, **case)
        operand = 10.0 if options["divergence"] == "reverse_kl" else 0.5
        assert_close_to_truth(got, truth(student, teacher, IDS, **case), dtypes[0], operand)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("k", [0, 4])
def test_topk_span_kl_and_span_ce(backend, k, dtype, reduction):
    for dim in (0, 1, 2):
        student, labels = broadcast(dim, dtype), torch.arange(6).view(2, 3)
        logprobs, ids = whole(FP32).log_softmax(-1).topk(4)
        expanded = {"teacher_logprobs": logprobs[:1].expand(2, 3, 4), "teacher_ids": ids[:1].expand(2, 3, 4)}
        common = {"target_ids": labels, "span_ids": IDS, "reduction": reduction}
        results = []
        for name, device, student_dtype in (
            (backend.name, backend.device, dtype),
            ("reference", torch.device("cpu"), torch.float64),
        ):
            leaf = student.to(student_dtype).to(device).detach().requires_grad_()
            moved = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in (common | expanded).items()}
            if k == 0:
                loss = sad.fused_span_ce(leaf, **{key: moved[key] for key in common}, backend=name)
            else:
                loss = sad.fused_topk_span_kl(leaf, **moved, alpha=0.5, backend=name)
            loss.sum().backward()
            results.append((loss.detach().cpu(), leaf.grad.cpu()))
        assert_close_to_truth(*results, dtype)


@pytest.mark.parametrize("vocab", [VOCAB, 16, 1030])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_the_broadcast_tensor_receives_the_sum_of_the_gradients(backend, dtype, vocab):
    """The leaf is the tensor before `expand`, at an odd address. Autograd adds two rounded gradients."""
    memory, teacher = logits(1, 3 * vocab + 1, dtype)[0], whole(dtype, vocab)
    grads = []
    for name, device, d in ((backend.name, backend.device, dtype), ("reference", torch.device("cpu"), torch.float64)):
        leaf = memory.detach().to(device, d, copy=True).requires_grad_()
        student = leaf[1:].view(1, 3, vocab).expand(2, 3, vocab)
        sad.fused_span_kl(student, teacher.to(d).to(device), IDS.to(device), backend=name).backward()
        grads.append(leaf.grad.double().cpu())
    atol = (torch.finfo(dtype).eps + 1e-6) * grads[1].abs().max().item()
    torch.testing.assert_close(*grads, rtol=torch.finfo(dtype).eps + 5e-6, atol=atol)
