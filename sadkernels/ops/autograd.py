"""Registers every loss as `torch.library` ops and connects it to autograd, once for all losses and all backends.

A `LossOp` computes one loss. `register` defines its ops:

    sad::NAME                 loss, sums, counts, and the state that the backward needs
    sad::NAME_with_grad       loss, sums, counts, the rows with a weight, and the gradients for an upstream gradient of 1
    sad::NAME_backward        the gradients from the state and the upstream gradient
    sad::NAME_with_grad_      as NAME_with_grad, but the gradient overwrites the student's logits
    sad::NAME_backward_       as NAME_backward, but the gradient overwrites the student's logits

`apply` chooses between two strategies that give the same gradient:

* `GradInForward`, for a scalar loss: the forward knows the weight of each row and computes the gradient while it reads the
  logits. The backward multiplies it by the upstream gradient, unless that is 1.
* `GradInBackward`, if a row's weight is known in the backward only (`reduction="none"`) or the gradient cannot be stored
  earlier: the forward keeps a few numbers per row, and the backward reads the logits again.
"""

from __future__ import annotations

import abc
import typing
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sadkernels import backends
from sadkernels.ops.row_weights import RowWeights, fake_results, row_weights

Results = tuple[Tensor, Tensor, Tensor]  # loss; sums (3, 4); counts (3,)

_LIBRARY = torch.library.Library("sad", "FRAGMENT")
_SCALED_AT_ONCE = 1 << 22  # elements; a 16-bit gradient is multiplied in float32, in parts
_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    float: "float",
    float | None: "float?",
    int: "SymInt",
    int | None: "SymInt?",
    bool: "bool",
    str: "str",
}


class LossOp(abc.ABC):
    """One loss, on every backend.

    Attributes:
        leaves: The number of inputs that receive a gradient. They are the first fields of `inputs`.
        writes_in_place: Whether the gradient can overwrite the first input.

    Args:
        name: The ops are sad::NAME, sad::NAME_with_grad, ...
        kernel: The op that the backends implement: a module name, such as "span_kl".
        inputs: NamedTuple type of the tensors, with the field `tokens`, a `Tokens`.
        options: NamedTuple type of all other arguments, with the field `loss`, a `LossOptions`.
        state_rows: K, the numbers per row that the backward needs.
    """

    leaves: int
    writes_in_place: bool

    def __init__(self, name: str, kernel: str, inputs: type, options: type, state_rows: int) -> None:
        self.name, self.kernel_name, self.inputs, self.options, self.state_rows = name, kernel, inputs, options, state_rows

    @abc.abstractmethod
    def floating(self, x: Any) -> tuple[Tensor, ...]:
        """The floating-point inputs of both models; the loss is float64 if one of them is, else float32."""

    @abc.abstractmethod
    def grad_in_forward(self, x: Any, o: Any) -> bool:
        """Whether the forward can compute the final gradient up to the upstream factor."""

    @abc.abstractmethod
    def gradient_dtype(self, x: Any) -> torch.dtype:
        """The dtype in which the ops return gradients."""

    @abc.abstractmethod
    def forward(self, x: Any, o: Any) -> tuple[Tensor, ...]:
        """Loss, sums, counts and state (K, N)."""

    @abc.abstractmethod
    def forward_backward(self, x: Any, o: Any, wants: list[bool]) -> tuple[Tensor, ...]:
        """Loss, sums, counts, `RowWeights.weighted`, and one gradient per leaf: an empty one if `wants` is False for it."""

    @abc.abstractmethod
    def backward(self, x: Any, o: Any, state: Tensor, upstream: Tensor, wants: list[bool]) -> tuple[Tensor, ...]:
        """One gradient per leaf, for the upstream gradient: a scalar, or in the shape of the span ids."""

    @abc.abstractmethod
    def scale_(self, gradient: Tensor, weighted: Tensor, upstream: Tensor, o: Any) -> None:
        """Multiplies a gradient by the upstream gradient in place, without a device synchronization."""

    def kernel(self, o: Any) -> ModuleType:
        """The backend's functions."""
        return backends.implementation(o.loss.backend, self.kernel_name)

    def loss_dtype(self, x: Any) -> torch.dtype:
        """float64 if a floating-point input is float64, else float32."""
        return torch.float64 if any(t.dtype == torch.float64 for t in self.floating(x)) else torch.float32

    def row_weights(self, x: Any, o: Any) -> RowWeights:
        """The weights of all rows."""
        return row_weights(x.tokens, o.loss, self.loss_dtype(x))

    def fake_gradients(self, x: Any, o: Any, wants: list[bool]) -> tuple[Tensor, ...]:
        """Empty tensors with the shapes and dtypes of the gradients."""
        dtype = self.gradient_dtype(x)
        return tuple(
            leaf.new_empty(leaf.shape, dtype=dtype) if want and leaf is not None else x[0].new_empty(0, dtype=dtype)
            for leaf, want in zip(x[: self.leaves], wants)
        )


