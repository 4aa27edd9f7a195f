"""The YAML file of a study: what it may hold, and the message for what it may not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from sad.errors import InputError
from sad.study.cells import TEST, Cell
from sad.study.config import as_plain, read_study
from sad.study.methods import METHODS, Method, resolve
from sad.training.config import SADConfig

from .tiny import TINY

EXAMPLES = Path(__file__).parents[3] / "examples" / "study"


def read(tmp_path: Path, **changes: Any) -> Any:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(TINY) | changes))
    return read_study(path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    study = read_study(path)
    assert study.name and study.grid


def test_numbers_such_as_2e_5_are_numbers(tmp_path: Path) -> None:
    study = read(tmp_path, training={"steps": 4, "learning_rate": "2e-5"})
    assert study.training.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seedz": [0]}, "seedz"),
        ({"seeds": [0.5]}, "seeds[0]: expected a whole number"),
        ({"seeds": [100]}, "selection_seed"),
        ({"grid": [{"methods": ["saad"]}]}, "saad"),
        ({"grid": [{"methods": ["sad"], "students": ["big"]}]}, "big"),
        ({"evaluations": 50}, "evaluations"),
        ({"samples": 1}, "samples"),
        ({"students": {"small": {"init": "random"}}}, "exactly one"),
        ({"students": {"small": {"init": "pretrained", "size": {"layers": 1, "width": 8, "heads": 1}}}}, "init: random"),
        ({"students": {"small": {"size": {"layers": 1, "width": 8}}}}, "heads"),
        ({"methods": {"mine": {"base": "sad", "colour": "red"}}, "grid": [{"methods": ["mine"]}]}, "colour"),
        ({"methods": {"mine": {"base": "mine"}}, "grid": [{"methods": ["mine"]}]}, "another method"),
        ({"training": {"steps": True}}, "steps: expected a whole number"),
        ({"environments": {}}, "at least one"),
        ({"learning_rates": ["fast"]}, "a number"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=r"study\.yaml|methods") as raised:
        read(tmp_path, **changes)
    assert message in str(raised.value)


def test_panels_must_not_share_tasks(tmp_path: Path) -> None:
    environments = copy.deepcopy(TINY["environments"])
    environments["household"]["select"] = {"split": "valid", "tasks": 4, "start": 3}
    with pytest.raises(InputError, match="without a common task"):
        read(tmp_path, environments=environments)


def test_every_method_is_a_valid_configuration(tmp_path: Path) -> None:
    for name, method in METHODS.items():
        SADConfig(output_dir=str(tmp_path), use_cpu=True, **method.settings)
        assert method.text and method.source, name


def test_suffixes_and_own_methods(tmp_path: Path) -> None:
    assert resolve("token_kl+curriculum", {}).settings == METHODS["no_spans"].settings | {"curriculum": True}
    assert resolve("sad-curriculum", {}).settings == {"curriculum": False}
    own = {"slow": {"base": "sad_observe", "settings": {"curriculum_end": 0.9}, "text": "slower"}}
    assert resolve("slow", own) == Method("slower", "this project", settings={"lambda_observe": 0.3, "curriculum_end": 0.9})
    assert not resolve("imitation", {}).uses_teacher and resolve("imitation+curriculum", {}).uses_teacher


def test_the_name_of_a_cell_follows_from_what_its_result_depends_on(tmp_path: Path) -> None:
    cell = Cell("household", "small", "sad", 0, 1e-2, TEST)
    name = cell.name(read(tmp_path))
    environments = copy.deepcopy(TINY["environments"])
    environments["household"] |= {"root": None, "batch_size": 3}
    assert cell.name(read(tmp_path, name="Other", seeds=[0, 5], environments=environments, price_per_hour=1.0)) == name
    assert cell.name(read(tmp_path, threads=2)) != name
    assert cell.name(read(tmp_path, training={**TINY["training"], "steps": 5})) != name
    own = {"same": {"base": "sad", "text": "another text"}}
    same = Cell("household", "small", "same", 0, 1e-2, TEST)
    study = read(tmp_path, methods=own)
    assert same.spec(study) == cell.spec(study)


def test_defaults_are_not_part_of_the_identity(tmp_path: Path) -> None:
    study = read(tmp_path)
    assert "accumulation" not in as_plain(study.training) and as_plain(study.training)["steps"] == 4
