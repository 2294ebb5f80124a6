"""Ranks that meet hear one another however long it takes, and give up one that is gone, stopped or never comes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from picollm_core import distributed_meetings
from picollm_core.distributed_launch import Launch
from picollm_core.distributed_meetings import Meetings

LIMIT = 1.0


class Silent(dist.HashStore):
    """A store whose process is stopped: from `hush` on it does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.hush, self.answers = threading.Event(), threading.Event()

    def check(self, keys):
        if self.hush.is_set():
            self.answers.wait(30)
        return super().check(keys)


def meetings_of(size: int, store: dist.Store | None = None, limit: float = LIMIT) -> list[Meetings]:
    store = store or dist.HashStore()
    return [Meetings(Launch(rank, size, rank, size), store, limit) for rank in range(size)]


@pytest.fixture
def pair():
    both = meetings_of(2)
    yield both
    for meetings in both:
        meetings.leave(last=False)


def together(everybody: list[Meetings], values: list) -> list[list]:
    with ThreadPoolExecutor(len(everybody)) as pool:
        return list(pool.map(lambda pair: pair[0].gather(pair[1]), zip(everybody, values, strict=True)))


def test_everybody_hears_everybody_in_order_of_rank_meeting_after_meeting():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60))
    everybody = meetings_of(3, dist.PrefixStore("run", store), limit=60)
    for values in (["a", None, (True, "c")], [1, 1, 1], [{"x": 2}, b"\x00\xff", ""]):
        assert together(everybody, values) == [values] * 3
    for meetings in reversed(everybody):
        meetings.leave(last=True)


def test_a_rank_that_lives_is_waited_for_beyond_the_limit(pair):
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pair[0].gather, "early")
        time.sleep(2 * LIMIT)
        assert not waiting.done()
        assert pair[1].gather("late") == waiting.result() == ["early", "late"]


def test_a_rank_whose_pulse_stands_still_is_named(pair):
    assert together(pair, ["a", "b"]) == [["a", "b"]] * 2
    pair[1].leave(last=False)
    with pytest.raises(RuntimeError, match="no pulse of rank 1 for 1 s"):
        pair[0].gather("a")
    with pytest.raises(RuntimeError, match="no pulse of rank 1"):  # at once, and not as if all had come
        pair[0].gather("a")


def test_a_rank_that_was_never_there_is_named():
    missing = Meetings(Launch(0, 3, 0, 3), dist.HashStore(), LIMIT)
    with pytest.raises(RuntimeError, match="no pulse of rank 1"):
        missing.gather(0)
    missing.leave(last=False)


def test_a_store_that_does_not_answer_ends_the_wait():
    store = Silent()
    waiting = Meetings(Launch(0, 2, 0, 2), store, LIMIT)
    store.hush.set()
    with pytest.raises(RuntimeError, match="the store of torchrun has not answered for 1 s"):
        waiting.gather(0)
    began = time.monotonic()
    waiting.leave(last=True)
    assert time.monotonic() - began < 10  # the thread is left to its fate
    store.answers.set()


def test_a_store_that_is_gone_ends_the_wait():
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60))
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=60))
    meetings = Meetings(Launch(0, 2, 0, 2), client, 600)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meetings.gather, 0)
        time.sleep(0.2)
        del server
        with pytest.raises(RuntimeError):
            waiting.result(60)
    meetings.leave(last=True)


def test_a_process_that_was_itself_suspended_does_not_give_up_the_others(monkeypatch):
    pair = meetings_of(2, limit=600)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pair[0].gather, "a")
        clock = time.monotonic
        for hours in (1, 2, 3):  # as after Ctrl-Z and fg
            monkeypatch.setattr(distributed_meetings.time, "monotonic", lambda hours=hours: clock() + 3600 * hours)
            time.sleep(0.2)
        assert not waiting.done()
        assert pair[1].gather("b") == waiting.result() == ["a", "b"]
    for meetings in pair:
        meetings.leave(last=False)


def test_rank_0_leaves_last_but_does_not_wait_for_one_that_never_leaves():
    first, second = meetings_of(2, limit=600)
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(first.leave, last=True)
        time.sleep(0.3)
        assert not leaving.done()
        second.leave(last=True)
        leaving.result(30)
    first, second = meetings_of(2)
    first.leave(last=True)
    second.leave(last=True)
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"meetings"})
