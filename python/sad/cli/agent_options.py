"""The command-line options that `sad collect` and `sad eval` share."""

from __future__ import annotations

from dataclasses import dataclass

from sad.options import option

ENVIRONMENT, ROLLOUT, ENDPOINT = "Environment", "Rollout", "Endpoint"
PROMPT_HELP = (
    "Prompt before the first observation: paper (appendix E.1), env (with the commands of the environment), none, "
    "or a text file."
)


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """The environment, the rollouts and the endpoint."""

    env: str = option("household", group=ENVIRONMENT, help="Name of the environment.")
    split: str = option("train", group=ENVIRONMENT, help="Split of the tasks, such as train or valid.")
    tasks: int | None = option(None, group=ENVIRONMENT, help="Number of tasks, from the first one. Default: all tasks.")
    root: str | None = option(None, group=ENVIRONMENT, help="Folder with the data of the environment, if it needs data.")
    env_options: list[str] = option(
        [], flag="--option", group=ENVIRONMENT, help="Option of the environment as name=value. Repeatable."
    )
    seed: int = option(0, group=ENVIRONMENT, help="Seed of the environment and of the sampling.")

    prompt: str = option("none", group=ROLLOUT, help=PROMPT_HELP)
    temperature: float = option(0.0, group=ROLLOUT, help="Sampling temperature. 0 is greedy.")
    decoding: str = option(
        "free", group=ROLLOUT, help="free, or admissible: only admissible commands are allowed after Action:."
    )
    max_steps: int = option(50, group=ROLLOUT, help="Maximum number of actions per episode.")
    max_turn_tokens: int = option(128, group=ROLLOUT, help="Maximum number of tokens per turn.")
    batch_size: int = option(64, group=ROLLOUT, help="Number of parallel episodes.")

    trust_remote_code: bool = option(
        False,
        flag="--trust-remote-code",
        group=ROLLOUT,
        help="Run Python code in model folders whose config names any. Default: refuse such folders.",
    )

    endpoint: str | None = option(None, group=ENDPOINT, help="URL of an OpenAI-compatible server, with the version (/v1).")
    api: str = option("chat", group=ENDPOINT, help="chat, or completions for models without a chat template.")
    api_key_env: str = option("OPENAI_API_KEY", group=ENDPOINT, help="Environment variable with the key of the endpoint.")
    timeout: float = option(120.0, group=ENDPOINT, help="Timeout of a request to the endpoint, in seconds.")
