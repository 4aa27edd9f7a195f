"""The `hotpotqa` environment: HotPotQA questions with ReAct's Search, Lookup and Finish over their own paragraphs."""

from __future__ import annotations

from sad.envs.hotpotqa.env import HotpotQA

__all__ = ["HotpotQA"]
