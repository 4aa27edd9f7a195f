"""The options of `sad train` that say how the student plays. Declarations only: `sad.cli` makes the environment."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from sad.errors import InputError
from sad.options import option

_GROUP = "Rollouts"


@dataclass
class RolloutOptions:
    """Where and how the student plays for its own training. The schedule is fields of `sad.SADConfig`."""

    on_policy: str | None = option(
        None, group=_GROUP, help="Environment in which the student plays. The teacher scores what it writes. Default: none."
    )
    prefix_replay: bool = option(
        False,
        flag="--prefix-replay",
        group=_GROUP,
        help="Let the student write the next turn of the trajectories of --data, without an environment.",
    )
    rollout_split: str = option("train", group=_GROUP, help="Split of the tasks.")
    rollout_tasks: int | None = option(None, group=_GROUP, help="Number of tasks, from the first one. Default: all tasks.")
    rollout_root: str | None = option(None, group=_GROUP, help="Folder with the data of the environment, if it needs data.")
    rollout_option: list[str] = option([], group=_GROUP, help="Option of the environment as name=value. Repeatable.")
    rollout_max_steps: int = option(50, group=_GROUP, help="Maximum number of actions per episode.")
    rollout_turn_tokens: int = option(128, group=_GROUP, help="Maximum number of tokens per turn.")
    rollout_temperature: float = option(1.0, group=_GROUP, help="Sampling temperature, above 0.")
    rollout_prompt: str = option("none", group=_GROUP, help="Prompt of both models, as --prompt of sad collect.")
    rollout_batch_size: int = option(64, group=_GROUP, help="Number of parallel episodes per process.")
    rollout_endpoint: str | None = option(
        None, group=_GROUP, help="URL of a vLLM server that plays for the student. Default: the student's own process."
    )
    rollout_model: str | None = option(None, group=_GROUP, help="Name of the student on that server. Required with it.")
    rollout_reload: str | None = option(
        None, group=_GROUP, help="Folder that the server was started with; gets the student's weights. Required with it."
    )

    @property
    def plays(self) -> bool:
        """Whether the student plays during the training."""
        return self.on_policy is not None or self.prefix_replay

    def check_rollouts(self, teacher: str | None) -> None:
        """Checks how the options of the rollouts fit together.

        Raises:
            InputError: Options contradict each other, or one is missing.
        """
        for item in [] if self.plays else fields(RolloutOptions):
            default = item.default_factory() if item.default is MISSING else item.default
            if (value := getattr(self, item.name)) != default:
                remedy = "Pass one of them, or leave it out."
                raise InputError(item.name, "--on-policy or --prefix-replay beside it", repr(value), remedy)
        if self.on_policy is not None and self.prefix_replay:
            remedy = "Pass one of them: an environment, or the prefixes of --data."
            raise InputError("prefix_replay", "no --on-policy beside it", repr(self.on_policy), remedy)
        if self.plays and teacher is None:
            remedy = "Pass --teacher: it must read what the student has written, which no cache holds."
            raise InputError("teacher", "a teacher beside --on-policy and --prefix-replay", "nothing", remedy)
        together = ("rollout_endpoint", "rollout_model", "rollout_reload")
        missing = [name for name in together if getattr(self, name) is None]
        if 0 < len(missing) < len(together):
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise InputError(missing[0], "a value, because the student plays on a server", "nothing", f"Pass {flags}.")
