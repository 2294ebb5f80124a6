"""Which device and which number format a computation runs in."""

import psutil
import torch

from picollm_core.config import require


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then Apple's MPS, then the CPU. ValueError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown to torch; use 'auto', 'cpu', 'cuda' or 'mps'") from error
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    require(device.type in available, f"device {name!r} is not supported; use 'auto', 'cpu', 'cuda' or 'mps'")
    missing = (device.index or 0) >= available[device.type]
    require(not missing, f"device {name!r} was asked for, but torch {torch.__version__} sees none; use 'cpu' or 'auto'")
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """float32, or bfloat16 for "auto" on a device with bfloat16 arithmetic of its own."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        fast = device.type == "cpu" and probe()
    return torch.bfloat16 if fast else torch.float32


def to_device(device: torch.device, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same values on `device`; the processor does not wait for a copy to a CUDA device.

    For that the copy starts from pinned memory, which torch keeps and hands out again once the copy is done.
    """
    if device.type != "cuda":
        return tuple(tensor.to(device) for tensor in tensors)
    return tuple(
        (tensor.pin_memory() if tensor.device.type == "cpu" else tensor).to(device, non_blocking=True)
        for tensor in tensors
    )


def memory_mb(device: torch.device) -> float:
    """In MB: peak memory of tensors on a CUDA device, what Apple's driver has given so far on MPS, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e6
    return psutil.Process().memory_info().rss / 1e6


def device_name(device: torch.device) -> str:
    """The GPU's product name, or the device's type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
