"""Provenance from end to end on real photos: who is host, who donor, what is nothing, and where the edit lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from oesir_d2.data import ImageFile, UnreadableImageError
from oesir_d2.engine import part_analysis, part_search
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.part_analysis import PartAnalyzer
from oesir_d2.engine.provenance import Provenance, ProvenanceAnalyzer, analyze_all, save_mask
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.engine.source_photos import WorkingPhoto
from oesir_d2.geometry import Comparison, FeatureOptions, GeometricMatch, LocalFeatures, QueryFeatures
from oesir_d2.geometry.confidence import match_confidence

from .conftest import TINY_OPTS

INDEXED = ("china", "astronaut", "coffee", "chelsea", "rocket")
LONG_SIDE = 300


def read_photo(name: str) -> np.ndarray:
    package, suffix = ("sklearn.datasets.images", "jpg") if name in ("china", "flower") else ("skimage.data", "png")
    suffix = "jpg" if name == "rocket" else suffix
    with Image.open(str(files(package) / f"{name}.{suffix}")) as image:
        rgb = image.convert("RGB")
    factor = LONG_SIDE / max(rgb.size)
    return np.array(rgb.resize((round(rgb.width * factor), round(rgb.height * factor)), Image.Resampling.LANCZOS))


def paste(
    host: np.ndarray, donor: np.ndarray, box: tuple[int, int, int, int], at: tuple[int, int], mirrored: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse of the donor's box in the host: the splice, and (H, W) bool where it lies."""
    x0, y0, x1, y1 = box
    part = donor[y0:y1, x0:x1]
    part = part[:, ::-1] if mirrored else part
    height, width = part.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    inside = ((2 * x - width + 1) / width) ** 2 + ((2 * y - height + 1) / height) ** 2 < 1
    splice, mask = host.copy(), np.zeros(host.shape[:2], bool)
    window = slice(at[1], at[1] + height), slice(at[0], at[0] + width)
    splice[window][inside] = part[inside]
    mask[window] = inside
    return splice, mask


@pytest.fixture(scope="module")
def index_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in INDEXED:
        Image.fromarray(read_photo(name)).save(folder / f"{name}.png")
    cfg = load_config("oesir_lite0_grid.yaml", TINY_OPTS)
    build_index(cfg, [ImageFile(f"{name}.png", folder / f"{name}.png") for name in INDEXED], folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def analyzer(index_path: Path) -> ProvenanceAnalyzer:
    return ProvenanceAnalyzer(Retriever(index_path))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., ImageFile]:
    def write(pixels: np.ndarray, name: str = "query.jpg") -> ImageFile:
        Image.fromarray(pixels).save(tmp_path / name, quality=80)
        return ImageFile(name, tmp_path / name)

    return write


def roles(found: Provenance) -> dict[str, str]:
    return {photo.image_id: photo.role for photo in found.findings.photos if photo.verified}


def iou(mask: np.ndarray | None, truth: np.ndarray) -> float:
    assert mask is not None and mask.shape == truth.shape
    return float(np.count_nonzero((mask > 0) & truth) / np.count_nonzero((mask > 0) | truth))


FACE = (95, 25, 175, 135)


def test_host_and_mirrored_donor_are_found(analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]) -> None:
    splice, truth = paste(read_photo("china"), read_photo("astronaut"), FACE, (60, 50), mirrored=True)
    stages: list[tuple[str, float]] = []
    found = analyzer.analyze(save(splice), top_k=3, progress=lambda stage, share: stages.append((stage, share)))
    assert roles(found) == {"china.png": "host", "astronaut.png": "donor"}
    assert [result.image_id for result in found.results[:2]] == ["china.png", "astronaut.png"]
    assert [result.rank for result in found.results] == [1, 2, 3]
    host, donor, other = found.findings.photos
    assert found.findings.host is host and not host.match.flipped and donor.match.flipped
    assert (donor.match.scale, donor.match.rotation) == (pytest.approx(1, abs=0.05), pytest.approx(0, abs=3))
    assert not other.verified
    (part,) = found.findings.parts
    assert (part.kind, part.source_id, donor.parts) == ("donor", "astronaut.png", (0,))
    assert iou(found.findings.mask, truth) > 0.9
    shares = [share for _, share in stages]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1


