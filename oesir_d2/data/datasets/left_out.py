"""What a loader leaves out of a file from outside: counted, and the first of it named."""

from __future__ import annotations

from collections.abc import Sequence

NUM_NAMED = 3
"""So many of the lines or photos that were left out are named in the log."""


def name_first(names: Sequence[str], count: int) -> str:
    """
    >>> name_first(["a", "b", "c", "d"], 4)
    'a; b; c; …'
    """
    return "; ".join(names[:NUM_NAMED]) + ("; …" if count > NUM_NAMED else "")


class LeftOut:
    """Counts what was left out.

    Attributes:
        count: how much was.
        first: the first of it, each with the reason.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, what: str) -> None:
        self.count += 1
        if len(self.first) < NUM_NAMED:
            self.first.append(what)

    def __str__(self) -> str:
        return name_first(self.first, self.count)
