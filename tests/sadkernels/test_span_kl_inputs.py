"""Inputs of the span KL: strides, id dtypes, uninitialized memory, large offsets, error messages."""

from __future__ import annotations

import math

import pytest
import torch

import sad
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, output, run, truth

IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2, -100])


def _strided(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns student, teacher and ids of 8 rows that are not contiguous in memory."""
    ids = IDS
    if name == "odd row stride":
        return logits(8, 70)[:, 1:68], logits(8, 71)[:, 2:69], ids
    if name == "sliced time":  # (2, 4) rows of (2, 5): two strides
        return logits(10, 67).view(2, 5, 67)[:, :-1], logits(10, 67).view(2, 5, 67)[:, 1:], ids.view(2, 4)
    if name == "transposed leading dimensions":
        return logits(8, 67).view(4, 2, 67).transpose(0, 1), logits(8, 67).view(2, 4, 67), ids.view(2, 4)
    if name == "teacher expanded":
        return logits(8, 67), logits(1, 67).expand(8, 67), ids
    if name == "three strides":  # more strides than the kernels support: copied
        return logits(24, 67).view(2, 3, 4, 67)[:, :2, :2], logits(8, 67).view(2, 2, 2, 67), ids.view(2, 2, 2)
    return torch.rand(4, 1), torch.rand(4, 1), torch.tensor([0, 1, 2, 1])  # one column


@pytest.mark.parametrize(
    "name",
    ["odd row stride", "sliced time", "transposed leading dimensions", "teacher expanded", "three strides", "one column"],
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_strides(backend, name, reduction):
    student, teacher, ids = _strided(name)
    got = run(student, teacher, ids, backend, reduction=reduction)
    assert_close_to_truth(got, truth(student, teacher, ids, reduction=reduction), torch.float32)


@pytest.mark.parametrize("name", ["odd row stride", "sliced time", "transposed leading dimensions"])
def test_in_place_on_a_view_writes_only_the_view(backend, name):
    student, teacher, ids = (x.to(backend.device) for x in _strided(name))
    storage = torch.full((4096,), 7.0, device=backend.device)
    view = storage.as_strided(student.shape, [s + 3 * (s > 1) for s in student.stride()], 5)  # gaps between the rows
    view.copy_(student)
    inside = torch.zeros_like(storage, dtype=torch.bool)
    inside.as_strided(view.shape, view.stride(), 5).fill_(True)
    expected = truth(student.cpu(), teacher.cpu(), ids.cpu())
    _, student = output(view)
    loss = sad.fused_span_kl(student, teacher, ids, backend=backend.name, inplace_backward=True)
    loss.backward()
    assert_close_to_truth((loss.detach().cpu(), view.cpu()), expected, torch.float32)
    assert (storage[~inside] == 7.0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_id_dtypes(backend, dtype):
    student, teacher = logits(8, 67), logits(8, 67)
    ids = torch.tensor([0, 1, 2, 1, 0, 2, 2, 77]).to(dtype)
    got, expected = (run(student, teacher, i, backend) for i in (ids, IDS))
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_uninitialized_memory_does_not_show(backend, reduction):
    """PyTorch fills every new buffer with NaN here, so an element that the kernel does not write is visible."""
    student, teacher = logits(8, 513), logits(8, 500)
    expected = run(student, teacher, IDS, backend, reduction=reduction)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(4).isnan().all()
        got = run(student, teacher, IDS, backend, reduction=reduction)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("inplace", [False, True])
def test_row_offsets_beyond_32_bits(backend, inplace):
    """The last row starts at element 2^31 + 2^20. The system does not commit the untouched pages in between."""
    row_stride, vocab = 2**30 + 2**19, 300
    if backend.device.type == "cuda" and torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GB of GPU memory")
    student, teacher = logits(3, vocab, torch.bfloat16), logits(3, vocab, torch.bfloat16)
    far = [torch.empty(2 * row_stride + vocab, dtype=torch.bfloat16, device=backend.device) for _ in range(2)]
    far = [storage.as_strided((3, vocab), (row_stride, 1)) for storage in far]
    for view, values in zip(far, (student, teacher)):
        view.copy_(values)
    ids = torch.tensor([1, 0, 2], device=backend.device)
    leaf, far_logits = output(far[0])
    loss = sad.fused_span_kl(far_logits, far[1], ids, backend=backend.name, inplace_backward=inplace)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert_close_to_truth((loss.detach().cpu(), grad.cpu()), truth(student, teacher, ids.cpu()), torch.bfloat16)


BAD = {
    "student_logits: a tensor": (TypeError, {"student_logits": [[1.0]]}),
    "student_logits: float32": (TypeError, {"student_logits": torch.ones(8, 5, dtype=torch.int64)}),
    "student_logits: unit stride": (ValueError, {"student_logits": torch.ones(5, 8).T}),
    "student_logits: V >= 1": (ValueError, {"student_logits": torch.ones(8, 0)}),
    "teacher_logits: student's shape": (ValueError, {"teacher_logits": torch.ones(7, 5)}),
    "teacher_logits: .detach()": (ValueError, {"teacher_logits": torch.ones(8, 5).requires_grad_()}),
    "teacher_logits: device": (ValueError, {"teacher_logits": torch.ones(8, 5, device="meta")}),
    "span_ids: shape (8,)": (ValueError, {"span_ids": torch.ones(7, dtype=torch.long)}),
    "span_ids: span_ids_from_masks": (TypeError, {"span_ids": torch.ones(8, dtype=torch.bool)}),
    "span_ids: integer dtype": (TypeError, {"span_ids": torch.ones(8)}),
    "temperature: > 0": (ValueError, {"temperature": 0}),
    "temperature: a number": (TypeError, {"temperature": "1"}),
    "lambda_reason: >= 0": (ValueError, {"lambda_reason": -1.0}),
    "lambda_act: finite": (ValueError, {"lambda_act": math.nan}),
    "reduction: 'span_mean'": (ValueError, {"reduction": "batchmean"}),
    "divergence: 'forward_kl'": (ValueError, {"divergence": "kl"}),
    "beta: 0 < beta < 1": (ValueError, {"beta": 1.0}),
    "beta: 'forward_kl'": (ValueError, {"beta": 0, "divergence": "jsd"}),
    "logit_scale: > 0": (ValueError, {"logit_scale": 0.0}),
    "logit_scale: a pair (student, teacher)": (ValueError, {"logit_scale": (1.0, None)}),
    "logit_softcap: a pair": (ValueError, {"logit_softcap": (1.0, 2.0, 3.0)}),
    "logit_softcap: a number": (TypeError, {"logit_softcap": "30"}),
    "process_group: a ProcessGroup": (TypeError, {"process_group": 2}),
    "normalizer: 'mean'": (ValueError, {"normalizer": 3, "reduction": "sum"}),
    "normalizer: two numbers": (ValueError, {"normalizer": 3, "reduction": "span_mean"}),
    "normalizer: a number": (ValueError, {"normalizer": torch.ones(3)}),
    "vocab_size: 1 to 5": (ValueError, {"vocab_size": 6}),
    "vocab_size: an int": (TypeError, {"vocab_size": 5.0}),
    "backend: 'triton'": (ValueError, {"backend": "metal"}),
    "inplace_backward: .contiguous()": (
        ValueError,
        {"student_logits": torch.ones(1, 5).requires_grad_().mul(1).expand(8, 5), "inplace_backward": True},
    ),
    "shift: (..., T, V)": (
        ValueError,
        {"student_logits": torch.ones(5), "teacher_logits": torch.ones(5), "span_ids": torch.tensor(1), "shift": True},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_argument_and_the_remedy(case):
    argument, expected = case.split(": ", 1)
    error, change = BAD[case]
    arguments = {"student_logits": torch.ones(8, 5), "teacher_logits": torch.ones(8, 5), "span_ids": IDS} | change
    with pytest.raises(error) as caught:
        sad.fused_span_kl(**arguments)
    message = str(caught.value)
    assert (
        message.startswith(f"{argument}: expected ")
        and expected in message
        and ", got " in message
        and message.endswith(".")
    )


def test_span_ids_from_masks():
    reason, act = torch.tensor([[1, 0, 0], [0, 1, 0]]), torch.tensor([[False, True, False], [False, False, True]])
    ids = sad.span_ids_from_masks(reason, act)
    assert ids.dtype == torch.uint8 and ids.tolist() == [[1, 2, 0], [0, 1, 2]]
    with pytest.raises(ValueError, match="act_mask: expected no token that is also in reason_mask, got 1 such"):
        sad.span_ids_from_masks(reason, reason * torch.tensor([1, 1, 0]) * torch.tensor([[1], [0]]))
    with pytest.raises(ValueError, match="act_mask: expected shape"):
        sad.span_ids_from_masks(reason, act[0])
    with pytest.raises(ValueError, match="reason_mask: expected only 0 and 1"):
        sad.span_ids_from_masks(reason * 2, act)
    with pytest.raises(TypeError, match="act_mask: expected a bool or integer tensor"):
        sad.span_ids_from_masks(reason, act.float())
