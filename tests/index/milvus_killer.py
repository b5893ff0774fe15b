"""Uploads an index to milvus-lite and dies on the way: a program, since threads of gRPC do not survive a fork.

``milvus_killer.py OLD NEW FOLDER`` takes two states of one index, and for n = 0, 2, 4 ... a copy of OLD under FOLDER,
with a new database in it. It is uploaded, killed by SIGKILL after the n-th call that changes something in Milvus, and
uploaded again; then the copy becomes NEW, and the same with n + 1. The last line of stdout is a JSON list: for every
copy how many of the two uploads were killed, and whether Milvus then held NEW and found the same as FAISS.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import milvus_lite.adapter.grpc.server  # noqa: F401 - so that every child has it already
import numpy as np
from pymilvus import MilvusClient

from oesir_d2.index import EmbeddingIndex, build_object_index
from oesir_d2.index.milvus_connection import MilvusSettings
from oesir_d2.index.milvus_object_index import MilvusObjectIndex, open_milvus_index

CALLS = ("create_collection", "upsert", "delete", "flush")
CHECKPOINT_OBJECTS = 6


def main() -> None:
    old, new, folder = map(Path, sys.argv[1:])
    outcomes = []
    while not outcomes or outcomes[-1]["died"]:
        index = folder / str(len(outcomes))
        died, is_right = 0, True
        for n, state in enumerate((old, new), 2 * len(outcomes)):
            become(index, state)
            died += run(lambda index=index, n=n: upload(index, n)) == -signal.SIGKILL
            is_right = is_right and run(lambda index=index: compare(index)) == 0
        outcomes.append({"died": died, "is_right": is_right})
    print(json.dumps(outcomes))


def become(index_path: Path, state: Path) -> None:
    """Make an index what another state of it is; what belongs to Milvus stays."""
    for path in index_path.glob("*"):
        if not path.name.startswith("milvus"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(state, index_path, dirs_exist_ok=True)


def upload(index_path: Path, die_after: int | None = None) -> MilvusObjectIndex:
    calls = 0

    def counting(function):
        def call(*arguments, **keywords):
            nonlocal calls
            result = function(*arguments, **keywords)
            if calls == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return result

        return call

    for name in CALLS:
        setattr(MilvusClient, name, counting(getattr(MilvusClient, name)))
    index = EmbeddingIndex.open(index_path)
    settings = MilvusSettings(str(index_path / "milvus.db"))
    return open_milvus_index(index, settings, checkpoint_objects=CHECKPOINT_OBJECTS)


def compare(index_path: Path) -> None:
    index = EmbeddingIndex.open(index_path)
    vectors = np.concatenate(list(index.vector_chunks()))
    _, expected = build_object_index("Flat", index.dimension, [vectors]).search(vectors, len(vectors))
    _, found = upload(index_path).search(vectors, len(vectors))
    np.testing.assert_array_equal(found, expected)


def run(function) -> int:
    """Run a function in a forked process and return its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()  # nothing else will tell of it
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
