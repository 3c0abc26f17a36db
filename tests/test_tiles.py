"""Tiles: layout, the central tile of a prompt, and blending."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from sam_hf.tiles import blend_tiles, central_tiles, tile_boxes

SIZES = [(50, 70), (64, 64), (65, 64), (64, 65), (200, 64), (30, 300), (129, 257), (1000, 777)]


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 1 / 3, 0.5, 0.99])
def test_whole_tiles_cover_the_image_evenly_and_overlap(image_size, overlap):
    boxes = tile_boxes(image_size, 64, overlap)
    height, width = image_size
    assert len(set(boxes)) == len(boxes)
    for low, length in ((1, height), (0, width)):
        spans = sorted({(box[low], box[low + 2]) for box in boxes})
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert {end - start for start, end in spans} == {min(length, 64)}
        shared = [first[1] - second[0] for first, second in pairwise(spans)]
        assert all(pixels >= overlap * 64 or pixels == 63 for pixels in shared)
        assert not shared or max(shared) - min(shared) <= 1
        # One tile less would not do: its steps, in whole pixels, would not reach the end.
        assert len(spans) == 1 or (len(spans) - 2) * max(math.floor(64 - overlap * 64), 1) < length - 64
    rows, columns = ({(box[low], box[low + 2]) for box in boxes} for low in (1, 0))
    assert boxes == [(x1, y1, x2, y2) for y1, y2 in sorted(rows) for x1, x2 in sorted(columns)]


def test_an_image_that_fits_and_no_tile_size_are_one_tile():
    assert tile_boxes((64, 30), 64) == tile_boxes((64, 30), None) == [(0, 0, 30, 64)]


def test_a_layout_by_hand():
    assert tile_boxes((8, 22), 8) == [(0, 0, 8, 8), (4, 0, 12, 8), (9, 0, 17, 8), (14, 0, 22, 8)]


@pytest.mark.parametrize("tile_size", [0, -3, 2.5, True, "64"])
def test_tile_sizes_that_are_none(tile_size):
    with pytest.raises(ValueError, match="tile_size"):
        tile_boxes((10, 10), tile_size)


@pytest.mark.parametrize("overlap", [-0.1, 1, 2])
def test_overlaps_that_are_none(overlap):
    with pytest.raises(ValueError, match="overlap"):
        tile_boxes((10, 10), 4, overlap)


def naive_central_tile(x1, y1, x2, y2, boxes):
    height, width = max(box[3] for box in boxes), max(box[2] for box in boxes)

    def key(index):
        left, top, right, bottom = boxes[index]
        rooms = [x1 - left] * (left > 0) + [y1 - top] * (top > 0)
        rooms += [right - 1 - x2] * (right < width) + [bottom - 1 - y2] * (bottom < height)
        covered = max(min(x2 + 1, right) - max(x1, left), 0) * max(min(y2 + 1, bottom) - max(y1, top), 0)
        return covered, min(rooms, default=float("inf")), -index

    return max(range(len(boxes)), key=key)


@pytest.mark.parametrize("image_size", SIZES)
def test_central_tiles_of_points_and_boxes(image_size):
    boxes = tile_boxes(image_size, 64)
    height, width = image_size
    scale = torch.tensor([width, height, width, height])
    corners = torch.rand(300, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values
    drawn = (corners.flatten(1) * (scale - 1)).round()
    found = central_tiles(drawn, boxes)
    assert found.dtype == torch.int64
    assert found.tolist() == [naive_central_tile(*box, boxes) for box in drawn.tolist()]
    found = central_tiles(drawn[:, :2], boxes)
    assert found.tolist() == [naive_central_tile(*point, *point, boxes) for point in drawn[:, :2].tolist()]


def test_borders_of_the_image_do_not_count():
    boxes = [(0, 0, 8, 8), (4, 0, 12, 8), (8, 0, 16, 8)]
    # The first is one pixel from the border of the image in tile 0, three from the inner border of tile 1.
    points = torch.tensor([[1.0, 7.0], [5.0, 0.0], [5.5, 0.0], [6.0, 4.0], [15.0, -0.4]])
    assert central_tiles(points, boxes).tolist() == [0, 0, 0, 1, 2]
    wide = torch.tensor([[2.0, 0.0, 13.0, 5.0], [9.0, 0.0, 17.0, 9.0], [0.0, 0.0, 15.0, 7.0], [7.0, 1.0, 9.0, 3.0]])
    assert central_tiles(wide, boxes).tolist() == [1, 2, 1, 1]


def naive_blend(maps, boxes, image_size):
    height, width = image_size
    blended = torch.zeros(len(maps[0]), height, width)
    for y in range(height):
        for x in range(width):
            total = 0.0
            for tile, (x1, y1, x2, y2) in zip(maps, boxes, strict=True):
                if not (x1 <= x < x2 and y1 <= y < y2):
                    continue
                sides = [side for side, inner in ((x - x1, x1 > 0), (x2 - 1 - x, x2 < width)) if inner]
                ends = [side for side, inner in ((y - y1, y1 > 0), (y2 - 1 - y, y2 < height)) if inner]
                weight = ((min(sides) + 0.5) / (x2 - x1) if sides else 1) * (
                    (min(ends) + 0.5) / (y2 - y1) if ends else 1
                )
                blended[:, y, x] += weight * _bilinear(tile, (y - y1 + 0.5) / (y2 - y1), (x - x1 + 0.5) / (x2 - x1))
                total += weight
            blended[:, y, x] /= total
    return blended


def _bilinear(tile, down, right):
    height, width = tile.shape[1:]
    y, x = min(max(down * height - 0.5, 0), height - 1), min(max(right * width - 0.5, 0), width - 1)
    top, left = int(y), int(x)
    bottom, end = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = tile[:, top, left] * (1 - x + left) + tile[:, top, end] * (x - left)
    lower = tile[:, bottom, left] * (1 - x + left) + tile[:, bottom, end] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


@pytest.mark.parametrize("image_size", [(20, 33), (12, 30), (9, 10), (31, 12)])
def test_blending_by_the_pixel(image_size):
    boxes = tile_boxes(image_size, 12)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 5, 7, generator=generator) for _ in boxes]
    torch.testing.assert_close(blend_tiles(iter(maps), boxes, image_size), naive_blend(maps, boxes, image_size))


def test_a_single_tile_is_exactly_its_resized_map():
    tile = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(tile[None], (40, 30), mode="bilinear")[0]
    assert torch.equal(blend_tiles([tile], [(0, 0, 30, 40)], (40, 30)), expected)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
def test_a_linear_function_is_reproduced(overlap):
    y, x = torch.meshgrid(torch.arange(100.0), torch.arange(150.0), indexing="ij")
    plane = torch.stack([2 * x - 3 * y + 7, torch.ones_like(x)])
    boxes = tile_boxes((100, 150), 48, overlap)
    maps = [plane[:, y1:y2, x1:x2] for x1, y1, x2, y2 in boxes]
    torch.testing.assert_close(blend_tiles(maps, boxes, (100, 150)), plane)


def test_there_is_no_seam():
    """Tiles that disagree by 1 fade into each other, by one step of the overlap for each pixel."""
    boxes = tile_boxes((40, 70), 40)
    blended = blend_tiles([torch.full((1, 4, 4), float(index)) for index in range(len(boxes))], boxes, (40, 70))
    assert boxes == [(0, 0, 40, 40), (30, 0, 70, 40)]
    expected = torch.cat([torch.zeros(30), (torch.arange(10) + 0.5) / 10, torch.ones(30)])
    torch.testing.assert_close(blended, expected.expand(1, 40, 70))


def test_maps_and_tiles_that_disagree():
    with pytest.raises(ValueError):
        blend_tiles([torch.zeros(1, 4, 4)], tile_boxes((40, 70), 40), (40, 70))
    with pytest.raises(ValueError, match="empty"):
        blend_tiles([], [], (40, 70))
