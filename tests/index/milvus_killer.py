"""Uploads an index to milvus-lite and dies on the way: a program, since threads of gRPC do not survive a fork.

``milvus_killer.py OLD NEW FOLDER`` takes two states of one index, and for n = 0, 2, 4 ... a new database under
FOLDER. OLD is uploaded, killed by SIGKILL after the n-th call that changes something in Milvus, and uploaded again;
then the same with NEW, and the next n. The last line of stdout is a JSON list: for every database how many of the two
were killed, how often milvus-lite could not read it again, and whether it then held NEW and found the same as FAISS.
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
        database = str(folder / f"{len(outcomes)}.db")
        died = remade = 0
        for n, state in enumerate((old, new), 2 * len(outcomes)):
            died += run(lambda state=state, n=n, database=database: upload(state, database, n)) == -signal.SIGKILL
            check = lambda state=state, database=database: compare(state, database)  # noqa: E731
            if run(check) != 0:
                # milvus-lite writes in threads of its own, and cannot load a file that was cut short: it is made anew.
                shutil.rmtree(database) if os.path.isdir(database) else os.remove(database)
                remade += 1
            is_right = run(check) == 0
        outcomes.append({"died": died, "remade": remade, "is_right": is_right})
    print(json.dumps(outcomes))


def upload(index_path: Path, database: str, die_after: int | None = None) -> MilvusObjectIndex:
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
    return open_milvus_index(index, MilvusSettings(database), checkpoint_objects=CHECKPOINT_OBJECTS)


def compare(index_path: Path, database: str) -> None:
    index = EmbeddingIndex.open(index_path)
    vectors = np.concatenate(list(index.vector_chunks()))
    _, expected = build_object_index("Flat", index.dimension, [vectors]).search(vectors, len(vectors))
    _, found = upload(index_path, database).search(vectors, len(vectors))
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
