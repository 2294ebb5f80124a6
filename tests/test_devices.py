"""Devices and number formats: what is asked for, or one clear error."""

import pytest
import torch

from picollm_core.devices import device_name, memory_mb, pick_device, pick_precision, to_device

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Makes torch believe in this many CUDA devices, and in Apple's MPS or not."""

    def pretend(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (2, True, "cuda")]
)
def test_auto_takes_the_fastest_that_is_there(machine, cuda, mps, chosen):
    machine(cuda, mps)
    assert pick_device("auto").type == chosen
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize(
    ("name", "cuda"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("mps", 1)], ids=["cuda", "cuda:0", "second", "mps"]
)
def test_a_device_that_is_not_there_is_named_with_the_way_out(machine, name, cuda):
    machine(cuda)
    with pytest.raises(
        ValueError, match=rf"device '{name}' was asked for, but torch .* sees none; use 'cpu' or 'auto'"
    ):
        pick_device(name)


def test_a_numbered_device_that_is_there_is_taken(machine):
    machine(cuda=2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "0", "CPU", "meta", "xpu"])
def test_names_that_training_cannot_use_are_refused_with_the_choices(machine, name):
    machine()
    with pytest.raises(ValueError, match=rf"device '{name}' is .*; use 'auto', 'cpu', 'cuda' or 'mps'"):
        pick_device(name)


def test_precision_follows_the_request():
    assert pick_precision("float32", CPU) == torch.float32
    assert pick_precision("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize(("fast", "chosen"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_is_bfloat16_only_where_the_processor_has_it(monkeypatch, fast, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: fast or including_emulation)
    assert pick_precision("auto", CPU) == chosen
    assert pick_precision("auto", torch.device("cuda")) == chosen
    assert pick_precision("auto", torch.device("mps")) == torch.float32


def test_auto_precision_is_float32_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert pick_precision("auto", CPU) == torch.float32


def test_memory_is_that_of_this_process_in_megabytes():
    before = memory_mb(CPU)
    block = torch.ones(50_000_000)  # 200 MB
    assert memory_mb(CPU) - before == pytest.approx(block.nbytes / 1e6, rel=0.2)


def test_moving_to_the_device_where_they_are_gives_the_same_tensors():
    idx, targets = torch.arange(6).view(2, 3), torch.ones(2, 3)
    moved = to_device(CPU, idx, targets)
    assert [a is b for a, b in zip(moved, (idx, targets), strict=True)] == [True, True]


def test_a_copy_to_cuda_starts_from_pinned_memory_and_does_not_wait(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append("pin") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where, **how: asked.append((where, how)) or tensor)
    device = torch.device("cuda")
    to_device(device, torch.zeros(2))
    assert asked == ["pin", ((device,), {"non_blocking": True})]


def test_memory_of_a_gpu_is_asked_of_its_own_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1e6 * (1 + device.index))
    assert memory_mb(torch.device("cuda", 1)) == 2
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3e6)
    assert memory_mb(torch.device("mps")) == 3


def test_the_cpu_has_a_name():
    assert device_name(CPU) == "cpu"
