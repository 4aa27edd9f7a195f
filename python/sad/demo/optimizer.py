"""The demo's optimizer: Muon for the matrices inside a model, AdamW for everything else.

Models of half a million weights learn to copy from their context in about half as many steps with it as with AdamW
alone, and the demo has minutes. In float32 throughout, so that it runs alike on every processor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_MATRIX_FACTOR = 2.0  # orthogonal updates have a root mean square well below AdamW's


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalized before they are applied (K. Jordan et al., 2024); AdamW for the rest.

    Args:
        model: Its two-dimensional weights outside embeddings and head get orthogonal updates.
        learning_rate: Of AdamW; twice that for the orthogonal updates. A scheduler scales both.
        momentum: Of the orthogonal updates, in Nesterov's form.
        weight_decay: Decoupled, for all weights.
    """

    def __init__(
        self, model: nn.Module, *, learning_rate: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        outside = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        outside |= {id(p) for p in model.get_output_embeddings().parameters()}
        matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in outside]
        inside = set(map(id, matrices))
        others = [p for p in model.parameters() if id(p) not in inside]
        self._adamw = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
        own = {"params": matrices, "lr": _MATRIX_FACTOR * learning_rate, "weight_decay": weight_decay}
        # AdamW's group is shared with it, so that a scheduler that sets its rate here sets it there
        super().__init__([own, *self._adamw.param_groups], {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step with the gradients there are."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._adamw.step()
        group = self.param_groups[0]
        alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        for shape, parameters in alike.items():
            updates = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, update in zip(parameters, orthogonalized(updates)):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-scale * group["lr"])
        return result

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        gradient, state = parameter.grad, self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum).float()


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Moves all singular values close to 1 by Newton-Schulz iterations of degree five.

    Args:
        matrices: (B, M, N).
        steps: Iterations.

    Returns:
        (B, M, N) with the singular vectors of `matrices` and singular values of about 0.7 to 1.2, the tiniest excepted.
    """
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-7)
    for _ in range(steps):  # the polynomial a s + b s^3 + c s^5 with the steepest slope at 0 that does not run away
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x
