"""The Milvus backend, with milvus-lite running for real: the same results as FAISS, and nobody else's collection."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, IndexWriter, SetSearcher, build_object_index
from oesir_d2.index.milvus_connection import MilvusConnection, MilvusSettings, parse_params
from oesir_d2.index.milvus_ledger import Ledger
from oesir_d2.index.milvus_note import MILVUS_FILE, stored_settings
from oesir_d2.index.milvus_object_index import open_milvus_index

NAMES = [f"image{number}" for number in range(7)]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database for all tests, each of which has a collection of its own."""
    settings = MilvusSettings(str(tmp_path_factory.mktemp("milvus") / "objects.db"))
    # Held open, so that it starts only once.
    connection = MilvusConnection(settings)
    yield connection
    connection.close()


@pytest.fixture
def settings(database, request):
    return replace(database.settings, collection=request.node.name.partition("[")[0])


@pytest.fixture
def opened(settings, monkeypatch):
    """``opened(path)``: the index, its Milvus, and how many objects were uploaded for it."""
    monkeypatch.setattr(MilvusConnection, "_stop_lite", lambda self: None)

    def run(path, settings=settings):
        reports = []
        index = EmbeddingIndex.open(path)
        objects = open_milvus_index(index, settings, lambda count, total: reports.append(count))
        return index, objects, sum(reports)

    return run


def assert_same_results(index, objects, queries):
    """Milvus and FAISS give the same results, boxes and scores included."""
    flat = build_object_index("Flat", index.dimension, index.vector_chunks())
    for query in queries:
        for explain_away in (0.0, 1.0):
            found, expected = (
                [result.to_dict() for result in SetSearcher(index, o, 1).search(query, 4, explain_away=explain_away)]
                for o in (objects, flat)
            )
            assert found == expected


def test_follows_the_index(tmp_path, model_info, make_image, make_record, store, opened):
    path = tmp_path / "index"
    store(path, [make_image(name, 4) for name in NAMES])
    queries = [make_image(name, 5, seed=9) for name in NAMES[:3]]
    index, objects, uploaded = opened(path)
    assert (len(objects), objects.dimension, uploaded) == (28, 8, 28)
    assert_same_results(index, objects, queries)

    assert opened(path)[2] == 0

    # Two replaced, one of them with other regions, and one added.
    store(path, [make_image("image1", 2, seed=1), make_image("image4", 4, seed=1), make_image("new", 3)])
    newer, newer_objects, uploaded = opened(path)
    assert (len(newer_objects), uploaded) == (29, 9)
    assert_same_results(newer, newer_objects, queries)
    # Whoever opened the index before gets no wrong object, only fewer.
    scores, ids = objects.search(queries[0].vectors, 28)
    assert set((ids >= 0).sum(axis=1).tolist()) <= {19, 20}
    vectors = np.concatenate(list(index.vector_chunks()))
    np.testing.assert_allclose(scores[:, 0], np.sum(queries[0].vectors * vectors[ids[:, 0]], axis=1), atol=1e-6)

    with IndexWriter(path, model_info, "Flat", 2) as writer:
        writer.remove(["image0", "image6"])
    assert_same_results(*opened(path)[:2], queries)
    with IndexWriter(path, model_info, "Flat", 4) as writer:
        writer.compact()
    index, objects, _ = opened(path)
    assert len(objects) == 21
    assert_same_results(index, objects, queries)


def test_empty_index_and_large_fetch(tmp_path, make_image, store, opened):
    store(tmp_path / "index", [])
    index, objects, _ = opened(tmp_path / "index")
    assert SetSearcher(index, objects).search(make_image("q", 2)) == []
    store(tmp_path / "index", [make_image("a", 3), make_image("none", 0), make_image("b", 2)])
    index, objects, _ = opened(tmp_path / "index")
    scores, ids = objects.search(make_image("q", 2).vectors, 100)
    assert ids.shape == scores.shape == (2, 5)
    assert np.sort(ids).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_type_of_index_changes(tmp_path, make_image, store, opened, settings):
    store(tmp_path / "index", [make_image(name, 4) for name in NAMES])
    assert opened(tmp_path / "index")[1].is_exact
    params = {"index_params": parse_params("M=16,efConstruction=64"), "search_params": parse_params("ef=8")}
    hnsw = replace(settings, index_type="HNSW", **params)
    index, objects, uploaded = opened(tmp_path / "index", hnsw)
    assert (objects.is_exact, uploaded) == (False, 0)
    # So few objects HNSW searches exactly, if it looks at more candidates than "ef" says.
    _, ids = objects.search(make_image("q", 2).vectors, 28)
    assert np.sort(ids).tolist() == [list(range(28))] * 2
    stored = stored_settings(tmp_path / "index")
    assert stored == hnsw
    assert opened(tmp_path / "index", settings)[1].is_exact


def test_token_is_never_stored(tmp_path, make_image, store, opened, settings):
    store(tmp_path / "index", [make_image("a", 2)])
    secret = replace(settings, token="root:hunter2")
    opened(tmp_path / "index", secret)
    assert "hunter2" not in repr(secret)
    assert not [p for p in (tmp_path / "index").rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]


