"""What the web app is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oesir_d2.data.images import MAX_PIXELS

MEGABYTE = 2**20
MEGAPIXEL = 1_000_000
# Pillow has a bound of its own.
LARGEST_MEGAPIXELS = MAX_PIXELS // MEGAPIXEL
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class WebSettings:
    """The limits of the app and what it may show.

    Attributes:
        index: the index folder.
        opts: KEY VALUE pairs over the config in the index's manifest.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        max_upload_mb: largest file taken, in mebibytes.
        max_megapixels: a photo of more million pixels is refused before it is decoded; at most
            ``LARGEST_MEGAPIXELS``.
        timeout: seconds from the arrival of a request to its answer, waiting and upload included.
        max_waiting: searches that may wait while one runs; one more is refused.
        add_folder: where photos that users add are kept; None if none may be added.
        hide_paths: do not tell where the photos of the index lie, only their ids.

    Raises:
        ValueError: a limit out of its range.
    """

    index: Path
    opts: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    max_upload_mb: int = 32
    max_megapixels: int = 100
    timeout: float = 120.0
    max_waiting: int = 32
    add_folder: Path | None = None
    hide_paths: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is not allowed, expected 0 to 65535")
        for name in ("max_upload_mb", "max_megapixels", "timeout", "max_waiting"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)} is not allowed, expected more than 0")
        if self.max_megapixels > LARGEST_MEGAPIXELS:
            raise ValueError(
                f"max_megapixels {self.max_megapixels} is not allowed, expected 1 to {LARGEST_MEGAPIXELS}: "
                "of larger photos none is decoded"
            )

    @property
    def max_upload_bytes(self) -> int:
        return self.max_upload_mb * MEGABYTE

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can reach the app."""
        return self.host in LOOPBACK_HOSTS

    @property
    def shows_paths(self) -> bool:
        """Whether answers name the files of the index by their paths: those on other machines are not told."""
        return self.is_loopback and not self.hide_paths
