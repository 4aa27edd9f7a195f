"""What a training step really keeps: the bytes of live tensors, counted as PyTorch makes and drops them.

Under `FakeTensorMode` nothing is allocated, so that models of any size can be counted. The step runs as it would on a GPU:
CUDA's autocast computes some functions in float32 that the CPU's does not, and CUDA's dropout keeps a mask of one byte.
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
from sad.planner.model_shape import LORA_TARGETS


class LiveBytes(TorchDispatchMode):
    """`now` and `peak` bytes of the storages that ops made while the mode was on."""

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
        """Counts the weights of a model that was made before."""
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
        """Writes the peak of a stretch of code to `peaks[name]`."""
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
    """Patched rather than in a mode, which would not be there when a checkpoint computes a layer again in the backward."""
    with (
        patch.object(torch, "pow", _float32_under_autocast(torch.pow)),
        patch.object(F, "layer_norm", _float32_under_autocast(F.layer_norm)),
        patch.object(F, "dropout", _dropout),
    ):
        yield


def _without_attention_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """CUDA's fused attention drops without a mask; the CPU's would fall back to T x T."""
    for name in ("attn_pdrop", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


def model_of(config: PretrainedConfig, dtype: torch.dtype):
    made = AutoModelForCausalLM.from_config(_without_attention_dropout(config), attn_implementation="sdpa", dtype=dtype)
    made.config.use_cache = False
    return made


def with_adapters(model, how: formulas.Setup):
    """peft's, of float32 weights. Nothing is to be moved, and fake weights cannot be."""
    from peft import LoraConfig, get_peft_model

    ends = LORA_TARGETS[how.lora_target]
    targets = "all-linear" if ends is None else list(ends)
    settings = LoraConfig(r=how.lora_rank, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")
    with patch.object(torch.nn.Module, "to", lambda self, *args, **kwargs: self):
        return get_peft_model(model, settings)


def naive_kl(student: Tensor, teacher: Tensor, span_ids: Tensor) -> Tensor:
    """As written without a kernel for it."""
    kl = F.kl_div(F.log_softmax(student.float(), -1), F.softmax(teacher.float(), -1), reduction="none").sum(-1)
    return (kl * (span_ids > 0)).sum()


class Step:
    """One training step of a student, counted phase by phase.

    Args:
        student: Trained as it is: parameters that require grad get one.
        teacher: None where a cache stands for it.
        how: What the plan was asked.
    """

    def __init__(self, student, teacher, how: formulas.Setup) -> None:
        self.student, self.teacher, self.how = student, teacher, how
        self.optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-4, fused=True)
        if how.checkpointing:
            newer = getattr(student, "activation_checkpointing_enable", None)  # the same by another name
            (newer or student.gradient_checkpointing_enable)()
        student.train()
        shape = (how.micro_batch, how.seq)
        self.ids, self.attention = torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.long)
        self.attention[0, 0] = 0  # padding: without any, transformers leaves the mask out
        self.span_ids = torch.ones(shape, dtype=torch.long)

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16) if self.how.dtype == "bf16" else nullcontext()

    def backbone(self, model) -> Tensor:
        return model.get_decoder()(input_ids=self.ids, attention_mask=self.attention, use_cache=False)[0]

    @torch.no_grad()
    def run_teacher(self) -> Tensor | None:
        with self.autocast():
            if self.how.mode == "linear":
                return self.backbone(self.teacher)
            if self.how.mode == "naive":
                return self.teacher(input_ids=self.ids, attention_mask=self.attention, use_cache=False).logits

    def run_student(self, live: LiveBytes, peaks: dict[str, int], teacher: Tensor | None) -> Tensor:
        if self.how.mode != "naive":
            with self.autocast():
                with live.phase(peaks, "forward"):
                    hidden = self.backbone(self.student)
                pairs = [hidden, self.student.get_output_embeddings().weight]
                if self.teacher is not None:
                    pairs += [teacher, self.teacher.get_output_embeddings().weight]
                with live.phase(peaks, "loss"):
                    dtype = torch.get_autocast_dtype("cpu") if self.how.dtype == "bf16" else hidden.dtype
                    return _LinearStandIn.apply(self.how.supervised_rows, *(x.to(dtype) for x in pairs))
        with live.phase(peaks, "forward"), self.autocast():
            logits = self.student(input_ids=self.ids, attention_mask=self.attention, use_cache=False).logits
        logits = logits.float()
        with live.phase(peaks, "loss"):
            return naive_kl(logits, teacher, self.span_ids)

    def __call__(self, live: LiveBytes) -> dict[str, int]:
        """Peak of every phase, of two micro-batches and an optimizer step; the second finds gradients there."""
        peaks: dict[str, int] = {}
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
        peaks["static"] = live.now
        return peaks