# --- registration ---

LOSS_OPS: dict[str, LossOp] = {}


def register(op: LossOp) -> LossOp:
    """Defines the ops of a loss, with their fakes."""
    inputs, options = ", ".join(_schema(op.inputs)), ", ".join(_schema(op.options))
    count, results = len(inputs.split(", ")), "Tensor, Tensor, Tensor"
    gradients = ", ".join(["Tensor"] * op.leaves)

    def unpacked(arguments: tuple, between: int = 0, after: int = 0) -> tuple:
        """Inputs, options, and the arguments `between` and `after` them."""
        end = len(arguments) - after
        o = unflatten(op.options, arguments[count + between : end])
        return unflatten(op.inputs, arguments[:count]), o, *arguments[count : count + between], *arguments[end:]

    def forward(*arguments):
        return op.forward(*unpacked(arguments))

    def fake_forward(*arguments):
        x, o = unpacked(arguments)
        loss, *others = fake_results(x.tokens.span_ids, o.loss, op.loss_dtype(x))
        return loss, *others, loss.new_empty((op.state_rows, x.tokens.span_ids.numel()))

    def fake_weighted(x):
        return x.tokens.span_ids.new_empty(x.tokens.span_ids.numel(), dtype=torch.uint8)

    def with_grad(*arguments):
        return op.forward_backward(*unpacked(arguments, after=1))

    def fake_with_grad(*arguments):
        x, o, wants = unpacked(arguments, after=1)
        results = fake_results(x.tokens.span_ids, o.loss, op.loss_dtype(x))
        return *results, fake_weighted(x), *op.fake_gradients(x, o, wants)

    def backward(*arguments):
        return _single(op.backward(*unpacked(arguments, between=2, after=1)))

    def fake_backward(*arguments):
        x, o, _, _, wants = unpacked(arguments, between=2, after=1)
        return _single(op.fake_gradients(x, o, wants))

    name, wants = op.name, "bool[] wants"
    _define(f"{name}({inputs}, {options}) -> ({results}, Tensor)", forward, fake_forward)
    with_weighted = f"{results}, Tensor"
    _define(f"{name}_with_grad({inputs}, {options}, {wants}) -> ({with_weighted}, {gradients})", with_grad, fake_with_grad)
    of_backward = f"({inputs}, Tensor state, Tensor upstream, {options}, {wants})"
    _define(f"{name}_backward{of_backward} -> ({gradients})", backward, fake_backward)
    if op.writes_in_place:
        mutated = inputs.replace("Tensor ", "Tensor(a!) ", 1)

        def with_grad_(*arguments):
            return with_grad(*_mutating(arguments), [True])[:4]

        def fake_with_grad_(*arguments):
            x, o = unpacked(arguments)
            return *fake_results(x.tokens.span_ids, o.loss, op.loss_dtype(x)), fake_weighted(x)

        def backward_(*arguments):
            backward(*_mutating(arguments), [True])

        _define(f"{name}_with_grad_({mutated}, {options}) -> ({with_weighted})", with_grad_, fake_with_grad_)
        schema = f"{name}_backward_({mutated}, Tensor state, Tensor upstream, {options}) -> ()"
        _define(schema, backward_, lambda *arguments: None)
    LOSS_OPS[name] = op
    return op


