"""The colours of a source fitted to those of a query: filters, tints, and photos without colour.

Colours are CIE Lab here, float32. Each channel is told from five values of the source, its own three colours, the grey
that it becomes and a curve of its lightness, by a regression that passes over what was pasted. Shape shorthand: H, W of
the query; P sampled pixels; C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Pixels that the colours are fitted on; more change nothing.
_SAMPLES = 5_000
_ROUNDS = 4
# Standard deviation of the blur that they are averaged with, in pixels.
_BLUR = 4.0
# Positions of the regressors that a lightness may be told from: the source's own, and that of the grey it becomes.
_LIGHTNESS, _GREY = 0, 3
# Pulls a channel towards its own unchanged value where the source hardly varies, so that a photo of one colour and some
# noise tells its offset alone. A variance, in squared units of CIE Lab.
_PRIOR = 0.1
# Of lightness no filter leaves less or makes more of; colour may vanish.
_LIGHTNESS_GAIN = (0.5, 2.0)
_COLOUR_GAIN = (0.0, 2.0)
# How far green-red and blue-yellow may lie from a tint that the lightness tells, where a photo shows no colour.
_TINT_ERROR = 4.0
# Recompression moves what a filter has clipped by so many levels, and a conversion there and back a colour by so much.
_NEAR_BOUNDS = 24
_CONVERSION_ERROR = 1.0
# Share of a photo without colour in which nothing has any, and of one in which a thing may have been pasted.
_ALL = 0.98
_MOST = 0.8


def to_lab(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB in CIE Lab, float32."""
    return cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def fit_colours(query: np.ndarray, source: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both photos in CIE Lab, their colours fitted to each other; pasted parts are left out as outliers.

    Of a grey copy of a colour photo, the lightness is left to compare, and any colour that is no tint differs. Of a
    colour photo whose grey copy was indexed, the lightness alone.

    Args:
        query: (H, W, 3) uint8 RGB.
        source: (H, W, 3) uint8 RGB, laid over the query.
        used: (H, W) bool, where the source has pixels and most of the query shows it; at least 16 pixels.

    Returns:
        The query and the source, (H, W, 3) float32.
    """
    query_lab, regressors = to_lab(query), _make_regressors(source)
    samples = _Samples(used)
    y, x = samples(query_lab), samples(regressors)
    query_tint, source_tint = _Tint.fit(y), _Tint.fit(x[:, :3])
    if source_tint.share >= _ALL and query_tint.share < _MOST:
        # What lightness a colour becomes can be told, not the reverse.
        of_query = _make_regressors(query)
        lightness = _predict(of_query, *_regress(samples(of_query), x[:, 0], _GREY))
        return _as_lightness(lightness), _as_lightness(regressors[..., 0])
    if query_tint.share >= _ALL and source_tint.share < _ALL:
        lightness = _predict(regressors, *_regress(x, y[:, 0], _GREY))
        tinted = np.concatenate([lightness[..., None], query_tint.apply(query_lab)], axis=2)
        return query_lab, _clip(tinted, query)
    channels = [_predict(regressors, *_regress(x, y[:, channel], channel)) for channel in range(3)]
    return query_lab, _clip(np.stack(channels, axis=2), query)


class _Samples:
    """Averages of a photo at places spread over its used pixels.

    Recompression flattens fine colour, so that on single pixels a gain below 1 would fit best, and what is colourful
    would differ. Averages keep their colour.
    """

    def __init__(self, used: np.ndarray) -> None:
        self._used = used.astype(np.float32)[..., None]
        self._weight = np.maximum(cv2.GaussianBlur(self._used, (0, 0), _BLUR), 1e-6)[..., None]
        places = np.flatnonzero(used)
        self._places = places[:: max(1, len(places) // _SAMPLES)]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Of (H, W, C) float32: (P, C) float64."""
        averages = cv2.GaussianBlur(values * self._used, (0, 0), _BLUR).reshape(values.shape) / self._weight
        return averages.reshape(-1, values.shape[2])[self._places].astype(np.float64)


@dataclass(frozen=True)
class _Tint:
    """The colour that the lightness alone tells: that of a grey photo, or of a tinted one.

    Attributes:
        weights: (3, 2) float64, of ``_expand`` to green-red and blue-yellow.
        share: of the samples that have this colour, in [0, 1].
    """

    weights: np.ndarray
    share: float

    @classmethod
    def fit(cls, lab: np.ndarray) -> _Tint:
        """To samples (P, 3)."""
        kept = np.ones(len(lab), bool)
        for _ in range(_ROUNDS):
            weights = np.linalg.lstsq(_expand(lab[kept]), lab[kept, 1:], rcond=None)[0]
            errors = np.linalg.norm(lab[:, 1:] - _expand(lab) @ weights, axis=1)
            kept = errors <= max(2.5 * float(np.median(errors)), 0.5)
        return cls(weights, float((errors <= _TINT_ERROR).mean()))

    def apply(self, lab: np.ndarray) -> np.ndarray:
        """The two colours of (H, W, 3) as the lightness tells them, (H, W, 2) float32."""
        return (_expand(lab) @ self.weights.astype(np.float32)).astype(np.float32)


def _expand(lab: np.ndarray) -> np.ndarray:
    """Powers of the lightness, (..., 3)."""
    lightness = lab[..., 0] / 100
    return np.stack([np.ones_like(lightness), lightness, lightness**2], axis=-1)


def _make_regressors(pixels: np.ndarray) -> np.ndarray:
    """What the channels are told from, (H, W, 5) float32: three colours, the lightness of their grey, and a curve.

    The grey is the luma of video and JPEG, which is darker than a saturated colour. The curve is a parabola: filters
    bend the lightness.
    """
    lab = to_lab(pixels)
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    lightness = to_lab(levels)[:, 0, 0][cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)]
    curve = (lab[..., 0] - 50) ** 2 / 50
    return np.dstack([lab, lightness, curve])


