"""What the cells of an environment share: the data, the teacher, its trajectories, and pretrained students.

Everything is made once, in the order in which it is needed, and saved in the folder of the study under a name that follows
from its configuration. A folder or file that exists is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import sad
from sad import files, models
from sad.agents.collect import collect, collect_expert
from sad.agents.random_player import collect_random
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.scratch.models import build_decoder, train_tokenizer
from sad.study.config import Environment, Panel, Student, Training, as_plain
from sad.study.labels import Example
from sad.study.training import IMITATION, LANGUAGE_MODEL, train
from sad.study.vocabulary import prune_vocabulary
from sad.trajectories.spans import SpanKind
from sad.trajectories.trajectory import Trajectory

Say = Callable[[str], None]
_TOKENIZER_TEXTS = 1000
_TEACHER_SEED, _STUDENT_SEED = 0, 1
MAX_REPEATS = 3  # ends the episodes of an agent that is stuck early


def digest(content: Any) -> str:
    """Returns ten hexadecimal digits that identify a configuration."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def identity(environment: Environment) -> dict[str, Any]:
    """Returns what the results of an environment depend on, without the place of its data."""
    plain = as_plain(environment)
    for name in ("root", "batch_size"):
        plain.pop(name, None)
    return plain


class Assets:
    """The shared files of one environment of a study.

    Args:
        folder: Folder of the study.
        name: Name of the environment in the study.
        environment: The environment.
    """

    def __init__(self, folder: Path, name: str, environment: Environment) -> None:
        self._environment, self._name = environment, name
        plain = identity(environment)
        played = ("teacher_tasks", "teacher_start")
        data = {key: value for key, value in plain.items() if key not in ("test", "select", *played)}
        lessons = {**data, **{key: getattr(environment, key) for key in played}}
        place, self._plain = folder / "assets", data
        self._place = place
        self.expert_path = place / f"{name}-expert-{digest({**data, 'teacher': None})}.jsonl.gz"
        self.teacher_path = place / f"{name}-teacher-{digest(data)}"
        self.lessons_path = place / f"{name}-lessons-{digest(lessons)}.jsonl.gz"
        self.reference_path = place / f"{name}-reference-{digest({**lessons, 'test': as_plain(environment.test)})}.jsonl.gz"

    def student_path(self, name: str, student: Student) -> Path:
        """Returns the folder of a pretrained student."""
        return self._place / f"{self._name}-student-{name}-{digest([self._plain, as_plain(student)])}"

    # --- tasks ---

    def env(self, split: str | None) -> Env:
        """Returns the environment with a split."""
        config = self._environment
        return sad.envs.make(config.env, root=config.root, split=split, seed=config.seed, **config.options)

    def panel(self, panel: Panel) -> tuple[Env, Sequence[Task]]:
        """Returns the environment and the tasks of a panel.

        Raises:
            InputError: The split has fewer tasks.
        """
        env = self.env(panel.split)
        return env, self._tasks(env, panel.start, panel.tasks, f"tasks of the split {panel.split}")

    def _training_tasks(self, start: int, count: int) -> tuple[Env, Sequence[Task]]:
        env = self.env(self._environment.split)
        return env, self._tasks(env, start, count, "training tasks")

    def _teacher_tasks(self) -> tuple[Env, Sequence[Task]]:
        """Returns the environment and the training tasks of the lessons."""
        config = self._environment
        if not config.teacher_tasks:
            return self._training_tasks(0, config.expert_tasks)
        return self._training_tasks(
            config.expert_tasks if config.teacher_start is None else config.teacher_start, config.teacher_tasks
        )

    def _tasks(self, env: Env, start: int, count: int, what: str) -> Sequence[Task]:
        found = env.tasks[start : start + count]
        if len(found) < count:
            remedy = "Lower the numbers of tasks; some environments have the option `tasks`."
            where = f"environments, {self._name}, {what}"
            raise InputError(where, f"at least {start + count}", str(len(env.tasks)), remedy)
        return found

    # --- making ---

    def make(self, students: dict[str, Student], say: Say) -> None:
        """Makes everything that does not exist yet."""
        steps: list[tuple[Path, str, Callable[[Path], str]]] = [
            (self.expert_path, "trajectories of the expert", self._make_expert),
            (self.teacher_path, "teacher", self._make_teacher),
            (self.lessons_path, "trajectories of the teacher", self._make_lessons),
            (self.reference_path, "the teacher on the test tasks", self._make_reference),
        ]
        for name, student in students.items():
            if student.init == "pretrained":
                path = self.student_path(name, student)
                steps.append((path, f"student {name}", lambda target, student=student: self._make_student(target, student)))
        for path, what, make in steps:
            if not path.exists():
                say(f"{self._name}: {what} ...")
                say(f"{self._name}: {what}: {make(path)}")

    def _make_expert(self, path: Path) -> str:
        count = self._environment.expert_tasks
        env, tasks = self._training_tasks(0, count)
        made = collect_expert(env, tasks, max_steps=self._environment.max_steps) if count else []
        sad.write_jsonl(path, made)
        return f"{len(made)}, {sum(bool(one.success) for one in made)} solved"

    def _make_teacher(self, path: Path) -> str:
        config, expert = self._environment, [one for one in sad.read_jsonl(self.expert_path) if one.success]
        spec = config.teacher
        if spec.model is not None:
            model, tokenizer = self._base()
        else:
            tokenizer = train_tokenizer((one.text or "" for one in expert[:_TOKENIZER_TEXTS]), config.vocabulary)
            model = build_decoder(spec.size, tokenizer, config.max_length, _TEACHER_SEED)
        made = f"{model.num_parameters():,} parameters"
        if spec.training is not None:
            examples = sad.encode_all(expert, tokenizer, max_length=config.max_length).examples
            made += f", {_train(model, examples, spec.training, IMITATION, config.max_length, _TEACHER_SEED)}"
        _save(model, tokenizer, path)
        return made

    def _base(self) -> tuple[Any, Any]:
        """Returns the teacher's model and tokenizer before the training."""
        spec = self._environment.teacher
        tokenizer = models.load_tokenizer("teacher", spec.model)
        model = models.load_model("teacher", spec.model, dtype="float32")
        if spec.prune_vocabulary:
            texts = (one.text or "" for one in sad.read_jsonl(self.expert_path))
            tokenizer = prune_vocabulary(model, tokenizer, texts)
        return model, tokenizer

    def _make_lessons(self, path: Path) -> str:
        config = self._environment
        if not config.teacher_tasks:
            count = sad.write_jsonl(path, (one for one in sad.read_jsonl(self.expert_path) if one.success))
            return f"the {count} solved ones of the expert"
        env, tasks = self._teacher_tasks()
        played = self.play(*self.teacher(), env, tasks)
        if not any(one.success for one in played):
            remedy = "Train the teacher longer, or set teacher_tasks to 0, so that the students learn from the expert."
            raise InputError(f"environments, {self._name}", "a teacher that solves training tasks", "none solved", remedy)
        sad.write_jsonl(path, [one for one in played if one.success])
        return f"{len(played)}, {sum(bool(one.success) for one in played)} solved"

    def _make_reference(self, path: Path) -> str:
        played = self.play(*self.teacher(), *self.panel(self._environment.test))
        sad.write_jsonl(path, played)
        return f"{sum(bool(one.success) for one in played)} of {len(played)} solved"

    def _make_student(self, path: Path, student: Student) -> str:
        config, tokenizer = self._environment, models.load_tokenizer("teacher", str(self.teacher_path))
        if student.model is not None:
            model = models.load_model("student", student.model, dtype="float32")
            made = ""
        elif student.layers_of_teacher is not None:
            if config.teacher.model is None:
                remedy = "Give the student a size, or the teacher a model."
                raise InputError("students, layers_of_teacher", "a teacher with `model`", "a new one", remedy)
            model, _ = self._base()
            made = f", {keep_layers(model, student.layers_of_teacher)} layers"
        else:
            env, tasks = self._training_tasks(student.pretraining_start, student.pretraining_tasks)
            played = collect_random(env, tasks, max_steps=config.max_steps, seed=config.seed)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="no token is reasoning")  # random play has no thoughts
                examples = sad.encode_all(played, tokenizer, max_length=config.max_length, observe=True).examples
            everything = [{**one, "span_ids": [k or int(SpanKind.OBSERVE) for k in one["span_ids"]]} for one in examples]
            model = build_decoder(student.size, tokenizer, config.max_length, _STUDENT_SEED)
            losses = _train(model, everything, student.pretraining, LANGUAGE_MODEL, config.max_length, _STUDENT_SEED)
            made = f", {losses}"
        _save(model, tokenizer, path)
        return f"{model.num_parameters():,} parameters{made}"

    # --- using ---

    def teacher(self) -> tuple[Any, Any]:
        """Returns the teacher and its tokenizer."""
        path = str(self.teacher_path)
        return models.load_model("teacher", path, dtype="float32"), models.load_tokenizer("teacher", path)

    def student(self, name: str, student: Student, tokenizer: Any, seed: int) -> Any:
        """Returns a student before its training. A random one has other weights for each seed."""
        if student.init == "random":
            return build_decoder(student.size, tokenizer, self._environment.max_length, _STUDENT_SEED + 1000 * seed)
        return models.load_model("student", str(self.student_path(name, student)), dtype="float32")

    def lessons(self, tokenizer: Any) -> list[Example]:
        """Returns the examples of the students, with the labels of SAD and of observations."""
        trajectories = sad.read_jsonl(self.lessons_path)
        return sad.encode_all(trajectories, tokenizer, max_length=self._environment.max_length, observe=True).examples

    def rollouts(self, kind: str, tokenizer: Any) -> Any:
        """Returns the source of the student's own trajectories of a method, or None.

        Args:
            kind: "none", "environment" or "prefix", as in `sad.study.methods.Method`.
            tokenizer: The tokenizer of the models.
        """
        config = self._environment
        if kind == "none":
            return None
        if kind == "prefix":
            return sad.PrefixReplay(sad.read_jsonl(self.lessons_path), tokenizer, batch_size=config.batch_size)
        env, tasks = self._teacher_tasks()
        options = {"max_steps": config.max_steps, "max_repeats": MAX_REPEATS, "batch_size": config.batch_size}
        return sad.EnvRollouts(env, tokenizer, tasks=tasks, env_name=config.env, **options)

    def play(
        self, model: Any, tokenizer: Any, env: Env, tasks: Sequence[Task], *, samples: int = 1, temperature: float = 0.0
    ) -> list[Trajectory]:
        """Plays tasks with a model: sample 0 of every task, then sample 1, and so on."""
        config = self._environment
        return collect(
            model,
            tokenizer,
            env,
            tasks,
            env_name=config.env,
            samples=samples,
            temperature=temperature,
            seed=config.seed,
            max_steps=config.max_steps,
            max_length=config.max_length,
            batch_size=config.batch_size,
            max_repeats=MAX_REPEATS,
        )

    def check_made(self, students: dict[str, Student]) -> None:
        """Checks that everything exists.

        Raises:
            InputError: Something is missing.
        """
        paths = [self.expert_path, self.teacher_path, self.lessons_path, self.reference_path]
        paths += [self.student_path(name, one) for name, one in students.items() if one.init == "pretrained"]
        if missing := [path for path in paths if not path.exists()]:
            raise InputError("out", f"{missing[0].name} in {missing[0].parent}", "none", "Run `sad study prepare` first.")


