"""PCA whitening against scikit-learn, FAISS and its own definition; streaming, files and bad input."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from oesir_d2.files import HashingWriter
from oesir_d2.layers import CovarianceAccumulator, PCAWhitening, load_whitening, save_whitening
from oesir_d2.layers.whitening import FILE_FORMAT

INPUT_DIM, OUTPUT_DIM = 24, 10


def correlated_vectors(count: int, dimension: int = INPUT_DIM, seed: int = 0) -> torch.Tensor:
    """Vectors with a mean and a spectrum of clearly different variances, not normalised."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator) * torch.linspace(1.5, 0.1, dimension)[:, None]
    return torch.randn(count, dimension, generator=generator) @ mixing + 3


def normalized(vectors: torch.Tensor) -> np.ndarray:
    array = vectors.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def aligned(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Columns of ``rows`` with the signs of the columns of ``reference``."""
    return rows * np.sign((rows * reference).sum(axis=0))


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    return correlated_vectors(2000)


@pytest.fixture(scope="module")
def whitening(vectors: torch.Tensor) -> PCAWhitening:
    return PCAWhitening(INPUT_DIM, OUTPUT_DIM).fit(vectors)


def test_whitened_vectors_have_mean_zero_and_identity_covariance(
    whitening: PCAWhitening, vectors: torch.Tensor
) -> None:
    projected = whitening.project(vectors.double()).numpy()
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(projected, rowvar=False), np.eye(OUTPUT_DIM), atol=1e-4)


def test_embeddings_have_length_1(whitening: PCAWhitening, vectors: torch.Tensor) -> None:
    np.testing.assert_allclose(whitening(vectors).norm(dim=1).numpy(), 1, rtol=1e-6)


def test_it_equals_scikit_learn_up_to_sign(whitening: PCAWhitening, vectors: torch.Tensor) -> None:
    pca = PCA(OUTPUT_DIM, whiten=True, svd_solver="full").fit(normalized(vectors))
    held_out = correlated_vectors(50, seed=1)
    expected, projected = pca.transform(normalized(held_out)), whitening.project(held_out).numpy()
    np.testing.assert_allclose(aligned(projected, expected), expected, atol=1e-3)


def test_it_equals_faiss_up_to_sign(whitening: PCAWhitening, vectors: torch.Tensor) -> None:
    pca = faiss.PCAMatrix(INPUT_DIM, OUTPUT_DIM, -0.5)
    pca.train(normalized(vectors).astype(np.float32))
    held_out = correlated_vectors(50, seed=1)
    expected = pca.apply(normalized(held_out).astype(np.float32))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)  # FAISS divides by n, which the length takes away
    embeddings = whitening(held_out).numpy()
    np.testing.assert_allclose(aligned(embeddings, expected), expected, atol=1e-3)


def test_signs_are_fixed(whitening: PCAWhitening) -> None:
    largest = whitening.projection.abs().argmax(dim=1, keepdim=True)
    assert (whitening.projection.gather(1, largest) > 0).all()


def test_the_length_of_a_vector_does_not_matter(whitening: PCAWhitening, vectors: torch.Tensor) -> None:
    assert torch.allclose(whitening(vectors[:5] * 37), whitening(vectors[:5]), atol=1e-5)


def test_shrinkage_damps_as_its_formula_says(vectors: torch.Tensor) -> None:
    shrunk = PCAWhitening(INPUT_DIM, OUTPUT_DIM).fit(vectors, shrinkage=0.25)
    eigenvalues = np.linalg.eigvalsh(np.cov(normalized(vectors), rowvar=False))[::-1]
    expected = eigenvalues[:OUTPUT_DIM] / (eigenvalues[:OUTPUT_DIM] + 0.25 * eigenvalues.mean())
    variances = shrunk.project(vectors.double()).numpy().var(axis=0, ddof=1)
    np.testing.assert_allclose(variances, expected, rtol=1e-4)


def test_a_streamed_fit_equals_the_fit_in_bulk(whitening: PCAWhitening, vectors: torch.Tensor) -> None:
    moments = CovarianceAccumulator(INPUT_DIM)
    for batch in vectors.split([1, 0, 700, 1299]):
        moments.update(batch)
    streamed = PCAWhitening(INPUT_DIM, OUTPUT_DIM).fit_from_moments(moments)
    assert moments.count == 2000
    assert torch.allclose(streamed.mean, whitening.mean, atol=1e-7)
    assert torch.allclose(streamed.projection, whitening.projection, atol=1e-5)


def test_moments_equal_numpys(vectors: torch.Tensor) -> None:
    moments = CovarianceAccumulator(INPUT_DIM)
    moments.update(vectors)
    np.testing.assert_allclose(moments.mean().numpy(), normalized(vectors).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance().numpy(), np.cov(normalized(vectors), rowvar=False), atol=1e-14)


def test_batch_of_one_and_of_none(whitening: PCAWhitening, vectors: torch.Tensor) -> None:
    assert torch.allclose(whitening(vectors[3:4]), whitening(vectors)[3:4], atol=1e-6)
    assert whitening(vectors[:0]).shape == (0, OUTPUT_DIM)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_whitened_in_float32(
    whitening: PCAWhitening, vectors: torch.Tensor, dtype: torch.dtype
) -> None:
    half = vectors[:20].to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = whitening(half)
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings, whitening(half.float()))


def test_a_vector_of_zeros_stays_finite_and_so_does_its_gradient(whitening: PCAWhitening) -> None:
    zeros = torch.zeros(2, INPUT_DIM, requires_grad=True)
    embeddings = whitening(zeros)
    embeddings.sum().backward()
    assert torch.isfinite(embeddings).all()
    assert zeros.grad is not None and torch.isfinite(zeros.grad).all()


def test_a_state_dict_brings_the_whitening(whitening: PCAWhitening, vectors: torch.Tensor) -> None:
    other = PCAWhitening(INPUT_DIM, OUTPUT_DIM)
    other.load_state_dict(whitening.state_dict())
    assert torch.equal(other(vectors[:9]), whitening(vectors[:9]))


def test_an_unfitted_whitening_says_what_to_run() -> None:
    with pytest.raises(ValueError, match=r"tools/fit_whitening\.py"):
        PCAWhitening(4, 2)(torch.ones(1, 4))


def test_too_few_vectors_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="more than 10 vectors, got 10"):
        PCAWhitening(INPUT_DIM, OUTPUT_DIM).fit(correlated_vectors(10))


def test_vectors_of_too_low_a_rank_are_refused_unless_shrunk() -> None:
    flat = correlated_vectors(300)
    flat[:, 6:] = 0
    unfitted = PCAWhitening(INPUT_DIM, OUTPUT_DIM)
    with pytest.raises(ValueError, match=r"300 vectors vary in 6 directions only.* 10 dimensions"):
        unfitted.fit(flat)
    assert not unfitted.fitted
    assert torch.isfinite(unfitted.fit(flat, shrinkage=0.01)(flat)).all()


def test_equal_vectors_are_refused_even_with_shrinkage() -> None:
    with pytest.raises(ValueError, match="50 vectors to fit are all the same"):
        PCAWhitening(INPUT_DIM, OUTPUT_DIM).fit(torch.ones(50, INPUT_DIM), shrinkage=0.1)


def test_values_that_are_not_finite_are_refused_and_counted() -> None:
    vectors = correlated_vectors(40)
    vectors[3, 2], vectors[7, 0] = float("nan"), float("inf")
    moments = CovarianceAccumulator(INPUT_DIM)
    with pytest.raises(ValueError, match="2 of 40 vectors"):
        moments.update(vectors)
    assert moments.count == 0


def test_wrong_dimensions_and_options_are_named(whitening: PCAWhitening, vectors: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="whitening to 11 dimensions, expected 1 to the input's 10"):
        PCAWhitening(10, 11)
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected \(n, 24\)"):
        whitening(torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected \(n, 24\)"):
        PCAWhitening(INPUT_DIM, OUTPUT_DIM).fit(torch.ones(2, 5))
    with pytest.raises(ValueError, match="moments are of dimension 3, the whitening takes 24"):
        PCAWhitening(INPUT_DIM, OUTPUT_DIM).fit_from_moments(CovarianceAccumulator(3))
    with pytest.raises(ValueError, match="shrinkage is -1"):
        PCAWhitening(INPUT_DIM, OUTPUT_DIM).fit(vectors, shrinkage=-1)
    with pytest.raises(ValueError, match="covariance of 0 vectors"):
        CovarianceAccumulator(3).covariance()


def test_a_file_gives_the_whitening_and_its_metadata_back(
    whitening: PCAWhitening, vectors: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "Weißung 1.safetensors"
    path.write_bytes(b"an older file")
    save_whitening(path, whitening, {"source": "180 photos", "count": 2000})
    loaded, metadata = load_whitening(path)
    assert metadata == {"source": "180 photos", "count": 2000, "input_dim": INPUT_DIM, "output_dim": OUTPUT_DIM}
    assert torch.equal(loaded(vectors), whitening(vectors))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_saving_refuses_what_could_not_be_used_later(whitening: PCAWhitening, tmp_path: Path) -> None:
    path = tmp_path / "whitening.safetensors"
    with pytest.raises(ValueError, match="not fitted"):
        save_whitening(path, PCAWhitening(4, 2), {"source": "", "count": 1})
    with pytest.raises(ValueError, match=r"lack \['count'\]"):
        save_whitening(path, whitening, {"source": "180 photos"})
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        save_whitening(tmp_path / "absent" / "w.safetensors", whitening, {"source": "", "count": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_older_file(
    whitening: PCAWhitening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "whitening.safetensors"
    path.write_bytes(b"an older file")

    def write_half(self: HashingWriter, data: bytes) -> int:
        self._stream.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HashingWriter, "write", write_half)
    with pytest.raises(OSError, match="No space left"):
        save_whitening(path, whitening, {"source": "", "count": 1})
    monkeypatch.undo()
    assert path.read_bytes() == b"an older file"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_corrupt_files_are_refused_by_name(whitening: PCAWhitening, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_whitening(tmp_path / "absent.safetensors")
    path = tmp_path / "whitening.safetensors"
    save_whitening(path, whitening, {"source": "", "count": 1})
    whole = path.read_bytes()
    for content in (b"", b"not a whitening at all", whole[:100], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"whitening\.safetensors is corrupt"):
            load_whitening(path)


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"mean": (4,)}, None, "has format None"),
        ({"mean": (4,)}, '{"input_dim": 4, "output_dim": 2}', r"holds \['mean'\]"),
        (
            {"mean": (4,), "projection": (2, 5)},
            '{"input_dim": 4, "output_dim": 2}',
            r"shape \(2, 5\), expected .*\(2, 4\)",
        ),
        ({"mean": (3,), "projection": (2, 4)}, '{"input_dim": 4, "output_dim": 2}', r"shape \(3,\) .*expected \(4,\)"),
        ({"mean": (4,), "projection": (2, 4)}, '{"input_dim": 4}', "does not describe its dimensions"),
        ({"mean": (4,), "projection": (2, 4)}, "{", "does not describe its dimensions"),
    ],
)
def test_files_of_another_content_are_refused_by_name(
    tensors: dict[str, tuple[int, ...]], header: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "foreign.safetensors"
    metadata = None if header is None else {"format": FILE_FORMAT, "metadata": header}
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path, metadata)
    with pytest.raises(ValueError, match=message) as error:
        load_whitening(path)
    assert str(path) in str(error.value)


def test_a_file_with_values_that_are_not_finite_is_refused(whitening: PCAWhitening, tmp_path: Path) -> None:
    broken = PCAWhitening(INPUT_DIM, OUTPUT_DIM)
    broken.load_state_dict(whitening.state_dict())
    broken.projection[0, 0] = float("nan")
    path = tmp_path / "broken.safetensors"
    save_whitening(path, broken, {"source": "", "count": 1})
    with pytest.raises(ValueError, match=r"broken\.safetensors holds values that are not finite"):
        load_whitening(path)


def test_blocks_are_whitened_apart_and_keep_their_weight() -> None:
    rng = torch.Generator().manual_seed(5)
    basis = torch.randn(10, 10, generator=rng).double()
    vectors = torch.randn(500, 10, generator=rng).double() @ basis
    vectors[:, 6:] *= 20  # the second map has far larger values
    moments = CovarianceAccumulator(10)
    moments.update(vectors)
    whitening = PCAWhitening(10, 5).fit_from_moments(moments, blocks=(6, 4))

    normalized = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()
    centred = normalized - normalized.mean(axis=0)
    parts = []
    for block, size in ((centred[:, :6], 5), (centred[:, 6:], 4)):
        left, singular, _ = np.linalg.svd(block, full_matrices=False)
        parts.append(left[:, :size] * np.sqrt(len(vectors)))
    joined = np.concatenate(parts, axis=1)
    left, singular, _ = np.linalg.svd(joined, full_matrices=False)
    expected = left[:, :5] * singular[:5]
    actual = whitening.project(vectors).double().numpy()
    # Up to the signs of its components, which products of pairs do not know; the scale of a covariance is n or n - 1.
    np.testing.assert_allclose(actual @ actual.T, expected @ expected.T, rtol=1e-2, atol=1e-2)
    assert torch.allclose(
        PCAWhitening(10, 5).fit_from_moments(moments, blocks=(10,)).projection,
        PCAWhitening(10, 5).fit_from_moments(moments).projection,
    )
