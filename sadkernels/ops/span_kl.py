"""The span KL on logits: its op, and the public function, which validates its arguments once.

`LogitsOp` is the part that all losses on logits share.
"""

from __future__ import annotations

import abc
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.ops import validate, vocab_parallel
from sadkernels.ops.autograd import LossOp, Results, apply, register
from sadkernels.ops.row_weights import LossOptions, RowWeights, loss_and_sums
from sadkernels.ops.validate_tokens import check_tokens
from sadkernels.row_layout import gradient_strides, with_row_layout
from sadkernels.spans import SpanStats, span_stats
from sadkernels.tokens import Tokens

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


_ALIGNING = ("triton", "cuda")  # backends that are fast if the rows of logits and gradient begin at equal addresses mod 16


class LogitsOp(LossOp):
    """A loss on the student's logits, the first input `student` (..., V)."""

    leaves = 1
    writes_in_place = True

    @abc.abstractmethod
    def target(self, x: Any, o: Any) -> Any:
        """The teacher side of all rows, as the kernel takes it after the student's logits."""

    def grad_in_forward(self, x: Any, o: Any) -> bool:
        """A float16 gradient would underflow before the loss scale multiplies it."""
        return o.loss.reduction != "none" and x.student.dtype != torch.float16

    def gradient_dtype(self, x: Any) -> torch.dtype:
        return x.student.dtype

    def forward(self, x: Any, o: Any) -> tuple[Tensor, ...]:
        rows, target = self.row_weights(x, o), self.target(x, o)
        student = with_row_layout(x.student)
        values = self.kernel(o).forward(student, target, rows.read, o.config, stats=o.loss.stats)
        return *self._results(values, target, rows, x, o), values.state

    def forward_backward(self, x: Any, o: Any, wants: list[bool]) -> tuple[Tensor, ...]:
        rows, target, grad = self.row_weights(x, o), self.target(x, o), self._gradient_buffer(x, o)
        student = with_row_layout(x.student)
        arguments = (student, target, rows.read, rows.weights, o.config)
        values = self.kernel(o).forward_backward(*arguments, stats=o.loss.stats, grad=grad)
        return *self._results(values, target, rows, x, o), rows.weighted, grad

    def backward(self, x: Any, o: Any, state: Tensor, upstream: Tensor, wants: list[bool]) -> tuple[Tensor, ...]:
        rows, grad = self.row_weights(x, o).times(upstream), self._gradient_buffer(x, o)
        student = with_row_layout(x.student)
        self.kernel(o).backward(student, self.target(x, o), rows.read, state, rows.weights, o.config, grad=grad)
        return (grad,)

    def scale_(self, gradient: Tensor, weighted: Tensor, upstream: Tensor, o: Any) -> None:
        torch.ops.sad.scale_rows_(gradient, weighted, upstream, o.config.vocab_size, o.loss.backend)

    def fake_gradients(self, x: Any, o: Any, wants: list[bool]) -> tuple[Tensor, ...]:
        if not wants[0] or o.loss.backend not in _ALIGNING:
            return super().fake_gradients(x, o, wants)
        return (x.student.new_empty_strided(x.student.shape, gradient_strides(x.student)),)

    def _gradient_buffer(self, x: Any, o: Any) -> Tensor:
        if o.loss.inplace:
            return x.student
        if o.loss.backend in _ALIGNING:
            return x.student.new_empty_strided(x.student.shape, gradient_strides(x.student))
        return self.kernel(o).new_logits(x.student.shape, x.student)

    def _results(self, values: Any, target: Any, rows: RowWeights, x: Any, o: Any) -> Results:
        loss, sums = loss_and_sums(values.as_row_values(target), rows, o.loss)
        if o.loss.reduction == "none":
            loss = values.value.view(x.tokens.span_ids.shape)
        return loss, sums, rows.counts


class Inputs(NamedTuple):
    """The tensors of the op."""

    student: Tensor  # (..., V_s)
    teacher: Tensor  # (..., V_t)
    tokens: Tokens


class Options(NamedTuple):
    """All other arguments of the op; `group` names the process group that shares the vocabulary, "" if there is none."""

    loss: LossOptions
    config: DivergenceConfig
    group: str


