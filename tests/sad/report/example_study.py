"""A study with everything that its report has to show: two sizes, failed, open and unfinished methods."""

from __future__ import annotations

from typing import Any

MESSAGE = "exit code 1: RuntimeError: <script>alert(1)</script> | needs 3 GB"


def estimate(mean: float, width: float = 0.03) -> dict[str, float]:
    return {"mean": mean, "low": max(mean - width, 0.0), "high": mean + width}


def method(
    name: str, success: float, difference: tuple[float, float, float] | None = None, **changes: Any
) -> dict[str, Any]:
    """A method with three finished seeds. `difference` is mean, half of the interval, and p."""
    steps = ((100, 0.2), (200, 0.7), (300, 1.0))
    found = None
    if difference is not None:
        mean, width, p = difference
        found = {
            "mean": mean,
            "low": mean - width,
            "high": mean + width,
            "p": p,
            "p_holm": min(1.0, 3 * p),
            "seeds": 3,
            "visible": 1.43 * width,
        }
    return {
        "name": name,
        "text": f"what {name} does",
        "source": "arXiv 2505.13820",
        "state": "done",
        "learning_rate": 0.01,
        "selection": {"0.005": 88, "0.01": 97},
        "seeds": [0, 1, 2],
        "failed": [],
        "metrics": {
            "success": estimate(success),
            "score": estimate(success),
            "reasoning_length": estimate(41.5 - 10 * success, 1.2),
            "cot_match": estimate(0.6 + 0.3 * success, 0.01),
            "steps": estimate(14.25 - 5 * success, 0.4),
            "actions": estimate(7.0, 0.2),
            "invalid_actions": estimate(0.52, 0.05),
        },
        "difference": found,
        "curve": [
            {"step": step, "tasks": 500 if step == 300 else 200, **estimate(success * part, 0.04)} for step, part in steps
        ],
        "losses": [{"step": 1, "loss_reason": 2.0, "loss_act": 1.0}],
        "pass_k": [success, 0.6 * success],
    } | changes


def empty(name: str, state: str, failed: list[dict[str, Any]]) -> dict[str, Any]:
    """A method without a result."""
    unknown = {"learning_rate": None, "selection": {"0.005": 71, "0.01": None}, "seeds": [], "curve": [], "losses": []}
    return method(name, 0.0, state=state, failed=failed, metrics={}, pass_k=None, **unknown)


def group(student: str, parameters: int | None, methods: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "environment": "household",
        "student": student,
        "init": "pretrained",
        "parameters": {"student": parameters, "teacher": 715_136} if parameters else None,
        "teacher": {"success": 0.742, "reasoning_length": 33.25, "steps": 10.5} if parameters else None,
        "tasks": 500 if parameters else None,
        "methods": methods,
    }


FAILED = [{"seed": 1, "panel": "test", "message": MESSAGE}]
SUMMARY: dict[str, Any] = {
    "name": "Household <b>rooms</b>",
    "baseline": "token_kl",
    "training_steps": 300,
    "seeds": [0, 1, 2],
    "groups": [
        group(
            "small",
            203_840,
            [
                method("token_kl", 0.432),
                method("sad", 0.4415, (0.0095, 0.031, 0.54)),
                method("imitation", 0.487, (0.055, 0.028, 0.0004)),
                method("act_only", 0.002, (-0.43, 0.035, 0.0002), state="failed", seeds=[0, 2], failed=FAILED),
                method("token_reverse_kl+curriculum", 0.401, (-0.031, 0.036, 0.09), state="part", seeds=[0]),
            ],
        ),
        group(
            "large",
            486_400,
            [
                method("token_kl", 0.55),
                method("sad", 0.61, (0.06, 0.03, 0.0008)),
                empty("imitation", "open", []),
                empty("act_only", "failed", [{"seed": 100, "panel": "select", "message": MESSAGE}]),
            ],
        ),
        group("not-started", None, [empty("token_kl", "open", []), empty("sad", "open", [])]),
    ],
}
MEASURED: dict[str, Any] = {
    "seconds": 14_760.0,
    "cost": 3.5,
    "devices": ["cpu"],
    "versions": {"sad": "0.1.0", "torch": "2.13.0"},
    "methods": [
        {
            "environment": "household",
            "student": "small",
            "method": "sad",
            "training_seconds": 181.25,
            "tokens_per_second": 23_456.0,
            "peak_memory_bytes": 805_306_368,
        }
    ],
}
_TEXT = "You see <b>a mug</b>.\nReasoning: I take it.\nAction: take mug\nOk.\n"
EXHIBITS: dict[str, Any] = {
    "household": {
        "trajectories": 431,
        "lengths": {"reason": [5, 6, 9, 9, 14], "act": [3, 3, 4], "observe": []},
        "example": {
            "id": "household/train/<0>",
            "text": _TEXT,
            "offsets": [(0, 22), (22, 44), (44, 61), (61, 65)],
            "span_ids": {"spans": [0, 1, 2, 0], "all": [0, 1, 2, 3], "random": [0, 2, 0, 1]},
        },
    }
}
