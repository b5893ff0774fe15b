"""The split by ids: known sides, shares, and the links that prepare_split.py makes."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import pytest

from oesir_d2.data import ImageFile
from oesir_d2.data.photo_split import is_held_out, link_photos

PREPARE_SPLIT = Path(__file__).resolve().parents[2] / "datasets" / "prepare_split.py"


def test_a_photo_s_side_follows_from_its_id_alone() -> None:
    # The SHA-256 of "a.jpg" begins with 509b, that of "b.jpg" with 7a11: 0.3149 and 0.4768 of all there are.
    assert [is_held_out("a.jpg", share) for share in (0, 0.314, 0.315, 1)] == [False, False, True, True]
    assert [is_held_out("b.jpg", share) for share in (0, 0.476, 0.477, 1)] == [False, False, True, True]
    held_out = [is_held_out(f"{i}.jpg", 0.4) for i in range(2000)]
    assert sum(held_out) == pytest.approx(800, abs=60)


def test_links_are_made_once_and_follow_a_photo_that_moved(tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "sub" / "a.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"old")
    link = tmp_path / "links" / "sub" / "a.jpg"
    for _ in range(2):
        link_photos([ImageFile("sub/a.jpg", photo)], tmp_path / "links")
        assert link.is_symlink() and link.read_bytes() == b"old"
    moved = photo.rename(tmp_path / "photos" / "b.jpg")
    link_photos([ImageFile("sub/a.jpg", moved)], tmp_path / "links")
    assert link.read_bytes() == b"old"


def test_tool_links_every_photo_on_its_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{i}.jpg" for i in range(20)]
    (tmp_path / "photos").mkdir()
    for name in names:
        (tmp_path / "photos" / name).write_bytes(b"any")
    main = runpy.run_path(str(PREPARE_SPLIT))["main"]
    for _ in range(2):
        main(["--images", str(tmp_path / "photos"), "--output", str(tmp_path / "out")])
        held_out = sorted(name for name in names if is_held_out(name, 0.4))
        assert json.loads(capsys.readouterr().out) == {"train": 20 - len(held_out), "held_out": len(held_out)}
        assert sorted(os.listdir(tmp_path / "out" / "held_out")) == held_out
        assert sorted(os.listdir(tmp_path / "out" / "train")) == sorted(set(names) - set(held_out))
    with pytest.raises(ValueError, match="--held-out is 1.5"):
        main(["--images", str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--held-out", "1.5"])
