from __future__ import annotations

import pytest

from oesir_d2.index.results import RegionMatch, SearchResult
from oesir_d2.report.drawings import get_region_color
from oesir_d2.report.linking import (
    REGIONS_SHOWN,
    compute_iou,
    is_whole_photo,
    link_matches,
    select_matches,
)


def make_box(cell: int) -> tuple[float, float, float, float]:
    """One of any number of boxes that do not touch each other."""
    return (20.0 * cell, 0.0, 20.0 * cell + 10, 10.0)


def make_result(rank: int, *pairs: tuple[int, int, float]) -> SearchResult:
    """A result with matches (cell of the query, cell of the result, score)."""
    matches = [RegionMatch(make_box(query), make_box(database), score) for query, database, score in pairs]
    return SearchResult(rank, f"id{rank}", f"/photos/{rank}.jpg", 1 / rank, matches)


def make_objects(count: int) -> list[dict]:
    return [{"box": list(make_box(cell)), "score": 0.5, "class": None} for cell in range(count)]


def test_matches_of_one_region_are_shown_once():
    result = make_result(1, (0, 0, 0.7), (0, 1, 0.9), (1, 1, 0.8), (2, 2, 0.6))
    # (1, 1) lands on the same place as the better (0, 1), and (0, 0) starts from the same place.
    assert [match.score for match in select_matches(result.matches)] == [0.9, 0.6]


def test_overlapping_grid_cells_count_as_one_region():
    near = RegionMatch((0, 0, 100, 100), (0, 0, 100, 100), 0.9)
    shifted = RegionMatch((20, 0, 120, 100), (300, 0, 400, 100), 0.8)
    apart = RegionMatch((60, 0, 160, 100), (60, 0, 160, 100), 0.7)
    assert compute_iou(near.query_box, shifted.query_box) == pytest.approx(80 / 120)
    assert select_matches([near, shifted, apart]) == [near, apart]


def test_at_most_the_limit_and_no_weak_matches():
    result = make_result(1, (0, 0, 0.9), (1, 1, 0.8), (2, 2, 0.7), (3, 3, 0.6))
    assert [match.score for match in select_matches(result.matches)] == [0.9, 0.8, 0.7]
    weak = make_result(1, (0, 0, 0.9), (1, 1, 0.44))
    assert len(select_matches(weak.matches)) == 1
    assert select_matches([]) == []


def test_best_match_is_shown_also_if_its_score_is_negative():
    result = make_result(1, (0, 0, -0.2), (1, 1, -0.3))
    assert [match.score for match in select_matches(result.matches)] == [-0.2]


def test_regions_are_numbered_by_their_best_match_and_linked_by_color():
    results = [make_result(1, (2, 0, 0.9), (0, 1, 0.7)), make_result(2, (0, 0, 0.8))]
    regions, links = link_matches(make_objects(3), results)
    assert [region.box for region in regions] == [list(make_box(2)), list(make_box(0)), list(make_box(1))]
    assert [region.number for region in regions] == [1, 2, 3]
    assert [region.color for region in regions] == [get_region_color(i) for i in range(3)]
    assert [[(m.region.number, m.score) for m in matches] for matches in links] == [[(1, 0.9), (2, 0.7)], [(2, 0.8)]]
    assert links[0][1].region is links[1][0].region


def test_every_result_keeps_its_best_match_however_many_regions_that_takes():
    count = REGIONS_SHOWN + 4
    results = [make_result(i + 1, (i, 0, 0.9), ((i + 1) % count, 1, 0.8)) for i in range(count)]
    regions, links = link_matches(make_objects(count), results)
    assert len(regions) == count
    assert all(matches[0].score == 0.9 for matches in links)


def test_further_matches_are_shown_only_while_there_are_colors_left():
    results = [make_result(1, (0, 0, 0.9), (1, 1, 0.8), (2, 2, 0.7))]
    results += [make_result(i, (i + 1, 0, 0.6)) for i in range(2, 7)]
    regions, links = link_matches(make_objects(20), results)
    assert len(regions) == REGIONS_SHOWN
    # Six regions lead a result, which leaves a place for the better one of the first result's other two.
    assert [match.score for match in links[0]] == [0.9, 0.8]


def test_unmatched_objects_fill_the_remaining_places():
    regions, links = link_matches(make_objects(20), [])
    assert len(regions) == REGIONS_SHOWN and links == []
    regions, _ = link_matches(make_objects(2), [])
    assert [region.number for region in regions] == [1, 2]


def test_rounded_boxes_are_the_same_object_and_unknown_ones_are_added():
    x0, y0, x1, y1 = make_box(1)
    rounded = RegionMatch((x0 + 0.4, y0, x1 - 0.4, y1), make_box(0), 0.9)
    unknown = RegionMatch(make_box(7), make_box(5), 0.8)
    result = SearchResult(1, "id", "/photos/1.jpg", 0.9, [rounded, unknown])
    regions, _ = link_matches(make_objects(2), [result])
    assert [tuple(region.box) for region in regions] == [make_box(1), make_box(7), make_box(0)]
    assert [region.score for region in regions] == [0.5, None, 0.5]


@pytest.mark.parametrize(("given", "shown"), [("dog", "dog"), (16, "class 16"), (0, "class 0"), (-1, ""), (None, "")])
def test_category_of_a_region(given: object, shown: str):
    regions, _ = link_matches([{"box": [0, 0, 5, 5], "score": 1.0, "class": given}], [])
    assert regions[0].category == shown


def test_whole_photo_is_recognised_up_to_rounding():
    assert is_whole_photo((0, 0, 100, 50), 100, 50)
    assert is_whole_photo((-3, 0.1, 110, 50), 100, 50)
    assert not is_whole_photo((0, 0, 98, 50), 100, 50)
    assert not is_whole_photo((200, 200, 300, 250), 100, 50)


def test_iou_against_hand_computed_values():
    assert compute_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert compute_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert compute_iou((3, 3, 3, 3), (3, 3, 3, 3)) == 1
    assert compute_iou((3, 3, 3, 3), (4, 4, 4, 4)) == 0
