"""The span KL in autograd: in-place gradients, retained graphs, torch.compile, custom-op rules."""

from __future__ import annotations

import sys

import pytest
import torch
import torch._dynamo.testing

import sad
from tests.processes import run_python
from tests.sadkernels.span_kl_cases import logits, output, run

IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2, -100])
REDUCTIONS = ("mean", "none")  # gradient in the forward, gradient in the backward


def leaf_and_logits(backend, rows=8, vocab=203):
    """Returns a parameter and logits computed from it."""
    parameter = logits(rows, vocab).to(backend.device).requires_grad_()
    return parameter, parameter * 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_in_place_gives_the_same_bits_in_the_logits_memory(backend, reduction, dtype):
    student, teacher = logits(8, 203, dtype), logits(8, 203, dtype)
    expected = run(student, teacher, IDS, backend, upstream=0.5, reduction=reduction)
    leaf, output_ = output(student.to(backend.device))
    loss = sad.fused_span_kl(
        output_,
        teacher.to(backend.device),
        IDS.to(backend.device),
        backend=backend.name,
        reduction=reduction,
        inplace_backward=True,
    )
    loss.backward(torch.full_like(loss, 0.5))
    assert torch.equal(loss.detach().cpu(), expected[0]) and torch.equal(leaf.grad.cpu(), expected[1])
    assert torch.equal(output_.detach(), leaf.grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_in_place_second_backward_raises(backend, reduction):
    _, student = leaf_and_logits(backend)
    ids = IDS.to(backend.device)
    loss = sad.fused_span_kl(
        student, student.detach().roll(1, 0), ids, backend=backend.name, reduction=reduction, inplace_backward=True
    ).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_raises_if_another_op_saved_the_logits(backend):
    _, student = leaf_and_logits(backend)
    other = (student * student).sum()  # saves the logits for its backward
    ids = IDS.to(backend.device)
    loss = sad.fused_span_kl(student, student.detach().roll(1, 0), ids, backend=backend.name, inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_in_place_writes_nothing_without_grad_mode(backend, reduction):
    student, teacher = logits(8, 203).to(backend.device), logits(8, 203).to(backend.device)
    before, ids = student.clone(), IDS.to(backend.device)
    sad.fused_span_kl(student, teacher, ids, backend=backend.name, reduction=reduction, inplace_backward=True)
    with torch.no_grad():
        leaf = student.requires_grad_()
        sad.fused_span_kl(leaf, teacher, ids, backend=backend.name, reduction=reduction, inplace_backward=True)
    assert torch.equal(student, before)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_retained_graph_gives_every_backward_its_own_gradient(backend, reduction):
    parameter, student = leaf_and_logits(backend)
    teacher, ids = logits(8, 203).to(backend.device), IDS.to(backend.device)
    loss = sad.fused_span_kl(student, teacher, ids, backend=backend.name, reduction=reduction).sum()
    (first,) = torch.autograd.grad(loss, student, torch.tensor(3.0, device=backend.device), retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, student, torch.tensor(-1.0, device=backend.device), retain_graph=True)
    torch.testing.assert_close(second * -3, first)
    assert torch.equal(first, kept)
    loss.backward()
    torch.testing.assert_close(parameter.grad * 3, first)


def test_accumulation_over_micro_batches_is_one_batch(backend):
    """The gradients of four micro-batches with the global count as normalizer add up to that of the whole batch."""
    weight = torch.randn(16, 101, device=backend.device).requires_grad_()
    hidden, teacher = torch.randn(8, 16, device=backend.device), logits(8, 101).to(backend.device)
    ids = torch.tensor([1, 0, 2, 2, 0, 0, 1, 2], device=backend.device)
    sad.fused_span_kl(hidden @ weight, teacher, ids, backend=backend.name).backward()
    whole, weight.grad = weight.grad, None
    for part in torch.arange(8).split(2):
        logits_of_part, count = hidden[part] @ weight, (ids > 0).sum()
        loss = sad.fused_span_kl(logits_of_part, teacher[part], ids[part], backend=backend.name, normalizer=2 * count)
        (2 * loss).backward()  # an upstream gradient other than 1
    torch.testing.assert_close(weight.grad, whole, rtol=1e-5, atol=1e-6)


def test_accumulation_does_not_copy_the_gradient():
    """The gradient of a leaf is the buffer that the kernel wrote."""
    seen = []
    student = logits(8, 203).requires_grad_()
    loss = sad.fused_span_kl(student, logits(8, 203), IDS)
    loss.grad_fn.register_hook(lambda grads, _: seen.append(grads[0].data_ptr()))
    loss.backward()
    assert seen == [student.grad.data_ptr()]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiles_to_one_graph(backend, reduction, inplace):
    if backend.name == "triton" and backend.device.type == "cpu":
        pytest.skip("torch.compile is not used with the interpreter")
    torch.compiler.reset()  # each backend compiles anew, and PyTorch stops after eight compilations
    teacher, ids = logits(8, 203).to(backend.device), IDS.to(backend.device)

    def loss_of(parameter):
        loss, stats = sad.fused_span_kl(
            parameter * 1.0,
            teacher,
            ids,
            backend=backend.name,
            reduction=reduction,
            inplace_backward=inplace,
            return_stats=True,
        )
        return (loss * 3).sum(), stats.act.kl_sum

    outcomes = []
    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        parameter = logits(8, 203).to(backend.device)
        torch.manual_seed(1)
        parameter = torch.randn_like(parameter).requires_grad_()
        loss, kl_sum = function(parameter)
        loss.backward()
        outcomes.append((loss.detach(), kl_sum, parameter.grad))
    for eager, compiled in zip(*outcomes):
        torch.testing.assert_close(compiled, eager)


def test_new_row_counts_do_not_recompile():
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def loss_of(student, teacher, ids):
        return sad.fused_span_kl(student, teacher, ids)

    for rows in (8, 13, 29):
        loss_of(logits(rows, 50).requires_grad_(), logits(rows, 50), torch.ones(rows, dtype=torch.long))
    assert counter.frame_count == 1


def _op_inputs(device, dtype=torch.float32):
    student, teacher = logits(8, 51, dtype).to(device), logits(8, 53, dtype).to(device)
    return student, teacher, IDS.to(device), None


def test_opcheck(backend):
    """Schema, fake tensors and AOT dispatch of every op."""
    student, teacher, ids, normalizer = _op_inputs(backend.device)
    config = (51, 2.0, "jsd", 0.4, 0.9, 1.1, 30.0, None, "")
    options, in_place = ((1.0, 0.5, 0.1, "mean", False, True, inplace, backend.name, *config) for inplace in (False, True))
    ops, others = torch.ops.sad, (teacher, ids, torch.rand(ids.shape, device=backend.device), None, normalizer)
    torch.library.opcheck(ops.span_kl.default, (student, *others, *options))
    loss, _, _, state = ops.span_kl(student, *others, *options)
    up = torch.ones_like(loss)
    torch.library.opcheck(ops.span_kl_backward.default, (student, *others, state, up, *options, [True]))
    torch.library.opcheck(ops.span_kl_backward_.default, (student.clone(), *others, state, up, *in_place))
    torch.library.opcheck(ops.span_kl_with_grad.default, (student, *others, *options, [True]))
    torch.library.opcheck(ops.span_kl_with_grad_.default, (student.clone(), *others, *in_place))
    torch.library.opcheck(ops.scale_rows_.default, (student.clone(), (ids > 0).byte(), up * 2, 50, backend.name))
    torch.library.opcheck(ops.scale_.default, (student.clone(), up * 2))


def test_autocast(backend):
    weight, hidden = torch.randn(32, 77, device=backend.device).requires_grad_(), torch.randn(8, 32, device=backend.device)
    teacher, ids = logits(8, 77).to(backend.device), IDS.to(backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        student = hidden @ weight
        loss = sad.fused_span_kl(student, teacher, ids, backend=backend.name)
    loss.backward()
    expected = sad.fused_span_kl(student.detach(), teacher, ids, backend="reference")
    assert student.dtype == torch.bfloat16 and loss.dtype == torch.float32 and weight.grad.isfinite().all()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)


MEMORY = """
import re, sys, torch, sad

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

rows, vocab, in_place, dtype = 256, 50257, sys.argv[1] == "True", getattr(torch, sys.argv[2])
student = torch.randn(rows, vocab).to(dtype).requires_grad_()
teacher = torch.randn(rows, vocab).to(dtype)
ids = torch.ones(rows, dtype=torch.long)
sad.fused_span_kl(student[:2], teacher[:2], ids[:2]).backward(); student.grad = None
logits = student * 1.0 if in_place else student
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = peak()
torch.autograd.grad(sad.fused_span_kl(logits, teacher, ids, inplace_backward=in_place), logits)
print((peak() - before) / student.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("in_place", [False, True])
def test_peak_memory_is_one_gradient_buffer_or_none(tmp_path, in_place, dtype):
    """`kl_div(log_softmax, log_softmax)` needs four buffers; a float32 copy of bfloat16 logits would be two."""
    done = run_python("-c", MEMORY, in_place, dtype, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (0 <= float(done.stdout) < 0.25) if in_place else (0.9 < float(done.stdout) < 1.25), done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="device synchronizations and CUDA graphs need a GPU")
def test_no_device_synchronization_and_cuda_graph_capture(backend):
    if backend.device.type != "cuda":
        pytest.skip("a CPU backend")
    teacher, ids = logits(8, 203).cuda(), IDS.cuda()
    parameter = logits(8, 203).cuda().requires_grad_()

    def step():
        sad.fused_span_kl(parameter * 1.0, teacher, ids, backend=backend.name, return_stats=True)[0].mul(2).backward()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    eager = parameter.grad.clone() / 2
    parameter.grad = torch.zeros_like(eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    parameter.grad.zero_()
    graph.replay()
    torch.testing.assert_close(parameter.grad, eager)


# --- float16: the gradient is computed in the backward, after the loss scale is known ---


def float16_gradient(student, teacher, upstream, **options):
    leaf = student.clone().requires_grad_()
    loss = sad.fused_span_kl(leaf, teacher, IDS, backend="cpu", **options)
    loss.backward(torch.tensor(upstream))
    return loss.detach(), leaf.grad


def test_float16_gradient_of_small_weights_does_not_underflow_before_the_loss_scale():
    student, teacher = logits(8, 203, torch.float16), logits(8, 203, torch.float16)
    _, grad = float16_gradient(student, teacher, 65536.0, normalizer=5e6)
    exact = student.double().requires_grad_()
    sad.fused_span_kl(exact, teacher.double(), IDS, normalizer=5e6, backend="reference").backward()
    torch.testing.assert_close(grad.double(), exact.grad * 65536, rtol=2e-3, atol=1e-7)


def test_float16_graph_that_is_kept_gives_every_backward_its_own_gradient():
    student, teacher = logits(8, 203, torch.float16).requires_grad_(), logits(8, 203, torch.float16)
    loss = sad.fused_span_kl(student, teacher, IDS, backend="cpu")
    grads = [torch.autograd.grad(loss, student, torch.tensor(u), retain_graph=True)[0] for u in (64.0, 64.0, 128.0)]
    assert torch.equal(grads[0], grads[1])
    torch.testing.assert_close(grads[2], 2 * grads[0], rtol=0, atol=2**-23)  # a subnormal rounds differently
