"""Fetching PS-Battles: a hundred thousand photos from addresses of which many are dead or show something else by now.

A photo is written aside, held against the SHA-256 of its list, and only then renamed into place. So a photo that is
there is whole, and a run that was interrupted is gone on with by running it again. A file that is there and has
another hash is removed and fetched anew.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oesir_d2.data.datasets.psbattles import PSBattlesPhoto
from oesir_d2.files import fsync_directory, naming_errors, remove_temporaries, sha256_of_file, temporary_beside

KEPT, FETCHED = "kept", "fetched"
"""The two good ends of a photo: it was there already, or it was fetched."""

MAX_BYTES = 256 * 2**20
"""An answer of more bytes is given up: no photo of the set is nearly as large."""

BLOCK_BYTES = 1 << 16
AGENT = "oesir_d2 (dataset download)"
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"
"""What an address may hold beside letters and digits; the rest, such as spaces and umlauts, is quoted."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DownloadOptions:
    """How photos are fetched.

    Attributes:
        retries: further tries after an answer that may be better next time: a timeout, a broken line, 429 and 5xx.
        timeout: seconds without an answer.
        pause: seconds before the first further try; each one after waits twice as long.
        workers: photos fetched at a time.
    """

    retries: int = 3
    timeout: float = 20.0
    pause: float = 1.0
    workers: int = 8

    def __post_init__(self) -> None:
        if self.retries < 0 or self.timeout <= 0 or self.pause < 0 or self.workers < 1:
            raise ValueError(f"{self}; allowed: retries and pause of 0 or more, timeout above 0, workers of 1 or more")


@dataclass
class Coverage:
    """What of a list is on disk after a run.

    Attributes:
        total: photos of the list.
        kept: that were there before, with the right hash.
        fetched: by this run.
        removed: files with another hash, removed; they are fetched again, or missing.
        failures: why photos are missing, by their paths.
    """

    total: int
    kept: int = 0
    fetched: int = 0
    removed: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the report: counts, the share that is there in percent, and how many are missing for which reason."""
        there = self.kept + self.fetched
        return {
            "total": self.total,
            "on_disk": there,
            "percent": round(100 * there / self.total, 2) if self.total else 100.0,
            "kept": self.kept,
            "fetched": self.fetched,
            "removed": self.removed,
            "missing": dict(Counter(reason.split(":")[0] for reason in self.failures.values()).most_common()),
        }


class DownloadError(Exception):
    """A photo cannot be had. The text before the first colon is the kind of reason.

    Attributes:
        is_final: whether another try would end the same way.
    """

    def __init__(self, reason: str, is_final: bool) -> None:
        super().__init__(reason)
        self.is_final = is_final


@dataclass(frozen=True)
class _Outcome:
    """How it went with one photo.

    Attributes:
        end: ``KEPT``, ``FETCHED``, or the reason why it is missing.
        was_removed: whether a bad file was.
    """

    end: str
    was_removed: bool = False


def download_photos(
    photos: Sequence[PSBattlesPhoto],
    folder: Path,
    options: DownloadOptions,
    show: Callable[[str], None] = lambda path: None,
) -> Coverage:
    """Fetch the photos of a list that are not there yet. One process at a time may do so in a folder.

    Args:
        photos: the list.
        folder: the set's folder; subfolders are made.
        options: how.
        show: called with the path of every photo that is done, for a progress bar.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    for parent in {(folder / photo.path).parent for photo in photos}:
        if parent.is_dir():
            remove_temporaries(parent)  # of a run that was killed
    coverage = Coverage(len(photos))
    with ThreadPoolExecutor(options.workers, thread_name_prefix="download") as pool:
        try:
            for photo, outcome in _run_ahead(
                pool, photos, lambda photo: _bring(photo, folder, options), options.workers
            ):
                coverage.removed += outcome.was_removed
                if outcome.end == KEPT:
                    coverage.kept += 1
                elif outcome.end == FETCHED:
                    coverage.fetched += 1
                else:
                    coverage.failures[photo.path] = outcome.end
                show(photo.path)
        finally:
            pool.shutdown(cancel_futures=True)
    return coverage


