"""The top-k KL and the cross-entropy in autograd; their inputs and error messages."""

from __future__ import annotations

import math

import pytest
import torch
import torch._dynamo.testing

import sad
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, output
from tests.sadkernels.topk_cases import IDS, case, run, truth

TOPK, CE = sad.fused_topk_span_kl, sad.fused_span_ce
REDUCTIONS = ("mean", "none")  # gradient in the forward, gradient in the backward
TARGETS = torch.tensor([3, 0, 49, 7, 7, 12, 1, 30])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_in_place_gives_the_same_bits_in_the_logits_memory(backend, reduction, dtype):
    student, logprobs, ids = case(8, 203, 11, dtype)
    options = {"reduction": reduction, "target_ids": TARGETS.to(backend.device), "alpha": 0.5}
    expected = run(TOPK, student, (logprobs, ids, IDS), backend, 0.5, **options)
    leaf, output_ = output(student.to(backend.device))
    tensors = (x.to(backend.device) for x in (logprobs, ids, IDS))
    loss = TOPK(output_, *tensors, backend=backend.name, inplace_backward=True, **options)
    loss.backward(torch.full_like(loss, 0.5), retain_graph=True)
    assert torch.equal(loss.detach().cpu(), expected[0]) and torch.equal(leaf.grad.cpu(), expected[1])
    assert torch.equal(output_.detach(), leaf.grad)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_in_place_writes_nothing_without_grad_mode(backend, reduction):
    student, logprobs, ids = (x.to(backend.device) for x in case(8, 203, 5))
    before = student.clone()
    with torch.no_grad():
        options = {"reduction": reduction, "inplace_backward": True, "backend": backend.name}
        TOPK(student.requires_grad_(), logprobs, ids, IDS.to(backend.device), **options)
    assert torch.equal(student, before)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_retained_graph_gives_every_backward_its_own_gradient(backend, reduction):
    student, logprobs, ids = (x.to(backend.device) for x in case(8, 203, 5))
    student = student.requires_grad_() * 1.0
    loss = TOPK(student, logprobs, ids, IDS.to(backend.device), backend=backend.name, reduction=reduction).sum()
    (first,) = torch.autograd.grad(loss, student, torch.tensor(3.0, device=backend.device), retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, student, torch.tensor(-1.0, device=backend.device))
    torch.testing.assert_close(second * -3, first)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "cross-entropy"])
def test_compiles_to_one_graph(backend, reduction, inplace, mixed):
    if backend.name == "triton" and backend.device.type == "cpu":
        pytest.skip("torch.compile is not used with the interpreter")
    student, logprobs, ids, span_ids, targets = (x.to(backend.device) for x in (*case(8, 203, 5), IDS, TARGETS))
    options = {"backend": backend.name, "reduction": reduction, "inplace_backward": inplace, "return_stats": True}

    def loss_of(parameter):
        if mixed:
            loss, stats = TOPK(parameter * 1.0, logprobs, ids, span_ids, target_ids=targets, alpha=0.5, **options)
        else:
            loss, stats = CE(parameter * 1.0, targets, span_ids, **options)
        return (loss * 3).sum(), stats.act.kl_sum

    torch._dynamo.reset()  # PyTorch limits the compilations of one code object
    outcomes = []
    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        parameter = student.clone().requires_grad_()
        loss, kl_sum = function(parameter)
        loss.backward()
        outcomes.append((loss.detach(), kl_sum, parameter.grad))
    for eager, compiled in zip(*outcomes):
        torch.testing.assert_close(compiled, eager)


def test_new_row_counts_do_not_recompile():
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def loss_of(student, logprobs, ids, span_ids):
        return TOPK(student, logprobs, ids, span_ids)

    for rows in (8, 13, 29):
        student, logprobs, ids = case(rows, 50, 4)
        loss_of(student.requires_grad_(), logprobs, ids, torch.ones(rows, dtype=torch.long))
    assert counter.frame_count == 1


def test_opcheck(backend):
    """Schema, fake tensors and AOT dispatch of every op."""
    student, *others = (x.to(backend.device) for x in (*case(8, 51, 5), TARGETS, IDS))
    targets = (*others, None, None, None)
    config = (51, 2.0, "forward_kl", 0.5, 0.9, 1.0, 30.0, None, "bucket")
    options, in_place = ((1.0, 0.5, 0.1, "mean", False, True, inplace, backend.name, *config) for inplace in (False, True))
    ops = torch.ops.sad
    torch.library.opcheck(ops.topk_span_kl.default, (student, *targets, *options, 0.6))
    loss, _, _, state = ops.topk_span_kl(student, *targets, *options, 0.6)
    of_backward = (*targets, state, torch.ones_like(loss))
    torch.library.opcheck(ops.topk_span_kl_backward.default, (student, *of_backward, *options, 0.6, [True]))
    torch.library.opcheck(ops.topk_span_kl_backward_.default, (student.clone(), *of_backward, *in_place, 0.6))
    torch.library.opcheck(ops.topk_span_kl_with_grad.default, (student, *targets, *options, 0.6, [True]))
    torch.library.opcheck(ops.topk_span_kl_with_grad_.default, (student.clone(), *targets, *in_place, 0.6))
    alone = (None, None, *targets[2:])
    torch.library.opcheck(ops.topk_span_kl.default, (student, *alone, *options, 0.0))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", ["odd row stride", "sliced time", "three strides"])