def flatten(options: Sequence[Any]) -> list[Any]:
    """The fields of nested NamedTuples, in the order of their schema."""
    flat: list[Any] = []
    for value in options:
        if isinstance(value, tuple):
            flat.extend(flatten(value))
        else:
            flat.append(value)
    return flat


def unflatten(kind: type, values: Sequence[Any]) -> Any:
    """The NamedTuple of type `kind` with these fields: the inverse of `flatten`."""
    fields, at = [], 0
    for nested, count in _layout(kind):
        fields.append(values[at] if nested is None else unflatten(nested, values[at : at + count]))
        at += count
    return kind(*fields)


_layouts: dict[type, list[tuple[type | None, int]]] = {}


def _layout(kind: type) -> list[tuple[type | None, int]]:
    """Per field: its type if it is a NamedTuple, else None, and its number of flat values."""
    if kind not in _layouts:
        hints = typing.get_type_hints(kind).values()
        nested = [hint if hasattr(hint, "_fields") else None for hint in hints]
        _layouts[kind] = [(hint, 1 if hint is None else sum(count for _, count in _layout(hint))) for hint in nested]
    return _layouts[kind]


def _schema(kind: type) -> Iterator[str]:
    """The arguments of an op schema that hold a NamedTuple of type `kind`."""
    for name, hint in typing.get_type_hints(kind).items():
        if hasattr(hint, "_fields"):
            yield from _schema(hint)
        else:
            yield f"{_SCHEMA_TYPES[hint]} {name}"


def _define(schema: str, implementation: Callable, fake: Callable) -> None:
    """An op for all devices. This form costs a few microseconds per call less than `torch.library.custom_op`."""
    name = schema.split("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sad::{name}", fake, lib=_LIBRARY)


def _mutating(arguments: tuple) -> tuple:
    """Tells autograd that the first argument is overwritten: a backward that saved it raises instead of reading it."""
    torch.autograd.graph.increment_version(arguments[0])
    return arguments


