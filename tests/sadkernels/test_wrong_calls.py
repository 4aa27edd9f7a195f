"""Wrong calls: one table of call, exception and start of the message. Similar calls that are right."""

from __future__ import annotations

import functools
import math
import re
from fractions import Fraction

import pytest
import torch
import torch.utils.checkpoint
from torch.autograd import forward_ad

import sad
from sad import Span, span_ids_from_offsets
from sadkernels.row_layout import row_layout

N, V, H, K = 8, 5, 6, 2
IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2, -100])
SUPERVISED = torch.tensor([1, 2, 3, 5, 6])
TOPK_IDS = torch.tensor([[0, 1]]).expand(N, K)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).requires_grad_()


def non_leaf(*shape: int) -> torch.Tensor:
    return leaf(*shape) * 1.0


def kl(**change):
    return sad.fused_span_kl(
        **{"student_logits": torch.ones(N, V), "teacher_logits": torch.ones(N, V), "span_ids": IDS} | change
    )


def topk(**change):
    teacher = {"teacher_logprobs": -torch.ones(N, K), "teacher_ids": TOPK_IDS}
    return sad.fused_topk_span_kl(**{"student_logits": torch.ones(N, V), "span_ids": IDS} | teacher | change)


def ce(**change):
    return sad.fused_span_ce(**{"student_logits": torch.ones(N, V), "target_ids": IDS, "span_ids": IDS} | change)


def linear(**change):
    student = {"student_hidden": torch.ones(N, H), "student_weight": torch.ones(V, H)}
    teacher = {"teacher_hidden": torch.ones(N, H), "teacher_weight": torch.ones(V, H)}
    return sad.fused_linear_span_kl(**student | teacher | {"span_ids": IDS} | change)


def linear_topk(**change):
    student = {"student_hidden": torch.ones(N, H), "student_weight": torch.ones(V, H), "span_ids": IDS}
    teacher = {"teacher_logprobs": -torch.ones(N, K), "teacher_ids": TOPK_IDS}
    return sad.fused_linear_topk_span_kl(**student | teacher | change)


LOSSES = {"kl": kl, "topk": topk, "ce": ce, "linear": linear, "linear_topk": linear_topk}
ON_LOGITS = ("kl", "topk", "ce")
BOTH_SIDES = ("kl", "linear")
WITH_ROWS = ("linear", "linear_topk")
WITH_TOPK = ("topk", "linear_topk")

# --- options: losses, arguments, exception, start of the message

