"""Decoding ahead of the model: photos come in order from threads or from processes, and few are held at a time.

Threads share the interpreter with the model; processes do not, and a file that crashes a decoder ends one of them
instead of the job.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.engine.read_ahead import read_ahead

THREADS = 2
READ_AHEAD = 4
"""Photos decoded ahead of the model, and as many more as there are processes that decode. Each is held at the network's
input size, a few megabytes."""

Mapped = dict[str, Any]
Decoded = Mapped | UnreadableImageError
Mapper = Callable[[dict[str, Any]], Mapped]

logger = logging.getLogger(__name__)


def decode_ahead(files: Iterable[ImageFile], mapper: Mapper, workers: int) -> Iterator[tuple[ImageFile, Decoded]]:
    """Decode photos in order while the consumer works on those before them.

    Args:
        files: the photos; taken from it only as they are needed.
        mapper: makes the model's input of a dict with ``file_name`` and ``image_id``.
        workers: processes that decode; 0 is two threads of this one.

    Yields:
        Each file with the model's input, or with the reason why it could not be read.
    """
    if not workers:
        yield from read_ahead(files, lambda file: _map_or_refuse(mapper, file), READ_AHEAD, THREADS)
        return
    decoder = ProcessDecoder(mapper, workers)
    pending: deque[tuple[ImageFile, Future[Decoded]]] = deque()
    try:
        for file in files:
            pending.append((file, decoder.submit(file)))
            if len(pending) > READ_AHEAD + workers:
                ready, future = pending.popleft()
                yield ready, decoder.wait(ready, future)
        while pending:
            ready, future = pending.popleft()
            yield ready, decoder.wait(ready, future)
    finally:
        decoder.close()


class ProcessDecoder:
    """Decodes in processes of its own: ``submit`` starts a photo, ``wait`` gives it, ``close`` drops what is left.

    Should one of them die, all that were at work are lost with it. Each photo that was waiting is then decoded once
    more, alone in a process; the one that ends that process as well is not a photo that can be read.
    """

    def __init__(self, mapper: Mapper, workers: int) -> None:
        self._mapper = mapper
        self._workers = workers
        self._pool = self._start(workers)

    def submit(self, file: ImageFile) -> Future[Decoded]:
        try:
            return self._pool.submit(_decode_in_worker, file)
        except BrokenProcessPool:
            self._restart()
            return self._pool.submit(_decode_in_worker, file)

    def wait(self, file: ImageFile, future: Future[Decoded]) -> Decoded:
        try:
            return _to_tensor(future.result())
        except BrokenProcessPool:
            logger.warning("A process that decodes photos died; %s is decoded once more", file.path)
        pool = self._start(1)
        # If none can be started at all, it is not for the photo.
        pool.submit(os.getpid).result()
        try:
            return _to_tensor(pool.submit(_decode_in_worker, file).result())
        except BrokenProcessPool:
            return UnreadableImageError(file.path, "the process that decoded it died, twice")
        finally:
            pool.shutdown()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _start(self, workers: int) -> ProcessPoolExecutor:
        # A fork of this process would inherit OpenMP's threads as locks that nobody holds; its own server has none.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        return ProcessPoolExecutor(workers, context, _set_up_worker, (self._mapper,))

    def _restart(self) -> None:
        self._pool.shutdown(wait=False)
        self._pool = self._start(self._workers)


def _map_or_refuse(mapper: Mapper, file: ImageFile) -> Decoded:
    try:
        return mapper({"file_name": str(file.path), "image_id": file.image_id})
    except UnreadableImageError as error:
        return error


_worker_mapper: Mapper | None = None


def _set_up_worker(mapper: Mapper) -> None:
    global _worker_mapper
    _worker_mapper = mapper
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal; the main one closes the others when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _decode_in_worker(file: ImageFile) -> Decoded:
    assert _worker_mapper is not None, "the worker was not set up"
    decoded = _map_or_refuse(_worker_mapper, file)
    if isinstance(decoded, UnreadableImageError):
        return decoded
    # As bytes through the pipe: shared memory would be left behind by a process that is killed.
    return decoded | {"image": decoded["image"].numpy()}


def _to_tensor(decoded: Decoded) -> Decoded:
    if isinstance(decoded, UnreadableImageError):
        return decoded
    return decoded | {"image": torch.from_numpy(decoded["image"])}


def _end_with_parent() -> None:
    """Else a worker would wait for ever for the next photo of a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "started as a child"
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
