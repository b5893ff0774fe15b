"""Pseudo-labels: the letterbox, YOLOX's decoding, the choice of boxes, and a real ONNX network that the test writes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oesir_d2.data import list_images
from oesir_d2.data.pseudo_labels import Detections, YoloxDetector, decode_yolox, label_photos, letterbox, select_boxes

SIDE = 64
# Cells of the grids of a 64-pixel input: 8 x 8, 4 x 4, 2 x 2.
NUM_CELLS = 64 + 16 + 4

Box = tuple[float, float, float, float]


def encode_row(row: int, box: Box, objectness: float, classes: list[float]) -> list[float]:
    """What YOLOX puts out for a box, XYXY in pixels of the input, in a given row: the reverse of its decoding."""
    first, stride = next((f, s) for f, s in ((80, 32), (64, 16), (0, 8)) if row >= f)
    cell_y, cell_x = divmod(row - first, SIDE // stride)
    x0, y0, x1, y1 = box
    offsets = [(x0 + x1) / 2 / stride - cell_x, (y0 + y1) / 2 / stride - cell_y]
    return [*offsets, math.log((x1 - x0) / stride), math.log((y1 - y0) / stride), objectness, *classes]


def make_output(*rows: tuple[int, Box, float, list[float]]) -> np.ndarray:
    """(84, 7) float32: unlikely boxes but for those given as row, box, objectness and the classes' probabilities."""
    output = np.zeros((NUM_CELLS, 7), dtype=np.float32)
    for row, box, objectness, classes in rows:
        output[row] = encode_row(row, box, objectness, classes)
    return output


@pytest.mark.parametrize("row", [0, 9, 63, 64, 70, 79, 80, 83])
def test_a_box_comes_back_from_any_cell_of_any_grid(row: int) -> None:
    boxes, scores = decode_yolox(make_output((row, (3.5, 10, 40, 61.25), 0.5, [0.25, 0.75])), SIDE)

    assert (boxes.shape, scores.shape) == ((NUM_CELLS, 4), (NUM_CELLS, 2))
    np.testing.assert_allclose(boxes[row], (3.5, 10, 40, 61.25), atol=1e-4)
    np.testing.assert_allclose(scores[row], (0.125, 0.375))
    assert scores.sum() == pytest.approx(0.5)