def test_answer_has_the_form_of_the_contract(analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]) -> None:
    """Twice the size of the index's photo: coordinates are those of the query's file."""
    splice, truth = paste(read_photo("china"), read_photo("astronaut"), FACE, (60, 50))
    large = cv2.resize(splice, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    found = analyzer.analyze(save(large))
    answer = json.loads(json.dumps(found.to_dict("mask.png")))
    assert list(answer) == ["query", "objects", "results", "splice_mask", "parts"]
    assert answer["splice_mask"] == "mask.png"
    host, donor = answer["results"][:2]
    assert (host["role"], donor["role"], donor["verified"]) == ("host", "donor", True)
    assert host["scale"] == pytest.approx(4, rel=0.02)
    np.testing.assert_allclose(np.array(donor["transform"]) @ [135, 80, 1], [402, 422, 1], atol=12)
    (part,) = answer["parts"]
    np.testing.assert_allclose(part["box"], [240, 200, 560, 640], atol=16)
    assert iou(found.findings.mask, cv2.resize(truth.astype(np.uint8), large.shape[1::-1]) > 0) > 0.9


@pytest.mark.parametrize("is_grey", [False, True])
def test_copy_is_a_near_duplicate_without_parts(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile], is_grey: bool
) -> None:
    copy = read_photo("coffee")
    found = analyzer.analyze(save(cv2.cvtColor(copy, cv2.COLOR_RGB2GRAY) if is_grey else copy))
    assert roles(found) == {"coffee.png": "near-duplicate"}
    assert found.findings.parts == () and found.findings.mask is not None and not found.findings.mask.any()


def test_nothing_is_found_for_a_photo_without_sources(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]
) -> None:
    blank = np.full((80, 120, 3), 128, np.uint8)
    for pixels in (read_photo("flower"), read_photo("motorcycle_left"), blank, blank[:1, :1]):
        found = analyzer.analyze(save(pixels))
        assert roles(found) == {} and found.findings.parts == () and found.findings.mask is None
        assert len(found.results) == len(INDEXED)  # the ranking by similarity stays


