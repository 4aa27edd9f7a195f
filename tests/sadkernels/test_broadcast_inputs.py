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
DIMS = [(None, 0), (None, 1), (None, 2), (0, None), (1, None), (0, 1), (2, 0)]  # of student and teacher
CASES = [
    ((FP32, FP32), {"divergence": "forward_kl"}),
    ((BF16, BF16), {"divergence": "forward_kl", "reduction": "none"}),
    ((FP16, BF16), {"divergence": "jsd", "beta": 0.3}),
    ((BF16, FP32), {"divergence": "reverse_kl"}),
    ((FP32, BF16), {"divergence": "jsd", "beta": 0.3, "reduction": "none"}),
]


def broadcast(dim: int, dtype: torch.dtype, vocab: int = VOCAB) -> Tensor:
    """Returns (2, 3, V) logits in which a leading dimension has stride 0, or the first two dimensions for `dim` 2."""
    shape = [(1, 3), (2, 1), (1, 1)][dim]
    return logits(shape[0] * shape[1], vocab, dtype).view(*shape, vocab).expand(2, 3, vocab)


def whole(dtype: torch.dtype, vocab: int = VOCAB) -> Tensor:
    return logits(6, vocab, dtype).view(2, 3, vocab)


@pytest.mark.parametrize("dtypes, options", CASES, ids=str)
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_span_kl(backend, dims, dtypes, options):
    student, teacher = (whole(dtype) if dim is None else broadcast(dim, dtype) for dim, dtype in zip(dims, dtypes))
    operand = 10.0 if options["divergence"] == "reverse_kl" else 0.5
    got = run(student, teacher, IDS, backend, **options)
    assert_close_to_truth(got, truth(student, teacher, IDS, **options), dtypes[0], operand)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("k", [0, 4])
def test_topk_span_kl_and_span_ce(backend, k, dtype, reduction):
    for dim in (0, 2):
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
