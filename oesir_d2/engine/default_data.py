"""The data that the embedded default is trained on, step by step: the photos to learn from, pseudo-labels, a set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from oesir_d2.data.images import ImageFile, list_images
from oesir_d2.data.photo_split import HELD_OUT_SHARE, is_held_out, link_photos
from oesir_d2.data.pseudo_labels import YoloxDetector, label_photos
from oesir_d2.data.splicing import AlphaCutOuts, CocoCutOuts, PhotoCutOuts
from oesir_d2.data.splicing.annotated_photos import AnnotatedPhotos
from oesir_d2.data.splicing.detection_set import INSTANCES_NAME, make_detection_set
from oesir_d2.engine.kept_results import hash_json
from oesir_d2.engine.recorded_steps import RecordedSteps
from oesir_d2.engine.variant_run import hash_photos
from oesir_d2.files import replace_file, sha256_of_file

HOST_WEIGHTS = {"annotated": 1.0, "labelled": 1.0}
"""Shares of the composed photos that show something pasted into photos of each kind."""

OBJECT_WEIGHTS = {"outlines": 3.0, "label_boxes": 2.0, "saliency": 1.0, "alpha": 2.0}
"""Shares of the pasted objects: cut by annotated outlines, by GrabCut in the pseudo-labels' boxes, by GrabCut where
saliency says, and images with transparency."""

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingMaterial:
    """What somebody who trains the embedded default has.

    Attributes:
        annotations: COCO JSON with the outlines of objects.
        annotated: the folder of its photos.
        plain: photos without annotations, as :func:`oesir_d2.data.list_images` takes them.
        network: an ONNX export of YOLOX, for pseudo-labels of the plain photos.
        cutouts: images with transparency, in the same form; None for none.
        held_out: share of the photos that is left out, for evaluation: those that ``prepare_split.py`` holds out.
        count: composed photos of the detection set.
        seed: of the detection set.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: a number out of range.
    """

    annotations: Path
    annotated: Path
    plain: Path
    network: Path
    cutouts: Path | None = None
    held_out: float = HELD_OUT_SHARE
    count: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        for what, path in (("file of annotations", self.annotations), ("network", self.network)):
            if not path.is_file():
                raise FileNotFoundError(f"the {what} {path} does not exist")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"the share of photos to hold out is {self.held_out}, expected at least 0 and less than 1")

    def list_photos(self) -> dict[str, list[ImageFile]]:
        """The photos to learn from: "annotated" and "plain".

        Raises:
            FileNotFoundError, ValueError: as :func:`list_images`; or all photos of one kind are held out.
        """
        photos = {}
        for kind, source in (("annotated", self.annotated), ("plain", self.plain)):
            listed = list_images(source)
            photos[kind] = [file for file in listed if not is_held_out(file.image_id, self.held_out)]
            if not photos[kind]:
                raise ValueError(f"all {len(listed)} photos of {source} are held out, expected some to learn from")
        return photos


class DefaultData:
    """The steps that make the data, in the folder of :class:`RecordedSteps`; each is done once.

    Args:
        material: what there is.
    """

    def __init__(self, material: TrainingMaterial) -> None:
        self._material = material
        self._photos = material.list_photos()

    def describe(self) -> dict[str, dict[str, Any]]:
        """By step, what decides its outcome."""
        material = self._material
        photos: dict[str, Any] = {kind: hash_photos(files) for kind, files in self._photos.items()}
        labels = {"plain": photos["plain"], "network": sha256_of_file(material.network)}
        recipe = {"hosts": HOST_WEIGHTS, "objects": OBJECT_WEIGHTS, "count": material.count, "seed": material.seed}
        cutouts = hash_photos(list_images(material.cutouts)) if material.cutouts else ""
        return {
            "photos": photos,
            "pseudo_labels": labels,
            "detection_set": photos
            | {"annotations": sha256_of_file(material.annotations), "pseudo_labels": hash_json(labels)}
            | {"cutouts": cutouts, "recipe": recipe},
        }

    def make(self, steps: RecordedSteps) -> dict[str, dict[str, Any]]:
        """Do the steps that are not done yet; gives the report of each."""
        return {
            "photos": steps.run("photos", "annotated", self._link_photos),
            "pseudo_labels": steps.run("pseudo_labels", INSTANCES_NAME, lambda folder: self._label(steps, folder)),
            "detection_set": steps.run("detection_set", INSTANCES_NAME, lambda folder: self._compose(steps, folder)),
        }

    def name_overrides(self, data: str, steps: RecordedSteps) -> list[str]:
        """The KEY VALUE pairs that name the data sets of a training, see ``default_stages.DATA``."""
        photos, composed = steps.locate("photos"), steps.locate("detection_set")
        if data == "detection_set":
            entries = [["objects", str(composed / INSTANCES_NAME), str(composed / "images")]]
            return ["DATASETS.OESIR.COCO", str(entries)]
        if data == "photos":
            return ["DATASETS.OESIR.PHOTOS", str([["photos", str(photos)]])]
        assert data == "cutouts", f"no data is called {data!r}"
        objects = ["objects", "coco", str(self._material.annotations), str(photos / "annotated")]
        return ["DATASETS.OESIR.CUTOUTS", str([objects, ["regions", "blobs", str(photos)]])]

    def _link_photos(self, folder: Path) -> dict[str, Any]:
        # The last one's folder tells that the step is finished.
        for kind in ("plain", "annotated"):
            link_photos(self._photos[kind], folder / kind)
        return {kind: len(files) for kind, files in self._photos.items()}

    def _label(self, steps: RecordedSteps, folder: Path) -> dict[str, Any]:
        photos = list_images(steps.locate("photos") / "plain")
        detector = YoloxDetector(self._material.network)
        labels = label_photos(photos, detector, lambda files: _show(files, "pseudo-labels"))
        replace_file(folder / INSTANCES_NAME, (json.dumps(labels) + "\n").encode())
        num_labelled = len(labels["images"])
        return {"photos": num_labelled, "skipped": len(photos) - num_labelled, "objects": len(labels["annotations"])}

    def _compose(self, steps: RecordedSteps, folder: Path) -> dict[str, Any]:
        material, photos = self._material, steps.locate("photos")
        annotated = AnnotatedPhotos(material.annotations, photos / "annotated")
        labelled = AnnotatedPhotos(steps.locate("pseudo_labels") / INSTANCES_NAME, photos / "plain")
        sources = {
            "outlines": CocoCutOuts(material.annotations, photos / "annotated"),
            "label_boxes": PhotoCutOuts(photos / "plain", labelled.get_boxes()),
            "saliency": PhotoCutOuts(photos / "plain"),
        }
        if material.cutouts:
            sources["alpha"] = AlphaCutOuts(material.cutouts)
        made = make_detection_set(
            [(annotated, HOST_WEIGHTS["annotated"]), (labelled, HOST_WEIGHTS["labelled"])],
            [(source, OBJECT_WEIGHTS[name]) for name, source in sources.items()],
            folder,
            count=material.count,
            whole_hosts=True,
            seed=material.seed,
            progress=lambda names: _show(names, "detection set"),
        )
        counts = {"photos": len(made.instances["images"]), "objects": len(made.instances["annotations"])}
        return counts | {"unreadable": len(made.unreadable)}


def _show(items: Sequence[T], what: str) -> Iterable[T]:
    return tqdm(items, what)
