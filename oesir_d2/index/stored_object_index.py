"""The object index on disk, in ``object_index/NNNNNN.faiss``: built beside the segments, opened as a memory map.

It is derived from the segments and never the only copy of anything: without it, or when it is out of date or
damaged, an object index is built in memory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss

from ..files import fsync_directory, open_synced, sha256_of_file, temporary_beside
from .garbage import OBJECT_INDEX_FOLDER, OBJECT_INDEX_SUFFIX
from .manifest import Manifest, StoredObjectIndex
from .object_index import (
    FaissObjectIndex,
    add_chunks,
    build_object_index,
    make_faiss_index,
    set_parameters,
    train_faiss_index,
)
from .reader import EmbeddingIndex
from .store import IndexStore

logger = logging.getLogger(__name__)

# A trained index serves until there are so many times the objects that it was trained on.
_TRAINING_GROWTH = 2
_WRITE_BYTES = 1 << 20


def open_object_index(index: EmbeddingIndex, factory: str | None = None) -> FaissObjectIndex:
    """The object index of an index: the one on disk if it fits, otherwise one that is built in memory.

    Args:
        index: the index.
        factory: FAISS factory string; None for the manifest's.

    Raises:
        ValueError: as ``build_object_index``.
    """
    factory = factory or index.manifest.factory
    stored = index.manifest.fresh_object_index()
    if stored is not None and stored.factory == factory:
        try:
            faiss_index = _map(object_index_path(index.path, stored), stored)
            set_parameters(faiss_index, stored.parameters)
            return FaissObjectIndex(faiss_index, stored.first_fetch, stored.score_error)
        except (OSError, ValueError) as error:
            logger.warning("The object index of %s is built anew, in memory: %s", index.path, error)
    elif index.manifest.object_index is not None and index.manifest.factory == factory:
        logger.warning(
            "The object index of %s is out of date and built anew, in memory; tools/index.py tune brings it up to date",
            index.path,
        )
    return build_object_index(factory, index.dimension, index.vector_chunks(), index.num_objects)


def object_index_path(index_path: Path, stored: StoredObjectIndex) -> Path:
    """The file of an object index."""
    return index_path / OBJECT_INDEX_FOLDER / f"{stored.name}{OBJECT_INDEX_SUFFIX}"


def check_object_index(path: Path, stored: StoredObjectIndex) -> None:
    """Raise ``ValueError`` unless the file of an object index is what was written, byte by byte.

    Raises:
        OSError: if it cannot be read.
    """
    if sha256_of_file(path) != stored.sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in the manifest")


def fill_object_index(index: EmbeddingIndex, factory: str) -> tuple[faiss.Index, int]:
    """Build a FAISS index over all objects of an index, reusing what the one on disk has of use.

    If only photos were added since, their objects are added to it; if its type is the same and it was trained on enough
    objects, it is filled anew without training.

    Returns:
        The FAISS index, and ``StoredObjectIndex.trained_on`` of it.

    Raises:
        ValueError: as ``build_object_index``.
    """
    chunks, total = index.vector_chunks(), index.num_objects
    stored = index.manifest.object_index
    faiss_index = None if stored is None else _load_trained(index, factory, stored)
    if stored is None or faiss_index is None:
        faiss_index, trained_on = make_faiss_index(factory, index.dimension), total
        train_faiss_index(faiss_index, factory, chunks, total)
        add_chunks(faiss_index, factory, chunks)
    else:
        trained_on = stored.trained_on
        is_beginning = stored.covers in index.manifest.coverage() and faiss_index.ntotal == stored.objects
        if not is_beginning:
            faiss_index.reset()
        add_chunks(faiss_index, factory, index.vector_chunks(stored.objects if is_beginning else 0))
    assert faiss_index.ntotal == total, f"FAISS holds {faiss_index.ntotal} of {total} objects"
    return faiss_index, trained_on


def write_object_index(store: IndexStore, faiss_index: faiss.Index) -> tuple[str, int, str]:
    """Write a FAISS index under a new name, within a ``change``; it counts once the manifest names it.

    Returns:
        Its name, its size in bytes, and its SHA-256.

    Raises:
        OSError: if it cannot be written.
    """
    [name] = store.next_names()
    path = store.path / OBJECT_INDEX_FOLDER / f"{name}{OBJECT_INDEX_SUFFIX}"
    path.parent.mkdir(exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open_synced(temporary) as stream:
            writer = faiss.PyCallbackIOWriter(stream.write, _WRITE_BYTES)  # type: ignore[attr-defined]
            faiss.write_index(faiss_index, writer)
            del writer  # flushes what it holds back
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)
    return name, path.stat().st_size, stream.sha256()


def refresh_object_index(index_path: Path) -> bool:
    """Bring the object index on disk up to date, with the type and the parameters that it has.

    Returns:
        Whether there was something to do.

    Raises:
        ValueError: if another process writes the index, or it is damaged.
        OSError: if the object index could not be written; the index stays as it was.
    """
    with opened_store(index_path) as store:
        stored = store.manifest.object_index
        if stored is None or store.manifest.fresh_object_index() is not None:
            return False
        if store.manifest.objects == 0:
            with store.change(f"the object index of {index_path} could not be dropped"):
                store.set_object_index(None)
                store.remove_garbage()
            return True
        index = EmbeddingIndex.open(index_path)
        save_object_index(store, index, *fill_object_index(index, stored.factory), stored)
    return True


def save_object_index(
    store: IndexStore, index: EmbeddingIndex, faiss_index: faiss.Index, trained_on: int, described: StoredObjectIndex
) -> StoredObjectIndex:
    """Write a filled FAISS index and let the manifest name it, in one commit.

    Args:
        store: the index opened for writing.
        index: the same index, as it was read.
        faiss_index: over all its objects.
        trained_on: see ``StoredObjectIndex``.
        described: type, parameters and figures; the rest is filled in here.

    Returns:
        What the manifest says of it now.
    """
    with store.change(f"the object index of {store.path} could not be written"):
        name, size, sha256 = write_object_index(store, faiss_index)
        stored = StoredObjectIndex(
            name=name,
            factory=described.factory,
            parameters=described.parameters,
            first_fetch=described.first_fetch,
            score_error=described.score_error,
            covers=index.manifest.coverage()[-1],
            objects=index.num_objects,
            trained_on=trained_on,
            bytes=size,
            sha256=sha256,
            measured=described.measured,
        )
        store.set_object_index(stored)
        store.remove_garbage()
    return stored


@contextmanager
def opened_store(index_path: Path) -> Iterator[IndexStore]:
    """An existing index opened for writing, whatever model made it."""
    manifest = Manifest.load(index_path)
    store = IndexStore(index_path, manifest.model, manifest.factory)
    try:
        yield store
    finally:
        store.release()


def _load_trained(index: EmbeddingIndex, factory: str, stored: StoredObjectIndex) -> faiss.Index | None:
    """The FAISS index on disk, if its type and what it was trained on will still do, and it is undamaged."""
    if stored.factory != factory or index.num_objects > _TRAINING_GROWTH * stored.trained_on:
        return None
    path = object_index_path(index.path, stored)
    try:
        # What goes on from it gets a checksum of its own, and nobody would find the damage any more.
        check_object_index(path, stored)
        return _read(path, 0)
    except (OSError, ValueError) as error:
        logger.warning("The object index of %s is of no use any more and filled anew: %s", index.path, error)
        return None


def _map(path: Path, stored: StoredObjectIndex) -> faiss.Index:
    """Open a FAISS index without reading its codes.

    Raises:
        ValueError: if it is not what was written.
        FileNotFoundError: if it is gone.
    """
    if path.stat().st_size != stored.bytes:
        raise ValueError(f"{path} is truncated or damaged: it has not {stored.bytes} bytes")
    try:
        # Maps the codes of every type but the inverted lists.
        faiss_index = _read(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_MMAP_IFC)
    except ValueError:
        faiss_index = _read(path, faiss.IO_FLAG_MMAP)
    if faiss_index.ntotal != stored.objects:
        raise ValueError(f"{path} holds {faiss_index.ntotal} objects, the manifest says {stored.objects}")
    ivf = faiss.try_extract_index_ivf(faiss_index)
    lists = None if ivf is None or ivf.invlists is None else faiss.downcast_InvertedLists(ivf.invlists)
    if isinstance(lists, faiss.OnDiskInvertedLists):
        # Threads that read ahead are for disks, and cost a millisecond a search.
        lists.prefetch_nthread = 0
    return faiss_index


def _read(path: Path, flags: int) -> faiss.Index:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
