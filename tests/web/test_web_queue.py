"""The line in front of the model, and the process behind it: order, limits, time-outs, deaths."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oesir_d2.web.queue import JobQueue, JobTimeoutError, QueueFullError, Ticket
from oesir_d2.web.worker import RefusedError, Worker, WorkerDiedError

# The process of these tests does nothing that a fork could disturb, and is ready at once.
START_METHOD = "fork"


class Gatekeeper:
    """A job's doer that waits until it is let go, and remembers what it did."""

    def __init__(self) -> None:
        self.begun, self.may_go = threading.Semaphore(0), threading.Semaphore(0)
        self.done: list[Any] = []

    def __call__(self, ticket: Ticket) -> Any:
        self.begun.release()
        while not self.may_go.acquire(timeout=0.01):
            if time.monotonic() > ticket.deadline:
                raise JobTimeoutError
        self.done.append(ticket.job)
        return ticket.job * 2


@pytest.fixture
def keeper() -> Gatekeeper:
    return Gatekeeper()


@pytest.fixture
def make_queue(keeper: Gatekeeper) -> Iterator[Callable[..., JobQueue]]:
    queues: list[JobQueue] = []

    def make(max_waiting: int = 2, timeout: float = 60) -> JobQueue:
        queues.append(JobQueue(keeper, max_waiting, timeout))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


def test_jobs_are_answered_in_their_order_and_one_too_many_is_refused(make_queue: Any, keeper: Gatekeeper) -> None:
    queue = make_queue(max_waiting=2)
    first = queue.submit(1)
    keeper.begun.acquire()
    others = [queue.submit(2), queue.submit(3)]
    with pytest.raises(QueueFullError):
        queue.submit(4)
    assert [queue.count_before(ticket) for ticket in (first, *others)] == [0, 1, 2]
    keeper.may_go.release(3)
    assert [ticket.future.result(10) for ticket in (first, *others)] == [2, 4, 6]
    assert keeper.done == [1, 2, 3]
    keeper.may_go.release()
    assert queue.submit(5).future.result(10) == 10


def test_a_job_that_nobody_waits_for_is_not_begun_and_frees_its_place(make_queue: Any, keeper: Gatekeeper) -> None:
    queue = make_queue(max_waiting=1)
    queue.submit(1)
    keeper.begun.acquire()
    queue.submit(2).give_up()
    last = queue.submit(3)
    keeper.may_go.release(2)
    assert last.future.result(10) == 6
    assert keeper.done == [1, 3]


def test_who_waits_too_long_is_told_in_time(make_queue: Any, keeper: Gatekeeper) -> None:
    queue = make_queue(timeout=0.5)
    running = queue.submit(1)
    keeper.begun.acquire()
    waiting = queue.submit(2)

    async def wait() -> None:
        async for _ in queue.follow(waiting):
            pass
        waiting.future.result()

    with pytest.raises(JobTimeoutError):
        asyncio.run(wait())
    with pytest.raises(JobTimeoutError):
        running.future.result(10)
    assert keeper.done == []


def test_time_that_an_upload_took_counts(make_queue: Any, keeper: Gatekeeper) -> None:
    queue = make_queue(timeout=60)
    late = queue.submit(1, started=time.monotonic() - 61)
    with pytest.raises(JobTimeoutError):
        late.future.result(10)
    assert keeper.done == []


def test_progress_tells_how_many_are_before(make_queue: Any, keeper: Gatekeeper) -> None:
    queue = make_queue()
    first = queue.submit(1)
    keeper.begun.acquire()
    second = queue.submit(2)

    async def follow() -> list[tuple[float, str]]:
        seen = []
        async for progress in queue.follow(second):
            seen.append(progress)
            first.report_progress(0.5, "half")
            keeper.may_go.release()
        return seen

    seen = asyncio.run(follow())
    assert seen[0] == (0.0, "waiting for 1 other search")
    assert first.progress == (0.5, "half") and second.future.result() == 4


def open_desk() -> Callable[[Any, Callable[[float, str], None]], Any]:
    """Runs in the worker's process."""

    def do_job(job: Any, report_progress: Callable[[float, str], None]) -> Any:
        report_progress(0.5, "half")
        if job == "hang":
            time.sleep(600)
        if job == "die":
            os._exit(9)
        if job == "refuse":
            raise RefusedError(415, "no photo")
        if job == "fail":
            raise ZeroDivisionError
        return os.getpid()

    return do_job


def open_nothing() -> Callable[..., Any]:
    raise FileNotFoundError("index nowhere does not exist")


def make_ticket(job: str, seconds: float = 120) -> Ticket:
    return Ticket(job, time.monotonic() + seconds, 0)


def test_process_that_dies_or_hangs_is_replaced() -> None:
    worker = Worker(open_desk, START_METHOD)
    worker.start()
    try:
        first = worker.run(make_ticket("pid"))
        with pytest.raises(RefusedError, match="no photo") as refused:
            worker.run(make_ticket("refuse"))
        assert refused.value.status == 415
        with pytest.raises(WorkerDiedError, match="ZeroDivisionError"):
            worker.run(make_ticket("fail"))
        # A mistake costs no process.
        ticket = make_ticket("pid")
        assert worker.run(ticket) == first and ticket.progress == (0.5, "half")
        with pytest.raises(WorkerDiedError):
            worker.run(make_ticket("die"))
        second = worker.run(make_ticket("pid"))
        with pytest.raises(JobTimeoutError):
            worker.run(make_ticket("hang", seconds=0.3))
        third = worker.run(make_ticket("pid"))
        assert len({first, second, third}) == 3
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
    finally:
        worker.stop()


def test_what_keeps_the_process_from_starting_is_told() -> None:
    with pytest.raises(OSError, match="index nowhere does not exist"):
        Worker(open_nothing, START_METHOD).start()
