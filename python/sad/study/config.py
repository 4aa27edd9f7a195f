"""The configuration of a study, as the YAML file of `sad study` holds it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sad.errors import InputError
from sad.scratch.shape import DecoderShape
from sad.study.methods import Method, resolve

Section = TypeVar("Section")
OPTIMIZERS = ("adamw", "muon")
INITS = ("random", "pretrained")


@dataclass(frozen=True)
class Panel:
    """Tasks for an evaluation: the tasks `start` to `start + tasks` of a split, in the order of the environment.

    Attributes:
        split: Split of the environment; None is its default.
        tasks: Number of tasks.
        start: Number of tasks of the split that are left out before them.
    """

    tasks: int
    split: str | None = None
    start: int = 0


@dataclass(frozen=True)
class Training:
    """How a model is trained, besides its method.

    Attributes:
        steps: Optimizer steps.
        batch_size: Trajectories per batch.
        accumulation: Batches per step.
        learning_rate: Peak learning rate, after 5 % of the steps; it decays with a cosine.
        optimizer: "adamw", or "muon" for models that start from random weights.
        bf16: Whether the models compute in bfloat16.
    """

    steps: int
    learning_rate: float = 2e-5
    batch_size: int = 4
    accumulation: int = 1
    optimizer: str = "adamw"
    bf16: bool = False


@dataclass(frozen=True)
class Teacher:
    """The teacher of an environment.

    Attributes:
        size: Size of a new model. Its tokenizer is trained on the trajectories of the expert.
        model: Instead: folder of a model with its tokenizer.
        training: Training by cross-entropy on the trajectories of the expert; None leaves `model` as it is.
        prune_vocabulary: Whether to cut the vocabulary of `model` to the tokens in the expert's trajectories first. It saves
            most of the time of a small model with a large head. The students have the same vocabulary.
    """

    size: DecoderShape | None = None
    model: str | None = None
    training: Training | None = None
    prune_vocabulary: bool = False


@dataclass(frozen=True)
class Environment:
    """An environment, its data and its teacher.

    Attributes:
        env: Registered name.
        test: Tasks of the final evaluation.
        select: Tasks on which the learning rates are chosen.
        teacher: The teacher.
        expert_tasks: Number of training tasks that the scripted expert solves for the training of the teacher.
        teacher_tasks: Number of training tasks that the teacher plays. The students learn from the solved ones. With 0 they
            learn from the expert's trajectories.
        teacher_start: First of these tasks. Default: the one after those of the expert.
        options: Options of the environment.
        root: Data folder of the environment.
        split: Split of the training tasks; None is the default.
        seed: Seed of the environment.
        max_steps: Maximum number of actions per episode.
        max_length: Maximum number of tokens per episode, in training and in play.
        vocabulary: Maximum size of a new tokenizer.
        batch_size: Episodes that are played side by side.
    """

    env: str
    test: Panel
    teacher: Teacher
    expert_tasks: int
    teacher_tasks: int
    teacher_start: int | None = None
    select: Panel | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    root: str | None = None
    split: str | None = None
    seed: int = 0
    max_steps: int = 50
    max_length: int = 512
    vocabulary: int = 1024
    batch_size: int = 64


@dataclass(frozen=True)
class Student:
    """A student.

    Attributes:
        init: "random", or "pretrained".
        size: Size of a new model with the teacher's tokenizer.
        layers_of_teacher: Instead: keep every n-th layer of the teacher before its training, and its other weights.
        model: Instead: folder of a pretrained model with the teacher's tokenizer.
        pretraining: Training of a new model by cross-entropy on all tokens of transcripts of random play.
        pretraining_tasks: Number of training tasks that are played at random for it.
        pretraining_start: First of these tasks.
    """

    init: str = "random"
    size: DecoderShape | None = None
    layers_of_teacher: int | None = None
    model: str | None = None
    pretraining: Training | None = None
    pretraining_tasks: int = 0
    pretraining_start: int = 0


@dataclass(frozen=True)
class Block:
    """The cells of a block: its methods x its students x its environments. None is all of them.

    Attributes:
        methods: Names of methods.
        students: Names of students.
        environments: Names of environments.
        seeds: Seeds; None: those of the study.
    """

    methods: tuple[str, ...]
    students: tuple[str, ...] | None = None
    environments: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: Its title in the report.
        environments: The environments by name.
        students: The students by name.
        grid: Blocks of cells.
        training: Training of the students. Its learning rate is used if `learning_rates` is empty.
        learning_rates: Learning rates from which one is chosen for each method, student and environment: the one that solves
            most tasks of the environment's `select` panel with the seed `selection_seed`. Of equal ones, the smallest.
        selection_seed: Seed of these trainings. It is not one of `seeds`.
        seeds: Seeds of weights, batches and masks.
        evaluations: Number of evaluations during a training, evenly spaced; the last one is at its end.
        curve_tasks: Number of test tasks of the evaluations before the last one; None: all.
        samples: Number of sampled episodes per test task for pass^k; 0: none.
        temperature: Their temperature.
        baseline: Method with which all others are compared.
        methods: Methods of the study's own by name, besides `sad.study.methods.METHODS`.
        threads: Threads per cell. The results depend on it in the last bits.
        price_per_hour: Price of an hour of a cell, for the report.
    """

    name: str
    environments: Mapping[str, Environment]
    students: Mapping[str, Student]
    grid: tuple[Block, ...]
    training: Training
    learning_rates: tuple[float, ...] = ()
    selection_seed: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluations: int = 5
    curve_tasks: int | None = None
    samples: int = 0
    temperature: float = 0.7
    baseline: str = "token_kl"
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threads: int = 1
    price_per_hour: float | None = None

    def method(self, name: str) -> Method:
        """Returns a method by its name.

        Raises:
            InputError: There is none.
        """
        return resolve(name, self.methods)


