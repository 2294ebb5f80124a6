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


def memory_mb(device: torch.device) -> float:
    """Peak memory on a GPU, resident memory of the process elsewhere, in MB."""
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    return used / 1e6


def device_name(device: torch.device) -> str:
    """The GPU's product name, or the device's type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
