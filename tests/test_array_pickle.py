"""Pickles of arrays from outside: as numpy reads them, but for what numpy's own reading would let a file do."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy._core.multiarray as multiarray
import numpy._core.numeric as numeric
import pytest

from oesir_d2.array_pickle import load_array_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ADDRESS = b"\x41" * 8


class Call:
    """Its pickle asks for a call, and for a state of what the call gives."""

    def __init__(self, *reduced: Any) -> None:
        self._reduced = reduced

    def __reduce__(self) -> Any:
        return self._reduced


def load(content: Any, protocol: int) -> Any:
    return load_array_pickle(io.BytesIO(pickle.dumps(content, protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_are_read_as_numpy_reads_them(protocol: int, rng: np.random.Generator) -> None:
    cube = rng.random((2, 3, 4))
    arrays = [
        *(np.arange(3), np.array([True, False]), np.array(2.5), np.zeros((3, 0)), np.array([1j], np.complex64)),
        *(np.array(["a", "bü"]), np.array([b"a", b"xyz"]), cube.astype(">f4"), np.float16([1, 2]), np.bool_(True)),
        *(
            np.asfortranarray(cube),
            cube.transpose(1, 0, 2),
            cube[:, ::2],
            np.float32(1.5),
            np.int64(-4),
            np.bool_(True),
        ),
    ]
    expected = pickle.loads(pickle.dumps(arrays, protocol))
    for got, array in zip(load(arrays, protocol), expected, strict=True):
        assert isinstance(got, type(array)) and got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    shared = np.arange(4)
    loaded = load(OrderedDict(one=shared, two=[shared]), protocol)
    assert loaded["one"] is loaded["two"][0] and isinstance(loaded, OrderedDict)


def make_pointers() -> dict[str, Any]:
    """Pickles that numpy itself takes, and that give an array whose objects lie where the file says."""
    # Its flags say that it holds no objects, so that numpy copies the bytes for their pointers.
    dtype = Call(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
    record = Call(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))
    empty = (np.ndarray, (0,), b"b")
    return {
        "state": Call(multiarray._reconstruct, empty, (1, (1,), dtype, False, ADDRESS)),
        "record": Call(multiarray._reconstruct, empty, (1, (1,), record, False, ADDRESS)),
        "scalar": Call(multiarray.scalar, (dtype, ADDRESS)),
        "buffer": Call(np.ndarray, ((1,), dtype, ADDRESS)),
        "frombuffer": Call(numeric._frombuffer, (ADDRESS, dtype, (1,), "C")),
    }


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("name", sorted(make_pointers()))
def test_bytes_never_become_pointers(name: str, protocol: int) -> None:
    with pytest.raises(pickle.UnpicklingError, match="only numbers and texts are allowed"):
        load(make_pointers()[name], protocol)


INT64 = Call(np.dtype, ("i8", False, True), (3, "<", None, None, None, -1, -1, 0))


@pytest.mark.parametrize(
    "content",
    [
        Call(np.ndarray, ((10**13,), "u1")),
        Call(multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (10**13,), INT64, False, ADDRESS)),
        Call(multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (-1,), INT64, False, ADDRESS)),
        Call(multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), INT64, False, [os.curdir])),
        Call(numeric._frombuffer, (ADDRESS, INT64, (2,), "C")),
        Call(multiarray.scalar, (INT64, b"short")),
    ],
)
def test_arrays_that_do_not_fit_their_bytes_are_refused(content: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="the file (has|asks for) an array of"):
        load(content, 2)


def test_what_may_be_called_cannot_be_changed() -> None:
    # The opcodes of: push numpy.dtype, then give it a state.
    content = b"cnumpy\ndtype\n}S'to_numpy'\nccollections\nOrderedDict\nsb."
    with pytest.raises(pickle.UnpicklingError, match="changes what it may only call"):
        load_array_pickle(io.BytesIO(content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_code_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"asks for posix\.mkdir"):
        load([np.arange(3), Call(os.mkdir, (str(tmp_path / "trace"),))], protocol)
    assert not (tmp_path / "trace").exists()
