"""How sure the evidence is, calibrated on splices of photos that no evaluation uses.

Of 90 splices with objects of 12 to 50 % of the long side, up to a hundred photos most similar to the object were
compared with it, in the matched region and as a whole: about 18,000 comparisons with photos that are no source, the
most similar there are, and 2,000 of whole queries. Three of them gave four inliers, one gave five, none more. Sources
gave 4 to 99, about as many times any number from 4 to 12 as any other. One in a hundred of such candidates is a source.
By Bayes' rule the odds of a source are then 2.3 with four inliers. Each further one is taken to divide the odds of an
accident by 5; the counts tell no more than that it is 3 or more.
"""

from __future__ import annotations

import math

# Of 300 such splices, 32,250 comparisons: 1,072 photos that are no source had three inliers or more. They look like the
# part with a correlation of at most 0.51, those of three inliers 0.72, and sources of four or more with one of
# 0.65 to 0.99. So looking alike counts for an inlier or two, and looking different against more.
_EVEN_CORRELATION = 0.57
_LOG_ODDS_PER_CORRELATION = 15.0
# The correlation of those that are no source spreads by 0.12 to 0.16 over more than 1,200 pixels, by 0.19, 0.22 and
# 0.31 over some 950, 550 and 300: about 5.2 through the root of their number. A small part must look the more alike.
_SPREAD_OF_PIXEL = 5.2
_SPREAD_OF_LARGE = 0.14

# Another photo of the same thing agrees in as many points as the source, but not pixel by pixel. 194 matches of such
# photos with parts cut out of their companions, from 11 pairs (monuments, stereo, exposures, a board that was moved),
# have a likeness of 0.70 at the median, and above 0.87 in 18 of 100, as have 98 of 100 of 223 sources. The logistic
# regression of the two, each counted alike, is even at 0.915 with a slope of 39. In mixed collections about one photo
# in a hundred has such a companion (of 385 photos six).
_EVEN_LIKENESS = 0.915 - math.log(100) / 39
_LOG_ODDS_PER_LIKENESS = 39.0

_CALIBRATED_INLIERS = 4
_LOG_ODDS = math.log(2.3)
_LOG_ODDS_PER_INLIER = math.log(5)

# A region of a recompressed photo that nothing was changed in hardly ever deviates from the original by more than the
# threshold of its seeds.
_DEVIATION_EVEN = 4.0
_DEVIATION_SCALE = 1.0


def match_confidence(inliers: int) -> float:
    """The probability that a match is no accident, from its number of inliers, in [0, 1]."""
    return _logistic(_count_inliers(inliers))


def copy_confidence(inliers: int, correlation: float, textured: int) -> float:
    """The probability that a match with a photo that the query surely shows is no accident, in [0, 1].

    Args:
        inliers: of the match.
        correlation: of its appearance with that of the part, in [-1, 1].
        textured: pixels that show it.
    """
    return _logistic(_weigh(inliers, correlation, textured))


def donor_confidence(inliers: int, correlation: float, likeness: float, textured: int) -> float:
    """The probability that a donor is neither an accident nor another photo of the same thing, in [0, 1].

    Args:
        inliers: of its match.
        correlation, likeness: of its appearance with that of the part, in [-1, 1]; see ``Appearance``.
        textured: pixels that show it.
    """
    same_photo = _LOG_ODDS_PER_LIKENESS * (likeness - _EVEN_LIKENESS)
    return 1 / (1 + math.exp(-_weigh(inliers, correlation, textured)) + math.exp(-same_photo))


def difference_confidence(deviation: float) -> float:
    """The probability that a region differs from its host by more than recompression.

    Args:
        deviation: mean over the region, see ``Difference``.
    """
    return _logistic((deviation - _DEVIATION_EVEN) / _DEVIATION_SCALE)


def _weigh(inliers: int, correlation: float, textured: int) -> float:
    """Log odds against an accident."""
    spread = _SPREAD_OF_PIXEL / math.sqrt(max(textured, 1))
    even = _EVEN_CORRELATION + max(0.0, spread - _SPREAD_OF_LARGE)
    return _count_inliers(inliers) + _LOG_ODDS_PER_CORRELATION * (correlation - even)


def _count_inliers(inliers: int) -> float:
    """Log odds."""
    return _LOG_ODDS + _LOG_ODDS_PER_INLIER * (inliers - _CALIBRATED_INLIERS)


def _logistic(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0
