"""Several processes that train one model together: who they are, which rows each takes, how they add up and meet.

torchrun starts the processes, numbers them (the rank) and tells each by environment variables where the others are.
Every rank holds the whole model and its optimizer and takes its own rows of every batch. The loss of a batch is a mean
over its scored tokens, so the gradient of the whole batch is the sum over ranks of

    (tokens scored by the rank / tokens scored in the batch) * gradient of the rank's own mean loss,

which one all-reduce adds up before the gradient is clipped (synchronous data-parallel SGD, Goyal et al. 2017, arXiv
1706.02677, section 3). All ranks then make the same update. Rank 0 leads: it alone logs, evaluates and writes files.

Ranks talk in two ways. Gradients go over nccl on GPUs and gloo on CPUs, and a rank that is silent for a few minutes
there ends the run. At meetings, where the others wait while rank 0 evaluates or saves, they wait as long as it takes
and its pulse is seen (picollm_core.distributed_meetings).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from picollm_core.config import require
from picollm_core.devices import pick_device
from picollm_core.distributed_launch import Launch, local_device, read_launch, require_backend, silence_limit
from picollm_core.distributed_meetings import Meetings

AFTERWARDS = "what was saved is safe, and the same command goes on from the last checkpoint"

Answer = TypeVar("Answer")


class EndedByAnother(RuntimeError):
    """Raised on ranks other than 0 when the run cannot go on; rank 0 raises the reason."""


class RankLost(RuntimeError):
    """Another process of this run has ended or does not answer."""


class Alone:
    """One process that trains by itself; Ranks does the same among several. Shape legend: B rows of the batch."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """True on rank 0, which writes everything that is written."""
        return self.rank == 0

    def pick_device(self, name: str) -> torch.device:
        """The device of this process for a configuration's `device`. ValueError when it is not there."""
        return pick_device(name)

    def share(self, rows: Tensor) -> Tensor:
        """This rank's rows of a batch (B, ...): as equal shares as there can be, in order, none twice."""
        return rows

    def reseed(self, seed: int, step: int) -> None:
        """Before update `step`, give each rank random numbers of its own; one process goes on with those it has."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Add up every parameter's gradient over the ranks, in place; returns the sum of their `loss`."""
        return loss

    def equalise(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every rank the values of rank 0."""

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Every rank does what is inside and waits at its end for the others.

        An exception on any rank ends all: rank 0 raises its own or what it was told, the others EndedByAnother.
        """
        yield

    def from_leader(self, work: Callable[[], Answer]) -> Answer:
        """What `work` returns on rank 0, where alone it is called, on every rank. Errors as in `meeting`."""
        return work()

    def agree(self, what: str, value: Any) -> None:
        """Raise ValueError naming `what` unless `value` is the same on every rank."""


ALONE = Alone()


class Ranks(Alone):
    """One of several processes of a joined group. Every method is called by all ranks, in the same order."""

    def __init__(self, launch: Launch, meetings: Meetings) -> None:
        self.rank, self.size, self.launch = launch.rank, launch.size, launch
        self.device = torch.device("cpu")
        self._gradients: Any = dist.group.WORLD  # gloo's, until `device` is known to be a GPU
        self._meetings = meetings

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """A failed exchange as RankLost, in one line."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).partition("] ")[2] or str(error)  # gloo begins with its source file in brackets
            reason = reason.splitlines()[0].split(". ")[0]
            raise RankLost(
                f"rank {self.rank} of {self.size} lost the others: one of them has ended or does not answer "
                f"({reason[:120]}); {AFTERWARDS}"
            ) from error.with_traceback(None)  # whose frames would hold the group

    def _gather(self, value: Any) -> list[Any]:
        with self._connected():
            return self._meetings.gather(value)

    def pick_device(self, name: str) -> torch.device:
        device = local_device(name, self.launch)
        require(
            device == self.device, f"the processes were joined to train on {self.device.type}; device {name!r} is other"
        )
        return device

    def share(self, rows: Tensor) -> Tensor:
        return rows.tensor_split(self.size)[self.rank]

    def reseed(self, seed: int, step: int) -> None:
        """The numbers follow from (seed, step, rank), so a run that goes on with as many ranks draws them again."""
        torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)[0]))

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """One exchange for everything. A parameter without a gradient on every rank stays without."""
        sizes = [p.numel() for p in parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        extra = gradients[0].new_tensor([loss, *(float(p.grad is not None) for p in parameters)])
        flat = torch.cat([*(g.flatten() for g in gradients), extra])
        with self._connected():
            dist.all_reduce(flat, group=self._gradients)
            *summed, total, holders = flat.split([*sizes, 1, len(sizes)])
            for parameter, gradient, held in zip(parameters, summed, holders.tolist(), strict=True):
                parameter.grad = gradient.view_as(parameter) if held else None
            return total.item()

    @torch.no_grad()
    def equalise(self, parameters: Sequence[nn.Parameter]) -> None:
        with self._connected():
            for parameter in parameters:
                dist.broadcast(parameter.detach(), src=0, group=self._gradients)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        own = None
        try:
            yield
        except (RankLost, EndedByAnother):  # the others know, or cannot be reached
            raise
        except Exception as error:  # noqa: BLE001 - raised below, when all ranks know
            own = error
        told = self._gather(None if own is None else (isinstance(own, ValueError), str(own) or type(own).__name__))
        failed = [(rank, *said) for rank, said in enumerate(told) if said is not None]
        if not failed:
            return
        if self.leads and own is not None:
            raise own
        rank, is_value_error, message = failed[0]
        message = message if rank == 0 else f"rank {rank}: {message}"
        if self.leads:
            raise (ValueError if is_value_error else RuntimeError)(message)
        raise EndedByAnother(message) from own

    def from_leader(self, work: Callable[[], Answer]) -> Answer:
        answers: list[Any] = [None]
        with self.meeting():
            answers = [work() if self.leads else None]
        with self._connected():
            dist.broadcast_object_list(answers, src=0, group=dist.group.WORLD)
        return answers[0]

    def agree(self, what: str, value: Any) -> None:
        values = self._gather(value)
        with self.meeting():
            for rank, other in enumerate(values):
                require(
                    other == values[0],
                    f"rank {rank} has another {what} than rank 0 ({other} and {values[0]}); "
                    "give all machines the same files, settings and package versions",
                )


@contextmanager
def open_ranks(device: str = "auto") -> Iterator[Alone]:
    """The processes that torchrun started together, joined; ALONE where there is but one.

    `device` is a configuration's: all runs trained inside must ask for it. Raises ValueError for an environment or
    device that cannot be, RankLost when a process does not come within the time of `silence_limit`.
    """
    launch = read_launch(os.environ)
    if launch is None or launch.size == 1:
        yield ALONE
        return
    limit = timedelta(seconds=silence_limit(os.environ))
    require_backend(torch.device("cpu"))
    try:
        dist.init_process_group("gloo", timeout=limit)
    except RuntimeError as error:
        raise RankLost(
            f"rank {launch.rank} of {launch.size} did not find the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} within {limit.total_seconds():g} s ({str(error).splitlines()[0][:120]})"
        ) from error
    store = dist.distributed_c10d._get_default_store()
    ranks, together = Ranks(launch, Meetings(launch, store, limit.total_seconds())), False
    try:
        with ranks.meeting():
            ranks.device = local_device(device, launch)
        ranks.agree("kind of device", ranks.device.type)
        if ranks.device.type == "cuda":
            ranks._gradients = dist.new_group(backend=require_backend(ranks.device), timeout=limit)
        with torch.cuda.device(ranks.device) if ranks.device.type == "cuda" else nullcontext():
            yield ranks
        together = True
    except Exception as error:
        together = not isinstance(error, RankLost)
        raise
    finally:
        ranks._meetings.leave(last=together)
        # The threads of a group that lived until Python ends could abort the process then, so nothing may hold it.
        ranks._gradients = None
        dist.destroy_process_group()
