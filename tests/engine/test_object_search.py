"""Photos indexed and searched with Milvus as the backend, chosen by the config and remembered by the index."""

from __future__ import annotations

import fcntl
import json

import pytest

from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.object_search import build_milvus_settings, check_backend
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.index import set_search


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


def test_milvus_that_cannot_be_opened_again_leaves_the_one_at_hand(cfg, photos, tmp_path, monkeypatch):
    # Else so few objects are all scored, and nothing is asked of Milvus.
    monkeypatch.setattr(set_search, "FIRST_FETCH", 1)
    monkeypatch.setattr(set_search, "_LARGEST_FETCH", 1)
    path = tmp_path / "index"
    cfg.INDEX.BACKEND = "milvus"
    build_index(cfg, photos[:3], path)
    retriever = Retriever(path, ["RETRIEVAL.EXPLAIN_AWAY", "0.0", "RETRIEVAL.TOP_K", "1"])
    note = (path / "milvus.json").read_text()
    # Found out when the database is open already: the collection is of another index.
    (path / "milvus.json").write_text(json.dumps({**json.loads(note), "index": "0" * 32}))
    with pytest.raises(ValueError, match="made for another index"):
        retriever.reopen()
    assert retriever.search(photos[0]).results[0].image_id == "0.png"

    (path / "milvus.json").write_text(note)
    build_index(cfg, photos, path)  # closes a connection of its own
    assert retriever.search(photos[0]).results[0].image_id == "0.png"
    retriever.reopen()
    assert retriever.search(photos[5]).results[0].image_id == "5.png"
    retriever.close()
    with open(path / "milvus.db" / "LOCK") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is free for other processes


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
