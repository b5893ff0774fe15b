"""Pickles from outside, read without running anything: numpy arrays and plain containers, nothing else.

A list of allowed names is not enough. numpy's own way of reading a pickle takes a dtype's flags from the file, and so
can be made to take bytes of the file for pointers to objects. Hence every name that a file asks for stands here for a
function of ours, and arrays are made of bytes whose number fits a dtype of plain numbers or texts.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

_DTYPE = re.compile(r"[biufc][0-9]{1,2}|[SU][0-9]{1,9}")
_BYTE_ORDERS = ("<", ">", "=", "|")


class _Dtype:
    """Stands for a dtype: its kind and size, such as "f4", and its byte order."""

    def __init__(self, text: Any, *_: Any) -> None:
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise pickle.UnpicklingError(f"the file has an array of {text!r}; only numbers and texts are allowed")
        self._text, self._order = text, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields = state[:5]
        if order not in _BYTE_ORDERS or (subarray, names, fields) != (None, None, None):
            raise pickle.UnpicklingError("the file has an array of records; only numbers and texts are allowed")
        self._order = order

    def to_numpy(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._text)


class _StoredArray(np.ndarray):
    """An array that takes its content from a pickle after a check. It must be changed in place: others refer to it."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        checked = _check(shape, dtype, data)
        super().__setstate__((1, shape, checked, bool(is_fortran), data))  # type: ignore[arg-type]


def _check(shape: Any, dtype: Any, data: Any) -> np.dtype[Any]:
    """The dtype of an array whose bytes and shape fit it.

    Raises:
        pickle.UnpicklingError: they do not.
    """
    is_shape = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    if not is_shape or type(dtype) is not _Dtype or not isinstance(data, (bytes, bytearray)):
        raise pickle.UnpicklingError("the file has an array of another form than numpy writes")
    checked = dtype.to_numpy()
    if math.prod(shape) * checked.itemsize != len(data):
        raise pickle.UnpicklingError(f"the file has an array of shape {shape} and {checked} in {len(data)} bytes")
    return checked


def _reconstruct(*_: Any) -> _StoredArray:
    """An empty array; its state follows in the file."""
    return _StoredArray((0,), dtype=np.uint8)


def _make_scalar(dtype: Any, data: Any) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, _check((), dtype, data))[0]


def _make_from_buffer(data: Any, dtype: Any, shape: Any, order: str, axis_order: Any = None) -> Any:
    """An array of the newest protocol."""
    array = np.frombuffer(data, _check(shape, dtype, data))
    if order == "K" and axis_order is not None:
        return array.reshape(shape).transpose(axis_order)
    return array.reshape(shape, order="F" if order == "F" else "C")


def _encode(text: Any, encoding: Any) -> bytes:
    """How the older protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"the file has bytes in the encoding {encoding!r}; only latin1 is allowed")
    return text.encode("latin1")


def _make_no_bytes() -> bytes:
    """How they write none. With an argument, ``bytes`` would make as many as a file asks for."""
    return b""


def _refuse_call(*_: Any) -> Any:
    raise pickle.UnpicklingError("the file asks for an array of another form than numpy writes")


class _Callable:
    """Something that a file may call but, other than a function or a class, not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file changes what it may only call")


_ALLOWED_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _refuse_call,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _make_no_bytes,
    ("builtins", "bytes"): _make_no_bytes,
    # numpy 1 and numpy 2 name the same functions differently.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _make_scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _make_from_buffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that refuses every global but those that numpy arrays and plain containers need."""

    def find_class(self, module: str, name: str) -> Any:
        function = _ALLOWED_GLOBALS.get((module, name))
        if function is None:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}; only numpy arrays are allowed")
        return _Callable(function)


def load_array_pickle(file: BinaryIO) -> Any:
    """Read a pickle of numpy arrays and plain containers, as detectron2's model zoo has them.

    Raises:
        pickle.UnpicklingError: if the pickle asks for anything else; nothing of it is run. A damaged pickle may raise
            almost any other type.
    """
    return _ArrayUnpickler(file, encoding="latin1").load()
