"""A study whose cells take a second: its agents learn nothing."""

from __future__ import annotations

from typing import Any

_SIZE = {"layers": 1, "width": 16, "heads": 2}
TINY: dict[str, Any] = {
    "name": "Tiny",
    "environments": {
        "household": {
            "env": "household",
            "options": {"size": "small", "tasks": 40},
            "expert_tasks": 16,
            "teacher_tasks": 0,
            "max_steps": 5,
            "max_length": 512,
            "vocabulary": 400,
            "select": {"split": "valid", "start": 10, "tasks": 3},
            "test": {"split": "valid", "tasks": 4},
            "teacher": {"size": _SIZE, "training": {"steps": 2, "learning_rate": 0.01, "optimizer": "muon"}},
        }
    },
    "students": {
        "small": {"size": _SIZE},
        "warm": {
            "init": "pretrained",
            "size": _SIZE,
            "pretraining": {"steps": 2, "learning_rate": 0.01, "optimizer": "muon"},
            "pretraining_tasks": 6,
            "pretraining_start": 20,
        },
    },
    "grid": [{"methods": ["sad", "token_kl"], "students": ["small"]}],
    "seeds": [0],
    "evaluations": 2,
    "curve_tasks": 2,
    "training": {"steps": 4, "batch_size": 2, "learning_rate": 0.01, "optimizer": "muon"},
}
