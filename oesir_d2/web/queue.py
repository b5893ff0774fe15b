"""The line in front of the model: one job runs, a bounded number waits, each has a time by which it is answered."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

POLL_SECONDS = 0.2


class QueueFullError(Exception):
    """As many jobs wait as may."""


class JobTimeoutError(Exception):
    """A job was not answered in time."""


class Ticket:
    """A job in the line.

    Attributes:
        job: what is to be done.
        deadline: ``time.monotonic()`` by which it must be answered.
        future: its answer, or the exception that it ended with.
    """

    def __init__(self, job: Any, deadline: float, number: int) -> None:
        self.job = job
        self.deadline = deadline
        self.number = number
        self.future: Future[Any] = Future()
        self.given_up = threading.Event()
        self._progress = (0.0, "waiting")

    def report_progress(self, share: float, text: str) -> None:
        """Called by whoever runs the job: how much is done, in [0, 1], and what is being done."""
        self._progress = (share, text)

    @property
    def progress(self) -> tuple[float, str]:
        return self._progress

    def give_up(self) -> None:
        """Nobody waits for the answer any more: the job is not begun."""
        self.given_up.set()


class JobQueue:
    """Runs jobs one after the other in a thread of its own.

    Args:
        run: does a job; called with its ticket, returns the answer. It has to watch the ticket's deadline.
        max_waiting: jobs that may wait while one runs.
        timeout: seconds from a job's coming to its answer.
    """

    def __init__(self, run: Callable[[Ticket], Any], max_waiting: int, timeout: float) -> None:
        self._run = run
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._numbers = itertools.count()
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="job queue", daemon=True)
        self._thread.start()

    def submit(self, job: Any, started: float | None = None) -> Ticket:
        """Put a job at the end of the line.

        Args:
            job: what is to be done.
            started: ``time.monotonic()`` at which its time began; now if not given.

        Raises:
            QueueFullError: too many wait.
        """
        with self._changed:
            self._drop_given_up()
            if self._closed or len(self._waiting) >= self._max_waiting + (self._running is None):
                raise QueueFullError
            begin = time.monotonic() if started is None else started
            ticket = Ticket(job, begin + self._timeout, next(self._numbers))
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def count_before(self, ticket: Ticket) -> int:
        """Jobs that are answered before this one; 0 for the one that runs."""
        with self._changed:
            running = self._running is not None and self._running is not ticket
            return running + sum(other.number < ticket.number for other in self._waiting if not other.given_up.is_set())

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        with self._changed:
            return len(self._waiting)

    async def follow(self, ticket: Ticket) -> AsyncIterator[tuple[float, str]]:
        """Progress until the job is done or its time is over; ``ticket.future`` then holds the answer.

        Leaving the loop early gives the job up.

        Raises:
            JobTimeoutError: the time is over.
        """
        try:
            while not ticket.future.done():
                if time.monotonic() > ticket.deadline:
                    raise JobTimeoutError
                before = self.count_before(ticket)
                yield (0.0, f"waiting for {before} other search{'es' * (before > 1)}") if before else ticket.progress
                # Not asyncio's own wait: what it would cancel is shared with the thread.
                await asyncio.sleep(POLL_SECONDS)
        finally:
            if not ticket.future.done():
                ticket.give_up()

    def close(self) -> None:
        """Give up every job and end the thread."""
        with self._changed:
            self._closed = True
            for ticket in self._waiting:
                ticket.give_up()
            if self._running is not None:
                self._running.deadline = 0.0
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                ticket = self._running = self._waiting.popleft()
            if ticket.given_up.is_set() or time.monotonic() > ticket.deadline:
                ticket.future.set_exception(JobTimeoutError())
                continue
            try:
                ticket.future.set_result(self._run(ticket))
            except Exception as error:
                ticket.future.set_exception(error)

    def _drop_given_up(self) -> None:
        for ticket in [ticket for ticket in self._waiting if ticket.given_up.is_set()]:
            self._waiting.remove(ticket)
            ticket.future.set_exception(JobTimeoutError())
