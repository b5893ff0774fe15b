"""Fitting a whitening on photos, against scikit-learn's PCA of the same pooled vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from sklearn.decomposition import PCA

from oesir_d2.data import ImageFile
from oesir_d2.engine import whitening_fit
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.whitening_fit import choose_photos, fit_whitening
from oesir_d2.layers import save_whitening

DIMENSION = 6


def pool(embedder: Embedder, photos: list[ImageFile]) -> np.ndarray:
    return np.concatenate([embedder.embed(file).embeddings.vectors for file in photos])


@pytest.mark.parametrize("vectors_an_update", [1024, 10])
def test_fit_is_the_pca_of_all_regions(
    vectors_an_update: int,
    cfg: CfgNode,
    embedder: Embedder,
    photos: list[ImageFile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(whitening_fit, "VECTORS_AN_UPDATE", vectors_an_update)
    whitening, counts = fit_whitening(cfg, photos, DIMENSION)
    pooled = pool(embedder, photos)
    assert counts == {"photos": 6, "regions": len(pooled), "skipped": 0}
    pca = PCA(DIMENSION, whiten=True, svd_solver="full").fit(pooled.astype(np.float64))
    np.testing.assert_allclose(whitening.mean.numpy(), pca.mean_, atol=1e-6)
    expected = pca.components_ / np.sqrt(pca.explained_variance_)[:, None]
    signs = np.sign((whitening.projection.numpy() * expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(whitening.projection.numpy(), expected * signs, rtol=1e-3, atol=1e-3)


def test_fitted_whitening_whitens_the_model_s_embeddings(
    cfg: CfgNode, embedder: Embedder, photos: list[ImageFile], tmp_path: Path
) -> None:
    whitening, counts = fit_whitening(cfg, photos, DIMENSION)
    save_whitening(tmp_path / "w.safetensors", whitening, {"source": "test", "count": counts["regions"]})
    cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM = DIMENSION
    cfg.MODEL.OESIR.EMBEDDING.WHITENING = str(tmp_path / "w.safetensors")
    vectors = Embedder(cfg).embed(photos[0]).embeddings.vectors
    pca = PCA(DIMENSION, whiten=True, svd_solver="full").fit(pool(embedder, photos).astype(np.float64))
    expected = pca.transform(pool(embedder, photos[:1]))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    # Inner products do not depend on the signs of the components.
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-3)


def test_whitening_of_the_config_has_no_part_in_a_new_fit(cfg: CfgNode, photos: list[ImageFile]) -> None:
    expected, _ = fit_whitening(cfg, photos, DIMENSION)
    cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM = 64
    cfg.MODEL.OESIR.EMBEDDING.WHITENING = "no/such/file.safetensors"
    whitening, _ = fit_whitening(cfg, photos, DIMENSION)
    assert np.array_equal(whitening.projection.numpy(), expected.projection.numpy())
    assert cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM == 64, "the caller's config was changed"


def test_unreadable_photos_are_counted(cfg: CfgNode, photos: list[ImageFile], tmp_path: Path) -> None:
    expected, _ = fit_whitening(cfg, photos, DIMENSION)
    missing = ImageFile("gone", tmp_path / "gone.png")
    whitening, counts = fit_whitening(cfg, [missing, *photos], DIMENSION)
    assert (counts["photos"], counts["skipped"]) == (6, 1)
    assert np.array_equal(whitening.projection.numpy(), expected.projection.numpy())
    with pytest.raises(ValueError, match="none of the 1 photos could be read"):
        fit_whitening(cfg, [missing], DIMENSION)


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        (0, "dimension 0 is not possible; allowed: 1 to 112"),
        (113, "dimension 113 is not possible; allowed: 1 to 112"),
        (60, r"needs more than 60 vectors, got 51"),
    ],
)
def test_impossible_dimension_is_refused(dimension: int, words: str, cfg: CfgNode, photos: list[ImageFile]) -> None:
    with pytest.raises(ValueError, match=words):
        fit_whitening(cfg, photos, dimension)


def test_shrinkage_reaches_the_fit(cfg: CfgNode, photos: list[ImageFile]) -> None:
    plain, _ = fit_whitening(cfg, photos, DIMENSION)
    damped, _ = fit_whitening(cfg, photos, DIMENSION, shrinkage=1.0)
    assert (damped.projection.norm(dim=1) < plain.projection.norm(dim=1)).all()


def test_photos_are_drawn_at_random_in_their_order_by_a_seed() -> None:
    files = [ImageFile(str(index), Path(str(index))) for index in range(50)]
    drawn = choose_photos(files, 10, seed=3)
    numbers = [int(file.image_id) for file in drawn]
    assert len(set(numbers)) == 10 and numbers == sorted(numbers)
    assert numbers != list(range(10))
    assert choose_photos(files, 10, seed=3) == drawn != choose_photos(files, 10, seed=4)
    assert choose_photos(files, 50, seed=3) == choose_photos(files, 99, seed=3) == files
