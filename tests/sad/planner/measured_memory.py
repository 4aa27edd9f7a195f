"""Measures the memory of a training step: counts the bytes of live tensors as PyTorch creates and frees them.

`FakeTensorMode` allocates nothing, so models of any size can be counted. Patches make the step save the same tensors as on
a GPU: CUDA's autocast computes some functions in float32 that the CPU's does not, and CUDA's dropout saves a mask of one
byte per number.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig

import sad
from sad.planner import formulas
from sad.planner.request import LORA_TARGETS


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that ops create while the mode is active.

    `now` is the current number of bytes, `peak` the largest since the last `phase` began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return made

    def adopt(self, model: torch.nn.Module | None) -> None:
        """Counts the weights of a model that existed before the mode."""
        for tensor in () if model is None else (*model.parameters(), *model.buffers()):
            self._add(tensor.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    @contextmanager
    def phase(self, peaks: dict[str, int], name: str):
        """Writes the peak of the enclosed code to `peaks[name]`, if it is higher than the value there."""
        self.peak = self.now
        yield
        peaks[name] = max(peaks.get(name, 0), self.peak)


def _float32_under_autocast(function):
    def computed(x: Tensor, *args, **kwargs) -> Tensor:
        return function(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)

    return computed


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, training)[0] if training and p else input


@contextmanager
def _like_cuda():
    """Patches functions. A dispatch mode would not be active when a checkpoint recomputes a layer in the backward."""
    with (
        patch.object(torch, "pow", _float32_under_autocast(torch.pow)),
        patch.object(F, "layer_norm", _float32_under_autocast(F.layer_norm)),
        patch.object(F, "dropout", _dropout),
    ):
        yield


def _without_attention_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """Turns dropout of attention off. CUDA's fused attention saves no mask; the CPU's would fall back to T x T weights."""
    for name in ("attn_pdrop", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


def model_of(config: PretrainedConfig, dtype: torch.dtype):
    made = AutoModelForCausalLM.from_config(_without_attention_dropout(config), attn_implementation="sdpa", dtype=dtype)
    made.config.use_cache = False
    return made


def with_adapters(model, setup: formulas.Setup):
    """Returns a PEFT model with float32 adapters. `Module.to` is patched because fake weights cannot be moved."""
    from peft import LoraConfig, get_peft_model

    suffixes = LORA_TARGETS[setup.lora_target]
    targets = "all-linear" if suffixes is None else list(suffixes)
    lora = LoraConfig(r=setup.lora_rank, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")
    with patch.object(torch.nn.Module, "to", lambda self, *args, **kwargs: self):
        return get_peft_model(model, lora)


class OnlyHead(torch.nn.Module):
    """The head of a model, without the rest."""

    def __init__(self, model) -> None:
        super().__init__()
        self._head = model.get_output_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        return self._head


def naive_kl(student: Tensor, teacher: Tensor, span_ids: Tensor) -> Tensor:
    """The span KL in plain PyTorch."""
    kl = F.kl_div(F.log_softmax(student.float(), -1), F.softmax(teacher.float(), -1), reduction="none").sum(-1)
    return (kl * (span_ids > 0)).sum()


class Step:
    """One training step of a student, with the peak memory of each phase.

    Args:
        student: The model to train. Parameters that require a gradient are trained.
        teacher: The teacher; None in the mode "cached". In the mode "hidden" only its head counts.
        setup: Configuration of the step.
    """

    def __init__(self, student, teacher, setup: formulas.Setup) -> None:
        self.student, self.teacher, self.setup = student, teacher, setup
        self.loaded: Tensor | None = None  # the cached hidden states of all micro-batches
        self.optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-4, fused=True)
        if setup.checkpointing:
            newer = getattr(student, "activation_checkpointing_enable", None)  # a newer name of the same method
            (newer or student.gradient_checkpointing_enable)()
        student.train()
        shape = (setup.micro_batch, setup.seq)
        self.ids, self.attention = torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.long)
        self.attention[0, 0] = 0  # padding: without it, transformers drops the mask
        self.span_ids = torch.ones(shape, dtype=torch.long)

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16) if self.setup.dtype == "bf16" else nullcontext()

    def head(self, model) -> Tensor:
        return model.get_output_embeddings().weight

    def backbone(self, model) -> Tensor:
        return model.get_decoder()(input_ids=self.ids, attention_mask=self.attention, use_cache=False)[0]

    @torch.no_grad()
    def run_teacher(self) -> Tensor | None:
        with self.autocast():
            if self.setup.mode == "hidden":
                return self.loaded.new_zeros((*self.ids.shape, self.loaded.shape[-1]))
            if self.setup.mode == "linear":
                return self.backbone(self.teacher)
            if self.setup.mode == "naive":
                return self.teacher(input_ids=self.ids, attention_mask=self.attention, use_cache=False).logits

    def run_student(self, live: LiveBytes, peaks: dict[str, int], teacher: Tensor | None) -> Tensor:
        if self.setup.mode != "naive":
            with self.autocast():
                with live.phase(peaks, "forward"):
                    hidden = self.backbone(self.student)
                pairs = [hidden, self.head(self.student)]
                if self.teacher is not None:
                    pairs += [teacher, self.head(self.teacher)]
                with live.phase(peaks, "loss"):
                    dtype = torch.get_autocast_dtype("cpu") if self.setup.dtype == "bf16" else hidden.dtype
                    return _LinearStandIn.apply(self.setup, *(x.to(dtype) for x in pairs))
        with live.phase(peaks, "forward"), self.autocast():
            logits = self.student(input_ids=self.ids, attention_mask=self.attention, use_cache=False).logits
        logits = logits.float()
        with live.phase(peaks, "loss"):
            return naive_kl(logits, teacher, self.span_ids)

    def __call__(self, live: LiveBytes) -> dict[str, int]:
        """Runs two micro-batches, of which the second accumulates, and an optimizer step; returns the peak of each phase."""
        peaks: dict[str, int] = {}
        if self.setup.mode == "hidden":
            rows, width = self.setup.accumulation * self.setup.supervised_rows, self.head(self.teacher).shape[1]
            self.loaded = torch.zeros((rows, width), dtype=torch.bfloat16)
        for _ in range(2):
            with live.phase(peaks, "teacher"):
                teacher = self.run_teacher()
            loss = self.run_student(live, peaks, teacher)
            peaks["saved"] = live.now
            del teacher
            with live.phase(peaks, "backward"):
                loss.backward()
            del loss
            if not self.optimizer.state:
                for group in self.optimizer.param_groups:
                    for p in group["params"]:
                        self.optimizer.state[p] = {
                            "step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p),
                        }  # fmt: skip
        with live.phase(peaks, "optimizer"):
            self.optimizer.step()
        self.loaded = None
        peaks["static"] = live.now
        return peaks


class _LinearStandIn(torch.autograd.Function):
    """Allocates the buffers of `sad.fused_linear_span_kl` on a GPU, or of `sad.fused_linear_topk_span_kl` without a teacher.

    A dispatch mode cannot see inside of the ops themselves.
    """

    @staticmethod
    def forward(ctx, setup: formulas.Setup, hidden: Tensor, weight: Tensor, teacher=None, teacher_weight=None) -> Tensor:
        shape, hidden, vocab = hidden.shape, hidden.flatten(0, -2), weight.shape[0]
        of_hidden = torch.zeros_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        rounded = hidden.element_size() if hidden.dtype != torch.float32 else 0
        rows = setup.supervised_rows
        size = setup.chunk_rows(vocab * (4 + rounded) + (0 if teacher is None else 4 * teacher_weight.shape[0]))
        logits = torch.empty(size, vocab)
        operand = hidden.new_empty(size, vocab) if rounded else logits
        other = None if teacher is None else torch.empty(size, teacher_weight.shape[0])
        for some in torch.arange(rows).split(size):
            part = hidden.index_select(0, some)
            if teacher is not None:
                teacher.flatten(0, -2).index_select(0, some)
            of_hidden.index_copy_(0, some, torch.mm(operand[: len(some)], weight))
            if of_weight is not None:
                of_weight.add_(part.sum())  # on CUDA the product is added to the float32 sum in place
        del logits, other, operand
        ctx.shape, ctx.inputs = shape, 3 if teacher is None else 5
        ctx.save_for_backward(of_hidden, None if of_weight is None else of_weight.to(weight.dtype))
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        return None, of_hidden.view(ctx.shape), of_weight, *[None] * (ctx.inputs - 3)


def real_peak(student, teacher, setup: formulas.Setup) -> int:
    """Returns the peak bytes of the CPU's allocator over two micro-batches of a step in the mode "linear".

    Includes the weights. PyTorch's profiler sees every allocation, also inside of the op.
    """
    step = Step(student, teacher, setup)
    persistent = 16 * sum(p.numel() for p in student.parameters()) + sum(p.nbytes for p in teacher.parameters())

    def once() -> None:
        with torch.no_grad():
            teacher_hidden = step.backbone(teacher)
        heads = [model.get_output_embeddings().weight for model in (student, teacher)]
        hidden = step.backbone(student)
        sad.fused_linear_span_kl(hidden, heads[0], teacher_hidden, heads[1], step.span_ids, shift=True).backward()

    teacher.requires_grad_(False)
    once()  # creates the gradients
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        once()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    held = highest = 0
    for _, change in changes:
        held += change
        highest = max(highest, held)
    return persistent + highest


def kept_by_layer(make, setup: formulas.Setup) -> int:
    """Returns the bytes that one layer saves for its backward: a model of three layers minus one of two.

    `make(layers)` returns the model.
    """
    kept = []
    for layers in (2, 3):
        with FakeTensorMode(allow_non_fake_inputs=True), _like_cuda():
            step = Step(make(layers), None, setup)
            with LiveBytes() as live, step.autocast():
                live.adopt(step.student)
                weights = live.now
                hidden = step.backbone(step.student)
            kept.append(live.now - weights)
            del hidden
    return kept[1] - kept[0]


def count(make_student, make_teacher, setup: formulas.Setup) -> dict[str, int]:
    """Runs a `Step` under `FakeTensorMode` and returns the peak of each phase."""
    with FakeTensorMode(allow_non_fake_inputs=True), _like_cuda():
        models = make_student(), make_teacher() if make_teacher else None
        with LiveBytes() as live:
            for model in models:
                live.adopt(model)
            return Step(*models, setup)(live)