def test_strides(backend, layout, reduction):
    student, logprobs, ids = case(24, 70, 6)
    span_ids = torch.arange(24) % 3
    if layout == "odd row stride":
        student, logprobs, ids = student[:, 1:68], logprobs[:, ::2], ids[:, ::2] % 67
    elif layout == "sliced time":
        student, logprobs, ids, span_ids = (x.view(2, 12, *x.shape[1:])[:, :-1] for x in (student, logprobs, ids, span_ids))
    else:
        student, logprobs, ids, span_ids = (
            x.view(2, 3, 4, *x.shape[1:])[:, :2, :2] for x in (student, logprobs, ids, span_ids)
        )
    tensors = (logprobs, ids, span_ids)
    got = run(TOPK, student, tensors, backend, reduction=reduction)
    assert_close_to_truth(got, truth(TOPK, student, tensors, reduction=reduction), torch.float32)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_uninitialized_memory_does_not_show(backend, reduction):
    student, logprobs, ids = case(8, 513, 9)
    options = {"reduction": reduction, "vocab_size": 509}
    expected = run(TOPK, student, (logprobs, ids, IDS), backend, **options)
    torch.use_deterministic_algorithms(True)
    try:
        got = run(TOPK, student, (logprobs, ids, IDS), backend, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64], ids=str)
def test_target_dtypes(backend, dtype):
    student = logits(8, 300)
    got, expected = (run(CE, student, (targets, IDS), backend) for targets in (TARGETS.to(dtype), TARGETS))
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_float64_uses_the_reference():
    student, logprobs, ids = case(8, 40, 4)
    assert TOPK(student, logprobs.double(), ids, IDS).dtype == torch.float64
    assert CE(student.double(), TARGETS % 40, IDS).dtype == torch.float64


BAD = {
    "student_logits: a tensor": (TypeError, {"student_logits": 1}),
    "teacher_logprobs: student's shape": (ValueError, {"teacher_logprobs": torch.ones(7, 2)}),
    "teacher_logprobs: .detach()": (ValueError, {"teacher_logprobs": torch.ones(8, 2).requires_grad_()}),
    "teacher_logprobs: float32": (TypeError, {"teacher_logprobs": torch.ones(8, 2, dtype=torch.int64)}),
    "teacher_ids: shape (8, 2)": (ValueError, {"teacher_ids": torch.ones(8, 3, dtype=torch.int64)}),
    "teacher_ids: integer dtype": (TypeError, {"teacher_ids": torch.ones(8, 2)}),
    "target_ids: shape (8,)": (ValueError, {"target_ids": torch.ones(8, 1, dtype=torch.int64)}),
    "target_ids: alpha=1": (ValueError, {"alpha": 0.5}),
    "alpha: 0 to 1": (ValueError, {"alpha": 1.5}),
    "alpha: finite": (ValueError, {"alpha": math.nan}),
    "tail: 'bucket'": (ValueError, {"tail": "uniform"}),
    "span_ids: shape (8,)": (ValueError, {"span_ids": torch.ones(7, dtype=torch.long)}),
    "temperature: > 0": (ValueError, {"temperature": 0}),
    "reduction: 'span_mean'": (ValueError, {"reduction": "batchmean"}),
    "vocab_size: 1 to 5": (ValueError, {"vocab_size": 6}),
    "logit_softcap: > 0": (ValueError, {"logit_softcap": 0.0}),
    "backend: 'triton'": (ValueError, {"backend": "metal"}),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_names_the_argument_and_the_remedy(bad):
    argument, expected = bad.split(": ", 1)
    error, change = BAD[bad]
    arguments = {"student_logits": torch.ones(8, 5), "teacher_logprobs": -torch.ones(8, 2), "span_ids": IDS}
    arguments |= {"teacher_ids": torch.tensor([[0, 1]]).expand(8, 2)} | change
    with pytest.raises(error) as caught:
        TOPK(**arguments)
    message = str(caught.value)
    assert message.startswith(f"{argument}: expected ") and expected in message and ", got " in message
