"""The error for input that cannot be used: the argument, the expected value, the actual value, and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """Reports input that cannot be used, with enough detail to fix it.

    The message reads "{where}: expected {expected}, got {got}. {remedy}". The command line prints it and exits with code 2.

    Args:
        where: The name of the argument, or the file (and line).
        expected: The accepted values.
        got: The actual value.
        remedy: What the user can do, as a sentence.
    """

    def __init__(self, where: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}. {remedy}")
        self.where, self.expected, self.got, self.remedy = where, expected, got, remedy

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        return type(self), (self.where, self.expected, self.got, self.remedy)


class LostProcessError(InputError):
    """Another process of a distributed run has ended."""
