"""Which engine searches the objects of an index: FAISS in this process, or Milvus."""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from oesir_d2.index import EmbeddingIndex, ObjectIndex
from oesir_d2.index.milvus_connection import MilvusConnection, MilvusSettings, parse_params
from oesir_d2.index.milvus_note import stored_settings
from oesir_d2.index.milvus_object_index import MilvusObjectIndex, open_milvus_index
from oesir_d2.index.stored_object_index import open_object_index, refresh_object_index

BACKENDS = ("faiss", "milvus")
TOKEN_VARIABLE = "MILVUS_TOKEN"
LITE_FILE = "milvus.db"


def build_object_search(cfg: CfgNode, index: EmbeddingIndex) -> ObjectIndex:
    """Open what searches the objects of an index; a collection of Milvus is brought up to date first.

    Args:
        cfg: INDEX's keys.
        index: the index.

    Raises:
        ValueError: a key is wrong, FAISS does not know the factory string, or Milvus cannot be used; it says why.
    """
    if not uses_milvus(cfg):
        return open_object_index(index, cfg.INDEX.FACTORY)
    progress: tqdm | None = None

    def show(objects: int, total: int) -> None:
        nonlocal progress
        if progress is None:
            progress = tqdm(total=total, desc="Uploading to Milvus", unit="object")
        progress.update(objects)

    try:
        return open_milvus_index(index, build_milvus_settings(cfg, index.path), show)
    finally:
        if progress is not None:
            progress.close()


def bring_up_to_date(cfg: CfgNode, index_path: Path) -> None:
    """After a build: let the object index on disk, or the collection of Milvus, follow the index."""
    if not uses_milvus(cfg):
        refresh_object_index(index_path)
        return
    objects = build_object_search(cfg, EmbeddingIndex.open(index_path))
    assert isinstance(objects, MilvusObjectIndex)
    objects.close()


def build_milvus_settings(cfg: CfgNode, index_path: Path) -> MilvusSettings:
    """The settings of Milvus in a config; the path is that of the index."""
    options = cfg.INDEX.MILVUS
    return MilvusSettings(
        uri=options.URI or str(index_path / LITE_FILE),
        collection=options.COLLECTION,
        index_type=options.INDEX_TYPE,
        index_params=parse_params(options.INDEX_PARAMS),
        search_params=parse_params(options.SEARCH_PARAMS),
        token=options.TOKEN or os.environ.get(TOKEN_VARIABLE, ""),
    )


def uses_milvus(cfg: CfgNode) -> bool:
    """Whether INDEX.BACKEND is Milvus.

    Raises:
        ValueError: it is nothing that there is.
    """
    if cfg.INDEX.BACKEND not in BACKENDS:
        raise ValueError(f"INDEX.BACKEND is {cfg.INDEX.BACKEND!r}, expected one of {', '.join(BACKENDS)}")
    return cfg.INDEX.BACKEND == "milvus"


def check_backend(cfg: CfgNode, index_path: Path) -> None:
    """Find out before hours of embedding whether the backend can be used; the path is that of the index to be.

    Raises:
        ValueError: as ``build_object_search``.
    """
    if uses_milvus(cfg):
        settings = build_milvus_settings(cfg, index_path)
        # A database in an index folder that is still to be made would stand in its way.
        if settings.is_server or Path(settings.uri).exists():
            MilvusConnection(settings).close()


def recall_backend(cfg: CfgNode, index_path: Path) -> None:
    """Set the keys of INDEX, in place, to the collection that an index has, if it has one."""
    settings = stored_settings(index_path)
    if settings is not None:
        cfg.INDEX.BACKEND = "milvus"
        cfg.INDEX.MILVUS.URI = settings.uri
        cfg.INDEX.MILVUS.COLLECTION = settings.collection
        cfg.INDEX.MILVUS.INDEX_TYPE = settings.index_type
        cfg.INDEX.MILVUS.INDEX_PARAMS = _join(settings.index_params)
        cfg.INDEX.MILVUS.SEARCH_PARAMS = _join(settings.search_params)


def _join(params: tuple[tuple[str, float], ...]) -> str:
    return ",".join(f"{name}={value}" for name, value in params)
