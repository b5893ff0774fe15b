"""The process that holds the model: started, asked, and replaced when it hangs or dies.

Files from outside are decoded there and nowhere else. Whatever a file does to a decoder, to the memory or to the time,
the app goes on: a job that is over its time is ended with its process, and a new process takes the next one.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from oesir_d2.web.queue import JobTimeoutError, Ticket

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
END_SECONDS = 5.0


class RefusedError(Exception):
    """A job that cannot be done because of what the client asked or sent.

    Attributes:
        status: the HTTP status that says so.
        message: one line for the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class WorkerDiedError(Exception):
    """The process ended in the middle of a job."""


class Worker:
    """A process that does one job after the other.

    Args:
        open_desk: called once in the process; gives a function that does a job, called with it and with a function
            that takes the progress (share, text). It can be pickled.
        start_method: how multiprocessing starts the process. A fork of a process with threads may hang, so that the app
            does without.
    """

    def __init__(
        self, open_desk: Callable[[], Callable[[Any, Callable[[float, str], None]], Any]], start_method: str = "spawn"
    ) -> None:
        self._open_desk = open_desk
        self._context = multiprocessing.get_context(start_method)
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            Exception: what opening it ended with, such as ``ValueError`` for a folder that is no index.
        """
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs, self._open_desk), name="model", daemon=True)
        self._process.start()
        theirs.close()
        try:
            kind, content = self._connection.recv()
        except (EOFError, OSError):
            self.stop()
            raise WorkerDiedError("the process of the model ended while it started") from None
        if kind == "failed":
            self.stop()
            raise content

    def run(self, ticket: Ticket) -> Any:
        """Do the ticket's job and return its answer.

        Raises:
            RefusedError: the client asked for what cannot be done.
            JobTimeoutError: its time is over.
            WorkerDiedError: the process died of it, or failed where it should not have.
        """
        if self._process is None or not self._process.is_alive():
            self.stop()
            ticket.report_progress(0.0, "loading the model")
            self.start()
        assert self._connection is not None
        try:
            self._connection.send(ticket.job)
            while True:
                if self._connection.poll(POLL_SECONDS):
                    kind, content = self._connection.recv()
                    if kind == "progress":
                        ticket.report_progress(*content)
                    elif kind == "done":
                        return content
                    else:
                        raise content
                # A job that was given up meanwhile is finished all the same: loading the model anew takes longer.
                if time.monotonic() > ticket.deadline:
                    logger.warning("A job was ended after its time; the model is loaded anew")
                    self.stop()
                    raise JobTimeoutError
        except (EOFError, OSError) as error:
            code = self._process.exitcode
            self.stop()
            logger.error("The process of the model ended in the middle of a job, exit code %s", code)
            raise WorkerDiedError("the search ended unexpectedly") from error

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.join(END_SECONDS)
            self._process = None


def _serve(connection: Connection, open_desk: Callable[[], Callable[..., Any]]) -> None:
    """What the process does until its parent goes away."""
    import signal

    # Ctrl-C in a terminal reaches this process too; its parent ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        do_job = open_desk()
    except Exception as error:
        connection.send(("failed", _make_sendable(error)))
        return
    connection.send(("ready", None))
    try:
        while True:
            job = connection.recv()
            try:
                answer = do_job(job, lambda share, text: connection.send(("progress", (share, text))))
                connection.send(("done", answer))
            except RefusedError as error:
                connection.send(("refused", error))
            except (BrokenPipeError, EOFError):
                return
            except Exception as error:
                logger.exception("A job failed")
                connection.send(("failed", WorkerDiedError(f"the search failed: {type(error).__name__}")))
    except (EOFError, OSError):
        return


def _make_sendable(error: Exception) -> Exception:
    """The error as one of the kinds that the parent knows how to tell a user."""
    if isinstance(error, (FileNotFoundError, OSError)):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    return ValueError(str(error)) if isinstance(error, ValueError) else WorkerDiedError(str(error))
