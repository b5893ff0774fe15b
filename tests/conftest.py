"""What every test has: no network, fixed seeds, and synthetic photos."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "", None)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """A test that would reach beyond this machine fails by name instead of depending on the network."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def connect_locally(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_remote(address[0])  # type: ignore[index]
        connect(self, address)  # type: ignore[arg-type]

    def resolve_locally(host: str | None, *args: object, **kwargs: object) -> object:
        _refuse_remote(host)
        return resolve(host, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        patch.setattr(socket, "getaddrinfo", resolve_locally)
        yield


def _refuse_remote(host: object) -> None:
    if host not in LOCAL_HOSTS and host != socket.gethostname():
        raise AssertionError(f"a test tried to reach {host!r}; tests run offline")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """The global generators start alike in every test, whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from the legacy generator
    if "torch" in sys.modules:  # the tests of the NumPy-only parts do not pay for importing it
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small arrays gain nothing from threads, and threads that wait for each other on a busy machine cost seconds."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _only_detectron2s_own_sets() -> Iterator[None]:
    """No test finds the data sets that another one has registered."""
    if "detectron2.data" not in sys.modules:
        yield
        return
    catalog = sys.modules["detectron2.data"].DatasetCatalog
    before = set(catalog.list())
    yield
    for name in set(catalog.list()) - before:
        catalog.remove(name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def make_photo(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """``make_photo(height, width)`` gives a new (H, W, 3) uint8 RGB picture with colours, edges and some noise."""

    def make(height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[0:height, 0:width]
        photo = rng.uniform(60, 200, size=3) + rng.normal(0, 4, size=(height, width, 3))
        for _ in range(8):
            color = rng.uniform(-120, 120, size=3)
            center_y, center_x = rng.uniform(0, height), rng.uniform(0, width)
            radius_y, radius_x = rng.uniform(0.1, 0.4, size=2) * (height, width)
            inside = ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 < 1
            photo += inside[:, :, None] * color
        return np.clip(photo, 0, 255).astype(np.uint8)

    return make