def test_another_photo_of_the_same_thing_is_shown_with_its_doubt(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]
) -> None:
    """Near things moved against far ones, and the light comes from another side."""
    photo = read_photo("coffee")
    rows, columns = np.indices(photo.shape[:2]).astype(np.float32)
    depth = np.sin(rows / 16) * np.cos(columns / 16)
    moved = cv2.remap(photo, columns + 4 * depth, rows + depth, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    slope = cv2.Sobel(cv2.GaussianBlur(moved.astype(np.float32).mean(axis=2), (0, 0), 2), cv2.CV_32F, 1, 0)
    found = analyzer.analyze(save(np.clip(moved + 4 * slope[..., None], 0, 255).astype(np.uint8)))
    assert roles(found) == {} and found.findings.parts == ()
    first = found.to_dict()["results"][0]
    assert first["image_id"] == "coffee.png" and first["inliers"] >= 6
    assert first["doubt"] in ("other pixels", "looks different")


def test_points_that_agree_by_accident_prove_nothing(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six inliers of a photo that does not look like the part."""
    points = np.array([[160, 80], [200, 90], [240, 100], [180, 130], [220, 150], [190, 160]], np.float32)
    accident = GeometricMatch(np.eye(3), False, 1.0, 0.0, points, points, match_confidence(6))
    monkeypatch.setattr(part_search, "verify_match", lambda *arguments: accident)
    splice, _ = paste(read_photo("china"), read_photo("flower"), (100, 50, 200, 150), (150, 70))
    found = analyzer.analyze(save(splice))
    assert roles(found) == {"china.png": "host"}
    others = [result for result in found.to_dict()["results"] if result["image_id"] != "china.png"]
    assert {result["doubt"] for result in others} == {"looks different"}
    assert all(result["inliers"] == 6 and result["confidence"] < 0.9 for result in others)


def test_object_of_a_photo_that_is_not_indexed_is_of_unknown_source(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]
) -> None:
    splice, truth = paste(read_photo("china"), read_photo("flower"), (100, 50, 200, 150), (150, 70))
    found = analyzer.analyze(save(splice))
    assert roles(found) == {"china.png": "host"}
    (part,) = found.findings.parts
    assert (part.kind, part.source_id, part.match) == ("unknown source", None, None)
    assert part.confidence > 0.9 and iou(found.findings.mask, truth) > 0.85


def test_copy_move_is_told_from_a_donor(analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]) -> None:
    china = read_photo("china")
    splice, truth = paste(china, china, (90, 60, 170, 130), (180, 110))
    found = analyzer.analyze(save(splice))
    assert roles(found) == {"china.png": "host"}
    (part,) = found.findings.parts
    assert part.kind == "copy-move" and part.match is not None
    offsets = part.match.query_points - part.match.source_points
    np.testing.assert_allclose(np.median(offsets, axis=0), [90, 50], atol=1)
    assert part.to_dict()["copied_from"]["inliers"] == part.match.inliers
    assert iou(found.findings.mask, truth) > 0.85


@pytest.mark.parametrize(("donor", "kind"), [("astronaut", "donor"), ("china", "copy-move")])
def test_an_object_in_two_pieces_has_one_source(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile], monkeypatch: pytest.MonkeyPatch, donor: str, kind: str
) -> None:
    """The second piece has no keypoint of its own that matches."""
    splice, truth = paste(read_photo("china"), read_photo(donor), FACE, (160, 50))
    strip = truth & (np.arange(truth.shape[0]) > 122)[:, None]
    rest = truth & (np.arange(truth.shape[0]) < 118)[:, None]
    monkeypatch.setattr(Comparison, "find_edits", lambda self: [rest, strip])
    real, asked = part_analysis.detect_part_features, []

    def detect(query: WorkingPhoto, part: np.ndarray, options: FeatureOptions) -> QueryFeatures:
        asked.append(part)
        return real(query, part, options) if len(asked) == 1 else QueryFeatures(LocalFeatures.empty(), part.shape[1])

    monkeypatch.setattr(part_analysis, "detect_part_features", detect)
    first, second = analyzer.analyze(save(splice)).findings.parts
    assert len(asked) == 2 and first.kind == second.kind == kind
    assert first.source_id == second.source_id == ("astronaut.png" if kind == "donor" else None)
    assert first.match is not None and second.match is not None
    np.testing.assert_allclose(first.match.transform, second.match.transform)


def test_copy_is_found_within_the_query_where_the_host_does_not_show_it(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartAnalyzer, "_find_copy", lambda *arguments: None)
    china = read_photo("china")
    splice, truth = paste(china, china, (90, 60, 170, 130), (180, 110))
    found = analyzer.analyze(save(splice))
    (part,) = found.findings.parts
    assert roles(found) == {"china.png": "host"} and part.kind == "copy-move" and part.match is not None
    offsets = part.match.query_points - part.match.source_points
    np.testing.assert_allclose(np.median(offsets, axis=0), [90, 50], atol=1)
    assert iou(found.findings.mask, truth) > 0.85


def test_the_hosts_own_points_around_a_copy_do_not_hide_it(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The region is drawn too large, so that most of its points agree with the host where they are."""
    china = read_photo("china")
    splice, truth = paste(china, china, (100, 70, 150, 112), (60, 130))
    large = cv2.dilate(truth.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    monkeypatch.setattr(Comparison, "find_edits", lambda self: [large])
    monkeypatch.setattr(PartAnalyzer, "_find_copy_within", lambda *arguments: None)
    (part,) = analyzer.analyze(save(splice)).findings.parts
    assert part.kind == "copy-move" and part.match is not None
    offsets = part.match.query_points - part.match.source_points
    np.testing.assert_allclose(np.median(offsets, axis=0), [-40, 60], atol=1)


def test_two_donors_get_a_part_each(analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]) -> None:
    splice, first = paste(read_photo("china"), read_photo("astronaut"), FACE, (20, 40))
    splice, second = paste(splice, read_photo("coffee"), (80, 50, 200, 150), (160, 80))
    found = analyzer.analyze(save(splice))
    assert roles(found) == {"china.png": "host", "astronaut.png": "donor", "coffee.png": "donor"}
    assert {part.source_id for part in found.findings.parts} == {"astronaut.png", "coffee.png"}
    assert iou(found.findings.mask, first | second) > 0.9


def test_donor_is_found_without_its_host(analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]) -> None:
    splice, truth = paste(read_photo("flower"), read_photo("coffee"), (60, 30, 220, 180), (100, 20))
    found = analyzer.analyze(save(splice))
    assert roles(found) == {"coffee.png": "donor"}
    assert [part.source_id for part in found.findings.parts] == ["coffee.png"]
    assert iou(found.findings.mask, truth) > 0.6


def test_box_finds_the_source_of_what_it_shows(analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]) -> None:
    """Well inside the object, tight around it, and so large that it shows more of the host than of the object."""
    splice, truth = paste(read_photo("china"), read_photo("astronaut"), FACE, (60, 50))
    file = save(splice)
    inside = analyzer.analyze(file, box=(82, 72, 118, 138))
    assert roles(inside) == {"astronaut.png": "donor"} and inside.findings.host is None
    for box in ((58, 48, 142, 162), (30, 20, 200, 190)):
        found = analyzer.analyze(file, box=box)
        assert roles(found) == {"astronaut.png": "donor", "china.png": "host"}
        assert [result.image_id for result in found.results[:2]] == ["astronaut.png", "china.png"]
        assert [(part.kind, part.source_id) for part in found.findings.parts] == [("donor", "astronaut.png")]
        assert iou(found.findings.mask, truth) > 0.9
        assert all(photo.match is None or photo.match.confidence < 0.95 for photo in found.findings.photos[2:])
    assert len(found.query.embeddings) == 1
    beside = analyzer.analyze(file, box=(150, 20, 290, 170))
    assert roles(beside) == {"china.png": "host"} and beside.findings.parts == ()
    for box in ((0, 0, 1, 1), (298, 190, 299, 191)):
        analyzer.analyze(file, box=box)
    with pytest.raises(ValueError, match="box 0,0,9999,5"):
        analyzer.analyze(file, box=(0, 0, 9999, 5))


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_photo_set_beside_another_is_its_own_part(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile], share: float
) -> None:
    """Both in full, or a piece of the second: neither is a copy of the whole."""
    first = read_photo("china")
    second = read_photo("coffee")[: len(first), : round(share * LONG_SIDE)]
    query = np.concatenate([first, second], axis=1)
    found = analyzer.analyze(save(query))
    assert set(roles(found)) == {"china.png", "coffee.png"} and set(roles(found).values()) == {"host", "donor"}
    (part,) = found.findings.parts
    donor = next(image_id for image_id, role in roles(found).items() if role == "donor")
    assert (part.kind, part.source_id) == ("donor", donor)
    is_second = np.broadcast_to(np.arange(query.shape[1]) >= LONG_SIDE, query.shape[:2])
    assert iou(found.findings.mask, is_second == (donor == "coffee.png")) > 0.95


