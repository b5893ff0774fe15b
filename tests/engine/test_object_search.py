"""Photos indexed and searched with Milvus as the backend, chosen by the config and remembered by the index."""

from __future__ import annotations

import json

import pytest

from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.object_search import build_milvus_settings, check_backend
from oesir_d2.engine.retrieval import Retriever


def test_index_with_milvus(cfg, photos, tmp_path):
    path = tmp_path / "index"
    cfg.INDEX.BACKEND = "milvus"
    cfg.INDEX.MILVUS.TOKEN = "root:hunter2"
    build_index(cfg, photos[:4], path)
    assert (path / "milvus.db").is_dir()
    assert "hunter2" not in (path / "manifest.json").read_text() + (path / "milvus.json").read_text()

    # More photos, embedded without a word of Milvus: the next search brings the collection up to date.
    cfg.INDEX.BACKEND = "faiss"
    build_index(cfg, photos, path)
    answers = {}
    for backend in ("milvus", "faiss"):
        retriever = Retriever(path, [] if backend == "milvus" else ["INDEX.BACKEND", "faiss"])
        assert retriever.cfg.INDEX.BACKEND == backend
        answers[backend] = [retriever.search(file).to_dict()["results"] for file in photos]
        assert len(answers[backend][0]) == 6
        retriever.close()
    assert answers["milvus"] == answers["faiss"]


def test_backend_that_will_not_do_is_refused_before_anything_is_embedded(cfg, photos, tmp_path):
    cfg.INDEX.BACKEND = "elasticsearch"
    with pytest.raises(ValueError, match="'elasticsearch', expected one of faiss, milvus"):
        build_index(cfg, photos, tmp_path / "index")
    cfg.INDEX.BACKEND = "milvus"
    cfg.INDEX.MILVUS.URI = str(tmp_path / "file.db")
    (tmp_path / "file.db").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a file"):
        check_backend(cfg, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_settings_come_from_the_config(cfg, tmp_path, monkeypatch):
    cfg.INDEX.MILVUS.INDEX_PARAMS = "M=16"
    monkeypatch.setenv("MILVUS_TOKEN", "key")
    settings = build_milvus_settings(cfg, tmp_path / "index")
    assert (settings.uri, settings.token) == (str(tmp_path / "index" / "milvus.db"), "key")
    assert settings.index_params == (("M", 16),)


def test_empty_index_with_milvus(cfg, tmp_path):
    cfg.INDEX.BACKEND = "milvus"
    build_index(cfg, [], tmp_path / "index")
    retriever = Retriever(tmp_path / "index")
    assert len(retriever.index.images) == 0
    assert json.loads((tmp_path / "index" / "milvus.json").read_text())["uri"] == "milvus.db"
    retriever.close()
