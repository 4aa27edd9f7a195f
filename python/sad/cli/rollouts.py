"""Makes the rollouts of `sad train` from its options: the environment, the prompt, and the server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sad.agents.collect import select_tasks
from sad.agents.endpoint import Endpoint
from sad.agents.prompts import prompt_text
from sad.cli.agent_options import AgentOptions
from sad.cli.agents import make_env
from sad.on_policy.endpoint_engine import EndpointEngine, VllmReload
from sad.on_policy.env_rollouts import EnvRollouts
from sad.on_policy.prefix_replay import PrefixReplay
from sad.on_policy.rollouts import Rollouts
from sad.training.cli_args import RunOptions
from sad.training.config import SADConfig
from sad.trajectories.trajectory import Trajectory


def make_rollouts(
    options: RunOptions, config: SADConfig, tokenizer: Any, trajectories: Sequence[Trajectory]
) -> Rollouts | None:
    """Returns how the student plays, or None if it does not.

    Args:
        options: The options of the command.
        config: The configuration of the training.
        tokenizer: The student's tokenizer, with the chat template of the run.
        trajectories: The trajectories of `--data`.

    Raises:
        InputError: The environment, the prompt or an option cannot be used.
    """
    if not options.plays:
        return None
    engine = None
    if options.rollout_endpoint is not None:
        key = os.environ.get("OPENAI_API_KEY")
        endpoint = Endpoint(options.rollout_endpoint, options.rollout_model, api="completions", api_key=key)
        engine = EndpointEngine(endpoint, VllmReload(options.rollout_endpoint, options.rollout_reload))
    shared = {
        "max_turn_tokens": options.rollout_turn_tokens,
        "temperature": options.rollout_temperature,
        "batch_size": options.rollout_batch_size,
        "engine": engine,
    }
    if options.prefix_replay:
        encoding = {"unroll": options.unroll, "kept_ids": options.kept_ids, "on_error": options.on_error}
        return PrefixReplay(trajectories, tokenizer, format=options.format, **encoding, **shared)
    env = make_env(
        AgentOptions(
            env=options.on_policy,
            split=options.rollout_split,
            root=options.rollout_root,
            env_options=options.rollout_option,
            seed=config.seed,
        )
    )
    prompt = prompt_text(options.rollout_prompt, options.on_policy)
    return EnvRollouts(
        env,
        tokenizer,
        tasks=select_tasks(env, options.rollout_tasks),
        env_name=options.on_policy,
        demonstrations=trajectories,
        max_steps=options.rollout_max_steps,
        prompt=prompt,
        chat=bool(prompt) and bool(tokenizer.chat_template),
        **shared,
    )