def test_neighbouring_cells_lie_a_stride_apart_row_by_row() -> None:
    boxes, _ = decode_yolox(np.zeros((NUM_CELLS, 6), dtype=np.float32), SIDE)

    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    expected = [(x * s, y * s) for s in (8, 16, 32) for y in range(SIDE // s) for x in range(SIDE // s)]
    np.testing.assert_allclose(centers, expected, atol=1e-5)
    sides = [s for s in (8, 16, 32) for _ in range((SIDE // s) ** 2)]
    np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], sides, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (np.zeros((NUM_CELLS - 1, 7)), r"\(83, 7\), expected \(84, "),
        (np.zeros((NUM_CELLS, 5)), r"\(84, 5\)"),
        (np.full((NUM_CELLS, 7), -1.5), "from -1.5 to -1.5"),
        (np.full((NUM_CELLS, 7), 2.0), "from 2 to 2"),
        (np.full((NUM_CELLS, 7), np.nan), "nan"),
    ],
)
def test_another_output_is_refused(output: np.ndarray, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        decode_yolox(output, SIDE)


@pytest.mark.parametrize(("height", "width"), [(100, 200), (200, 100), (16, 32), (64, 64), (1, 500)])
def test_the_letterbox_keeps_the_aspect_and_pads_below_and_to_the_right(height: int, width: int) -> None:
    photo = np.empty((height, width, 3), dtype=np.uint8)
    photo[:] = (200, 100, 50)
    square, scale = letterbox(photo, SIDE)

    assert (square.shape, square.dtype) == ((3, SIDE, SIDE), np.float32)
    assert scale == SIDE / max(height, width)
    filled = np.zeros((SIDE, SIDE), dtype=bool)
    filled[: max(1, round(height * scale)), : max(1, round(width * scale))] = True
    for channel, value in zip(square, (50, 100, 200), strict=True):  # blue first
        assert (channel[filled] == value).all()
        assert (channel[~filled] == 114).all()


def test_boxes_are_cut_to_the_photo_chosen_by_score_and_not_doubled() -> None:
    boxes = np.array(
        [
            [10, 10, 50, 50],
            [11, 10, 51, 50],  # the same object, of another class
            [-5, -5, 30, 8],  # reaches out of the photo
            [60, 10, 90, 40],  # not likely enough
            [120, 10, 140, 30],  # outside
            [30, 30, 70, 70],  # overlaps the first by 1/7
        ],
        dtype=np.float32,
    )
    scores = np.array([[0.9, 0.1], [0.1, 0.8], [0.5, 0.4], [0.2, 0.29], [0.9, 0.9], [0.0, 0.6]])
    found = select_boxes(boxes, scores, min_score=0.3, max_overlap=0.5, size=(100, 80))

    np.testing.assert_allclose(found.boxes, [[10, 10, 50, 50], [30, 30, 70, 70], [0, 0, 30, 8]])
    np.testing.assert_allclose(found.scores, [0.9, 0.6, 0.5])
    assert found.classes.tolist() == [0, 1, 0]
    with_double = select_boxes(boxes, scores, min_score=0.3, max_overlap=0.99, size=(100, 80))
    assert len(with_double.boxes) == 4
    nothing = select_boxes(boxes, scores, min_score=0.95, max_overlap=0.5, size=(100, 80))
    assert nothing.boxes.shape == (0, 4)


class OneCorner:
    """A detector that finds the upper left quarter of each photo."""

    settings = {"kind": "test"}
    num_classes = 80

    def detect(self, pixels: np.ndarray) -> Detections:
        height, width = pixels.shape[:2]
        box = np.array([[0, 0, width / 2, height / 2]], dtype=np.float32)
        return Detections(box, np.array([0.7], dtype=np.float32), np.array([16]))


def test_labels_are_of_upright_photos_and_unreadable_ones_are_left_out(
    tmp_path: Path, make_photo: Callable[..., np.ndarray]
) -> None:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    turned = Image.fromarray(make_photo(40, 60))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "a.jpg", exif=exif)
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    Image.fromarray(make_photo(30, 80)).save(folder / "sub" / "ü.png")
    content = json.loads(json.dumps(label_photos(list_images(folder), OneCorner())))

    assert content["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": 40, "height": 60},
        {"id": 2, "file_name": "sub/ü.png", "width": 80, "height": 30},
    ]
    assert [(item["image_id"], item["bbox"], item["score"]) for item in content["annotations"]] == [
        (1, [0, 0, 20, 30], 0.7),
        (2, [0, 0, 40, 15], 0.7),
    ]
    names = {item["id"]: item["name"] for item in content["categories"]}
    assert len(names) == 80
    # YOLOX counts COCO's classes without their gaps.
    assert {names[item["category_id"]] for item in content["annotations"]} == {"dog"}
    assert names[1] == "person" and names[80] == "toothbrush"


def encode_field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer: a varint, or bytes with their length."""

    def encode_varint(value: int) -> bytes:
        digits = []
        while value > 127:
            digits.append(value & 127 | 128)
            value >>= 7
        return bytes([*digits, value])

    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value)
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def write_network(path: Path, output: np.ndarray, side: int = SIDE) -> Path:
    """An ONNX network that takes (1, 3, S, S) and puts out ``output``, whatever it sees."""

    def describe_value(name: str, shape: tuple[int, ...]) -> bytes:
        sizes = b"".join(encode_field(1, encode_field(1, size)) for size in shape)
        tensor_type = encode_field(1, 1) + encode_field(2, sizes)
        return encode_field(1, name.encode()) + encode_field(2, encode_field(1, tensor_type))

    values = output[None].astype("<f4")
    tensor = b"".join(encode_field(1, size) for size in values.shape) + encode_field(2, 1)
    tensor += encode_field(8, b"table") + encode_field(9, values.tobytes())
    node = encode_field(1, b"table") + encode_field(2, b"output") + encode_field(4, b"Identity")
    graph = encode_field(1, node) + encode_field(2, b"graph") + encode_field(5, tensor)
    graph += encode_field(11, describe_value("images", (1, 3, side, side)))
    graph += encode_field(12, describe_value("output", values.shape))
    operators = encode_field(1, b"") + encode_field(2, 13)
    path.write_bytes(encode_field(1, 8) + encode_field(7, graph) + encode_field(8, operators))
    return path


def test_a_network_of_onnx_finds_boxes_in_pixels_of_the_photo(tmp_path: Path) -> None:
    output = make_output((5, (8, 4, 40, 24), 0.9, [0.1, 1.0]), (66, (0, 0, 16, 16), 0.5, [0.5, 0.0]))
    detector = YoloxDetector(write_network(tmp_path / "net.onnx", output), min_score=0.3)
    # 128 x 256 pixels: a pixel of the input is 4 pixels of the photo.
    found = detector.detect(np.zeros((128, 256, 3), dtype=np.uint8))

    np.testing.assert_allclose(found.boxes, [[32, 16, 160, 96]], atol=1e-3)
    np.testing.assert_allclose(found.scores, [0.9], atol=1e-6)
    assert found.classes.tolist() == [1]
    more = YoloxDetector(tmp_path / "net.onnx", min_score=0.2).detect(np.zeros((128, 256, 3), dtype=np.uint8))
    assert len(more.boxes) == 2


def test_a_network_of_another_form_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "no network.onnx").write_bytes(struct.pack("<5f", 1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="no network.onnx"):
        YoloxDetector(tmp_path / "no network.onnx")
    with pytest.raises(ValueError, match=r"\[1, 3, 40, 40\]"):
        YoloxDetector(write_network(tmp_path / "odd.onnx", make_output(), side=40))
    with pytest.raises(FileNotFoundError, match="missing.onnx"):
        YoloxDetector(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match="min_score is 1.5"):
        YoloxDetector(tmp_path / "odd.onnx", min_score=1.5)
