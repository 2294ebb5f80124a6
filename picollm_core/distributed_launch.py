"""What torchrun tells a process through its environment, and the device and library that it trains with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from picollm_core.config import require
from picollm_core.devices import pick_device

TIMEOUT_VARIABLE = "PICOLLM_TIMEOUT"
TIMEOUT_SECONDS = 300.0
"""How long a rank may be silent where gradients are added up, unless TIMEOUT_VARIABLE says otherwise."""


@dataclass(frozen=True)
class Launch:
    """What torchrun tells a process: its rank of `size`, and its place among the `local_size` of its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """The launch described by torchrun's environment variables; None where a process was started without torchrun.

    Raises ValueError when one of them is missing, is no whole number, or does not fit the others.
    """
    numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return None
    for name in (*numbers, "MASTER_ADDR", "MASTER_PORT"):
        require(
            name in environment,
            f"{name} is not set although {'RANK' if 'RANK' in environment else 'WORLD_SIZE'} is; start several "
            "processes with torchrun, which sets all of them, or unset them to train in one",
        )
    for name in (*numbers, "MASTER_PORT"):
        require(environment[name].isdecimal(), f"{name} is {environment[name]!r}; torchrun sets a whole number")
    rank, size, local_rank, local_size = (int(environment[name]) for name in numbers)
    require(rank < size, f"RANK is {rank} but WORLD_SIZE is {size}; ranks run from 0 to WORLD_SIZE - 1")
    require(
        local_rank < local_size <= size,
        f"LOCAL_RANK is {local_rank}, LOCAL_WORLD_SIZE {local_size} and WORLD_SIZE {size}; "
        "each must be smaller than the next, or equal for the last two",
    )
    return Launch(rank, size, local_rank, local_size)


def silence_limit(environment: Mapping[str, str]) -> float:
    """Seconds a rank may be silent in a step: TIMEOUT_VARIABLE, else TIMEOUT_SECONDS. ValueError unless positive."""
    text = environment.get(TIMEOUT_VARIABLE) or str(TIMEOUT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    require(0 < seconds < math.inf, f"{TIMEOUT_VARIABLE} is {text!r}; give a positive number of seconds")
    return seconds


def local_device(name: str, launch: Launch) -> torch.device:
    """The device of one of several processes: on GPUs each has its own, in order; "auto" takes CUDA, then the CPU.

    Raises ValueError for a numbered GPU, more processes than GPUs, MPS, a torch without nccl, or no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    require(
        kind != "cuda" or not number,
        f"device is {name!r} with {launch.size} processes, each of which takes a GPU of its own; use 'cuda'",
    )
    require(kind != "mps", f"device 'mps' cannot be shared by {launch.size} processes; use 'cpu', or one process")
    device = pick_device(name)
    if device.type != "cuda":
        return device
    gpus = torch.cuda.device_count()
    require(
        launch.local_size <= gpus,
        f"{launch.local_size} processes were started on a machine with {gpus} GPUs; use --nproc_per_node={gpus}",
    )
    require_backend(device)
    return torch.device("cuda", launch.local_rank)


def require_backend(device: torch.device) -> str:
    """The library that adds up gradients on `device`: "nccl" or "gloo". ValueError when this torch has none for it."""
    if device.type == "cuda":
        available = dist.is_available() and dist.is_nccl_available()
        lacking = f"GPUs need nccl to train together, and torch {torch.__version__} was built without it"
        require(available, f"{lacking}; use --device cpu, or one process")
        return "nccl"
    require(
        dist.is_available() and dist.is_gloo_available(),
        f"several processes need gloo, and torch {torch.__version__} was built without it; use one process",
    )
    return "gloo"