def test_database_within_the_index_moves_with_it(tmp_path, make_image, store):
    path = tmp_path / "index"
    store(path, [make_image("a", 2)])
    open_milvus_index(EmbeddingIndex.open(path), MilvusSettings(str(path / "milvus.db"))).close()
    path.rename(tmp_path / "moved")
    settings = stored_settings(tmp_path / "moved")
    assert settings.uri == str(tmp_path / "moved" / "milvus.db")
    reports = []
    open_milvus_index(EmbeddingIndex.open(tmp_path / "moved"), settings, lambda *report: reports.append(report)).close()
    assert reports == []


def test_other_collections_are_refused(
    tmp_path, model_info, make_image, make_record, store, opened, settings, database
):
    store(tmp_path / "index", [make_image(name) for name in NAMES[:3]])
    store(tmp_path / "twin", [make_image(name) for name in NAMES[:3]])
    index, objects, _ = opened(tmp_path / "index")
    with pytest.raises(ValueError, match="test_other_collections.*was made for another index"):
        opened(tmp_path / "twin")
    other_model = replace(model_info, weights_sha256="c" * 64)
    with IndexWriter(tmp_path / "other", other_model, "Flat", 2) as writer:
        writer.add(make_image("a"), make_record("a"))
    (tmp_path / "other" / MILVUS_FILE).write_bytes((tmp_path / "index" / MILVUS_FILE).read_bytes())
    with pytest.raises(ValueError, match=r"another model: weights \(index: a{12}…, model: c{12}…\)"):
        opened(tmp_path / "other")
    assert_same_results(index, objects, [make_image("q")])

    database.client.create_collection("somebodys", dimension=8)
    with pytest.raises(ValueError, match="'somebodys' .* is no collection of oesir_d2"):
        opened(tmp_path / "index", replace(settings, collection="somebodys"))
    assert database.client.has_collection("somebodys")


def test_what_others_changed_is_noticed(tmp_path, make_image, store, opened, settings, database):
    store(tmp_path / "index", [make_image(name) for name in NAMES[:2]])
    opened(tmp_path / "index")
    database.client.insert(settings.collection, [{"key": 7, "vector": make_image("x", 1).vectors[0]}])
    store(tmp_path / "index", [make_image(NAMES[2])])
    with pytest.raises(ValueError, match="holds 10 objects, index .* 9: something else writes there"):
        opened(tmp_path / "index")
    database.client.drop_collection(settings.collection)
    index, objects, uploaded = opened(tmp_path / "index")
    assert uploaded == 9
    assert_same_results(index, objects, [make_image("q")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"uri": "http://127.0.0.1:1"}, "Milvus at http://127.0.0.1:1: Fail connecting to server"),
        ({"uri": "{path}/file.db"}, "file.db is a file, expected a database of milvus-lite"),
        ({"uri": "{path}"}, "is no database of milvus-lite"),
        ({"uri": "{path}/file.db/x.db"}, "cannot be created"),
        ({"index_type": "FOO"}, "INDEX_TYPE .*'FOO'.* FLAT, HNSW"),
    ],
)
def test_mistakes_are_named(tmp_path, make_image, store, opened, settings, change, words):
    store(tmp_path / "index", [make_image("a", 2)])
    (tmp_path / "file.db").write_bytes(b"SQLite format 3")
    change = {key: value.format(path=tmp_path) for key, value in change.items()}
    with pytest.raises(ValueError, match=words) as error:
        opened(tmp_path / "index", replace(settings, **change))
    assert "\n" not in str(error.value)
    assert stored_settings(tmp_path / "index") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"uri": ""}, "address of Milvus is empty"),
        ({"uri": "https://me:secret@host:19530"}, "belong into the token"),
        ({"collection": "a-b"}, "'a-b', expected letters"),
    ],
)
def test_wrong_settings(change, words):
    with pytest.raises(ValueError, match=words) as error:
        replace(MilvusSettings("x.db"), **change)
    assert "secret" not in str(error.value)


def test_wrong_parameters():
    assert parse_params("M=16,ratio=0.5") == (("M", 16), ("ratio", 0.5))
    with pytest.raises(ValueError, match="'M:16', expected such as"):
        parse_params("M:16")


def test_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ValueError, match=r"needs the extra 'scale': pip install 'oesir_d2\[scale\]'"):
        MilvusConnection(MilvusSettings(str(tmp_path / "x.db")))


def test_damaged_note(tmp_path, make_image, store):
    store(tmp_path / "index", [make_image("a", 2)])
    (tmp_path / "index" / MILVUS_FILE).write_text('{"index": "x", "uri": ')
    with pytest.raises(ValueError, match="milvus.json is damaged"):
        stored_settings(tmp_path / "index")


def cut_short(database, pattern, size=0):
    [*_, file] = sorted(database.rglob(pattern))
    with open(file, "r+b") as stream:
        stream.truncate(size)