OPTIONS = {
    "lambda above float32": (
        LOSSES,
        {"lambda_reason": 1e39},
        ValueError,
        "lambda_reason: expected 0, or 1.2e-38 to 3.4e+38",
    ),
    "lambda below float32": (LOSSES, {"lambda_act": 1e-50}, ValueError, "lambda_act: expected 0, or 1.2e-38 to 3.4e+38"),
    "lambda inf": (LOSSES, {"lambda_act": math.inf}, ValueError, "lambda_act: expected a finite number >= 0.0, got inf"),
    "lambda huge int": (LOSSES, {"lambda_act": 10**400}, ValueError, "lambda_act: expected a finite number >= 0.0, got inf"),
    "lambda fraction": (LOSSES, {"lambda_act": Fraction(-1, 3)}, ValueError, "lambda_act: expected a finite number >= 0.0"),
    "lambda tensor": (LOSSES, {"lambda_act": torch.ones(2)}, TypeError, "lambda_act: expected a number >= 0.0, got Tensor"),
    "lambda bool": (LOSSES, {"lambda_reason": True}, TypeError, "lambda_reason: expected a number >= 0.0, got bool"),
    "temperature 0": (LOSSES, {"temperature": 0.0}, ValueError, "temperature: expected a finite number > 0.0, got 0.0"),
    "temperature 1e-50": (LOSSES, {"temperature": 1e-50}, ValueError, "temperature: expected 1.2e-38 to 3.4e+38, the range"),
    "temperature 1e300": (LOSSES, {"temperature": 1e300}, ValueError, "temperature: expected 1.2e-38 to 3.4e+38, the range"),
    "temperature None": (LOSSES, {"temperature": None}, TypeError, "temperature: expected a number > 0.0, got NoneType"),
    "softcap 1e39": (LOSSES, {"logit_softcap": 1e39}, ValueError, "logit_softcap: expected 1.2e-38 to 3.4e+38, the range"),
    "softcap 1e-39": (LOSSES, {"logit_softcap": 1e-39}, ValueError, "logit_softcap: expected 1.2e-38 to 3.4e+38, the range"),
    "softcap NaN": (
        LOSSES,
        {"logit_softcap": math.nan},
        ValueError,
        "logit_softcap: expected a finite number > 0.0, got nan",
    ),
    "scale 1e39": (LOSSES, {"logit_scale": 1e39}, ValueError, "logit_scale: expected 1.2e-38 to 3.4e+38, the range"),
    "scale 1e-60": (BOTH_SIDES, {"logit_scale": (1.0, 1e-60)}, ValueError, "logit_scale: expected 1.2e-38 to 3.4e+38"),
    "softcap 1e60 of the teacher": (
        BOTH_SIDES,
        {"logit_softcap": (None, 1e60)},
        ValueError,
        "logit_softcap: expected 1.2e-38 to 3.4e+38",
    ),
    "scale over temperature": (
        LOSSES,
        {"logit_scale": 1e30, "temperature": 1e-30},
        ValueError,
        "logit_scale / temperature: expected 1.2e-38 to 3.4e+38, the range of float32, got 1e+60",
    ),
    "scale over softcap": (
        LOSSES,
        {"logit_scale": 1e-30, "logit_softcap": 1e30},
        ValueError,
        "logit_scale / logit_softcap: expected 1.2e-38",
    ),
    "softcap over temperature": (
        LOSSES,
        {"logit_softcap": 1e30, "temperature": 1e-30},
        ValueError,
        "logit_softcap / temperature: expected 1.2e-38",
    ),
    "beta 1e-50": (BOTH_SIDES, {"beta": 1e-50}, ValueError, "beta: expected 0, or 1.2e-38 to 3.4e+38"),
    "beta 1": (BOTH_SIDES, {"beta": 1 - 1e-17}, ValueError, "beta: expected a number with 0 < beta < 1"),
    "alpha 1e-50": (WITH_TOPK, {"alpha": 1e-50, "target_ids": IDS}, ValueError, "alpha: expected 0, or 1.2e-38 to 3.4e+38"),
    "alpha above 1": (WITH_TOPK, {"alpha": 1.001, "target_ids": IDS}, ValueError, "alpha: expected a number from 0 to 1"),
    "tail None": (WITH_TOPK, {"tail": None}, ValueError, "tail: expected one of 'bucket', 'ignore', got None"),
    "divergence tensor": (BOTH_SIDES, {"divergence": torch.ones(2)}, ValueError, "divergence: expected one of 'forward_kl'"),
    "reduction list": (LOSSES, {"reduction": ["mean"]}, ValueError, "reduction: expected one of 'mean', 'span_mean'"),
    "reduction None": (LOSSES, {"reduction": None}, ValueError, "reduction: expected one of 'mean', 'span_mean'"),
    "backend None": (LOSSES, {"backend": None}, ValueError, "backend: expected one of 'auto', 'reference'"),
    "shift string": (LOSSES, {"shift": "no"}, TypeError, "shift: expected True or False, got 'no'"),
    "return_stats None": (LOSSES, {"return_stats": None}, TypeError, "return_stats: expected True or False, got None"),
    "inplace string": (ON_LOGITS, {"inplace_backward": ""}, TypeError, "inplace_backward: expected True or False, got ''"),
    "vocab_size 0": (LOSSES, {"vocab_size": 0}, ValueError, "vocab_size: expected 1 to 5"),
    "chunk_bytes float": (WITH_ROWS, {"chunk_bytes": 1e6}, ValueError, "chunk_bytes: expected an integer >= 1"),
    "normalizer 0": (LOSSES, {"normalizer": 0}, ValueError, "normalizer: expected a count > 0 for the supervised tokens"),
    "normalizer 0-dim 0": (LOSSES, {"normalizer": torch.tensor(0)}, ValueError, "normalizer: expected a count > 0 for the"),
    "normalizer of act 0": (
        LOSSES,
        {"normalizer": (3, 0.0), "reduction": "span_mean"},
        ValueError,
        "normalizer: expected a count > 0 for the supervised tokens",
    ),
    "normalizer too small": (
        LOSSES,
        {"normalizer": 1e-30, "lambda_act": 1e30},
        ValueError,
        "normalizer: expected a count > 0 for the supervised tokens",
    ),
    "normalizer negative": (LOSSES, {"normalizer": -3}, ValueError, "normalizer: expected a finite number >= 0.0, got -3.0"),
    "normalizer tensor negative": (
        LOSSES,
        {"normalizer": torch.tensor([2.0, -3.0]), "reduction": "span_mean"},
        ValueError,
        "normalizer: expected a finite number >= 0.0, got -3.0",
    ),
    "normalizer NaN": (LOSSES, {"normalizer": torch.tensor(math.nan)}, ValueError, "normalizer: expected a finite number"),
    "normalizer inf": (LOSSES, {"normalizer": torch.tensor(math.inf)}, ValueError, "normalizer: expected a finite number"),
    "normalizer 1e39": (
        LOSSES,
        {"normalizer": torch.tensor(1e39, dtype=torch.float64)},
        ValueError,
        "normalizer: expected 0, or 1.2e-38 to 3.4e+38",
    ),
    "normalizer complex": (
        LOSSES,
        {"normalizer": torch.tensor(2j)},
        TypeError,
        "normalizer: expected an integer or floating",
    ),
    "normalizer complex number": (
        LOSSES,
        {"normalizer": 2j},
        TypeError,
        "normalizer: expected a number >= 0.0, got complex",
    ),
    "normalizer bool": (
        LOSSES,
        {"normalizer": torch.tensor(True)},
        TypeError,
        "normalizer: expected an integer or floating",
    ),
    "normalizer of observe missing": (
        LOSSES,
        {"normalizer": (3, 2), "reduction": "span_mean", "lambda_observe": 0.5},
        ValueError,
        "normalizer: expected three numbers (reason, act, observe), got (3, 2)",
    ),
    "normalizer of turns 0": (
        LOSSES,
        {"normalizer": 0, "reduction": "turn_mean"},
        ValueError,
        "normalizer: expected a count > 0 for the supervised tokens",
    ),
    "normalizer of a sum": (LOSSES, {"normalizer": 3, "reduction": "sum"}, ValueError, "normalizer: expected None with"),
    "token_weights list": (LOSSES, {"token_weights": [1.0] * N}, TypeError, "token_weights: expected a floating-point"),
    "token_weights of integers": (LOSSES, {"token_weights": IDS}, TypeError, "token_weights: expected a floating-point"),
    "token_weights of one token": (
        LOSSES,
        {"token_weights": torch.ones(1)},
        ValueError,
        "token_weights: expected shape (8,)",
    ),
    "token_weights negative": (
        LOSSES,
        {"token_weights": torch.arange(N) - 1.0},
        ValueError,
        "token_weights: expected finite numbers >= 0, got -1.0",
    ),
    "token_weights NaN": (
        LOSSES,
        {"token_weights": torch.full((N,), math.nan)},
        ValueError,
        "token_weights: expected finite numbers >= 0, got nan",
    ),
    "token_weights with grad": (
        LOSSES,
        {"token_weights": leaf(N)},
        ValueError,
        "token_weights: expected a tensor without grad",
    ),
    "turn_ids of a mean": (LOSSES, {"turn_ids": IDS}, ValueError, "turn_ids: expected None with reduction='mean'"),
    "turn_ids of floats": (
        LOSSES,
        {"turn_ids": torch.ones(N), "reduction": "turn_mean"},
        TypeError,
        "turn_ids: expected an integer dtype, got torch.float32",
    ),
    "turn_ids of two rows": (
        LOSSES,
        {"turn_ids": torch.ones(2, N).long(), "reduction": "turn_mean"},
        ValueError,
        "turn_ids: expected shape (8,)",
    ),
    "lambda_observe negative": (LOSSES, {"lambda_observe": -0.1}, ValueError, "lambda_observe: expected a finite number"),
    "rows too large": (WITH_ROWS, {"rows": SUPERVISED + 2}, ValueError, "rows: expected row numbers from 0 to 7, got 8"),
    "rows negative": (WITH_ROWS, {"rows": SUPERVISED - 2}, ValueError, "rows: expected row numbers from 0 to 7, got -1"),
    "row missing": (
        WITH_ROWS,
        {"rows": torch.tensor([1, 2, 3, 6, 0])},
        ValueError,
        "rows: expected each supervised row once, got row 5 0 times",
    ),
    "row twice": (
        WITH_ROWS,
        {"rows": torch.tensor([1, 2, 3, 5, 6, 3])},
        ValueError,
        "rows: expected each supervised row once, got row 3 2 times",
    ),
    "rows of a shifted batch": (
        WITH_ROWS,
        {"rows": SUPERVISED, "shift": True},
        ValueError,
        "rows: expected each supervised row once, got row 0 0 times",
    ),
    "rows of bools": (WITH_ROWS, {"rows": IDS > 0}, TypeError, "rows: expected int64 of shape (M,), got torch.bool (8,)"),
    "probabilities": (
        WITH_TOPK,
        {"teacher_logprobs": torch.full((N, K), 0.4)},
        ValueError,
        "teacher_logprobs: expected log-probabilities, which are <= 0, got 0.4",
    ),
    "logits for log-probabilities": (
        WITH_TOPK,
        {"teacher_logprobs": torch.tensor([[7.0, -1.0]]).expand(N, K).bfloat16()},
        ValueError,
        "teacher_logprobs: expected log-probabilities, which are <= 0, got 7",
    ),
    "log-probabilities of a list": (
        WITH_TOPK,
        {"teacher_logprobs": [[-1.0]]},
        TypeError,
        "teacher_logprobs: expected a tensor",
    ),
    "complex log-probabilities": (
        WITH_TOPK,
        {"teacher_logprobs": torch.zeros(N, K, dtype=torch.complex64)},
        TypeError,
        "teacher_logprobs: expected float32",
    ),
    "no columns": (
        WITH_TOPK,
        {"teacher_logprobs": torch.zeros(N, 0), "teacher_ids": IDS[:, None][:, :0]},
        ValueError,
        "teacher_logprobs: expected shape (..., k) with k >= 1",
    ),
    "float8 logits": (
        ON_LOGITS,
        {"student_logits": torch.ones(N, V).to(torch.float8_e5m2)},
        TypeError,
        "student_logits: expected float32",
    ),
    "sparse logits": (
        ON_LOGITS,
        {"student_logits": torch.eye(N)[:, :V].to_sparse()},
        TypeError,
        "student_logits: expected a dense tensor, got torch.sparse_coo",
    ),
    "no column in the vocabulary": (
        ON_LOGITS,
        {"student_logits": torch.ones(N, 0)},
        ValueError,
        "student_logits: expected shape",
    ),
    "V = 0": (
        WITH_ROWS,
        {"student_weight": torch.ones(0, H)},
        ValueError,
        "student_weight: expected shape (V, 6) with V >= 1",
    ),
    "V = 0 of the teacher": (
        ("linear",),
        {"teacher_weight": torch.ones(0, H)},
        ValueError,
        "teacher_weight: expected shape (V, 6) with V >= 1",
    ),
    "H = 0": (
        WITH_ROWS,
        {"student_hidden": torch.ones(N, 0), "student_weight": torch.ones(V, 0)},
        ValueError,
        "student_hidden: expected shape (..., H) with H >= 1",
    ),
    "one hidden vector": (
        WITH_ROWS,
        {"student_hidden": torch.ones(H)},
        ValueError,
        "student_hidden: expected shape (..., H)",
    ),
    "head None": (WITH_ROWS, {"student_weight": None}, TypeError, "student_weight: expected a tensor, got NoneType"),
    "head of integers": (
        WITH_ROWS,
        {"student_weight": torch.ones(V, H).long()},
        TypeError,
        "student_weight: expected float32",
    ),
    "span_ids None": (LOSSES, {"span_ids": None}, TypeError, "span_ids: expected an integer tensor, got NoneType"),
    "span_ids of two columns": (LOSSES, {"span_ids": IDS[:, None]}, ValueError, "span_ids: expected shape (8,)"),
    "process_group": (("kl",), {"process_group": -100}, TypeError, "process_group: expected a ProcessGroup, got int"),
    "leaf in place": (
        ON_LOGITS,
        {"student_logits": leaf(N, V), "inplace_backward": True},
        ValueError,
        "inplace_backward: expected student_logits that an operation computed, such as a model's, got a leaf tensor that",
    ),
    "view of a leaf in place": (
        ON_LOGITS,
        {"student_logits": leaf(N + 1, V)[1:], "inplace_backward": True},
        ValueError,
        "inplace_backward: expected student_logits that an operation computed, such as a model's, got a view of one",
    ),
    "overlapping rows in place": (
        ON_LOGITS,
        {"student_logits": non_leaf(7 + 4 * 7).unfold(0, 7, 4), "inplace_backward": True},
        ValueError,
        "inplace_backward: expected student_logits whose rows do not overlap in memory, got shape (8, 7)",
    ),
    "overlapping batch in place": (
        ON_LOGITS,
        {
            "student_logits": non_leaf(7, V).unfold(0, 4, 1).transpose(1, 2).contiguous().as_strided((2, 4, V), (V, V, 1)),
            "span_ids": IDS.view(2, 4),
            "teacher_logits": torch.ones(2, 4, V),
            "teacher_logprobs": -torch.ones(2, 4, K),
            "teacher_ids": TOPK_IDS.view(2, 4, K),
            "target_ids": IDS.view(2, 4),
            "inplace_backward": True,
        },
        ValueError,
        "inplace_backward: expected student_logits whose rows do not overlap in memory, got shape (2, 4, 5)",
    ),
    "three overlapping strides in place": (
        ON_LOGITS,
        {
            "student_logits": non_leaf(200).as_strided((2, 2, 2, V), (17, 9, 4, 1)),
            "span_ids": IDS.view(2, 2, 2),
            "teacher_logits": torch.ones(2, 2, 2, V),
            "teacher_logprobs": -torch.ones(2, 2, 2, K),
            "teacher_ids": TOPK_IDS.view(2, 2, 2, K),
            "target_ids": IDS.view(2, 2, 2),
            "inplace_backward": True,
        },
        ValueError,
        "inplace_backward: expected student_logits whose rows do not overlap in memory, got shape (2, 2, 2, 5)",
    ),
    "three strides in place": (
        ON_LOGITS,
        {
            "student_logits": non_leaf(3, 3, 3, V)[:2, :2, :2],
            "span_ids": IDS.view(2, 2, 2),
            "teacher_logits": torch.ones(2, 2, 2, V),
            "teacher_logprobs": -torch.ones(2, 2, 2, K),
            "teacher_ids": TOPK_IDS.view(2, 2, 2, K),
            "target_ids": IDS.view(2, 2, 2),
            "inplace_backward": True,
        },
        ValueError,
        "inplace_backward: expected student_logits with at most two strides between rows",
    ),
}


