"""Python programs in processes of their own, which start fast: they are forks of a server that has imported the libraries.

A new interpreter takes seconds to import PyTorch and transformers.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Triton reads this variable when it is imported, so a program with another value cannot be a fork of the server.
_INTERPRET = os.environ.get("TRITON_INTERPRET")
PRELOADED = ("torch", "transformers", "accelerate", "peft", "sad.training.run", "sad.cli.main", "sad.cli.agents")


class Program:
    """A running Python program, with the methods of `subprocess.Popen` that tests need.

    Args:
        command: As for the interpreter: "-m", a module and its arguments; "-c", code and arguments; or a file and arguments.
        stdout: File for the output.
        stderr: File for the errors; by default that of the output.
        environment: Variables that differ from those of the tests.
        own_session: Whether it starts a session, so that `os.killpg` reaches its children too.
    """

    def __init__(
        self,
        *command: object,
        stdout: Path,
        stderr: Path | None = None,
        environment: Mapping[str, str] | None = None,
        own_session: bool = False,
    ) -> None:
        fits = os.environ.get("TRITON_INTERPRET") == _INTERPRET
        context = multiprocessing.get_context("forkserver" if fits else "spawn")
        multiprocessing.set_forkserver_preload(list(PRELOADED))
        words, variables = [str(word) for word in command], {**os.environ, **(environment or {})}
        given = (words, str(stdout), str(stderr or stdout), variables, own_session)
        for path in {stdout, stderr or stdout}:
            path.touch()  # a test may read it before the program has started
        self._process = context.Process(target=_run, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code.

        Raises:
            subprocess.TimeoutExpired: The program has not ended after `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("Program", timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(words: list[str], stdout: str, stderr: str, variables: Mapping[str, str], own_session: bool) -> None:
    """Runs a program in the forked process."""
    for descriptor, path in ((1, stdout), (2, stderr)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout, sys.stderr = (open(descriptor, "w", encoding="utf-8", buffering=1, closefd=False) for descriptor in (1, 2))
    if own_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def run_python(
    *command: object, folder: Path, environment: Mapping[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Runs a program (see `Program`) to its end. Its output goes through files in `folder`.

    Raises:
        subprocess.TimeoutExpired: It has not ended after `timeout` seconds, and was killed.
    """
    outputs = [folder / f"program-{name}.log" for name in ("stdout", "stderr")]
    for path in outputs:
        path.unlink(missing_ok=True)
    program = Program(*command, stdout=outputs[0], stderr=outputs[1], environment=environment)
    try:
        code = program.wait(timeout)
    finally:
        program.kill()
    said = [path.read_text(encoding="utf-8", errors="replace") for path in outputs]
    return subprocess.CompletedProcess(list(command), code, *said)


def run_two(module: str, folder: Path, *arguments: str, expected: tuple[int, int] = (0, 0)) -> None:
    """Runs `python -m module folder arguments` as ranks 0 and 1 on the CPU, with the environment variables of torchrun.

    Raises with the output of both if they end with other codes than expected.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    logs = [folder / f"{rank}.log" for rank in range(2)]
    processes = [
        Program(
            "-m", module, folder, *arguments, stdout=log, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [*expected], "".join(log.read_text()[-3000:] for log in logs)
