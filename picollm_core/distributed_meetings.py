"""How ranks meet: each leaves what it has to say in the store that torchrun keeps, and sees there who is alive.

At a meeting all ranks wait while one evaluates or writes, so no time limit could tell long work from a rank that is
gone. A pulse can: every rank counts up in the store, and one whose count stands still is given up. One thread of each
rank does all of the talking, since a store whose process is stopped never answers, and a call into it cannot be ended.
Collective operations of gloo take no part: one that is never answered would keep its group, and the process, for ever.
"""

import pickle
import threading
import time
from collections.abc import Collection
from itertools import count
from typing import Any

import torch.distributed as dist

from picollm_core.distributed_launch import Launch

LOOKS = 10
"""How often, evenly over the limit, something silent is looked at before it is given up. Counting one's own looks,
not the time, spares the others when this process was itself suspended."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.05  # seconds between looks at who has come; each is longer than the last


class _Meeting:
    """One rank's side of a meeting: what it says, and what those that it awaits have said so far."""

    def __init__(self, name: str, said: bytes, awaited: Collection[int]) -> None:
        self.name, self.said, self.awaited = name, said, awaited
        self.told: dict[int, bytes] = {}
        self.come, self.over = False, threading.Event()
        self.pause = SHORTEST_PAUSE

    @property
    def missing(self) -> list[int]:
        return [rank for rank in self.awaited if rank not in self.told]


class Meetings:
    """The meetings of one of `launch.size` ranks that share `store`; `limit` is the longest silence in seconds.

    Every rank calls `gather` equally often, and `leave` at the end.
    """

    def __init__(self, launch: Launch, store: dist.Store, limit: float) -> None:
        self._rank, self._size, self._store, self._limit = launch.rank, launch.size, store, limit
        self._numbers = count()
        self._meeting: _Meeting | None = None
        self._pulses: dict[int, bytes] = {}
        self._silent: dict[int, int] = {}  # looks at the same pulse
        self._turns = 0
        self._broken: RuntimeError | None = None
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._talk, name="meetings", daemon=True)
        self._thread.start()

    def gather(self, value: Any) -> list[Any]:
        """What every rank says at this meeting, in their order. Waits for those that have not come while they live.

        Raises RuntimeError when one of them, or the store, is gone or has been silent for the limit.
        """
        meeting = self._begin(f"meeting/{next(self._numbers)}", pickle.dumps(value), range(self._size))
        silent, turns = 0, self._turns
        while self._broken is None and not meeting.over.wait(self._limit / LOOKS):
            silent, turns = (silent + 1 if self._turns == turns else 0), self._turns
            if silent > LOOKS:
                raise RuntimeError(f"the store of torchrun has not answered for {self._limit:g} s")
        if self._broken is not None and meeting.missing:  # what was complete stays so when the store goes afterwards
            raise self._broken
        return [pickle.loads(meeting.told[rank]) for rank in range(self._size)]

    def leave(self, *, last: bool) -> None:
        """Talk no more. With `last`, rank 0 lets the others leave first, because the store may live in its process,
        but waits no longer than from one look to the next."""
        every = self._limit / LOOKS
        if last and self._broken is None:
            others = range(1, self._size) if self._rank == 0 else ()
            self._begin("left", b"", others).over.wait(every)
        self._ended.set()
        self._wake.set()
        self._thread.join(every)

    def _begin(self, name: str, said: bytes, awaited: Collection[int]) -> _Meeting:
        self._meeting = _Meeting(name, said, awaited)
        self._wake.set()
        return self._meeting

    def _talk(self) -> None:
        """What the thread does until `leave`, or until the store is gone."""
        every, due, beats = self._limit / LOOKS, time.monotonic(), count()
        try:
            while not self._ended.is_set():
                looks = time.monotonic() >= due
                if looks:
                    self._store.set(f"pulse/{self._rank}", str(next(beats)))
                    due = time.monotonic() + every
                meeting, pause = self._meeting, every
                if meeting is not None and not meeting.over.is_set():
                    self._attend(meeting, looks)
                    pause = meeting.pause = min(1.5 * meeting.pause, LONGEST_PAUSE)
                self._turns += 1
                self._wake.wait(min(pause, max(0.0, due - time.monotonic())))
                self._wake.clear()
        except RuntimeError as error:  # the store is gone, or a rank
            self._broken = error.with_traceback(None)
        if self._meeting is not None:
            self._meeting.over.set()

    def _attend(self, meeting: _Meeting, looks: bool) -> None:
        """Say what this rank has to say, once; hear who has come since; with `looks`, see who still lives."""
        if not meeting.come:
            self._store.set(f"{meeting.name}/{self._rank}", meeting.said)  # type: ignore[arg-type]  # takes bytes too
            meeting.come = True
        for rank in meeting.missing:
            key = f"{meeting.name}/{rank}"
            if self._store.check([key]):
                meeting.told[rank] = self._store.get(key)
        if not meeting.missing:
            meeting.over.set()
        elif looks:
            self._look(meeting.missing)

    def _look(self, ranks: Collection[int]) -> None:
        for rank in ranks:
            key = f"pulse/{rank}"
            pulse = self._store.get(key) if self._store.check([key]) else b""
            self._silent[rank] = self._silent.get(rank, 0) + 1 if pulse == self._pulses.get(rank) else 0
            self._pulses[rank] = pulse
            if self._silent[rank] > LOOKS:
                raise RuntimeError(f"no pulse of rank {rank} for {self._limit:g} s")
