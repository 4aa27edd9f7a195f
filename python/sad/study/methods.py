"""The methods that a study compares: a name, values of `SADConfig`, and which tokens have a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sad.errors import InputError

LABELS = ("spans", "all", "random")
ROLLOUTS = ("none", "environment", "prefix")
_SUFFIXES = {"+curriculum": True, "-curriculum": False}


@dataclass(frozen=True)
class Method:
    """A method of training a student.

    Attributes:
        text: What it is, for the report.
        source: Where it comes from.
        labels: Tokens with a loss. "spans": reasoning and actions, as SAD labels them. "all": every token after the prompt;
            those outside the spans are labelled as observations. "random": spans of the same number and lengths at random
            places after the prompt.
        settings: Values of `SADConfig` that differ from its defaults.
        rollouts: Where the student's own trajectories come from: "none"; "environment": it plays the tasks of the teacher;
            "prefix": it writes single turns of the teacher's trajectories.
    """

    text: str
    source: str = ""
    labels: str = "spans"
    settings: Mapping[str, Any] = field(default_factory=dict)
    rollouts: str = "none"

    @property
    def uses_teacher(self) -> bool:
        """Whether the training needs the teacher's distributions."""
        curriculum = self.settings.get("curriculum", True) and self.settings.get("curriculum_gamma", 1.0) > 0
        return self.settings.get("ce_weight", 0.0) != 1.0 or curriculum


_PAPER = "arXiv 2505.13820"
_FLAT = {"lambda_observe": 1.0, "curriculum": False}

METHODS: dict[str, Method] = {
    "sad": Method("forward KL on reasoning and actions, curriculum", f"{_PAPER}, eqs. 4 to 7"),
    "token_kl": Method(
        "forward KL on every token after the prompt", f"{_PAPER}, baseline (token-level)", labels="all", settings=_FLAT
    ),
    "token_reverse_kl": Method(
        "reverse KL on every token after the prompt",
        "MiniLLM, arXiv 2306.08543, without its sampling",
        labels="all",
        settings={**_FLAT, "divergence": "reverse_kl"},
    ),
    "imitation": Method(
        "cross-entropy on the model's own tokens",
        f"{_PAPER}, eq. 13 without the curriculum",
        settings={"ce_weight": 1.0, "curriculum": False},
    ),
    "reason_only": Method("SAD without the loss on actions", f"{_PAPER}, table 5", settings={"lambda_act": 0.0}),
    "act_only": Method("SAD without the loss on reasoning", f"{_PAPER}, table 5", settings={"lambda_reason": 0.0}),
    "no_spans": Method(
        "forward KL on every token after the prompt, curriculum",
        f"{_PAPER}, table 5",
        labels="all",
        settings={"lambda_observe": 1.0},
    ),
    "random_spans": Method("SAD on spans at random places, as many and as long", f"{_PAPER}, table 5", labels="random"),
    "sad_observe": Method("SAD, and 0.3 times the KL on observations", "this project", settings={"lambda_observe": 0.3}),
    "turn_mean": Method("SAD in which each turn counts alike", "docs/token_weights.md", settings={"turn_balance": "equal"}),
    "sod": Method(
        "SAD with less weight on turns where student and teacher diverge",
        "SOD, docs/token_weights.md",
        settings={"token_weighting": "step_divergence"},
    ),
    "confidence": Method(
        "SAD weighted with the teacher's confidence",
        "docs/token_weights.md",
        settings={"token_weighting": "confidence"},
    ),
    "sad_on_policy": Method(
        "SAD, and more and more of the student's own episodes with reverse KL", "docs/on_policy.md", rollouts="environment"
    ),
    "sad_prefix_replay": Method(
        "SAD, and more and more turns that the student writes, with reverse KL", "docs/on_policy.md", rollouts="prefix"
    ),
}


def resolve(name: str, own: Mapping[str, Mapping[str, Any]]) -> Method:
    """Returns a method by its name. `NAME+curriculum` and `NAME-curriculum` are the method with and without the curriculum.

    Args:
        name: The name.
        own: Methods of a study: `base` (a name), and `text`, `source`, `labels` and `rollouts` that replace those of the
            base. Their `settings` are added to those of the base.

    Raises:
        InputError: The name is unknown, or a method of the study has an unknown field or value.
    """
    for suffix, curriculum in _SUFFIXES.items():
        if name.endswith(suffix):
            method = resolve(name.removesuffix(suffix), own)
            text = f"{method.text}; {'with' if curriculum else 'without'} the curriculum"
            return replace(method, text=text, settings={**method.settings, "curriculum": curriculum})
    if name in own:
        return _own(name, own)
    if name not in METHODS:
        known = ", ".join([*METHODS, *own])
        raise InputError("methods", f"one of {known}", repr(name), "Fix the name, or define it under `methods:`.")
    return METHODS[name]


def _own(name: str, own: Mapping[str, Mapping[str, Any]]) -> Method:
    where, given = f"methods, {name}", dict(own[name])
    base = given.pop("base", "sad")
    if base == name or not isinstance(base, str):
        raise InputError(f"{where}, base", "the name of another method", repr(base), "Use a name such as sad.")
    known = ("text", "source", "labels", "rollouts", "settings")
    for key in given:
        if key not in known:
            raise InputError(where, f"base or one of {', '.join(known)}", repr(key), "Fix or remove this name.")
    for key, choices in (("labels", LABELS), ("rollouts", ROLLOUTS)):
        if given.get(key, choices[0]) not in choices:
            raise InputError(f"{where}, {key}", "one of " + ", ".join(choices), repr(given[key]), "Choose one.")
    method = resolve(base, {key: value for key, value in own.items() if key != name})
    settings = given.pop("settings", {})
    if not isinstance(settings, Mapping):
        raise InputError(f"{where}, settings", "`name: value` lines", repr(settings), "Write fields of SADConfig.")
    return replace(method, **given, settings={**method.settings, **settings})