def keep_layers(model: Any, every: int) -> int:
    """Keeps every n-th layer of a decoder, from the first on, in place. Returns the number of layers.

    Raises:
        InputError: The model has no list of layers.
    """
    backbone = model.base_model
    name = next((n for n in ("layers", "h") if isinstance(getattr(backbone, n, None), torch.nn.ModuleList)), None)
    if name is None:
        got = type(backbone).__name__
        raise InputError("students, layers_of_teacher", "a decoder with `layers`", got, "Give the student a model folder.")
    kept = list(range(0, len(getattr(backbone, name)), every))
    setattr(backbone, name, torch.nn.ModuleList([getattr(backbone, name)[place] for place in kept]))
    for number, layer in enumerate(getattr(backbone, name)):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[place] for place in kept]
    return len(kept)


def _train(model: Any, examples: Sequence[Example], training: Training, settings: dict, max_length: int, seed: int) -> str:
    """Trains by cross-entropy and returns the last losses in words."""
    options = {"settings": settings, "learning_rate": training.learning_rate, "seed": seed, "max_length": max_length}
    made = train(model, None, examples, training, **options)
    last = {name.removeprefix("loss_"): value for name, value in made.curve[-1].items() if name != "step"}
    losses = ", ".join(f"{name} {value:.3f}" for name, value in last.items())
    return f"{training.steps} steps in {made.seconds:.0f} s, last losses {losses}"


def _save(model: Any, tokenizer: Any, path: Path) -> None:
    staged = path.with_name(f".{path.name}.partial")
    if staged.exists():
        shutil.rmtree(staged)
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    files.publish_folder(staged, path)
