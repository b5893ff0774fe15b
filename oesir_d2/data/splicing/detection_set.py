"""A training set for a detector, composed from few photos: objects pasted into photos whose own objects are known.

A detector that only finds the seams of pasted objects is useless on the untouched photo that an object comes from. So
the hosts' own objects count as well, edges are hard and soft, and some photos have nothing pasted into them. The output
folder holds ``images/``, ``instances.json`` and the log that lets an interrupted run go on.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oesir_d2.data.splicing.annotated_photos import AnnotatedPhotos
from oesir_d2.data.splicing.cutouts import CutOutSource
from oesir_d2.data.splicing.detection_composer import DetectionComposer, DetectionPhoto
from oesir_d2.data.splicing.detection_log import DetectionLog
from oesir_d2.data.splicing.detection_options import DetectionOptions
from oesir_d2.files import replace_file

INSTANCES_NAME = "instances.json"

WHOLE_QUALITY = 95
"""JPEG quality of the hosts that nothing is pasted into."""


@dataclass(frozen=True)
class DetectionSet:
    """A composed set.

    Attributes:
        instances: the content of ``instances.json``.
        num_composed: photos that were composed now and not taken over from an earlier run.
        unreadable: paths of the photos that could not be used.
    """

    instances: dict[str, Any]
    num_composed: int
    unreadable: tuple[str, ...]


def make_detection_set(
    hosts: Sequence[tuple[AnnotatedPhotos, float]],
    sources: Sequence[tuple[CutOutSource, float]],
    output: str | Path,
    *,
    count: int,
    options: DetectionOptions | None = None,
    whole_hosts: bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> DetectionSet:
    """Compose photos with boxes and write them with ``instances.json``.

    Photo i depends on the seed and on i, but not on ``count``: a larger count only adds photos. Called again with the
    same arguments, the function composes only what is missing.

    Args:
        hosts: photos to paste into, each set with its weight.
        sources: objects to paste, each source with its weight. No photo gets an object of itself.
        output: the folder to write to.
        count: number of composed photos, at least 1.
        options: ranges to draw from.
        whole_hosts: whether each host follows once with nothing pasted into it.
        seed: not negative.
        cache: a folder that keeps what GrabCut cuts out for further runs; by default in the output folder.
        progress: wraps the names of the photos that are composed, for a progress bar.

    Raises:
        FileExistsError: if the output folder holds something else, or a set of other settings.
        ValueError: if a number is out of range, or no photo can be composed.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    options = options or DetectionOptions()
    output = Path(output)
    composer = DetectionComposer(hosts, sources, options, Path(cache) if cache else output / "cutouts")
    settings = {
        "seed": seed,
        "options": asdict(options),
        "hosts": [[item.settings, weight] for item, weight in hosts],
        "cut-outs": [[item.settings, [photo.image_id for photo in item.photos], weight] for item, weight in sources],
    }
    log = DetectionLog(output, settings)
    names = [f"{i:06d}.jpg" for i in range(count)]
    whole = [f"host_{i:06d}.jpg" for i in range(composer.num_hosts)] if whole_hosts else []
    num_composed = 0
    for name in progress([name for name in [*names, *whole] if name not in log.photos]):
        photo = _compose(composer, name, seed)
        if photo is not None:
            log.add(_write_photo(photo, output, name))
            num_composed += 1
    instances = _describe([log.photos[name] for name in [*names, *whole] if name in log.photos])
    replace_file(output / INSTANCES_NAME, (json.dumps(instances) + "\n").encode())
    return DetectionSet(instances, num_composed, tuple(sorted(composer.unreadable)))


def _compose(composer: DetectionComposer, name: str, seed: int) -> DetectionPhoto | None:
    number = int(Path(name).stem.removeprefix("host_"))
    if name.startswith("host_"):
        return composer.show_host(number)
    return composer.compose(np.random.default_rng([seed, number]))


def _write_photo(photo: DetectionPhoto, output: Path, name: str) -> dict[str, Any]:
    """Write the image and say what it shows, as the log and ``instances.json`` have it."""
    buffer = io.BytesIO()
    Image.fromarray(photo.pixels).save(buffer, "JPEG", quality=photo.jpeg_quality or WHOLE_QUALITY)
    replace_file(output / "images" / name, buffer.getvalue())
    height, width = photo.pixels.shape[:2]
    objects = []
    for item in photo.objects:
        x0, y0, x1, y1 = (round(v, 2) for v in item.box)
        described = {
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "area": round(item.area, 1),
            "iscrowd": int(item.is_crowd),
            "source": item.source,
            "source_box": [round(v, 2) for v in item.source_box],
            "pasted": item.is_pasted,
            "category_name": item.category,
        }
        objects.append(described | ({} if item.score is None else {"score": item.score}))
    return {"file_name": name, "width": width, "height": height, "host": photo.host, "objects": objects}


def _describe(photos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of ``instances.json``."""
    images, annotations = [], []
    for photo in photos:
        images.append({"id": len(images) + 1} | {key: value for key, value in photo.items() if key != "objects"})
        for item in photo["objects"]:
            annotations.append({"id": len(annotations) + 1, "image_id": len(images), "category_id": 1} | item)
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