def test_canvas_extended_by_what_nobody_knows(analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]) -> None:
    china = read_photo("china")
    found = analyzer.analyze(save(np.concatenate([china, read_photo("flower")[: len(china), :120]], axis=1)))
    assert roles(found) == {"china.png": "host"}
    (part,) = found.findings.parts
    assert part.kind == "unknown source" and part.confidence > 0.95 and part.area == pytest.approx(120 / 420, abs=0.02)
    # The bars of a film are no edit.
    barred = analyzer.analyze(save(cv2.copyMakeBorder(china, 30, 30, 0, 0, cv2.BORDER_CONSTANT)))
    assert roles(barred) == {"china.png": "near-duplicate"} and barred.findings.parts == ()


def test_box_asks_for_its_own_object_alone(analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]) -> None:
    splice, first = paste(read_photo("china"), read_photo("astronaut"), FACE, (20, 40))
    splice, second = paste(splice, read_photo("coffee"), (80, 50, 200, 150), (160, 80))
    file = save(splice)
    for box, source, truth in (
        ((10, 30, 120, 160), "astronaut.png", first),
        ((150, 70, 290, 190), "coffee.png", second),
    ):
        found = analyzer.analyze(file, box=box)
        assert roles(found) == {source: "donor", "china.png": "host"}
        assert [part.source_id for part in found.findings.parts] == [source]
        assert iou(found.findings.mask, truth) > 0.9


