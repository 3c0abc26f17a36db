"""`MaskGenerator` against `SamAutomaticMaskGenerator` of Meta on the same weights and pixels, and its parts."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools import mask as coco
from scipy.ndimage import label
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import remove_small_regions as metas_remove_small_regions
from test_mask_generation_pipeline import attentive_model, blobs, colours, our_processor
from test_parity import meta_twin, shallow_vit_b
from torch import Tensor
from torch.nn import functional as F
from transformers import SamImageProcessor, SamProcessor

from sam_hf import SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.automatic import MaskGenerator
from sam_hf.automatic.cleanup import remove_small_regions
from sam_hf.automatic.tracing import MaskTracer, run_lengths
from sam_hf.data import Sa1bFolder, decode_masks
from sam_hf.fast_decoder import FastDecoder
from sam_hf.image_processing_sam_hf import automatic_thresholds
from sam_hf.masks import decode_rle, encode_rle, mask_boxes, stability_scores

THRESHOLD = 0.5
OPTIONS = {
    "points_per_side": 12,
    "pred_iou_thresh": 0.45,
    "stability_score_thresh": 0.3,
    "stability_score_offset": 0.05,
    "box_nms_thresh": 0.8,
    "crop_nms_thresh": 0.8,
}


def many_masks(model: SamHfModel) -> SamHfModel:
    """Move the predicted IoU of random weights to where thresholds are."""
    with torch.no_grad():
        model.mask_decoder.iou_prediction_head.proj_out.bias += 0.5
    return model


@pytest.fixture(scope="module")
def model() -> SamHfModel:
    return many_masks(attentive_model(5, decoder={"layer_norm_eps": 1e-5}))


def generate(model: SamHfModel, images, processor: SamHfImageProcessor | None = None, **options) -> list:
    return MaskGenerator(model, processor or our_processor(), **{"mask_threshold": THRESHOLD, **OPTIONS, **options})(
        images
    )


def metas_generator(
    model: SamHfModel, processor: SamHfImageProcessor, mask_threshold: float = THRESHOLD, **options
) -> SamAutomaticMaskGenerator:
    """Meta's, with our resize of the image: Pillow's gives other pixels, of which random weights make other masks."""
    meta = meta_twin(model)
    meta.mask_threshold = mask_threshold
    generator = SamAutomaticMaskGenerator(meta, **{**OPTIONS, **options})
    predictor = generator.predictor

    def set_image(image: np.ndarray) -> None:
        inputs = processor(image, return_tensors="pt")
        predictor.original_size = image.shape[:2]
        predictor.input_size = tuple(inputs["reshaped_input_sizes"][0].tolist())
        predictor.features = meta.image_encoder(inputs["pixel_values"])
        predictor.is_image_set = True

    predictor.set_image = set_image
    return generator


def assert_same_records(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    left = list(theirs)
    for one in ours:
        # Of two neighbours the nearer click: scores that are equal to rounding may be sorted either way.
        away = [np.abs(np.subtract(one["point_coords"], record["point_coords"])).max() for record in left[:2]]
        other = left.pop(int(np.argmin(away)))
        assert one.keys() == other.keys()
        assert mask_iou(one["segmentation"], other["segmentation"]) >= 0.99
        assert one["area"] == one["segmentation"].sum()
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1)
        assert one["point_coords"][0] == pytest.approx(other["point_coords"][0], rel=1e-5)
        assert one["crop_box"] == other["crop_box"]
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-3)
        assert one["stability_score"] == pytest.approx(np.nan_to_num(other["stability_score"]), abs=0.01)
        assert type(one["predicted_iou"]) is float and type(one["area"]) is int and type(one["bbox"][0]) is int


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape and one.dtype == other.dtype == bool
    return (one & other).sum() / max((one | other).sum(), 1) if one.any() else float(not other.any())


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((150, 220), {}),
        ((220, 97), {"stability_score_thresh": 0.0}),
        ((150, 220), {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}),
        ((40, 30), {"pred_iou_thresh": 0.0, "box_nms_thresh": 0.95}),
        ((150, 220), {"crop_n_layers": 2, "points_per_side": 5, "crop_nms_thresh": 0.95}),
    ],
)
def test_equals_meta(model, size, options):
    image = colours(*size)
    ours = generate(model, image, **options)
    theirs = metas_generator(model, our_processor(), **options).generate(np.array(image))
    assert len(ours) >= 3
    assert_same_records(ours, theirs)


def metas_components(binary: np.ndarray, connectivity: int) -> tuple:
    """What `cv2.connectedComponentsWithStats` returns, of which Meta reads regions and areas."""
    assert connectivity == 8
    regions, count = label(binary, np.ones((3, 3)))
    return count + 1, regions, np.bincount(regions.ravel(), minlength=count + 1)[:, None], None


def test_clean_up_equals_meta(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(connectedComponentsWithStats=metas_components))
    image = colours(150, 220)
    options = {"min_mask_region_area": 150, "box_nms_thresh": 0.95}
    ours = generate(model, image, **options)
    theirs = metas_generator(model, our_processor(), **options).generate(np.array(image))
    assert_same_records(ours, theirs)
    before = {
        tuple(record["point_coords"][0]): record["area"] for record in generate(model, image, box_nms_thresh=0.95)
    }
    assert sum(before[tuple(record["point_coords"][0])] != record["area"] for record in ours) >= 3


@pytest.mark.parametrize("density", [0.02, 0.3, 0.5, 0.7, 0.98])
@pytest.mark.parametrize("min_area", [1, 4, 40, 10_000])
def test_small_regions_equal_meta(monkeypatch, density, min_area):
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(connectedComponentsWithStats=metas_components))
    mask = np.random.default_rng(0).random((40, 60)) < density
    filled, has_holes = metas_remove_small_regions(mask, min_area, "holes")
    expected, has_islands = metas_remove_small_regions(filled, min_area, "islands")
    cleaned, changed = remove_small_regions(mask, min_area)
    assert np.array_equal(cleaned, expected) and changed == (has_holes or has_islands)
    assert changed or min_area == 1


@pytest.mark.slow
@pytest.mark.parametrize("layers", [0, 1])
def test_photograph_equals_meta(shared_data: Path, layers: int):
    """Every mask that passes the filters: those of random weights are so large that few would not be duplicates."""
    model = many_masks(shallow_vit_b(512))
    image = PIL.Image.open(shared_data / "photos" / "truck.jpg")
    processor = SamHfImageProcessor(size={"longest_edge": 512})
    options = {
        "points_per_side": 6 // 2**layers,
        "crop_n_layers": layers,
        "box_nms_thresh": 1.0,
        "mask_threshold": 2.0,
    }
    options |= {"crop_nms_thresh": 1.0, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.5}
    ours = generate(model, image, processor, **options)
    theirs = metas_generator(model, processor, **options).generate(np.array(image))
    assert len(ours) > 10
    assert_same_records(ours, theirs)


def test_several_images_are_those_alone(model):
    images = [colours(150, 220), colours(220, 97, seed=0)]
    together = generate(model, images)
    assert len(together) == 2 and min(map(len, together)) >= 1 and max(map(len, together)) > 5
    for image, records in zip(images, together, strict=True):
        assert_same_records(records, generate(model, image))
        assert_same_records(records, generate(model, [image])[0])


def test_memory_budget_changes_no_mask(model, monkeypatch):
    image = colours(150, 220)
    expected = generate(model, image)
    chunks = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda *args, **kw: chunks.append(args[1].shape[1]) or decode(*args, **kw))
    embedding = 32 * 8 * 8 * 4  # bytes of the image as one click sees it
    for clicks, options in (
        (1, {"memory_budget": 1}),
        (1, {"memory_budget": 19 * embedding}),
        (2, {"memory_budget": 20 * embedding}),
        (2, {"memory_budget": 20 * embedding, "points_per_batch": 50}),
        (50, {"points_per_batch": 50}),
        (128, {"memory_budget": 2**40}),
    ):
        chunks.clear()
        assert_same_records(generate(model, image, **options), expected)
        assert max(chunks) == clicks and sum(chunks) == 144


def test_masks_of_unlikely_clicks_are_not_predicted(model, monkeypatch):
    predicted = []
    predict = FastDecoder.predict_masks
    monkeypatch.setattr(
        FastDecoder, "predict_masks", lambda self, *args: predicted.append(args[0].shape[1]) or predict(self, *args)
    )
    generate(model, colours(150, 220), pred_iou_thresh=0.0)
    assert sum(predicted) == 144
    predicted.clear()
    generate(model, colours(150, 220), pred_iou_thresh=0.7)
    assert 0 < sum(predicted) < 100
    predicted.clear()
    assert generate(model, colours(150, 220), pred_iou_thresh=9.0) == []
    assert not sum(predicted)


def test_thresholds_are_the_given_ones_then_those_of_the_processor_then_sams(model):
    def scores(processor: SamHfImageProcessor | SamHfProcessor, **given) -> list[float]:
        options = {"mask_threshold": THRESHOLD, **OPTIONS} | dict.fromkeys(
            ("pred_iou_thresh", "stability_score_thresh")
        )
        return [record["predicted_iou"] for record in MaskGenerator(model, processor, **options | given)(image)]

    image, plain = colours(150, 220), our_processor()
    own = our_processor(pred_iou_thresh=0.3, stability_score_thresh=0.2)
    everything = scores(plain, pred_iou_thresh=0.3, stability_score_thresh=0.2)
    assert scores(own) == scores(SamHfProcessor(own)) == everything and len(everything) > 5
    assert scores(own, pred_iou_thresh=0.5) == [score for score in everything if score > 0.5] != everything
    assert len(scores(own, pred_iou_thresh=0, stability_score_thresh=0)) > len(everything)
    assert scores(our_processor(pred_iou_thresh=0), stability_score_thresh=0.0) == scores(
        plain, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    assert scores(plain) == scores(plain, pred_iou_thresh=0.88, stability_score_thresh=0.95)
    assert len(scores(plain, stability_score_thresh=0)) == len(
        scores(plain, pred_iou_thresh=0.88, stability_score_thresh=0)
    )
    assert scores(own, pred_iou_thresh=0.88, stability_score_thresh=0.95) == scores(plain)


def test_processors_of_older_code_have_sams_thresholds():
    assert automatic_thresholds(SimpleNamespace()) == (0.88, 0.95)
    assert automatic_thresholds(SimpleNamespace(), 0.5) == (0.5, 0.95)
    assert automatic_thresholds(SimpleNamespace(), None, 0) == (0.88, 0)


@pytest.mark.parametrize("mode", ["uncompressed_rle", "coco_rle"])
def test_run_lengths_are_the_masks(model, mode):
    image = colours(150, 220)
    options = {"crop_n_layers": 1, "points_per_side": 7}
    masks, encoded = generate(model, image, **options), generate(model, image, **options, output_mode=mode)
    assert len(masks) == len(encoded) > 3
    for mask, record in zip(masks, encoded, strict=True):
        rle = record["segmentation"]
        assert rle["size"] == [150, 220]
        assert np.array_equal(coco.decode(rle) if mode == "coco_rle" else decode_rle(rle), mask["segmentation"])


@pytest.mark.parametrize("mode", ["uncompressed_rle", "coco_rle"])
def test_records_are_annotations_of_sa1b(model, tmp_path, mode):
    """Automatic masks, stored beside their image, are training data."""
    image = colours(150, 220)
    records = generate(model, image, output_mode=mode)
    image.save(tmp_path / "one.png")
    content = {"image": {"height": 150, "width": 220, "file_name": "one.png"}, "annotations": records}
    (tmp_path / "one.json").write_text(json.dumps(content))
    masks = decode_masks(Sa1bFolder(tmp_path)[0]["objects"])
    assert len(masks) == len(records) > 3
    for mask, record in zip(masks, generate(model, image), strict=True):
        assert np.array_equal(mask, record["segmentation"])


def test_all_features_and_half_precision():
    model = attentive_model(vision={"high_res_layers": [0, 1]}, decoder={"use_object_score": True})
    options = {"pred_iou_thresh": 0.1, "mask_threshold": 0.3, "stability_score_thresh": 0.02}
    expected = generate(model, colours(150, 220), SamHfProcessor(our_processor()), **options)
    with torch.no_grad():
        output = model(
            our_processor()(colours(150, 220), return_tensors="pt")["pixel_values"],
            input_points=torch.tensor([[[expected[0]["point_coords"][0]]]]) * torch.tensor([64 / 220, 44 / 150]),
        )
    assert len(expected) > 2
    assert (output.iou_scores - expected[0]["predicted_iou"]).abs().min() < 1e-5
    assert len(generate(model.to(torch.bfloat16), colours(150, 220), **options)) > 2


def test_generate_is_called_as_in_segment_anything(model):
    image = np.array(colours(150, 220))
    options = {"points_per_side": 6, "points_per_batch": 7}
    generator = MaskGenerator(model, our_processor(), mask_threshold=THRESHOLD, **{**OPTIONS, **options})
    theirs = metas_generator(model, our_processor(), **options)
    records, expected = generator.generate(image), theirs.generate(image)
    assert records and [list(record) for record in records] == [list(record) for record in expected]
    assert_same_records(records, expected)
    assert_same_records(records, generator(image))


def test_point_grids_and_images_of_any_kind(model):
    image = colours(150, 220)
    clicks = [[0.2, 0.4], [0.5, 0.5], [0.9, 0.1]]
    keep_all = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    records = generate(model, np.array(image), point_grids=[np.array(clicks)], **keep_all)
    assert len(records) == 9
    found = {tuple(record["point_coords"][0]) for record in records}
    assert found == {(x * 220, y * 150) for x, y in clicks}


def test_progress_counts_clicks(model, capsys):
    MaskGenerator(model, our_processor(), points_per_side=3, crop_n_layers=1)(colours(40, 60), show_progress=True)
    assert "45/45" in capsys.readouterr().err
    generate(model, colours(40, 60), points_per_side=3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_mode": "png"}, r"output_mode is 'png', expected one of binary_mask, uncompressed_rle, coco_rle"),
        ({"stability_score_offset": -1.0}, r"stability_score_offset is -1.0, expected 0 or more"),
        ({"memory_budget": 0}, r"memory_budget is 0, expected a positive"),
        ({"points_per_batch": 0}, r"points_per_batch is 0, expected 1 or more"),
        ({"crop_n_layers": -1}, r"expected num_layers >= 0"),
        ({"points_per_side": 2, "crop_n_layers": 1, "crop_n_points_downscale_factor": 3}, r"are \[2, 0\]"),
        ({"point_grids": [np.zeros((4, 2))], "crop_n_layers": 1}, r"2 in all, but came as \[\[4, 2\]\]"),
        ({"point_grids": [np.zeros((4, 3))]}, r"1 in all, but came as \[\[4, 3\]\]"),
    ],
)
def test_wrong_options_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        MaskGenerator(model, our_processor(), **options)


def test_a_stock_processor_is_refused(model):
    for processor in (SamImageProcessor(), SamProcessor(SamImageProcessor())):
        with pytest.raises(ValueError, match=r"a SamImageProcessor, expected a SamHfImageProcessor.*from_config"):
            MaskGenerator(model, processor)


def test_training_mode_is_refused(model):
    generator = MaskGenerator(attentive_model().train(), our_processor())
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        generator(colours(40, 60))


def small_logits(count: int) -> Tensor:
    """Ellipses [count, 32, 32], some cut by the border, some without a positive pixel; one covers all."""
    logits = F.interpolate(blobs(count, 128, 128), (32, 32), mode="area")[:, 0]
    logits[2] = 20
    return logits


def resize_as_meta(logits: Tensor, padded: tuple, resized: tuple, size: tuple) -> Tensor:
    to_input = F.interpolate(logits[None], padded, mode="bilinear")[..., : resized[0], : resized[1]]
    return F.interpolate(to_input, size, mode="bilinear")[0]


@pytest.mark.parametrize("at_once", [1, 5])
@pytest.mark.parametrize(
    ("crop_box", "resized"),
    [((0, 0, 300, 200), (86, 128)), ((40, 30, 140, 200), (128, 75)), ((3, 5, 70, 105), (128, 86))],
)
def test_traced_masks_equal_whole_ones(crop_box, resized, at_once):
    image_size, grid, padded = (200, 300), (32, 32), (128, 128)
    x1, y1, x2, y2 = crop_box
    logits = small_logits(40)
    tracer = MaskTracer(
        crop_box,
        image_size,
        grid,
        padded,
        resized,
        mask_threshold=0.5,
        stability_score_offset=1.0,
        memory_budget=2**20,
        device=torch.device("cpu"),
    )
    tracer.at_once = at_once
    traced = tracer.trace(logits, 0.0)
    values = resize_as_meta(logits, padded, resized, (y2 - y1, x2 - x1))
    masks = F.pad(values > 0.5, (x1, 300 - x2, y1, 200 - y2))[traced.index]
    assert 5 < len(traced.index) <= 40 and (0 in traced.index or min(x1, y1) > 0)
    torch.testing.assert_close(traced.stability, stability_scores(values, 0.5, 1.0)[traced.index], rtol=0, atol=2e-3)
    found = torch.stack([decode_rle(run_lengths(changes, image_size)) for changes in traced.changes])
    assert (found != masks).flatten(1).sum(1).max() <= 1
    not_empty = found.flatten(1).any(1)
    assert not_empty.sum() > 5
    assert torch.equal(traced.boxes[not_empty], mask_boxes(found[not_empty]))
    for changes, mask in zip(traced.changes, found, strict=True):
        assert run_lengths(changes, image_size) == encode_rle(mask[None])[0]


def test_traced_masks_keep_the_filters():
    box, image_size = (100, 0, 300, 200), (200, 300)
    logits = small_logits(60)
    options = {"mask_threshold": 0.0, "stability_score_offset": 2.0, "memory_budget": 1, "device": torch.device("cpu")}
    tracer = MaskTracer(box, image_size, (32, 32), (128, 128), (128, 128), **options)
    every, stable = tracer.trace(logits, 0.0), tracer.trace(logits, 0.5)
    wanted = every.stability >= 0.5
    assert torch.equal(stable.index, every.index[wanted]) and 5 < len(stable.index) < len(every.index)
    assert torch.equal(stable.boxes, every.boxes[wanted])
    cut = torch.tensor([index for index in range(60) if index not in every.index.tolist()])
    values = resize_as_meta(logits[cut], (128, 128), (128, 128), (200, 200))
    is_empty = (values <= 0).flatten(1).all(1)
    assert len(cut) > 5 and ((values > 0).any(1)[:, :21].any(1) | is_empty).all()
    assert len(tracer.trace(logits[:0], 0.5).changes) == 0
