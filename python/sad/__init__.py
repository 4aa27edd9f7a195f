"""Structured Agent Distillation: compresses a ReAct-style agent by matching its reasoning and its actions.

A name is imported when it is first used, so `import sad; sad.fused_span_kl(...)` loads PyTorch and the kernels, but none of
the libraries that only the trainer needs.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "sad.errors": ("InputError",),
    "sad.losses": (
        "KindStats",
        "SpanStats",
        "fused_linear_span_kl",
        "fused_linear_topk_span_kl",
        "fused_span_ce",
        "fused_span_kl",
        "fused_topk_span_kl",
        "span_ids_from_masks",
    ),
    "sad.trajectories.spans": ("Span", "SpanKind", "span_ids_from_offsets"),
    "sad.trajectories.segment": ("Segmentation", "Unparsed", "segment"),
    "sad.trajectories.formats": ("ChatFormat", "Format", "formats", "register_format"),
    "sad.trajectories.trajectory": ("Trajectory", "write_jsonl"),
    "sad.trajectories.read": ("read_jsonl", "read_trajectories"),
    "sad.trajectories.sources.base": ("Source",),
    "sad.trajectories.sources": ("register_source", "sources"),
    "sad.trajectories.generated": ("label_generated",),
    "sad.trajectories.encoded": ("Encoded",),
    "sad.trajectories.corpus": ("EncodedCorpus",),
    "sad.trajectories.encode": ("encode", "encode_all"),
    "sad.teacher_cache.metadata": ("CacheMetadata", "cache_metadata"),
    "sad.teacher_cache.reader": ("TeacherCache",),
    "sad.teacher_cache.writer": ("CacheReport", "write_teacher_cache"),
    "sad.planner.plan": ("plan",),
    "sad.planner.request": ("PlanRequest",),
    "sad.training.config": ("SADConfig",),
    "sad.training.loss_config": ("SpanLossConfig",),
    "sad.training.collator": ("SpanCollator",),
    "sad.training.curriculum": ("CurriculumSampler", "difficulty_scores"),
    "sad.training.trainer": ("SADTrainer",),
    "sad.agents.collect": ("collect", "collect_endpoint", "collect_expert"),
    "sad.agents.endpoint": ("Endpoint",),
    "sad.agents.episode": ("Episode",),
    "sad.agents.evaluate": ("evaluate",),
    "sad.agents.rollout": ("rollout",),
    "sad.on_policy.endpoint_engine": ("EndpointEngine", "VllmReload"),
    "sad.on_policy.env_rollouts": ("EnvRollouts",),
    "sad.on_policy.prefix_replay": ("PrefixReplay",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("envs", "integrations")  # subpackages that `import sad` offers as attributes

__all__ = ["__version__", *_MODULES, *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(f"sad.{name}")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'sad' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
