"""tau-bench's results, and the simulations of tau2-bench."""

from __future__ import annotations

from typing import Any

from sad.trajectories.sources.base import Source, conversation, is_dict_list, need
from sad.trajectories.trajectory import Trajectory


def _is_tau(record: Any) -> bool:
    return isinstance(record, dict) and is_dict_list(record.get("traj")) and "task_id" in record


def _success(reward: Any) -> dict[str, bool]:
    return {"success": reward >= 1} if isinstance(reward, (int, float)) and not isinstance(reward, bool) else {}


def _read_tau(record: dict[str, Any]) -> Trajectory:
    name = f"{record['task_id']}" + (f"#{record['trial']}" if record.get("trial") else "")
    return conversation(record["traj"], record, "traj", "info", id=name, env="tau-bench", **_success(record.get("reward")))


def _is_tau2(record: Any) -> bool:
    return isinstance(record, dict) and is_dict_list(record.get("simulations")) and "messages" in record["simulations"][0]


def _read_tau2(record: dict[str, Any]) -> list[Trajectory]:
    found = []
    for number, simulation in enumerate(record["simulations"]):
        messages = need(simulation.get("messages"), list, f"simulations[{number}].messages", "a list of messages")
        reward = simulation.get("reward_info")
        success = _success(reward.get("reward") if isinstance(reward, dict) else None)
        name = simulation.get("id") if isinstance(simulation.get("id"), str) else f"simulation {number}"
        own = [_message(message) for message in messages if _is_agents(message)]
        found.append(conversation(own, {}, id=name, env="tau2-bench", **success))
    return found


def _is_agents(message: Any) -> bool:
    """Returns whether the agent sees the message: not the calls that the simulated user makes, nor their results."""
    need(message, dict, "messages", "objects with a role")
    by_user = message.get("role") == "user" and message.get("tool_calls") and not message.get("content")
    return not by_user and not (message.get("role") == "tool" and message.get("requestor") == "user")


def _message(message: dict[str, Any]) -> dict[str, Any]:
    kept = {key: message[key] for key in ("role", "content", "tool_calls", "reasoning_content") if key in message}
    if message.get("role") == "user":
        kept.pop("tool_calls", None)
    if message.get("role") == "tool" and isinstance(message.get("id"), str):
        kept["tool_call_id"] = message["id"]
    return kept


SOURCES = (
    Source("tau-bench", "tau-bench trajectories", _is_tau, _read_tau),
    Source("tau2-bench", "tau2-bench simulations", _is_tau2, _read_tau2),
)
