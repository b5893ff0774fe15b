"""Decoding in processes: the same as in threads, also when a process is killed or a file kills it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from oesir_d2.data import ImageFile, UnreadableImageError
from oesir_d2.data.mappers import EmbeddingMapper
from oesir_d2.engine.decoding import READ_AHEAD, decode_ahead


def decode(files: list[ImageFile], mapper: Callable[..., Any], workers: int) -> list[Any]:
    return list(decode_ahead(iter(files), mapper, workers))


def make_mapper(expression: str) -> Callable[[dict[str, Any]], Any]:
    """A mapper that a worker can load, which the functions of a test are not."""
    return partial(eval, expression, {})


def get_workers() -> list[multiprocessing.process.BaseProcess]:
    return [child for child in multiprocessing.active_children() if "ForkServer" in child.name]


def test_processes_give_what_threads_give(cfg: CfgNode, photos: list[ImageFile], tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    files = [ImageFile("gone", tmp_path / "gone.png"), *photos, ImageFile("empty", tmp_path / "empty.png"), *photos]
    mapper = EmbeddingMapper(cfg)
    in_threads, in_processes = decode(files, mapper, 0), decode(files, mapper, 2)
    assert [file for file, _ in in_processes] == files
    for (_, expected), (_, actual) in zip(in_threads, in_processes, strict=True):
        if isinstance(expected, UnreadableImageError):
            assert isinstance(actual, UnreadableImageError) and str(actual) == str(expected)
        else:
            assert torch.equal(actual.pop("image"), expected.pop("image")) and actual == expected
    assert not get_workers()


def test_a_killed_process_costs_no_photo(cfg: CfgNode, photos: list[ImageFile]) -> None:
    files = photos * 4
    taken = 0

    def count() -> Any:
        nonlocal taken
        for file in files:
            taken += 1
            yield file

    results = []
    for number, (file, mapped) in enumerate(decode_ahead(count(), EmbeddingMapper(cfg), 1)):
        results.append(file)
        assert mapped["image"].dtype == torch.uint8 and mapped["image"].any()
        assert taken - len(results) <= READ_AHEAD + 1
        if number in (3, 10):
            (worker,) = get_workers()
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
    assert results == files


def test_a_file_that_kills_its_process_is_refused_and_no_other(tmp_path: Path) -> None:
    files = [ImageFile(str(n), tmp_path / f"{n}.png") for n in range(12)]
    mapper = make_mapper(
        "__import__('os')._exit(9) if image_id in ('2', '3') else "
        "{'image': __import__('torch').full((3, 1, 1), int(image_id))}"
    )
    results = decode(files, mapper, 2)
    assert [file for file, _ in results] == files
    for number, (file, mapped) in enumerate(results):
        if number in (2, 3):
            assert isinstance(mapped, UnreadableImageError)
            assert (mapped.path, mapped.reason) == (file.path, "the process that decoded it died, twice")
        else:
            assert mapped["image"].flatten().tolist() == [number] * 3


def test_an_error_of_our_own_is_not_hidden(photos: list[ImageFile]) -> None:
    with pytest.raises(ZeroDivisionError):
        decode(photos, make_mapper("1 / 0"), 1)
    assert not get_workers()


def test_stopping_early_leaves_no_process_behind(cfg: CfgNode, photos: list[ImageFile]) -> None:
    results = decode_ahead(iter(photos * 5), EmbeddingMapper(cfg), 2)
    next(results)
    assert get_workers()
    results.close()
    assert not get_workers()
