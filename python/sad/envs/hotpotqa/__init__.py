"""`hotpotqa`: HotPotQA's questions under ReAct's Search, Lookup and Finish, over the questions' own paragraphs."""

from __future__ import annotations

from sad.envs.hotpotqa.env import HotpotQA

__all__ = ["HotpotQA"]
