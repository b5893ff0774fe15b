"""The folders that an evaluation works in: gone afterwards, and after a kill with the next run."""

from __future__ import annotations

import signal
import subprocess
import sys

from oesir_d2.evaluation.scratch_folder import make_scratch_folder

PROGRAM = """
import sys
from pathlib import Path
from oesir_d2.evaluation.scratch_folder import make_scratch_folder
folder = make_scratch_folder(sys.argv[1])
Path(folder.name, "vectors").mkdir()
Path(folder.name, "vectors", "1.npy").write_bytes(b"1")
print(flush=True)
sys.stdin.read()
"""


def test_what_a_killed_run_left_is_deleted_by_the_next(tmp_path):
    somebodys = tmp_path / ".tmp-evaluation-elsewhere-1-abc"
    somebodys.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout.readline() == b"\n", run.stderr.read()
    [left] = set(tmp_path.iterdir()) - {somebodys}
    with make_scratch_folder(tmp_path):
        assert (left / "vectors" / "1.npy").exists(), "it is still at work"
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert left.exists()
    with make_scratch_folder(tmp_path) as new:
        assert {str(path) for path in tmp_path.iterdir()} == {new, str(somebodys)}
    assert list(tmp_path.iterdir()) == [somebodys]