class _LinearStandIn(torch.autograd.Function):
    """The buffers of `sad.fused_linear_span_kl`, without a teacher of `sad.fused_linear_topk_span_kl`, on a GPU; the ops
    themselves show nothing of their inside to a mode."""

    @staticmethod
    def forward(ctx, rows: int, hidden: Tensor, weight: Tensor, teacher=None, teacher_weight=None) -> Tensor:
        shape, hidden = hidden.shape, hidden.flatten(0, -2)
        of_hidden = torch.zeros_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        row_bytes = weight.shape[0] * hidden.element_size()
        if teacher is not None:
            teacher = teacher.flatten(0, -2)
            row_bytes += weight.shape[0] * teacher.element_size()
        size = min(rows, max(1, formulas.CHUNK_BYTES // row_bytes))
        chosen = torch.arange(rows)
        logits = hidden.new_empty(size, weight.shape[0])
        other = None if teacher is None else teacher.new_empty(size, teacher_weight.shape[0])
        for some in chosen.split(size):
            part = hidden.index_select(0, some)
            torch.mm(part, weight.t(), out=logits[: len(some)])
            if other is not None:
                torch.mm(teacher.index_select(0, some), teacher_weight.t(), out=other[: len(some)])
            of_hidden.index_copy_(0, some, torch.mm(logits[: len(some)], weight))
            if of_weight is not None and weight.dtype == torch.float32:
                of_weight.addmm_(logits[: len(some)].t(), part)
            elif of_weight is not None:
                of_weight.add_(torch.empty_like(of_weight))  # as CUDA's product of bfloat16 with a float32 result
        del logits, other
        ctx.shape, ctx.inputs = shape, 3 if teacher is None else 5
        ctx.save_for_backward(of_hidden, None if of_weight is None else of_weight.to(weight.dtype))
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        return None, of_hidden.view(ctx.shape), of_weight, *[None] * (ctx.inputs - 3)


def real_peak(student, teacher, how: formulas.Setup) -> int:
    """Bytes that the CPU's allocator holds at the highest moment of two micro-batches of a linear step, weights included.

    PyTorch's profiler sees every allocation, also those inside of the op.
    """
    step = Step(student, teacher, how)
    standing = 16 * sum(p.numel() for p in student.parameters()) + sum(p.nbytes for p in teacher.parameters())

    def once() -> None:
        with torch.no_grad():
            teacher_hidden = step.backbone(teacher)
        heads = [model.get_output_embeddings().weight for model in (student, teacher)]
        hidden = step.backbone(student)
        sad.fused_linear_span_kl(hidden, heads[0], teacher_hidden, heads[1], step.span_ids, shift=True).backward()

    teacher.requires_grad_(False)
    once()  # gradients are there from now on
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
    return standing + highest


def kept_by_layer(make, how: formulas.Setup) -> int:
    """What a model of three layers keeps for its backward beyond one of two; make(layers) gives the model."""
    kept = []
    for layers in (2, 3):
        with FakeTensorMode(allow_non_fake_inputs=True), _like_cuda():
            step = Step(make(layers), None, how)
            with LiveBytes() as live, step.autocast():
                live.adopt(step.student)
                weights = live.now
                hidden = step.backbone(step.student)
            kept.append(live.now - weights)
            del hidden
    return kept[1] - kept[0]


def count(make_student, make_teacher, how: formulas.Setup) -> dict[str, int]:
    """Runs a `Step` with nothing allocated."""
    with FakeTensorMode(allow_non_fake_inputs=True), _like_cuda():
        models = make_student(), make_teacher() if make_teacher else None
        with LiveBytes() as live:
            for model in models:
                live.adopt(model)
            return Step(*models, how)(live)
