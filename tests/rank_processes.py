"""Processes that train together, as torchrun would start them, for the tests of distributed training."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 600
"""Seconds after which a process that should have ended is taken for hanging."""


def environment(rank: int, size: int, port: int, **variables: str) -> dict[str, str]:
    """This process's environment with what torchrun would add."""
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    added = {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | added | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | variables


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(size: int, *arguments: str, folder: Path = ROOT, **variables: str) -> list[subprocess.Popen]:
    """`python ARGUMENTS` as ranks 0 to size - 1 in `folder`; their output is kept."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment(rank, size, port, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(status, output, errors) of every process, when all have ended; one that hangs is killed and fails the test."""
    try:
        return [(p.returncode, *said) for p, said in [(p, p.communicate(timeout=LIMIT)) for p in processes]]
    finally:
        for process in processes:
            process.kill()
            process.wait()
