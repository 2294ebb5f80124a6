"""What torchrun says is checked, and every process gets a device that it can train on."""

import pytest
import torch
import torch.distributed as dist

from picollm_core import distributed_launch
from picollm_core.distributed_launch import Launch, local_device, read_launch, require_backend, silence_limit

GOOD = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a",
    "MASTER_PORT": "29500",
}  # fmt: skip
TWO = Launch(0, 2, 0, 2)


def test_a_process_that_torchrun_did_not_start_has_no_launch():
    assert read_launch({"PATH": "/bin"}) is None


def test_torchrun_s_variables_are_read():
    assert read_launch(GOOD) == Launch(rank=3, size=4, local_rank=1, local_size=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: None}, f"{name} is not set although") for name in GOOD),
        ({"RANK": "4"}, "RANK is 4 but WORLD_SIZE is 4; ranks run from 0 to WORLD_SIZE - 1"),
        ({"RANK": "-1"}, "RANK is '-1'; torchrun sets a whole number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; torchrun sets a whole number"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is ''"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK is 2, LOCAL_WORLD_SIZE 2 and WORLD_SIZE 4"),
        ({"LOCAL_WORLD_SIZE": "5"}, "LOCAL_RANK is 1, LOCAL_WORLD_SIZE 5 and WORLD_SIZE 4"),
    ],
    ids=str,
)
def test_variables_that_do_not_fit_are_named(change, message):
    changed = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read_launch(changed)


def test_the_time_limit_is_five_minutes_or_what_the_variable_says():
    assert silence_limit({}) == silence_limit({"PICOLLM_TIMEOUT": ""}) == 300
    assert silence_limit({"PICOLLM_TIMEOUT": "2.5"}) == 2.5
    for text in ("0", "-1", "soon", "nan", "inf"):
        with pytest.raises(ValueError, match=f"PICOLLM_TIMEOUT is '{text}'; give a positive number of seconds"):
            silence_limit({"PICOLLM_TIMEOUT": text})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:1", "device is 'cuda:1' with 2 processes, each of which takes a GPU of its own; use 'cuda'"),
        ("mps", "device 'mps' cannot be shared by 2 processes; use 'cpu', or one process"),
        ("abacus", "device 'abacus' is unknown to torch"),
    ],
)
def test_a_device_that_several_processes_cannot_train_on_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        local_device(name, TWO)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_several_processes_share_the_cpu_and_a_gpu_is_refused():
    assert local_device("auto", TWO) == local_device("cpu", TWO) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device 'cuda' was asked for, but torch .* sees none"):
        local_device("cuda", TWO)


def test_on_gpus_every_process_of_a_machine_has_its_own_in_order(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed_launch, "require_backend", lambda device: "nccl")
    launches = [Launch(rank, 4, rank % 2, 2) for rank in range(4)]
    assert [local_device("auto", launch).index for launch in launches] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="3 processes were started on a machine with 2 GPUs; use --nproc_per_node=2"):
        local_device("cuda", Launch(2, 3, 2, 3))


@pytest.mark.skipif(dist.is_nccl_available(), reason="this torch has nccl")
def test_a_torch_without_nccl_cannot_train_on_several_gpus():
    with pytest.raises(
        ValueError, match=r"GPUs need nccl to train together, and torch .* was built without it; use --d"
    ):
        require_backend(torch.device("cuda:0"))
    assert require_backend(torch.device("cpu")) == "gloo"
