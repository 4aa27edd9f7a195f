"""What the linear losses do differently on a GPU, run on a CPU: mixed products, padded chunks, and the size of chunks."""

from __future__ import annotations

import types

import pytest
import torch

import sad
from sadkernels.ops import chunked, head, linear_span_kl, products

N, H, V = 40, 16, 130


class MixedProducts(types.SimpleNamespace):
    """The part of `torch` that `products` uses, with the products of CUDA. Counts them."""

    bfloat16, float16, float32 = torch.bfloat16, torch.float16, torch.float32

    def __init__(self) -> None:
        super().__init__(calls=[])

    def mm(self, a, b, out_dtype=None, out=None):
        self.calls.append("mm")
        result = torch.mm(a.float(), b.float()).to(out_dtype or a.dtype)
        return result if out is None else out.copy_(result)

    def addmm(self, total, a, b, out_dtype, out):
        assert total is out and out_dtype == out.dtype == torch.float32
        self.calls.append("addmm")
        return out.add_(torch.mm(a.float(), b.float()))


@pytest.fixture
def gpu(monkeypatch) -> MixedProducts:
    """Lets CPU tensors take the way of CUDA tensors."""
    mixed = MixedProducts()
    monkeypatch.setattr(products, "torch", mixed)
    monkeypatch.setattr(products, "has_mixed_products", lambda device: True)
    monkeypatch.setattr(head, "is_cpu", lambda x: False)
    monkeypatch.setattr(chunked, "is_cpu", lambda x: False)
    monkeypatch.setattr(chunked, "_gpu_memory", lambda device: 24 << 30)
    return mixed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk_bytes", [None, 10 * V * 7])
def test_gradients(gpu, dtype, chunk_bytes):
    generator = torch.Generator().manual_seed(0)
    sizes = ((N, H), (V, H), (N, H), (V, H), (V,))
    hidden, weight, *teacher, bias = ((torch.randn(*size, generator=generator) / 2).to(dtype) for size in sizes)
    ids = torch.arange(N) % 3
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    options = {"student_bias": leaves[2], "chunk_bytes": chunk_bytes, "vocab_size": V - 1}
    loss = sad.fused_linear_span_kl(*leaves[:2], *teacher, ids, **options)
    (loss * 8.0).backward()
    exact = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    logits, others = exact[0] @ exact[1].T + exact[2], teacher[0].double() @ teacher[1].double().T
    expected = sad.fused_span_kl(logits, others, ids, vocab_size=V - 1, backend="reference")
    (expected * 8.0).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    tolerance = {torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]
    for got, want in zip(leaves, exact):
        assert (got.grad.double() - want.grad).norm() < tolerance * want.grad.norm()
    chunks = 1 if chunk_bytes is None else 4
    if dtype == torch.bfloat16:  # per chunk: two projections, one product per gradient; the sum of the first is written
        assert gpu.calls.count("addmm") == chunks - 1 and len(gpu.calls) == 4 * chunks


def test_rows_of_chunks_begin_at_equal_borders(gpu):
    kernel = linear_span_kl.OP.kernel(types.SimpleNamespace(loss=types.SimpleNamespace(backend="reference"), group=""))
    logits = chunked.new_chunk_logits(kernel, 5, 50257, torch.empty(0, dtype=torch.bfloat16))
    assert logits.shape == (5, 50257) and logits.stride() == (50304, 1)


@pytest.mark.parametrize("rows", [1, 100, 127, 128, 129, 1639, 2048, 2049, 8192, 10_000])
@pytest.mark.parametrize("vocab", [32_000, 50_257, 128_256, 151_936])
@pytest.mark.parametrize("gigabytes", [16, 24, 80])
def test_size_of_chunks(rows, vocab, gigabytes):
    row_bytes, memory = 10 * vocab, gigabytes * 10**9
    budget = chunked.default_chunk_bytes(row_bytes, memory)
    size = chunked.chunk_rows(rows, row_bytes, budget, chunked.GPU_ROW_MULTIPLE)
    assert size % 128 == 0 and size * row_bytes <= budget <= memory / 16
    largest = min(2048, budget // row_bytes // 128 * 128)
    assert -(-rows // size) == -(-rows // largest)  # no more chunks than needed
    assert largest == 2048 or memory / 16 < 2048 * row_bytes  # fewer rows only for lack of memory


def test_small_budgets():
    assert chunked.chunk_rows(1000, 100, 1, 128) == 1
    assert chunked.chunk_rows(1000, 100, 100 * 127, 128) == 125  # fewer rows than the multiple: equal chunks
    assert chunked.chunk_rows(1000, 100, 100 * 128, 128) == 128
    assert chunked.chunk_rows(0, 100, 10_000, 128) == 0