def arguments_of(name: str, change: dict) -> dict:
    """The arguments of `change` that this loss has."""
    teacher = {"kl": ("teacher_logits",), "topk": ("teacher_logprobs", "teacher_ids", "target_ids"), "ce": ("target_ids",)}
    shared = {"teacher_logits", "teacher_logprobs", "teacher_ids", "target_ids"}
    unknown = shared - set(teacher.get(name, shared))
    lists = {}
    if name == "linear_topk" and "rows" in change:
        m = len(change["rows"])
        lists = {"teacher_logprobs": -torch.ones(m, K), "teacher_ids": torch.tensor([[0, 1]]).expand(m, K)}
    return lists | {key: value for key, value in change.items() if key not in unknown}


CALLS = [pytest.param(loss, *OPTIONS[case][1:], id=f"{loss}-{case}") for case in OPTIONS for loss in OPTIONS[case][0]]


def assert_message(error: BaseException, start: str) -> None:
    message = str(error)
    assert message.startswith(start), message
    assert re.fullmatch(r"[\w /]+: expected .+, got .+\. .+\.", message, re.DOTALL), message


@pytest.mark.parametrize(("loss", "change", "error", "start"), CALLS)
def test_options_and_tensors(loss, change, error, start):
    with pytest.raises(error) as caught:
        LOSSES[loss](**arguments_of(loss, change))
    assert type(caught.value) is error
    assert_message(caught.value, start)


