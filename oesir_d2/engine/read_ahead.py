"""Work on the next items in threads while the caller is busy with one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    items: Iterable[Item], work: Callable[[Item], Result], depth: int, threads: int = 2
) -> Iterator[tuple[Item, Result]]:
    """Each item with what the work makes of it, in order.

    Args:
        items: taken one after the other as the caller goes on, not all at once.
        work: called in a thread.
        depth: items that are worked on ahead of the caller, >= 1; so many results are held at most.
        threads: that share the work.

    Raises:
        Whatever the work raises, at the item that it belongs to.
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="read-ahead") as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(work, item)))
                if len(pending) > depth:
                    ready, future = pending.popleft()
                    yield ready, future.result()
            while pending:
                ready, future = pending.popleft()
                yield ready, future.result()
        finally:
            for _, future in pending:
                future.cancel()
