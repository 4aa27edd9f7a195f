"""The one way `sad` reports bad input: what was looked at, what was expected, what came, and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used, described so that one reading is enough to mend it.

    The command line prints the message and exits with code 2; in a program it is a `ValueError`.

    Args:
        where: The argument's name, or the file (and line) that was read.
        expected: What would have been accepted.
        got: What came instead.
        remedy: What to do about it, as a sentence.
    """

    def __init__(self, where: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}. {remedy}")
        self.where, self.expected, self.got, self.remedy = where, expected, got, remedy

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        return type(self), (self.where, self.expected, self.got, self.remedy)
