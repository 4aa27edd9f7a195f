"""The error for input that cannot be used: the argument, the expected value, the actual value, and the remedy."""

from __future__ import annotations

import re


class InputError(ValueError):
    """Reports input that cannot be used, with enough detail to fix it.

    The message reads "{where}: expected {expected}, got {got}. {remedy}". The command line prints it and exits with code 2.

    Args:
        where: The name of the argument, or the file (and line).
        expected: The accepted values.
        got: The actual value.
        remedy: What the user can do, as a sentence.

    With one argument it takes the text of a traceback of this error (see `_parts_of`).
    """

    def __init__(self, where: str, expected: str = "", got: str = "", remedy: str = "") -> None:
        if not expected:
            where, expected, got, remedy = _parts_of(where)
        super().__init__(f"{where}: expected {expected}, got {got}. {remedy}")
        self.where, self.expected, self.got, self.remedy = where, expected, got, remedy

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        return type(self), (self.where, self.expected, self.got, self.remedy)


def _parts_of(text: str) -> tuple[str, str, str, str]:
    """Returns the arguments of the error in a traceback.

    PyTorch raises an error of a DataLoader worker again in the main process, with the text of its traceback as its only
    argument. The traceback ends with the name of the class and the message.
    """
    message = text.strip().rpartition("\n")[2]
    found = re.fullmatch(r"(?:[\w.]+: )?(.*?): expected (.*), got (.*?)\. (.*)", message)
    return found.groups() if found else ("input", "usable input", text, "See the traceback in the message.")