OFFSETS = {
    "offsets None": (None, [], ValueError, "offsets: expected integer pairs (begin, end): (T, 2), or rows of one length"),
    "offsets a number": (3, [], ValueError, "offsets: expected integer pairs"),
    "offsets a string": ("ab", [], ValueError, "offsets: expected integer pairs"),
    "offsets of None": ([None, (0, 2)], [], ValueError, "offsets: expected integer pairs"),
    "offsets with None": ([(0, None)], [], ValueError, "offsets: expected integer pairs"),
    "ragged offsets": ([[(0, 2)], [(0, 2), (2, 3)]], [[], []], ValueError, "offsets: expected integer pairs"),
    "ragged offsets with an empty row": ([[(0, 2)], []], [[], []], ValueError, "offsets: expected integer pairs"),
    "float offsets": ([(0.0, 1.5)], [], TypeError, "offsets: expected an integer tensor, got torch.float32"),
    "triples": ([(0, 1, 2)], [], ValueError, "offsets: expected shape (T, 2) or (B, T, 2), got (1, 3)"),
    "spans None": ([(0, 2)], None, ValueError, "spans: expected a list of Span(start, end, kind), got None"),
    "spans a number": ([(0, 2)], 3, ValueError, "spans: expected a list of Span(start, end, kind), got 3"),
    "one span": (
        [(0, 2)],
        Span(0, 2, Span.ACT),
        ValueError,
        "spans: expected integer triples (start, end, kind), got [0, 2,",
    ),
    "spans of None": (
        [(0, 2)],
        [None],
        ValueError,
        "spans: expected integer triples (start, end, kind), got [None] in row 0",
    ),
    "span with None": ([(0, 2)], [(0, None, 1)], ValueError, "spans: expected integer triples"),
    "float spans": ([(0, 2)], [(0.5, 1.9, 1)], ValueError, "spans: expected integer triples"),
    "text spans": ([(0, 2)], [("0", "2", "1")], ValueError, "spans: expected integer triples"),
    "huge span": ([(0, 2)], [(0, 2**70, 1)], ValueError, "spans: expected integer triples"),
    "row of spans None": (
        [[(0, 2)]],
        [None],
        ValueError,
        "spans: expected integer triples (start, end, kind), got None in row 0",
    ),
    "too few rows of spans": (
        [[(0, 2)]],
        iter(()),
        ValueError,
        "spans: expected 1 lists of spans, one per row of offsets, got 0",
    ),
    "unknown kind": ([(0, 2)], [(0, 2, 77)], ValueError, "spans: expected kind 0 (none), 1 (reason)"),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_offsets_and_spans(case):
    offsets, spans, error, start = OFFSETS[case]
    with pytest.raises(error) as caught:
        span_ids_from_offsets(offsets, spans)
    assert_message(caught.value, start)


def test_a_backend_without_a_name_for_labels():
    with pytest.raises(ValueError) as caught:
        span_ids_from_offsets([(0, 2)], [], backend="metal")
    assert_message(caught.value, "backend: expected one of 'auto', 'reference'")


@pytest.mark.parametrize("loss", LOSSES)
def test_unknown_instruction_set(monkeypatch, loss):
    monkeypatch.setenv("SAD_CPU_ISA", "foo")
    with pytest.raises(ValueError) as caught:
        LOSSES[loss](backend="cpu")
    assert_message(caught.value, "SAD_CPU_ISA: expected one of ")
    assert "'portable', got 'foo'" in str(caught.value)


# --- the teacher's memory in place ---


@pytest.mark.parametrize("rows", [slice(0, 8), slice(1, 9)])
def test_a_teacher_in_the_memory_that_the_gradient_overwrites(rows):
    memory = non_leaf(N + 1, V)
    with pytest.raises(ValueError) as caught:
        kl(student_logits=memory[:N], teacher_logits=memory[rows].detach(), inplace_backward=True)
    assert_message(caught.value, "inplace_backward: expected student_logits that share no memory with the teacher's tensors")


def test_a_teacher_beside_the_student_in_one_tensor():
    """A model that runs on both batches at once returns logits whose halves do not overlap."""
    memory = non_leaf(2 * N, V)
    expected = kl(student_logits=memory[:N].detach().clone(), teacher_logits=memory[N:].detach().clone())
    assert kl(student_logits=memory[:N], teacher_logits=memory[N:].detach(), inplace_backward=True) == expected


# --- derivatives that the losses do not have ---

STUDENT = {"kl": "student_logits", "topk": "student_logits", "ce": "student_logits"}
FIRST = {name: STUDENT.get(name, "student_hidden") for name in LOSSES}


def student_of(name: str) -> torch.Tensor:
    return torch.randn(N, V if name in STUDENT else H)


def assert_refused(caught) -> None:
    assert re.match(
        r"\w+: expected a tensor for reverse-mode autograd, got .+\. The fused losses have first", str(caught.value)
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", LOSSES)
class TestDerivatives:
    def test_forward_mode(self, name, reduction):
        def loss(x):
            return LOSSES[name](**{FIRST[name]: x}, reduction=reduction)

        x = student_of(name)
        with pytest.raises(NotImplementedError) as caught:
            torch.func.jvp(loss, (x,), (torch.ones_like(x),))
        assert_refused(caught)
        for primal in (x, x.clone().requires_grad_()):
            with forward_ad.dual_level(), pytest.raises(NotImplementedError) as caught:
                loss(forward_ad.make_dual(primal, torch.ones_like(x)))
            assert_refused(caught)
        with forward_ad.dual_level():  # another model's tangents do not matter
            loss(x)

    def test_function_transforms(self, name, reduction):
        def loss(x):
            return LOSSES[name](**{FIRST[name]: x}, reduction=reduction).sum()

        x = student_of(name)
        for transform in (torch.func.grad(loss), torch.func.jacrev(loss), torch.func.hessian(loss)):
            with pytest.raises(NotImplementedError) as caught:
                transform(x)
            assert_refused(caught)
        with pytest.raises(NotImplementedError) as caught:
            torch.func.vmap(loss)(torch.stack([x, x]))
        assert_refused(caught)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", LOSSES)
class TestSecondDerivatives:
    def loss(self, name, reduction, inplace, x):
        options = {"inplace_backward": inplace} if name in ON_LOGITS else {}
        return LOSSES[name](**{FIRST[name]: x * 1.0}, reduction=reduction, **options).sum()

    def test_create_graph(self, name, reduction, inplace):
        x = student_of(name).requires_grad_()
        for differentiate in (
            lambda value: torch.autograd.grad(value, x, create_graph=True),
            lambda value: value.backward(create_graph=True),
            lambda value: torch.autograd.grad(value + (x * x).sum(), x, create_graph=True),
        ):
            with pytest.raises(NotImplementedError) as caught:
                differentiate(self.loss(name, reduction, inplace, x))
            assert_message(caught.value, "create_graph: expected False, got True")
        with pytest.raises(NotImplementedError):
            torch.autograd.functional.hvp(lambda y: self.loss(name, reduction, inplace, y), x.detach(), x.detach())

    def test_first_derivatives_in_any_grad_mode(self, name, reduction, inplace):
        """Grad mode around the backward, and the backward of a reentrant checkpoint, ask for no second derivative."""
        x = student_of(name).requires_grad_()
        (expected,) = torch.autograd.grad(self.loss(name, reduction, inplace, x), x)
        with torch.enable_grad():
            self.loss(name, reduction, inplace, x).backward()
        assert torch.equal(x.grad, expected)
        for reentrant in (False, True):
            x.grad = None
            loss = functools.partial(self.loss, name, reduction, inplace)
            torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=reentrant).backward()
            assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_function_transforms_inside_of_torch_compile(transform):
    torch.compiler.reset()

    def loss(x):
        return kl(student_logits=x)

    with pytest.raises(Exception, match="student_logits: expected a tensor for reverse-mode autograd"):
        torch.compile(lambda x: transform(loss)(x), fullgraph=True, backend="aot_eager")(torch.randn(2, N, V)[:1])


@pytest.mark.parametrize("name", ["teacher_hidden", "teacher_weight", "student_weight", "student_bias"])
def test_forward_mode_of_each_tensor(name):
    shape = {"teacher_hidden": (N, H), "student_bias": (V,)}.get(name, (V, H))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError) as caught:
        linear(**{name: forward_ad.make_dual(torch.ones(shape), torch.ones(shape))})
    assert str(caught.value).startswith(f"{name}: expected a tensor for reverse-mode autograd")