class SpanKL(LogitsOp):
    """The divergence from the teacher's logits."""

    def floating(self, x: Inputs) -> tuple[Tensor, Tensor]:
        return x.student, x.teacher

    def target(self, x: Inputs, o: Options) -> Tensor:
        return with_row_layout(x.teacher)

    def kernel(self, o: Options) -> ModuleType | vocab_parallel.Kernel:
        kernel = super().kernel(o)
        return vocab_parallel.Kernel(kernel, o.group) if o.group else kernel

    def grad_in_forward(self, x: Inputs, o: Options) -> bool:
        """With a shared vocabulary the gradient needs the log-sum-exps of all ranks first."""
        return not o.group and super().grad_in_forward(x, o)


OP = register(SpanKL("span_kl", "span_kl", Inputs, Options, state_rows=5))


def fused_span_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    span_ids: Tensor,
    *,
    lambda_reason: float = 1.0,
    lambda_act: float = 1.0,
    lambda_observe: float = 0.0,
    token_weights: Tensor | None = None,
    turn_ids: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | tuple[float, ...] | Tensor | None = None,
    shift: bool = False,
    vocab_size: int | None = None,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    logit_scale: float | tuple[float, float] | None = None,
    logit_softcap: float | tuple[float | None, float | None] | None = None,
    process_group: ProcessGroup | None = None,
    inplace_backward: bool = False,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, SpanStats]:
    r"""KL(teacher || student) on the reasoning tokens and the action tokens of agent trajectories.

        L = lambda_r sum_t m_r(t) KL(p_T(x_t) || p_S(x_t)) + lambda_a sum_t m_a(t) KL(p_T(x_t) || p_S(x_t))

    (Structured Agent Distillation, eqs. 4 to 6) with p = softmax(logits / temperature). One pass over the supervised rows
    computes loss, statistics and gradient. Rows without a span are never read, and their gradient is exactly 0. No buffer of
    N x V elements is allocated except the gradient. Every run gives the same bits.

    Args:
        student_logits: (..., V_s), float32, bfloat16 or float16 (float64 on `reference`), any strides with a unit stride
            on V. Receives the gradient, in its dtype.
        teacher_logits: (..., V_t). Dtype and V may differ from the student's. Must not require grad.
        span_ids: (...,), any integer dtype: 0 none, 1 reason, 2 act, 3 observe (`sad.SpanKind`). Any other value, such as
            -100, means none.
        lambda_reason: Weight of the reasoning tokens, >= 0.
        lambda_act: Weight of the action tokens, >= 0. With a weight of 0, tokens still count in "mean" and "turn_mean", and
            are read for statistics only.
        lambda_observe: Weight of the observation tokens, which the environment wrote, >= 0. With 0 they are as tokens
            without a span: neither read nor counted.
        token_weights: (...,), any floating dtype, finite and >= 0 (checked on a CPU): multiplies the lambda of each token. A
            token of weight 0 is as one without a span. Default: 1.
        turn_ids: (...,), any integer dtype, for "turn_mean": a turn is a run of tokens with the same id. Default: a run of
            tokens that one side wrote, the model (reason, act) or the environment (observe); a token without a span ends it.
        temperature: T > 0, divides the logits of both sides. The loss is the KL of the tempered distributions; it is not
            multiplied by T^2.
        reduction: "sum" is L, each token times its token weight. "mean" divides it by the number of supervised tokens, or by
            the sum of their token weights. "span_mean" divides the part of each kind by the number (or sum) of that kind:
            lambda_r L_cot / n_r + lambda_a L_act / n_a. "turn_mean" is the mean over the turns of each turn's "mean": every
            turn counts alike. "none" gives the KL of each token in the shape of `span_ids`, without any weight. Without a
            supervised token the loss and the gradient are exactly 0.
        normalizer: Replaces the local divisor: in "mean" the number of supervised tokens or the sum of their token weights,
            in "turn_mean" the number of turns with a supervised token (a number or a 0-dim tensor on the logits' device), in
            "span_mean" one number per kind: (reason, act), with `lambda_observe` > 0 (reason, act, observe). Pass the global
            number under gradient accumulation and data parallelism. Finite and >= 0; 0 only if the call has no supervised
            token of that kind (checked on a CPU).
        shift: For logits (..., T, V) of a causal model: row t takes span id, weight and turn of token t + 1. No logits are
            copied. The last row has no loss, and token 0 is not counted.
        vocab_size: The softmaxes run over the first `vocab_size` columns of both sides; the gradient of the others is 0.
            Default: min(V_s, V_t), which is right for vocabularies padded to different sizes.
        divergence: "forward_kl" is KL(teacher || student), the paper's. "reverse_kl" is KL(student || teacher), as in
            MiniLLM. "jsd" is the generalized Jensen-Shannon divergence of GKD (Agarwal et al., 2024):
            beta KL(teacher || m) + (1 - beta) KL(student || m) with the mixture m = beta teacher + (1 - beta) student.
        beta: The teacher's weight in "jsd", 0 < beta < 1. Towards 0, JSD / beta becomes forward_kl; towards 1,
            JSD / (1 - beta) becomes reverse_kl.
        logit_scale: Multiplies the logits before anything else (> 0): a number for both sides, or (student, teacher).
        logit_softcap: Replaces scaled logits x by cap tanh(x / cap) (cap > 0), as Gemma 2 does: a number for both sides, or
            (student, teacher) with None for a side without a cap.
        process_group: The ranks that share the vocabulary. Each rank passes its slice of the columns of both logits: the
            same slice of both, in the order of the ranks. All other arguments are equal on all ranks; `vocab_size` counts
            the columns of the rank's slice. All ranks get the loss of the whole rows and the gradient of their slice. Five
            or six numbers per row are communicated, six more with `return_stats`.
        inplace_backward: Write the gradient over `student_logits`, whose contents are undefined from the call on. They must
            be the output of an operation, with rows that overlap neither each other nor the teacher's. No gradient buffer is
            allocated. A second backward raises, and so does the backward of another op that saved the
            logits. Without grad mode nothing is written.
        return_stats: Also return `SpanStats` from the same pass, without a device synchronization.
        backend: "auto", or "reference", "cpu", "triton" or "cuda". A backend requested by name is never replaced.

    Returns:
        The loss, a float32 scalar (float64 if an input is float64); with `return_stats` a pair (loss, `SpanStats`). A
        divergence is never negative. "forward_kl" is +inf if the student's logit is -inf and the teacher's is not; its
        gradient q - p stays finite. "reverse_kl" is +inf if the teacher's logit is -inf and the student's is not; its
        gradient is not finite. "jsd" is always finite. The loss is NaN if a supervised row has a NaN logit or only -inf
        logits.

    Raises:
        ValueError: A shape, device, number or name is invalid; the message names the argument and the remedy.
        TypeError: An argument has the wrong type or dtype.
        NotImplementedError: The call is inside torch.func or forward-mode AD: the losses have reverse-mode gradients only.
        sadkernels.backends.BackendUnavailableError: The backend was requested by name and cannot run here.

    Example:
        >>> loss = sad.fused_span_kl(student(x).logits, teacher_logits, span_ids, shift=True)
        >>> loss.backward()
    """
    validate.check_logits("student_logits", student_logits)
    validate.check_logits("teacher_logits", teacher_logits)
    validate.check_teacher("teacher_logits", teacher_logits, student_logits, "V")
    validate.check_process_group(process_group)
    options = Options(
        validate.loss_options(
            "span_kl",
            (student_logits, teacher_logits),
            lambda_reason=lambda_reason,
            lambda_act=lambda_act,
            lambda_observe=lambda_observe,
            reduction=reduction,
            shift=shift,
            return_stats=return_stats,
            backend=backend,
            inplace_backward=inplace_backward,
        ),
        validate.divergence_config(
            student_logits.shape[-1],
            teacher_logits.shape[-1],
            vocab_size=vocab_size,
            temperature=temperature,
            divergence=divergence,
            beta=beta,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
        ),
        "" if process_group is None else vocab_parallel.register(process_group),
    )
    of_tokens = {"token_weights": token_weights, "turn_ids": turn_ids, "normalizer": normalizer}
    tokens = check_tokens(student_logits, "student_logits", options.loss, span_ids=span_ids, **of_tokens)
    loss, sums, counts = apply(OP, Inputs(student_logits, teacher_logits, tokens), options)
    return (loss, span_stats(sums, counts)) if return_stats else loss