def _single(tensors: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return tensors[0] if len(tensors) == 1 else tensors


def _scale_rows_(gradient: Tensor, weighted: Tensor, factor: Tensor, vocab_size: int, backend: str) -> None:
    torch.autograd.graph.increment_version(gradient)
    if not _is_one(factor):
        backends.implementation(backend, "span_kl").scale(gradient[..., :vocab_size], weighted, factor)


def _scale_(gradient: Tensor, factor: Tensor) -> None:
    torch.autograd.graph.increment_version(gradient)
    if not _is_one(factor):
        for part in gradient.view(-1).split(_SCALED_AT_ONCE):
            part.copy_(part.to(torch.promote_types(part.dtype, torch.float32)).mul_(factor))


def _is_one(factor: Tensor) -> bool:
    """Whether a factor is known to be 1. On a GPU it is not known without a device synchronization."""
    return factor.device.type == "cpu" and factor.item() == 1.0


_define(
    "scale_rows_(Tensor(a!) gradient, Tensor weighted, Tensor factor, SymInt vocab_size, str backend) -> ()",
    _scale_rows_,
    lambda *arguments: None,
)
_define("scale_(Tensor(a!) gradient, Tensor factor) -> ()", _scale_, lambda *arguments: None)


# --- strategies ---


class GradInForward(torch.autograd.Function):
    """Computes the gradients in the forward, and keeps nothing else for the backward."""

    @staticmethod
    def forward(ctx, name: str, o: Any, *inputs: Tensor | None) -> Results:
        op, options = LOSS_OPS[name], flatten(o)
        wants = list(ctx.needs_input_grad[2 : 2 + op.leaves])
        inputs = _detached(inputs, op.leaves)
        if o.loss.inplace:
            loss, sums, counts, weighted = _torch_op(f"{name}_with_grad_")(*inputs, *options)
            gradients = inputs[:1]
        else:
            loss, sums, counts, weighted, *gradients = _torch_op(f"{name}_with_grad")(*inputs, *options, wants)
        # Saved tensors are released before they are returned, so autograd can accumulate into them without a copy.
        ctx.save_for_backward(*gradients, weighted)
        ctx.name, ctx.options, ctx.wants, ctx.inputs, ctx.dtype = name, o, wants, len(inputs), inputs[0].dtype
        ctx.mark_non_differentiable(sums, counts)
        return loss, sums, counts

    @staticmethod
    def backward(ctx, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        *gradients, weighted = ctx.saved_tensors
        copy = _graph_is_kept() and not ctx.options.loss.inplace
        for at, want in enumerate(ctx.wants):
            if want:
                gradient = gradients[at].clone() if copy else gradients[at]
                LOSS_OPS[ctx.name].scale_(gradient, weighted, upstream, ctx.options)
                gradients[at] = gradient.to(ctx.dtype)
            else:
                gradients[at] = None
        return None, None, *gradients, *[None] * (ctx.inputs - len(ctx.wants))


class GradInBackward(torch.autograd.Function):
    """Keeps the inputs and a few numbers per row, and computes the gradients in the backward."""

    @staticmethod
    def forward(ctx, name: str, o: Any, *inputs: Tensor | None) -> Results:
        options = flatten(o)
        loss, sums, counts, state = _torch_op(name)(*_detached(inputs, LOSS_OPS[name].leaves), *options)
        ctx.save_for_backward(*inputs, state)
        ctx.name, ctx.options, ctx.inplace = name, options, o.loss.inplace
        ctx.wants = list(ctx.needs_input_grad[2 : 2 + LOSS_OPS[name].leaves])
        ctx.mark_non_differentiable(sums, counts)
        return loss, sums, counts

    @staticmethod
    def backward(ctx, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        *inputs, state = ctx.saved_tensors
        if ctx.inplace:
            gradients = (inputs[0].detach(),)
            _torch_op(f"{ctx.name}_backward_")(gradients[0], *inputs[1:], state, upstream, *ctx.options)
        else:
            gradients = _torch_op(f"{ctx.name}_backward")(*inputs, state, upstream, *ctx.options, ctx.wants)
            gradients = (gradients,) if isinstance(gradients, Tensor) else gradients
        wanted = (g.to(inputs[0].dtype) if want else None for g, want in zip(gradients, ctx.wants))
        return None, None, *wanted, *[None] * (len(inputs) - len(ctx.wants))


def apply(op: LossOp, x: Any, o: Any) -> Results:
    """Loss, sums (3, 4) and counts (3,) of validated arguments, connected to autograd.

    Args:
        op: A registered loss.
        x: Its inputs.
        o: Its options.
    """
    leaves = x[: op.leaves]
    if not torch.is_grad_enabled() or not any(leaf is not None and leaf.requires_grad for leaf in leaves):
        return _torch_op(op.name)(*flatten(x), *flatten(o))[:3]
    strategy = GradInForward if op.grad_in_forward(x, o) else GradInBackward
    return strategy.apply(op.name, o, *flatten(x))


def _refuse_second_derivatives() -> None:
    """Refuses `create_graph=True`: the gradient of a fused loss has no graph, so its own derivative would be lost silently.

    `once_differentiable` is not enough. It raises only if the upstream gradient requires grad, and `torch.autograd.grad`
    never reaches its error node, because no path leads from there to the inputs.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # grad mode in a backward means create_graph=True
        remedy = "The fused losses have no second derivatives: compute the loss with PyTorch's own operations for them."
        raise NotImplementedError(f"create_graph: expected False, got True. {remedy}")


def _detached(inputs: Sequence[Tensor | None], leaves: int) -> list[Tensor | None]:
    """The inputs without a graph; those after the leaves have none."""
    return [x if x is None else x.detach() for x in inputs[:leaves]] + list(inputs[leaves:])


def _torch_op(name: str) -> Callable:
    return getattr(torch.ops.sad, name).default


def _graph_is_kept() -> bool:
    """Whether this backward was started with `retain_graph=True`; True if PyTorch cannot tell."""
    if torch.compiler.is_compiling():
        return False
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or ask()