def _predict(regressors: np.ndarray, weights: np.ndarray, offset: float) -> np.ndarray:
    """(H, W) float32 from regressors (H, W, 5)."""
    return regressors @ weights.astype(np.float32) + np.float32(offset)


def _regress(x: np.ndarray, y: np.ndarray, unchanged: int) -> tuple[np.ndarray, float]:
    """Ridge regression of y (P,) on x (P, C) towards one column of it, outliers left out: weights (C,), and offset."""
    prior = np.eye(x.shape[1])[unchanged]
    weights, offset = prior, float(np.median(y - x[:, unchanged]))
    for _ in range(_ROUNDS):
        residuals = np.abs(y - x @ weights - offset)
        kept = residuals <= 2.5 * max(float(np.median(residuals)), 0.2)
        mean_x, mean_y = x[kept].mean(axis=0), float(y[kept].mean())
        centred = x[kept] - mean_x
        covariance = centred.T @ centred / len(centred) + _PRIOR * np.eye(len(prior))
        weights = np.linalg.solve(covariance, centred.T @ (y[kept] - mean_y) / len(centred) + _PRIOR * prior)
        weights = _bound(weights, unchanged)
        offset = float(mean_y - mean_x @ weights)
    return weights, offset


def _bound(weights: np.ndarray, unchanged: int) -> np.ndarray:
    """Weights that some filter can have: lightness keeps its contrast, colour may lose its own."""
    weights = weights.copy()
    if unchanged in (_LIGHTNESS, _GREY):
        gain = weights[_LIGHTNESS] + weights[_GREY]
        # Both rise and fall together, so either of them can make up for what is missing.
        weights[_LIGHTNESS] += np.clip(gain, *_LIGHTNESS_GAIN) - gain
    else:
        weights[unchanged] = np.clip(weights[unchanged], *_COLOUR_GAIN)
    return weights


def _clip(fitted: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Fitted colours (H, W, 3) as a photo can show them, where the query (H, W, 3) uint8 RGB is at its bounds.

    A filter makes white of all that is lighter, and so on.
    """
    fitted = fitted.astype(np.float32)
    within = (_NEAR_BOUNDS + 1,) * 3, (255 - _NEAR_BOUNDS - 1,) * 3
    at_bounds = cv2.inRange(query, *within) == 0
    if at_bounds.any():
        colours = fitted[at_bounds][None]
        # OpenCV clips between the two.
        shown = cv2.cvtColor(cv2.cvtColor(colours, cv2.COLOR_Lab2RGB), cv2.COLOR_RGB2Lab)
        is_clipped = np.abs(shown - colours).max(axis=2, keepdims=True) > _CONVERSION_ERROR
        fitted[at_bounds] = np.where(is_clipped, shown, colours)[0]
    return fitted


def _as_lightness(lightness: np.ndarray) -> np.ndarray:
    """(H, W) as colours without any, (H, W, 3)."""
    nothing = np.zeros_like(lightness)
    return np.stack([lightness, nothing, nothing], axis=2)
