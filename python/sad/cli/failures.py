"""Turns errors of the system and of libraries into the one message that a command prints."""

from __future__ import annotations

import errno
import json
import re

from sad.errors import InputError

_REMEDIES = {
    errno.ENOSPC: "Free space on this disk and run the command again: finished files are kept.",
    errno.EDQUOT: "Free space within your quota and run the command again: finished files are kept.",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f), or choose a file system that holds larger files.",
    errno.EACCES: "Check the permissions, or choose another path.",
    errno.EPERM: "Check the permissions, or choose another path.",
    errno.EROFS: "Choose a path on a file system that can be written.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit of open files: ulimit -n.",
    errno.EIO: "Check the disk.",
}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust name the error of the system
# How torch.save reports a write that failed. It does not say why.
_TORCH_WRITE = ("PytorchStreamWriter", "unexpected pos", "iostream error", "enforce fail at inline_container.cc")


def describe(error: BaseException) -> str | None:
    """Returns the message of an error that the user can act on, or None for a fault of the program."""
    if isinstance(error, InputError):
        return str(error)
    kind = f"{type(error).__module__.partition('.')[0]}.{type(error).__name__}"
    if kind == "sadkernels.TuningFileError":
        return str(error)
    if isinstance(error, OSError):
        return _system(error.errno, error.filename, str(error))
    if kind.endswith("SafetensorError"):
        code = _OS_ERROR.search(str(error))
        if code:
            return _system(int(code[1]), None, str(error))
        return _message("a file of weights", "a complete safetensors file", str(error), "Copy or save the file again.")
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITE):
        remedy = "Check the free space and the permissions, and run the command again: finished files are kept."
        return _message("a file of the checkpoint", "a file that can be written", str(error).split("\n")[0], remedy)
    if isinstance(error, RuntimeError) and "out of memory" in str(error) and "OutOfMemoryError" in kind:
        remedy = "Use smaller batches or --activation-checkpointing; `sad plan` computes what fits."
        return _message("device", "enough memory", str(error).split("\n")[0], remedy)
    if isinstance(error, MemoryError):
        return _message("memory", "enough of it for the input", "too little", "Split the input, or use smaller batches.")
    if isinstance(error, UnicodeError):
        remedy = "Fix the file or the name: it must be UTF-8."
        return _message("text", "valid Unicode", str(error), remedy)
    if isinstance(error, json.JSONDecodeError):
        return _message("a file", "JSON", str(error), "Write or download the file again.")
    return None


def _system(code: int | None, filename: object, text: str) -> str:
    name = "a file" if filename is None else repr(str(filename))
    if code is None:
        return _message(name, "a file that can be read or written", text, "Check the path.")
    expected = "space on the disk" if code in (errno.ENOSPC, errno.EDQUOT) else "a file that can be read or written"
    remedy = _REMEDIES.get(code, "Check the path.")
    return _message(name, expected, text, remedy)


def _message(where: str, expected: str, got: str, remedy: str) -> str:
    return str(InputError(where, expected, got.rstrip("."), remedy))
