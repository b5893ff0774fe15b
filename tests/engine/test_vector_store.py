"""Vectors on disk: what was added comes back, whatever a killed process has left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oesir_d2.engine.vector_store import VectorStore


def make_chunk(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {kind: rng.normal(size=(count, size)).astype(np.float32) for kind, size in (("a/GeM", 3), ("b/R-MAC", 5))}


def test_vectors_come_back_in_the_order_that_is_asked_for(rng: np.random.Generator, tmp_path: Path) -> None:
    first, second = make_chunk(rng, 3), make_chunk(rng, 2)
    store = VectorStore(tmp_path / "vectors")
    store.add(["x", "y", "z"], first)
    store.add(["u", "v"], second)
    for opened in (store, VectorStore(tmp_path / "vectors")):
        assert set(opened.places) == set("xyzuv")
        loaded = opened.load("b/R-MAC", ["v", "x", "z", "x"])
        expected = [second["b/R-MAC"][1], first["b/R-MAC"][0], first["b/R-MAC"][2], first["b/R-MAC"][0]]
        np.testing.assert_array_equal(loaded, np.stack(expected))


def test_damaged_and_unfinished_chunks_are_dropped(
    rng: np.random.Generator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "vectors"
    store = VectorStore(folder)
    for key in "abc":
        store.add([key], make_chunk(rng, 1))
    chunks = sorted(folder.iterdir())
    chunks[0].write_bytes(chunks[0].read_bytes()[:-7])
    chunks[1].write_bytes(b"")
    (folder / ".tmp-1-000003.safetensors").write_bytes(b"half")

    opened = VectorStore(folder)
    assert set(opened.places) == {"c"}
    assert list(folder.iterdir()) == [chunks[2]]
    assert caplog.text.count("computed again") == 2
    # No number is used twice.
    opened.add(["a"], make_chunk(rng, 1))
    assert set(VectorStore(folder).places) == {"a", "c"}


def test_a_photo_is_added_once(rng: np.random.Generator, tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    store.add(["a"], make_chunk(rng, 1))
    with pytest.raises(AssertionError, match="there already"):
        store.add(["a"], make_chunk(rng, 1))