# --- next to them: calls that work ---


@pytest.mark.parametrize("name", LOSSES)
def test_limits_of_the_range(name):
    smallest, largest = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max
    call = LOSSES[name]
    assert call(lambda_reason=smallest, lambda_act=0.0) >= 0
    assert call(temperature=largest / 4).isfinite() and call(temperature=1e-8).isfinite()
    assert call(logit_softcap=1e30).isfinite() and call(logit_scale=1e-30).isfinite()
    assert call(lambda_reason=Fraction(1, 2)).isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_a_count_of_zero_for_a_kind_without_tokens(name):
    """A batch without action tokens, or without any, has a count of 0 that divides nothing."""
    call, reason = LOSSES[name], IDS.clamp(max=1)
    for zero in ((5, 0), torch.tensor([5, 0]), torch.tensor([5.0, 0.0])):
        assert call(span_ids=reason, reduction="span_mean", normalizer=zero).isfinite()
    for zero in (0, 0.0, torch.tensor(0)):
        assert call(span_ids=torch.zeros_like(IDS), normalizer=zero) == 0
    assert call(reduction="span_mean", normalizer=(5, 0), lambda_act=0.0).isfinite()


@pytest.mark.parametrize("name", WITH_ROWS)
def test_rows_that_the_loss_does_not_read(name):
    """Rows of weight 0 may be left out of `rows`, and unsupervised rows may be repeated."""
    call = LOSSES[name]

    def of_rows(*numbers: int, **options):
        rows = torch.tensor(numbers)
        lists = {} if name == "linear" else {"teacher_logprobs": -torch.ones(len(rows), K), "teacher_ids": TOPK_IDS[rows]}
        return call(rows=rows, **lists, **options)

    assert of_rows(1, 3, lambda_act=0.0) == call(lambda_act=0.0)
    assert of_rows(0, 1, 2, 3, 5, 6, 0) == call()
    with pytest.raises(ValueError, match="rows: expected each supervised row once, got row 2 0 times"):
        of_rows(1, 3, lambda_act=0.0, return_stats=True)  # statistics read all kinds


