"""The list of skipped files over several runs, crashes among them."""

from __future__ import annotations

from oesir_d2.index import SkippedFile, SkippedFiles, read_skipped


def test_every_entry_is_in_the_file_at_once(tmp_path):
    skipped = SkippedFiles(tmp_path)
    skipped.add("/photos/a b.jpg", "truncated")
    skipped.add("/photos/ż\udcff.png", "not an image")
    skipped.add("/photos/a b.jpg", "empty file")
    assert read_skipped(tmp_path) == [
        SkippedFile("/photos/a b.jpg", "empty file"),
        SkippedFile("/photos/ż\udcff.png", "not an image"),
    ]
    assert len(skipped) == 2 and skipped.entries == read_skipped(tmp_path)


def test_a_file_that_becomes_readable_vanishes(tmp_path):
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.touch()
    with SkippedFiles(tmp_path) as skipped:
        for file in files:
            skipped.add(str(file), "truncated")
    with SkippedFiles(tmp_path) as skipped:
        skipped.resolve(str(files[0]))
        assert read_skipped(tmp_path) == [SkippedFile(str(files[1]), "truncated")]
    assert read_skipped(tmp_path) == [SkippedFile(str(files[1]), "truncated")]


def test_closing_drops_files_that_are_gone_but_not_those_of_this_run(tmp_path):
    with SkippedFiles(tmp_path) as skipped:
        skipped.add("/gone", "file does not exist")
    assert read_skipped(tmp_path) == [SkippedFile("/gone", "file does not exist")]
    with SkippedFiles(tmp_path):
        pass
    assert read_skipped(tmp_path) == []


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
    skipped = SkippedFiles(tmp_path)
    skipped.add("/a", "truncated")
    with open(tmp_path / "skipped.jsonl", "ab") as stream:
        stream.write(b'{"path": "/b", "rea')
    assert read_skipped(tmp_path) == [SkippedFile("/a", "truncated")]
    SkippedFiles(tmp_path).add("/c", "empty file")
    assert read_skipped(tmp_path) == [SkippedFile("/a", "truncated"), SkippedFile("/c", "empty file")]


def test_no_list_is_an_empty_list(tmp_path):
    assert read_skipped(tmp_path) == []