def test_box_around_an_object_of_unknown_source(analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile]) -> None:
    splice, truth = paste(read_photo("china"), read_photo("flower"), (100, 50, 200, 150), (150, 70))
    found = analyzer.analyze(save(splice), box=(130, 50, 270, 190))
    assert roles(found) == {"china.png": "host"}
    assert [part.kind for part in found.findings.parts] == ["unknown source"] and iou(found.findings.mask, truth) > 0.85


def test_photo_that_shows_the_hosts_own_place_is_no_donor(save: Callable[..., ImageFile], tmp_path: Path) -> None:
    """The index holds a piece of the host, too, and the box shows the piece and an object."""
    china = read_photo("china")
    photos = {"china": china, "piece": china[20:150, 130:290], "astronaut": read_photo("astronaut")}
    for name, pixels in photos.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    cfg = load_config("oesir_lite0_grid.yaml", TINY_OPTS)
    build_index(cfg, [ImageFile(name, tmp_path / f"{name}.png") for name in photos], tmp_path / "index")
    splice, truth = paste(china, photos["astronaut"], FACE, (60, 50))
    found = ProvenanceAnalyzer(Retriever(tmp_path / "index")).analyze(save(splice), box=(40, 20, 290, 170))
    assert roles(found) == {"astronaut": "donor", "china": "host", "piece": "near-duplicate"}
    assert iou(found.findings.mask, truth) > 0.9


def test_photos_that_are_gone_or_changed_are_left_unverified(
    save: Callable[..., ImageFile], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("china", "coffee", "rocket")
    paths = {name: tmp_path / f"{name}.png" for name in names}
    for name, path in paths.items():
        Image.fromarray(read_photo(name)).save(path)
    cfg = load_config("oesir_lite0_grid.yaml", TINY_OPTS)
    build_index(cfg, [ImageFile(name, path) for name, path in paths.items()], tmp_path / "index")
    paths["rocket"].unlink()
    Image.fromarray(read_photo("flower")).save(paths["china"])
    analyzer = ProvenanceAnalyzer(Retriever(tmp_path / "index"))
    for query in ("rocket", "china", "flower"):
        assert roles(analyzer.analyze(save(read_photo(query)))) == {}
    assert "changed since it was indexed" in caplog.text and "does not exist" in caplog.text
    query = save(read_photo("coffee"))
    assert roles(analyzer.analyze(query)) == {"coffee": "near-duplicate"}
    # Its keypoints are cached by now, which alone prove nothing.
    paths["coffee"].unlink()
    later = ProvenanceAnalyzer(Retriever(tmp_path / "index"))
    assert roles(later.analyze(query)) == {} and roles(later.analyze(query, box=(40, 40, 220, 160))) == {}


def test_damaged_cache_changes_nothing(index_path: Path, save: Callable[..., ImageFile]) -> None:
    file = save(read_photo("coffee"))
    first = ProvenanceAnalyzer(Retriever(index_path)).analyze(file).to_dict()
    cached = list((index_path / "keypoints").rglob("*.features"))
    assert cached
    for path in cached:
        path.write_bytes(path.read_bytes()[:-50])
    assert ProvenanceAnalyzer(Retriever(index_path)).analyze(file).to_dict() == first


def test_unreadable_queries_and_interruptions_pass_through(
    analyzer: ProvenanceAnalyzer, save: Callable[..., ImageFile], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    broken, good = ImageFile("broken.jpg", tmp_path / "broken.jpg"), save(read_photo("coffee"))
    answers = [answer for _, answer in analyze_all(analyzer, [broken, good])]
    assert isinstance(answers[0], UnreadableImageError) and isinstance(answers[1], Provenance)

    def stop(stage: str, share: float) -> None:
        raise TimeoutError(stage)

    with pytest.raises(TimeoutError):
        analyzer.analyze(good, progress=stop)
    with pytest.raises(ValueError, match="candidates is 0"):
        ProvenanceAnalyzer(Retriever, candidates=0)


def test_mask_is_written_as_png(tmp_path: Path) -> None:
    mask = np.zeros((5, 7), np.uint8)
    mask[2:, 3:] = 255
    save_mask(mask, tmp_path / "new" / "mask.png")
    with Image.open(tmp_path / "new" / "mask.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.array(image), mask)