@pytest.mark.parametrize("name", WITH_TOPK)
def test_values_above_zero_that_are_not_read(name):
    """Rounding, absent and repeated columns and unsupervised rows do not look like probabilities."""
    logprobs, ids = -torch.ones(N, K), TOPK_IDS.clone()
    logprobs[0] = 9.0
    logprobs[1], ids[1, 0] = 3e-4, -1
    logprobs[2, 0], ids[2, 0] = 7.0, V
    logprobs[3, 1], ids[3] = 7.0, 1  # the first entry of a column counts
    assert LOSSES[name](teacher_logprobs=logprobs, teacher_ids=ids).isfinite()
    logprobs[6, 1] = 0.2
    with pytest.raises(ValueError, match=r"got 0\.2"):
        LOSSES[name](teacher_logprobs=logprobs, teacher_ids=ids)


def test_spans_and_offsets_that_are_iterables():
    spans = [Span(2, 4, Span.ACT), Span(0, 2, Span.REASON)]
    assert span_ids_from_offsets(iter([(0, 2), (2, 4)]), iter(spans)).tolist() == [1, 2]
    assert span_ids_from_offsets([[(0, 2)], [(2, 4)]], (iter(spans) for _ in range(2))).tolist() == [[1], [2]]
    assert span_ids_from_offsets(torch.tensor([[0, 2]]).numpy(), torch.tensor([[0, 2, 2]] * 1)).tolist() == [2]
    four = torch.tensor([[0, 1, 1], [1, 2, 2], [2, 3, 1], [3, 4, 2]])  # not ragged tensors, though it has four rows
    assert span_ids_from_offsets([(0, 1), (1, 2), (2, 3), (3, 4)], four).tolist() == [1, 2, 1, 2]
    assert span_ids_from_offsets([], []).shape == (0,)
    assert span_ids_from_offsets([[], []], [[], []]).shape == (2, 0)