@pytest.fixture
def embedded(tmp_path, make_image, store):
    """An index with a database of milvus-lite in its folder, closed again."""
    path = tmp_path / "index"
    store(path, [make_image(name, 4) for name in NAMES[:3]])
    settings = MilvusSettings(str(path / "milvus.db"))
    open_milvus_index(EmbeddingIndex.open(path), settings).close()
    return path, settings


@pytest.mark.parametrize("pattern", ["*.idx", "*.parquet", "oesir_d2/manifest.json"])
def test_a_database_cut_short_is_made_anew(embedded, make_image, caplog, pattern):
    path, settings = embedded
    cut_short(path / "milvus.db", pattern)
    reports = []
    index = EmbeddingIndex.open(path)
    objects = open_milvus_index(index, settings, lambda count, total: reports.append(count))
    assert sum(reports) == 12
    assert "milvus.db is damaged and made anew from the index: " in caplog.text
    assert_same_results(index, objects, [make_image("q")])
    objects.close()
    assert not list(path.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("whose", "words"),
    [
        ("elsewhere", "No data left in file"),
        ("not ours", "No data left in file"),
        ("other collections", "No data left in file"),
        ("held open", "another process holds the lock"),
    ],
)
def test_a_damaged_database_that_may_be_somebody_elses_stays(embedded, tmp_path, snapshot, whose, words):
    path, settings = embedded
    holder = None
    if whose == "elsewhere":
        settings = MilvusSettings(str(tmp_path / "elsewhere.db"))
        shutil.move(path / "milvus.db", settings.uri)
    if whose == "not ours":
        note = json.loads((path / MILVUS_FILE).read_text())
        (path / MILVUS_FILE).write_text(json.dumps({name: note[name] for name in note if name != "made"}))
    if whose == "other collections":
        with MilvusConnection(settings) as connection:
            connection.client.create_collection("somebodys", dimension=8)
    if whose == "held open":
        program = (
            "import sys; from milvus_lite.db import MilvusLite; MilvusLite(sys.argv[1]); print(); sys.stdin.read()"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", program, settings.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        holder.stdout.readline()
    cut_short(Path(settings.uri), "*.idx")
    before = snapshot(Path(settings.uri))
    try:
        with pytest.raises(ValueError, match=words):
            open_milvus_index(EmbeddingIndex.open(path), settings)
    finally:
        if holder is not None:
            holder.communicate()
    after = snapshot(Path(settings.uri))
    assert {name for name in before if name.endswith(("parquet", "idx"))} <= set(after)


def test_killed_uploads_are_completed(tmp_path, model_info, make_image, store):
    """SIGKILL after every call in turn; this process has another database open meanwhile."""
    old, new = tmp_path / "old", tmp_path / "new"
    store(old, [make_image(name) for name in NAMES[:4]])
    with MilvusConnection(MilvusSettings(str(tmp_path / "mine.db"))):
        shutil.copytree(old, new)
        store(new, [make_image("image1", 2, seed=1), make_image("added")])
        with IndexWriter(new, model_info, "Flat", 2) as writer:
            writer.remove(["image2", "image3"])
            writer.compact()
        store(new, [make_image("image0", 2, seed=1)])
        program = Path(__file__).with_name("milvus_killer.py")
        done = subprocess.run(
            [sys.executable, program, old, new, tmp_path], capture_output=True, text=True, timeout=500, check=False
        )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    # Both collections are made and claimed; then groups of segments are begun, uploaded and entered.
    assert sum(outcome["died"] for outcome in outcomes) >= 10
    assert [outcome["is_right"] for outcome in outcomes] == [True] * len(outcomes), done.stderr


class _Rows:
    """A connection to a ledger with rows of these numbers, which are gone when they are asked for a second time."""

    def __init__(self, numbers, lost=(), honest=True):
        self.settings = MilvusSettings("http://localhost:1")
        self.client, self.naming_errors = self, nullcontext
        self._numbers, self._lost, self._honest = set(numbers), set(lost), honest

    def query(self, name, filter, output_fields):
        first, last = (*map(int, re.findall("[0-9]+", filter)), 1 << 31)[:2]
        if output_fields == ["count(*)"]:
            count = sum(first <= number < last for number in self._numbers)
            if self._honest:
                self._numbers -= self._lost
            return [{"count(*)": count if self._honest else max(count, 1)}]
        found = sorted(self._numbers - self._lost & set(range(first, last)))
        return [{"key": n, "content": f"{n}", "superseded": "0"} for n in found if first <= n < last]


def test_a_ledger_that_gives_fewer_rows_than_it_counted_is_read_to_its_end():
    numbers = [1, 2, 3, 40_000, 40_001]
    for lost in ([], [2], [40_001], numbers):
        assert sorted(Ledger(_Rows(numbers, lost)).read()) == sorted(set(numbers) - set(lost))
    with pytest.raises(
        ValueError, match="collection 'oesir_d2' of Milvus at .* counts 1 segments and gives 0; drop it"
    ):
        Ledger(_Rows([], honest=False)).read()
