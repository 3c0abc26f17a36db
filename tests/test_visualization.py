"""Pictures: what is drawn lands on the right pixels, in the right colour, and nowhere else."""

import numpy as np
import pytest
import torch
from PIL import Image

from sam_hf.visualization import (
    SheetRow,
    draw_boxes,
    draw_clicks,
    draw_masks,
    object_colors,
    prediction_sheet,
)

GREY = np.full((40, 60, 3), 100, dtype=np.uint8)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def square(top: int, left: int, side: int) -> torch.Tensor:
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def changed(picture: Image.Image) -> np.ndarray:
    """(top, left, bottom, right) of the pixels that differ from GREY, the last two inclusive."""
    y, x = np.nonzero((np.asarray(picture) != GREY).any(-1))
    return np.array((y.min(), x.min(), y.max(), x.max()))


def test_masks_tint_the_inside_and_outline_the_border():
    masks = torch.stack((square(5, 10, 11), square(25, 40, 11)))
    picture = np.asarray(draw_masks(GREY, masks, [RED, BLUE], alpha=0.5))
    assert picture[10, 15].tolist() == [178, 50, 50]  # halfway between grey and red
    assert picture[5, 10].tolist() == list(RED) and picture[15, 20].tolist() == list(RED)
    assert picture[30, 45].tolist() == [50, 50, 178]
    outside = ~masks.any(0).numpy()
    assert (picture[outside] == 100).all()
    assert (GREY == 100).all()


def test_a_mask_cut_by_the_image_has_no_contour_there():
    picture = np.asarray(draw_masks(GREY, square(0, 0, 11)[None], [RED], alpha=0.5))
    assert picture[0, 0].tolist() == [178, 50, 50]
    assert picture[5, 10].tolist() == list(RED)


@pytest.mark.parametrize("image", [GREY, GREY[..., 0], Image.fromarray(GREY), Image.fromarray(GREY[..., 0])])
def test_images_come_in_any_form_and_leave_as_rgb(image):
    picture = draw_masks(image, np.zeros((0, 40, 60), bool))
    picture = draw_boxes(draw_clicks(picture, [], []), np.zeros((0, 4)))
    assert (picture.mode, picture.size) == ("RGB", (60, 40))
    assert (np.asarray(picture) == GREY).all()


def test_clicks_are_centred_discs_by_label_and_padding_is_not_drawn():
    points, labels = torch.tensor([[30.0, 20.0], [0.0, 0.0], [9.0, 9.0]]), torch.tensor([1, -10, -1])
    picture = draw_clicks(GREY, points, labels)
    red, green, blue = np.asarray(picture)[20, 30]
    assert green > max(red, blue)
    top, left, bottom, right = changed(picture)
    assert (top + bottom, left + right) == (2 * 20, 2 * 30)
    red, green, blue = np.asarray(draw_clicks(GREY, [[30, 20]], [0]))[20, 30]
    assert red > max(green, blue)


def test_boxes_outline_their_corner_pixels_and_absent_ones_are_skipped():
    boxes = torch.tensor([[5.0, 7.0, 50.0, 30.0], [float("nan")] * 4])
    picture = draw_boxes(GREY, boxes, [RED, BLUE])
    assert changed(picture).tolist() == [7, 5, 30, 50]
    assert np.asarray(picture)[7, 5].tolist() == list(RED)
    assert np.asarray(picture)[15, 25].tolist() == [100] * 3


def test_the_image_given_is_not_drawn_on():
    image = Image.fromarray(GREY)
    draw_clicks(image, [[30, 20]], [1])
    draw_boxes(image, [[5, 7, 50, 30]])
    draw_masks(image, square(5, 10, 11)[None])
    assert (np.asarray(image) == 100).all()


def test_object_colors_are_distinct_and_stable():
    colors = object_colors(30)
    assert len(set(colors)) == 30
    assert object_colors(5) == colors[:5]


def sheet_row(**changes) -> SheetRow:
    predictions = {1: square(10, 20, 10), 3: square(10, 20, 20)}
    return SheetRow(
        **{
            "image": GREY,
            "target": square(10, 20, 10),
            "predictions": predictions,
            "points": torch.tensor([[25.0, 15.0], [0.0, 0.0], [38.0, 28.0]]),
            "labels": torch.tensor([1, -10, 0]),
        }
        | changes
    )


def test_sheet_has_a_row_per_object_and_a_column_per_number_of_clicks(monkeypatch):
    captions = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, xy, text, **_: captions.append((xy, text)))
    sheet = prediction_sheet(
        [sheet_row(), sheet_row(predictions={5: torch.zeros(40, 60, dtype=torch.bool)})], cell_size=200
    )
    texts = [text for _, text in captions]
    assert texts == [
        *("image", "ground truth", "1 click, IoU 1.00", "3 clicks, IoU 0.25", ""),
        *("image", "ground truth", "", "", "5 clicks, IoU 0.00"),
    ]
    assert sheet.width >= 5 * 200 and sheet.height >= 2 * 200
    assert all(xy[0] < sheet.width and xy[1] < sheet.height - 10 for xy, _ in captions)


def test_sheet_magnifies_small_objects_and_keeps_clicks_in_place():
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    mask = torch.zeros(256, 256, dtype=torch.bool)
    mask[200:216, 100:116] = True
    row = SheetRow(image, mask, {1: mask}, [[107.5, 207.5]], [1])
    cell = np.asarray(prediction_sheet([row], cell_size=288))[6 : 6 + 288, 6 + 2 * 294 : 6 + 2 * 294 + 288]
    blue = cell[..., 2].astype(int) - cell[..., 0] > 50
    assert blue.sum() > 20 * mask.sum()
    y, x = np.nonzero(blue)
    green = (cell[..., 1].astype(int) - cell[..., 2] > 50) & (cell[..., 0] < 150)
    click_y, click_x = (axis.mean() for axis in np.nonzero(green))
    assert abs(click_y - (y.min() + y.max()) / 2) < 1 and abs(click_x - (x.min() + x.max()) / 2) < 1


def test_sheet_shows_dark_images():
    dark = np.random.default_rng(0).integers(0, 12, (40, 60, 3), dtype=np.uint8)
    sheet = np.asarray(prediction_sheet([sheet_row(image=dark)], cell_size=200))
    assert sheet[6:150, 6:150].max() > 200


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: draw_masks(GREY, torch.zeros(40, 60, dtype=torch.bool)), r"masks must be \[N, 40, 60\]"),
        (lambda: draw_masks(GREY, np.zeros((1, 60, 40), bool)), r"got \[1, 60, 40\]"),
        (lambda: draw_masks(GREY, np.zeros((2, 40, 60), bool), [RED]), "colors must hold"),
        (lambda: draw_clicks(GREY, [[1, 2], [3, 4]], [1]), "labels must hold one value for each of 2 points"),
        (lambda: draw_boxes(GREY, [1, 2, 3, 4]), r"boxes must be \[N, 4\]"),
        (lambda: draw_boxes(GREY, [[1, 2, 3, 4]] * 2, [RED]), "colors must hold"),
        (lambda: prediction_sheet([]), "rows is empty"),
        (
            lambda: prediction_sheet([sheet_row(target=np.zeros((60, 40), bool))]),
            r"target must be \[40, 60\]",
        ),
        (
            lambda: prediction_sheet([sheet_row(predictions={3: np.zeros((9, 9), bool)})]),
            r"predictions\[3\]",
        ),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