def test_an_empty_tensor_has_a_layout():
    """PyTorch calls each empty tensor contiguous, whatever its strides are."""
    strided = torch.ones(4, 3, 5, 7)[:, ::2, :0][..., :6].transpose(0, 1)
    assert row_layout(strided) is not None and row_layout(torch.ones(1, 7).expand(0, 7)) is not None


EMPTY = {
    "strided": lambda: torch.ones(4, 3, 5, 7)[:, :2, :0, :V].transpose(0, 1),
    "expanded": lambda: torch.ones(1, 1, 1, V).expand(2, 4, 0, V),
    "expanded and strided": lambda: torch.ones(4, 1, 6, V).expand(4, 2, 6, V)[:, :, ::2][:, :, :0].transpose(0, 1),
}


@pytest.mark.parametrize("layout", EMPTY)
def test_empty_batches(backend, layout):
    """The loss of no tokens is exactly 0, whatever the strides of the tensors are."""
    x, device = EMPTY[layout](), backend.device
    ids = torch.ones(x.shape[:-1], dtype=torch.long, device=device)
    lists = {"teacher_logprobs": torch.zeros(*ids.shape, K, device=device), "teacher_ids": torch.zeros(*ids.shape, K).long()}
    lists["teacher_ids"] = lists["teacher_ids"].to(device)
    for call, teacher in ((kl, {"teacher_logits": x.to(device)}), (topk, lists), (ce, {"target_ids": ids})):
        for reduction in ("mean", "none"):
            student = x.to(device).detach().requires_grad_()
            options = {"reduction": reduction, "backend": backend.name}
            loss = call(student_logits=student, span_ids=ids, **teacher, **options).sum()
            loss.backward()
            assert loss == 0 and student.grad.shape == student.shape