def _run_ahead(
    pool: ThreadPoolExecutor,
    photos: Iterable[PSBattlesPhoto],
    work: Callable[[PSBattlesPhoto], _Outcome],
    workers: int,
) -> Iterator[tuple[PSBattlesPhoto, _Outcome]]:
    """Photos as they are done; a few more than there are workers are under way."""
    pending: dict[Future[_Outcome], PSBattlesPhoto] = {}
    remaining = iter(photos)
    while True:
        while len(pending) < 2 * workers and (photo := next(remaining, None)) is not None:
            pending[pool.submit(work, photo)] = photo
        if not pending:
            return
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            yield pending.pop(future), future.result()


def _bring(photo: PSBattlesPhoto, folder: Path, options: DownloadOptions) -> _Outcome:
    path = folder / photo.path
    was_removed = False
    if path.is_file():
        if sha256_of_file(path) == photo.sha256:
            return _Outcome(KEPT)
        logger.warning("%s has another hash than its list says: removed", path)
        path.unlink()
        was_removed = True
    try:
        _fetch_patiently(photo, path, options)
    except DownloadError as error:
        return _Outcome(str(error), was_removed)
    return _Outcome(FETCHED, was_removed)


def _fetch_patiently(photo: PSBattlesPhoto, path: Path, options: DownloadOptions) -> None:
    pause = options.pause
    for tries_left in range(options.retries, -1, -1):
        try:
            _fetch(photo, path, options.timeout)
            return
        except DownloadError as error:
            if error.is_final or not tries_left:
                raise
        time.sleep(pause)
        pause *= 2


def _fetch(photo: PSBattlesPhoto, path: Path, timeout: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary_beside(path)
    try:
        with _open(photo.url, timeout) as answer, naming_errors(aside):
            digest = _write(answer, aside, photo.url)
        if digest != photo.sha256:
            raise DownloadError(f"another file: {photo.url} has the sha256 {digest}", is_final=True)
        os.replace(aside, path)
        fsync_directory(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _open(url: str, timeout: float) -> Any:
    """Ask for a file, and give the answer."""
    with _naming_failures(url):
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            # urllib would read files of this machine, too.
            raise ValueError("its scheme is neither http nor https")
        request = urllib.request.Request(urllib.parse.quote(url, safe=URL_CHARACTERS), headers={"User-Agent": AGENT})
        return urllib.request.urlopen(request, timeout=timeout)


def _write(answer: Any, path: Path, url: str) -> str:
    """Write an answer to a file, and give its SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        while True:
            # An error of the line is one photo's, an error of the disk ends the run.
            with _naming_failures(url):
                block = answer.read(BLOCK_BYTES)
            if not block:
                break
            size += len(block)
            if size > MAX_BYTES:
                raise DownloadError(f"too large: more than {MAX_BYTES} bytes", is_final=True)
            digest.update(block)
            file.write(block)
        expected = answer.headers.get("Content-Length")
        if expected is not None and expected.isdecimal() and size != int(expected):
            # read(n) of http.client ends silently where a line breaks.
            raise DownloadError(f"no answer: {size} of {expected} bytes came", is_final=False)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


@contextmanager
def _naming_failures(url: str) -> Iterator[None]:
    """Make what goes wrong between here and a server the reason why a photo is missing.

    Raises:
        DownloadError: something went wrong.
    """
    try:
        yield
    except urllib.error.HTTPError as error:
        is_final = error.code < 500 and error.code not in (408, 429)
        raise DownloadError(f"HTTP {error.code}: {url}", is_final) from error
    except http.client.InvalidURL as error:
        raise DownloadError(f"no web address: {url[:80]!r}: {error}", is_final=True) from error
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
        raise DownloadError(f"no answer: {url}: {reason}", is_final=False) from error
    except ValueError as error:
        raise DownloadError(f"no web address: {url[:80]!r}: {error}", is_final=True) from error
