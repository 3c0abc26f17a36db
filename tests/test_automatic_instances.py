"""`MaskGenerator` with an instance decoder: of a stub that knows all objects, whole and in tiles, and of models."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from label_scenes import best_ious, discs
from pycocotools import mask as coco
from test_mask_generation_pipeline import attentive_model, colours, our_processor
from torch import Tensor

from sam_hf import SamHfImageProcessor, SamHfProcessor
from sam_hf.automatic import MaskGenerator
from sam_hf.image_processing_sam_hf import map_thresholds
from sam_hf.masks import encode_rle, mask_boxes, shared_pixels, suppress_overlaps
from sam_hf.tiles import tile_boxes
from sam_hf.training.instance_targets import instance_targets

KEYS = ["segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"]


class Oracle:
    """A model that sees in the red of an image which object a pixel is of, and answers with it, exactly.

    Patches are of 4 pixels, so that the mask grid is that of the input. Of the candidates of a click, 0 takes no part
    and is rated best, and 2 is right, with the IoU that the green of the clicked pixel says.
    """

    training, device, instance_decoder = False, torch.device("cpu"), object()
    mask_decoder = SimpleNamespace(candidates=lambda multimask_output: slice(1, None))

    def __init__(self) -> None:
        self.encoded: list[tuple[int, int]] = []
        self.clicked = 0

    def get_image_embeddings(self, pixel_values: Tensor) -> list[Tensor]:
        self.encoded.append(tuple(pixel_values.shape[-2:]))
        pixels = (255 * pixel_values).round()
        return [pixels, torch.zeros(1, 1, *(side // 4 for side in pixels.shape[-2:]))]

    def get_instance_maps(self, embeddings: list[Tensor]) -> Tensor:
        labels = embeddings[0][0, 0].int().numpy()
        return torch.from_numpy(instance_targets(labels, labels.shape))[None]

    def decode(self, embeddings: list[Tensor], points: Tensor, labels: Tensor, keep) -> tuple[Tensor, Tensor, None]:
        assert points.shape == (1, len(points[0]), 1, 2) and (labels == 1).all()
        x, y = points[0, :, 0].long().unbind(1)
        self.clicked += len(x)
        red, green, _ = embeddings[0][0]
        right = torch.where(red == red[y, x][:, None, None], 9.0, -9.0)
        right[red[y, x] == 0] = -9.0
        wrong = torch.full_like(right, 9.0)
        scores = torch.tensor([0.99, 0.001, 0.0, 0.002]).repeat(len(x), 1)
        scores[:, 2] = green[y, x] / 255
        candidates = torch.stack([wrong, wrong, right, wrong], dim=1)
        return candidates[keep(scores[None])[0]], scores[None], None


def scene_image(labels: np.ndarray, rating: int | np.ndarray = 230) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.stack([labels, np.zeros_like(labels) + rating, labels], axis=-1).astype(np.uint8))


def oracle_processor(edge: int, **options) -> SamHfImageProcessor:
    size = {"longest_edge": edge}
    nearest = {"do_normalize": False, "resample": PIL.Image.Resampling.NEAREST}
    return SamHfImageProcessor(size=size, mask_size=size, **nearest, **options)


def find(labels: np.ndarray, edge: int = 640, tile_size: int | None = None, rating=230, **options) -> list[dict]:
    generator = MaskGenerator(Oracle(), oracle_processor(edge, tile_size=tile_size), **options)
    return generator(scene_image(labels, rating))


def label_map(records: list[dict]) -> np.ndarray:
    """Of masks that must not overlap."""
    masks = np.array([record["segmentation"] for record in records])
    assert masks.sum(0).max() <= 1
    return (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(0)


def assert_found(records: list[dict], labels: np.ndarray, least: float = 1.0) -> None:
    """All objects, once, with the keys of the grid; the click of each lies in it."""
    assert len(records) == labels.max()
    assert best_ious(labels, label_map(records)).min() >= least
    for record in records:
        assert list(record) == KEYS
        mask = record["segmentation"]
        ((x, y),) = record["point_coords"]
        assert mask.shape == labels.shape and mask.dtype == bool and mask[int(y), int(x)]
        assert record["area"] == mask.sum()
        x1, y1, x2, y2 = mask_boxes(torch.from_numpy(mask)).tolist()
        assert record["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    scores = [record["predicted_iou"] for record in records]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(("prompts", "least"), [(None, 1.0), ("instances", 1.0), ("watershed", 0.85)])
def test_all_objects_are_found_once(prompts, least):
    labels = discs(60, (300, 400), (6, 25))
    records = find(labels, 400, prompts=prompts)
    assert_found(records, labels, least)
    assert records[0]["crop_box"] == [0, 0, 400, 300]
    score = 1.0 if prompts == "watershed" else 230 / 255
    assert [record["predicted_iou"] for record in records] == pytest.approx([score] * len(records))
    assert {record["stability_score"] for record in records} == {1.0}


@pytest.mark.parametrize("prompts", ["instances", "watershed"])
def test_padding_and_resizing_are_undone(prompts):
    labels = discs(20, (150, 200), (12, 20), gap=4)
    for edge in (100, 400):
        records = find(labels, edge, prompts=prompts)
        assert len(records) == labels.max()
        assert best_ious(labels, label_map(records)).min() > 0.8


TILED = discs(120, (500, 640), (4, 15), seed=1)


@pytest.mark.parametrize(("prompts", "least"), [("instances", 1.0), ("watershed", 0.75)])
def test_objects_in_tiles_are_those_without(prompts, least):
    whole, tiled = find(TILED, 640, prompts=prompts), find(TILED, 256, 256, prompts=prompts)
    assert_found(whole, TILED, least)
    assert_found(tiled, TILED, least)
    assert best_ious(label_map(whole), label_map(tiled)).min() >= least
    if prompts == "instances":
        masks = [{record["segmentation"].tobytes() for record in records} for records in (whole, tiled)]
        assert masks[0] == masks[1]
        tiles = {(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in tile_boxes(TILED.shape, 256)}
        assert {tuple(record["crop_box"]) for record in tiled} == tiles


def test_each_tile_is_encoded_once_and_each_center_clicked_once():
    model = Oracle()
    MaskGenerator(model, oracle_processor(256, tile_size=256))(scene_image(TILED))
    assert model.encoded == [(256, 256)] * len(tile_boxes(TILED.shape, 256)) and model.clicked == TILED.max()


def test_an_object_that_no_tile_holds_is_answered_in_a_larger_one():
    labels = np.zeros((500, 640), dtype=int)
    labels[40:60, 30:620] = 1
    labels[100:480, 100:460] = 2
    labels[90:110, 560:580] = 3
    records = find(labels, 256, 256)
    # The larger views have fewer pixels than the image.
    assert len(records) == 3
    assert best_ious(labels, label_map(records)).min() > 0.85
    widths = sorted((record["area"], record["crop_box"][2]) for record in records)
    assert [width for _, width in widths] == [256, 640, 512]


def test_the_grid_is_in_every_tile_and_what_a_tile_cuts_is_dropped():
    labels = discs(10, (200, 300), (8, 11), gap=1)
    model, options = Oracle(), {"prompts": "grid", "points_per_side": 10}
    tiled = MaskGenerator(model, oracle_processor(128, tile_size=128), **options)(scene_image(labels))
    assert model.clicked == 100 * len(tile_boxes(labels.shape, 128)) == 600
    whole = find(labels, 300, prompts="grid", points_per_side=24)
    assert_found(whole, labels)
    assert {record["segmentation"].tobytes() for record in tiled} <= {
        record["segmentation"].tobytes() for record in whole
    }
    # The tolerance of crops takes those for cut that are near a border of all their tiles.
    assert labels.max() - 3 <= len(tiled) < 600
    wide = np.zeros_like(labels)
    wide[40:60, 30:280] = 1
    assert find(wide, 128, 128, **options) == []


def test_of_duplicates_from_two_tiles_the_better_stays():
    labels = np.zeros((100, 160), dtype=int)
    labels[40:60, 70:90] = 1
    rating = np.full(labels.shape, 240)
    rating[:, 80:] = 250
    records = find(labels, 128, 128, rating, prompts="grid", points_per_side=9)
    assert len(records) == 1 and records[0]["predicted_iou"] == pytest.approx(250 / 255)


def test_filters_see_the_predicted_iou_and_are_off_unless_given():
    labels = discs(20, (200, 200), (8, 12), gap=2)
    ratings = 5 * labels
    records = find(labels, 200, rating=ratings)
    assert len(records) == labels.max() and records[-1]["predicted_iou"] == pytest.approx(5 / 255)
    generator = MaskGenerator(Oracle(), oracle_processor(200, pred_iou_thresh=0.9, stability_score_thresh=1.1))
    assert len(generator(scene_image(labels, ratings))) == labels.max()
    limit = (5 * labels.max() // 2) / 255 + 1e-3
    above = find(labels, 200, rating=ratings, pred_iou_thresh=limit)
    assert len(above) == sum(record["predicted_iou"] > limit for record in records) not in (0, len(records))
    assert find(labels, 200, rating=ratings, stability_score_thresh=1.0) != []
    assert find(labels, 200, rating=ratings, stability_score_thresh=1.1) == []


@pytest.mark.parametrize("prompts", ["instances", "watershed"])
def test_the_certainty_of_maps_ranks(prompts, monkeypatch):
    """The mean foreground of an object, or of its inner part; for clicks with the predicted IoU."""
    labels = np.zeros((60, 120), dtype=int)
    labels[10:30, 10:30], labels[10:30, 40:60], labels[10:30, 70:90] = 1, 2, 3
    certainty = np.array([0.0, 0.7, 0.9, 0.8])

    def unsure(self: Oracle, embeddings: list[Tensor]) -> Tensor:
        maps = exact(self, embeddings)
        maps[0, 0] *= torch.from_numpy(certainty[embeddings[0][0, 0].int()]).float()
        return maps

    exact = Oracle.get_instance_maps
    monkeypatch.setattr(Oracle, "get_instance_maps", unsure)
    records = find(labels, 120, prompts=prompts)
    factor = 1.0 if prompts == "watershed" else 230 / 255
    assert [record["predicted_iou"] for record in records] == pytest.approx([0.9 * factor, 0.8 * factor, 0.7 * factor])
    assert [record["bbox"][0] for record in records] == [40, 70, 10]
    assert len(find(labels, 120, prompts=prompts, foreground_thresh=0.75)) == 2
    assert find(labels, 120, prompts=prompts, foreground_thresh=0.95) == []
    assert find(labels, 120, prompts=prompts, seed_thresh=0.999) != []
    processor = oracle_processor(120, foreground_thresh=0.85)
    assert len(MaskGenerator(Oracle(), processor, prompts=prompts)(scene_image(labels))) == 1
    assert len(MaskGenerator(Oracle(), processor, prompts=prompts, foreground_thresh=0)(scene_image(labels))) == 3


def test_thresholds_of_maps_are_the_given_ones_then_those_of_the_processor():
    processor = our_processor(foreground_thresh=0.3, seed_thresh=0.0)
    assert map_thresholds(processor) == (0.3, 0.0)
    assert map_thresholds(processor, 0.0, 0.7) == (0.0, 0.7)
    assert map_thresholds(SimpleNamespace()) == map_thresholds(our_processor()) == (0.5, 0.5)


def test_two_centers_of_one_object_find_it_once(monkeypatch):
    labels = np.zeros((80, 120), dtype=int)
    labels[10:60, 10:60], labels[10:60, 60:110] = 1, 2
    split = labels.copy()
    split[36:60, 10:60] = 3  # the maps see three objects, the clicks two
    maps = torch.from_numpy(instance_targets(split, split.shape))[None]
    padded = torch.zeros(1, 3, 120, 120)
    padded[..., :80, :] = maps
    monkeypatch.setattr(Oracle, "get_instance_maps", lambda self, embeddings: padded)
    records = find(labels, 120)
    assert_found(records, labels)
    # The mask with two centers is worth half.
    assert [record["predicted_iou"] for record in records] == pytest.approx([230 / 255, 115 / 255])
    assert len(find(labels, 120, prompts="watershed")) == 3
    assert len(find(labels, 120, box_nms_thresh=1.0)) == 3


def test_a_mask_of_everything_does_not_suppress_the_objects_in_it(monkeypatch):
    """The click on object 1 is answered by all of the image, with the best predicted IoU."""
    labels = discs(12, (120, 120), (8, 14), gap=1)
    rating = np.where(labels == 1, 250, 200)
    decode = Oracle.decode

    def answer(self: Oracle, embeddings: list[Tensor], points: Tensor, *args, **options):
        logits, scores, rest = decode(self, embeddings, points, *args, **options)
        x, y = points[0, :, 0].long().unbind(1)
        logits[embeddings[0][0, 0, y, x] == 1] = 9.0
        return logits, scores, rest

    monkeypatch.setattr(Oracle, "decode", answer)
    records = find(labels, 120, rating=rating)
    assert len(records) == labels.max() - 1 and max(record["area"] for record in records) < 1000


@pytest.mark.parametrize("prompts", ["instances", "watershed"])
def test_holes_and_islands_are_cleaned_without_suppression(prompts):
    labels = np.zeros((100, 100), dtype=int)
    labels[10:50, 10:90], labels[50:90, 10:90] = 1, 2
    labels[20:23, 60:63] = 0
    records = find(labels, 100, prompts=prompts, min_mask_region_area=20)
    full = np.where(labels == 0, 0, labels)
    full[20:23, 60:63] = 1
    assert_found(records, full, 0.97)
    assert sorted(record["area"] for record in find(labels, 100, prompts="instances")) == [3191, 3200]


@pytest.mark.parametrize("prompts", ["instances", "watershed"])
@pytest.mark.parametrize("tile_size", [None, 64])
def test_an_image_without_objects_has_no_records(prompts, tile_size):
    assert find(np.zeros((80, 130), dtype=int), 64, tile_size, prompts=prompts) == []


@pytest.mark.parametrize("prompts", ["instances", "watershed", "grid"])
def test_run_lengths_and_several_images(prompts, capsys):
    labels = discs(12, (90, 120), (8, 14), gap=1)
    options = {"prompts": prompts} | ({"points_per_side": 12} if prompts == "grid" else {})
    generator = MaskGenerator(Oracle(), oracle_processor(120), output_mode="coco_rle", **options)
    one, other = generator([scene_image(labels), scene_image(labels.T)], show_progress=True)
    masks = find(labels, 120, **options)
    assert len(one) == len(masks) == labels.max() and len(other) > 0
    for record, mask in zip(one, masks, strict=True):
        assert np.array_equal(coco.decode(record["segmentation"]), mask["segmentation"])
    counts = {"instances": 2 * labels.max(), "watershed": 0, "grid": 288}
    told = f"{counts[prompts]}/{counts[prompts]}" if counts[prompts] else "0click"
    assert told in capsys.readouterr().err


def decoder_model(**config):
    """Random weights, whose maps are moved to where thresholds are."""
    model = attentive_model(5, instance_decoder_config={"hidden_size": 8}, **config)
    with torch.no_grad():
        model.instance_decoder.head.weight *= 4
    return model


@pytest.mark.parametrize("high_res", [None, [0, 1]])
def test_real_models(high_res):
    model = decoder_model(vision={"high_res_layers": high_res})
    image = colours(150, 220)
    records = MaskGenerator(model, SamHfProcessor(our_processor()), seed_thresh=0.2, box_nms_thresh=1.0)(image)
    assert len(records) > 2 and list(records[0]) == KEYS
    assert [record["predicted_iou"] for record in records] == sorted(
        (record["predicted_iou"] for record in records), reverse=True
    )
    for record in records:
        (click,) = torch.tensor(record["point_coords"]) * torch.tensor([64 / 220, 44 / 150])
        inputs = our_processor()(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = model(inputs, input_points=click[None, None, None], multimask_output=True)
        best = output.iou_scores[0, 0].argmax()
        mask = our_processor().post_process_masks(output.pred_masks, [(150, 220)], [(44, 64)])[0][0, best]
        assert (mask.numpy() != record["segmentation"]).sum() <= 3
        assert 0 < record["predicted_iou"] <= output.iou_scores[0, 0, best] + 1e-5
    assert MaskGenerator(model, our_processor(), prompts="watershed", seed_thresh=0.2)(image)
    assert MaskGenerator(model.to(torch.bfloat16), our_processor(), seed_thresh=0.2)(image)


def test_without_an_instance_decoder_the_grid_is_the_default():
    options = {"points_per_side": 4, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    image, options = colours(60, 90), options | {"output_mode": "uncompressed_rle"}
    records = MaskGenerator(attentive_model(), our_processor(), **options)(image)
    assert records and records == MaskGenerator(attentive_model(), our_processor(), prompts="grid", **options)(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "clicks"}, r"prompts is 'clicks', expected one of grid, instances, watershed"),
        ({"points_per_side": 5}, r"points_per_side is given, of which prompts='instances' makes no use"),
        ({"point_grids": [np.zeros((4, 2))]}, r"point_grids is given, of which prompts='instances'"),
        ({"crop_n_layers": 1}, r"crop_n_layers is given, of which prompts='instances'"),
        ({"crop_nms_thresh": 0.5, "prompts": "watershed"}, r"crop_nms_thresh is given, of which prompts='watershed'"),
        ({"pred_iou_thresh": 0.0, "prompts": "watershed"}, r"pred_iou_thresh is given, of which prompts='watershed'"),
        ({"mask_threshold": 0.5, "prompts": "watershed"}, r"mask_threshold is given"),
        ({"seed_thresh": 0.4, "prompts": "grid"}, r"seed_thresh is given, of which prompts='grid' makes no use"),
        ({"foreground_thresh": 0.0, "prompts": "grid"}, r"foreground_thresh is given"),
        (
            {"crop_n_layers": 2, "prompts": "grid"},
            r"crop_n_layers is 2, and the tile_size of the processor 64: expected",
        ),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskGenerator(Oracle(), oracle_processor(64, tile_size=64), **options)


@pytest.mark.parametrize("prompts", ["instances", "watershed"])
def test_models_without_maps_are_refused(prompts):
    with pytest.raises(ValueError, match=rf"prompts is '{prompts}', but the model has no instance decoder"):
        MaskGenerator(attentive_model(), our_processor(), prompts=prompts)


def random_masks(count: int, seed: int) -> Tensor:
    """Rectangles bool [count, 40, 50], some in others, side by side, cut by the border or full of holes."""
    rng = np.random.default_rng(seed)
    masks = torch.zeros(count, 40, 50, dtype=torch.bool)
    for mask in masks:
        y, x = rng.integers(0, 36), rng.integers(0, 46)
        mask[y : y + rng.integers(3, 25), x : x + rng.integers(3, 25)] = True
    masks[::3] &= torch.from_numpy(rng.random((40, 50)) > 0.3)
    masks[0] = True
    return masks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("thresh", [0.0, 0.3, 0.7, 1.0])
def test_suppressed_masks_are_those_of_a_naive_way(seed, thresh):
    masks = random_masks(40, seed)
    changes = [torch.tensor(rle["counts"]).cumsum(0)[: len(rle["counts"]) // 2 * 2] for rle in encode_rle(masks)]
    flat = masks.flatten(1).double()
    shared = flat @ flat.T
    for one in range(40):
        for other in range(40):
            assert shared_pixels(changes[one].numpy(), changes[other].numpy()) == shared[one, other]
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, 9, 40))
    kept = []
    for index in sorted(range(40), key=lambda index: -scores[index]):
        if all(shared[index, k] <= thresh * min(shared[index, index], shared[k, k]) for k in kept):
            kept.append(index)
    assert suppress_overlaps(changes, mask_boxes(masks), scores.float(), thresh).tolist() == kept
    assert 0 < len(kept) < 40 or thresh == 1.0