# --- torch.compile ---


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["ce", "topk", "linear_topk"])
def test_compiles_with_one_tensor_as_two_arguments(name, reduction):
    """The spans of tokens whose targets are their span ids are one tensor."""
    torch.compiler.reset()
    ids = IDS.clamp(min=0)

    def loss(x):
        mixed = {} if name == "ce" else {"alpha": 0.5}
        call = LOSSES[name]
        return call(**{FIRST[name]: x}, span_ids=ids, target_ids=ids, reduction=reduction, **mixed).sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = torch.linspace(-1, 1, N * (V if name in STUDENT else H)).view(N, -1).requires_grad_()
        function(x).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", BOTH_SIDES)
def test_compiles_with_one_model_on_both_sides(name):
    torch.compiler.reset()

    def loss(x, weight):
        if name == "kl":
            return kl(student_logits=x @ weight.T, teacher_logits=(x @ weight.T).detach())
        return linear(student_hidden=x, student_weight=weight, teacher_hidden=x.detach(), teacher_weight=weight)

    x, weight = leaf(N, H), leaf(V, H)
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, weight)
    value.backward()
    assert value == 0 and (x.grad == 0).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_in_place_check_compiles(transposed):
    torch.compiler.reset()

    def loss(x):
        logits = x * 1.5
        logits = logits.view(2, 4, V).transpose(0, 1) if transposed else logits
        ids = IDS.view(logits.shape[:-1])
        return kl(student_logits=logits, teacher_logits=torch.ones(logits.shape), span_ids=ids, inplace_backward=True)

    x = leaf(N, V)
    eager = loss(x)
    for dynamic in (False, True):
        torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)(x), eager)
