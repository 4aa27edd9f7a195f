"""The error for input that cannot be used: the argument, the expected value, the actual value, and the remedy."""

from __future__ import annotations

import re
import unicodedata


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


class LostProcessError(InputError):
    """Another process of a distributed run has ended."""


def printable(text: str) -> str:
    """Returns text without characters that control a terminal, such as ESC.

    So data cannot move the cursor, set the title or write to the clipboard.

    Line ends and tabs stay. Every other control or format character that changes how a line is shown (C0, C1, bidirectional
    overrides) and every lone surrogate is shown as an escape, such as `\\x1b`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in "\n\t" or not _is_control(char) else _escape(char) for char in text)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or char in _BIDIRECTIONAL


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _parts_of(text: str) -> tuple[str, str, str, str]:
    """Returns the arguments of the error in a traceback.

    PyTorch raises an error of a DataLoader worker again in the main process, with the text of its traceback as its only
    argument. The traceback ends with the name of the class and the message.
    """
    message = text.strip().rpartition("\n")[2]
    found = re.fullmatch(r"(?:[\w.]+: )?(.*?): expected (.*), got (.*?)\. (.*)", message)
    return found.groups() if found else ("input", "usable input", text, "See the traceback in the message.")