def read_study(path: str | Path) -> Study:
    """Reads and checks the YAML file of a study.

    Raises:
        InputError: The file is missing, is not YAML, or has an unknown, missing or wrong value.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError("config", "a YAML file", f"{str(path)!r}: {error.strerror}", "Check the path.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(str(path), "YAML", str(error), "See examples/study.") from None
    study = build(Study, content, str(path))
    _check(study, str(path))
    return study


def as_plain(section: Any) -> Any:
    """Returns a section as JSON values, without the fields that have their defaults.

    So a new field with a default does not change what earlier results belong to.
    """
    if dataclasses.is_dataclass(section):
        plain = {}
        for item in dataclasses.fields(section):
            value = getattr(section, item.name)
            factory = item.default_factory
            default = item.default if factory is dataclasses.MISSING else factory()
            if default is dataclasses.MISSING or value != default:
                plain[item.name] = as_plain(value)
        return plain
    if isinstance(section, Mapping):
        return {str(name): as_plain(value) for name, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [as_plain(value) for value in section]
    return section


def build(section: type[Section], content: Any, where: str) -> Section:
    """Builds a dataclass from the mapping of a YAML file. Nested dataclasses are built too.

    Raises:
        InputError: `content` is not a mapping, or it has an unknown name, a missing one, or a value of the wrong type.
    """
    if not isinstance(content, Mapping):
        raise InputError(where, "`name: value` lines", repr(content)[:80], "See examples/study.")
    items = {item.name: item for item in dataclasses.fields(section)}
    for name in content:
        if name not in items:
            raise InputError(where, "one of " + ", ".join(items), repr(name), "Fix or remove this name.")
    hints = typing.get_type_hints(section)
    values = {name: _convert(hints[name], value, f"{where}, {name}") for name, value in content.items()}
    for name, item in items.items():
        if name not in values and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise InputError(where, f"a value for {name}", "none", f"Add `{name}:`.")
    return section(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(kind for kind in arguments if kind is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(where, "a list", repr(value)[:80], "Write it as [a, b].")
        return tuple(_convert(arguments[0], one, f"{where}[{number}]") for number, one in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(where, "`name: value` lines", repr(value)[:80], "Indent one name per line below it.")
        return {str(name): _convert(arguments[1], one, f"{where}, {name}") for name, one in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, str):  # YAML reads 2e-5 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        name = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}[hint]
        raise InputError(where, name, repr(value)[:80], "Fix this value.")
    return value


def _check(study: Study, where: str) -> None:
    """Checks what the types do not say."""
    names = {"environments": study.environments, "students": study.students}
    for kind, found in {**names, "grid": study.grid, "seeds": study.seeds}.items():
        if not found:
            raise InputError(f"{where}, {kind}", "at least one", "none", "Add one.")
    if not 1 <= study.evaluations <= study.training.steps:
        expected = f"1 to {study.training.steps}, the number of steps"
        raise InputError(f"{where}, evaluations", expected, str(study.evaluations), "Choose a value in that range.")
    if study.samples == 1 or study.samples < 0:
        raise InputError(f"{where}, samples", "0, or at least 2", str(study.samples), "pass^k needs several samples.")
    if study.selection_seed in study.seeds:
        raise InputError(f"{where}, selection_seed", "another seed than `seeds`", str(study.selection_seed), "Change it.")
    for block in study.grid:
        for kind, known in names.items():
            for name in getattr(block, kind) or ():
                if name not in known:
                    remedy = f"Add it to {kind}, or fix the name."
                    raise InputError(f"{where}, grid, {kind}", "one of " + ", ".join(known), repr(name), remedy)
        for name in block.methods:
            study.method(name)
    study.method(study.baseline)
    for name, environment in study.environments.items():
        _check_environment(study, environment, f"{where}, environments, {name}")
    for name, student in study.students.items():
        _check_student(student, f"{where}, students, {name}")


def _check_environment(study: Study, environment: Environment, where: str) -> None:
    teacher = environment.teacher
    if (teacher.size is None) == (teacher.model is None):
        raise InputError(f"{where}, teacher", "either size or model", "both or neither", "Give one of them.")
    if teacher.prune_vocabulary and (teacher.model is None or environment.expert_tasks < 1):
        expected = "false without `model` and expert_tasks >= 1"
        raise InputError(f"{where}, teacher, prune_vocabulary", expected, "true", "Remove it.")
    if teacher.size is not None and teacher.training is None:
        raise InputError(f"{where}, teacher", "training for a new model", "none", "Add `training:`.")
    if environment.expert_tasks < 1 and (teacher.training is not None or not environment.teacher_tasks):
        raise InputError(f"{where}, expert_tasks", "at least 1", str(environment.expert_tasks), "Choose a larger number.")
    if len(study.learning_rates) > 1 and environment.select is None:
        remedy = "Add `select: {split: ..., tasks: ...}`, or give one learning rate."
        raise InputError(where, "a select panel for the choice of the learning rate", "none", remedy)
    for training in (teacher.training, study.training):
        if training is not None and training.optimizer not in OPTIMIZERS:
            raise InputError(f"{where}, optimizer", "one of " + ", ".join(OPTIMIZERS), training.optimizer, "Choose one.")
    panels = [panel for panel in (environment.select, environment.test) if panel is not None]
    if len(panels) == 2 and panels[0].split == panels[1].split:
        first, second = sorted(panels, key=lambda panel: panel.start)
        if first.start + first.tasks > second.start:
            remedy = "Give one of them another split, or a larger `start`."
            raise InputError(where, "select and test panels without a common task", "overlapping ones", remedy)


def _check_student(student: Student, where: str) -> None:
    if student.init not in INITS:
        raise InputError(f"{where}, init", "one of " + ", ".join(INITS), repr(student.init), "Choose one.")
    given = [name for name in ("size", "layers_of_teacher", "model") if getattr(student, name) is not None]
    if len(given) != 1:
        expected = "one of size, layers_of_teacher, model"
        raise InputError(where, expected, " and ".join(given) or "none", "Give exactly one.")
    if (student.init == "random") != (student.pretraining is None and student.size is not None):
        expected = "init: random with size alone; init: pretrained with model, layers_of_teacher, or size and pretraining"
        raise InputError(where, expected, f"init: {student.init} with {given[0]}", "Fix one of them.")
    if student.pretraining is not None and (student.size is None or student.pretraining_tasks < 1):
        expected = "size and pretraining_tasks >= 1 with pretraining"
        raise InputError(where, expected, f"{given[0]}, {student.pretraining_tasks} tasks", "Give both.")
