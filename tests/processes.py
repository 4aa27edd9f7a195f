"""Runs a test module in two processes with the environment variables of torchrun, but starts faster than torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_two(module: str, folder: Path, *arguments: str, expected: tuple[int, int] = (0, 0)) -> None:
    """Runs `python -m module folder arguments` as ranks 0 and 1 on the CPU.

    Raises with the output of both if they end with other codes than expected.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    logs = [(folder / f"{rank}.log").open("w+") for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder), *arguments],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process, log in zip(processes, logs):
            process.kill()
            log.close()
    assert codes == [*expected], (folder / "0.log").read_text()[-3000:] + (folder / "1.log").read_text()[-3000:]
