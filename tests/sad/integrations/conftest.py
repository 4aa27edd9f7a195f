"""Fixtures of the trainer's tests."""

from tests.sad.training.conftest import config

__all__ = ["config"]
