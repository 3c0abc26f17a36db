"""`pipeline("mask-generation")` with our model and image processor, against stock; and the parts of its processing."""

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from packaging.version import Version
from pycocotools import mask as coco
from test_parity import stock_twin
from tiny_models import IMAGE, MASK, tiny_model
from torch import Tensor
from transformers import Pipeline, PreTrainedModel, SamImageProcessor, pipeline

from sam_hf import SamHfImageProcessor, SamHfModel
from sam_hf.crops import click_grid, clicks_in_crop, generate_crops
from sam_hf.masks import decode_rle, encode_rle, mask_boxes, stability_scores, suppress_duplicates

OPTIONS = {
    "points_per_crop": 8,
    "points_per_batch": 24,
    "pred_iou_thresh": 0.0,
    "mask_threshold": 0.3,
    "stability_score_thresh": 0.02,
    "stability_score_offset": 0.05,
    "crops_nms_thresh": 0.9,
    "output_rle_mask": True,
    "output_bboxes_mask": True,
}
# The sharp attention of `attentive_model` magnifies rounding.
TOLERANCE = 2e-4
needs_crops = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.21"),
    reason="stock's crops and the pipeline's use of them are broken",
)


def colours(height: int, width: int, seed: int = 1) -> PIL.Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)


def attentive_model(seed: int = 2, **config) -> SamHfModel:
    """Random weights, but with so sharp an attention between clicks and image that masks depend on the click."""
    model = tiny_model(seed, **config)
    with torch.no_grad():
        for layer in model.mask_decoder.transformer.layers:
            for attention in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token):
                attention.q_proj.weight *= 8
                attention.k_proj.weight.copy_(attention.q_proj.weight)
                attention.out_proj.weight *= 2
    return model


def our_processor(**options) -> SamHfImageProcessor:
    return SamHfImageProcessor(size={"longest_edge": IMAGE}, mask_size={"longest_edge": MASK}, **options)


def stock_processor() -> SamImageProcessor:
    return SamImageProcessor(
        size={"longest_edge": IMAGE},
        pad_size={"height": IMAGE, "width": IMAGE},
        mask_size={"longest_edge": MASK},
        mask_pad_size={"height": MASK, "width": MASK},
    )


def mask_generator(model: PreTrainedModel, image_processor: SamImageProcessor) -> Pipeline:
    return pipeline("mask-generation", model=model, image_processor=image_processor, device="cpu")


@pytest.fixture(scope="module")
def model() -> SamHfModel:
    return attentive_model()


@pytest.fixture(scope="module")
def generator(model) -> Pipeline:
    return mask_generator(model, our_processor())


@pytest.fixture(scope="module")
def stock_generator(model) -> Pipeline:
    return mask_generator(stock_twin(model), stock_processor())


def assert_same(ours: dict, theirs: dict, tolerance: float = 0.0) -> None:
    """With a tolerance, for weights of another class: scores agree to it, and hardly a pixel lies on the threshold."""
    assert ours.keys() == theirs.keys() and len(ours["masks"]) == len(theirs["masks"])
    torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=tolerance)
    if tolerance:
        for one, other in zip(ours["masks"], theirs["masks"], strict=True):
            assert (one != other).sum() <= 2
        return
    for one, other in zip(ours["masks"], theirs["masks"], strict=True):
        assert one.dtype == torch.bool and torch.equal(one, other)
    assert ours["rle_mask"] == theirs["rle_mask"]
    assert torch.equal(ours["bounding_boxes"], theirs["bounding_boxes"])


@pytest.mark.parametrize("layers", [0, pytest.param(1, marks=needs_crops), pytest.param(2, marks=needs_crops)])
@pytest.mark.parametrize("size", [(150, 220), (220, 97)])
def test_equals_stock(generator, stock_generator, layers, size):
    options = OPTIONS | {"crops_n_layers": layers}
    ours, stock = generator(colours(*size), **options), stock_generator(colours(*size), **options)
    assert len(ours["masks"]) >= 5 * (1 + layers)
    assert ours["masks"][0].shape == size
    assert_same(ours, stock, tolerance=TOLERANCE)
    same_model = mask_generator(stock_generator.model, our_processor())(colours(*size), **options)
    assert_same(same_model, stock)


def test_equals_stock_with_default_thresholds(generator, stock_generator):
    """Masks that pass both thresholds: random logits are flat, so the offset is small."""
    options = {"points_per_crop": 8, "pred_iou_thresh": 0.3, "stability_score_offset": 0.002, "mask_threshold": 0.3}
    ours, stock = generator(colours(150, 220), **options), stock_generator(colours(150, 220), **options)
    assert len(ours["masks"]) > 3 and ours["scores"].min() > 0.3
    assert_same(ours, stock, tolerance=TOLERANCE)
    strict = generator(colours(150, 220), **options | {"pred_iou_thresh": 0.95})
    assert len(strict["masks"]) < len(ours["masks"])


def test_thresholds_of_the_processor_are_those_of_the_pipeline(model, tmp_path):
    options = {"points_per_crop": 8, "stability_score_offset": 0.002, "mask_threshold": 0.3}
    image = colours(150, 220)
    own = our_processor(pred_iou_thresh=0.2, stability_score_thresh=0.5)
    own.save_pretrained(tmp_path)
    fitted = mask_generator(model, SamHfImageProcessor.from_pretrained(tmp_path))
    stock_like = mask_generator(model, our_processor())
    expected = stock_like(image, **options, pred_iou_thresh=0.2, stability_score_thresh=0.5)
    found = fitted(image, **options)
    assert len(found["masks"]) > len(stock_like(image, **options)["masks"])
    assert torch.equal(found["scores"], expected["scores"])
    # What is given counts, one by one; but the pipeline cannot tell 0.88 and 0.95 from nothing.
    given = fitted(image, **options, pred_iou_thresh=0.5)
    expected = stock_like(image, **options, pred_iou_thresh=0.5, stability_score_thresh=0.5)
    assert 0 < len(given["masks"]) < len(found["masks"]) and torch.equal(given["scores"], expected["scores"])
    same = fitted(image, **options, pred_iou_thresh=0.88, stability_score_thresh=0.95)
    assert torch.equal(same["scores"], found["scores"])


def test_filter_takes_what_is_given_then_the_processor_then_sam():
    arguments = (blobs(200, 300, 400), torch.rand(200, 1, generator=torch.Generator().manual_seed(1)), (300, 400))
    arguments += (torch.tensor([0, 0, 400, 300]),)

    def scores(processor: SamHfImageProcessor, *thresholds) -> list[float]:
        return processor.filter_masks(*arguments, *thresholds)[1].tolist()

    own = our_processor(pred_iou_thresh=0.3, stability_score_thresh=0.0)
    stock = stock_processor()
    for given, meant in [((), (0.3, 0.0)), ((0.5,), (0.5, 0.0)), ((0.0, 0.7), (0.0, 0.7)), ((None, 0.7), (0.3, 0.7))]:
        assert scores(own, *given) == stock.filter_masks(*arguments, *meant)[1].tolist()
    assert scores(our_processor()) == stock.filter_masks(*arguments)[1].tolist()
    assert len(scores(our_processor(pred_iou_thresh=0.3))) == len(stock.filter_masks(*arguments, 0.3, 0.95)[1])


def test_several_images_are_those_alone(generator):
    images = [colours(150, 220), colours(220, 97, seed=0)]
    together = generator(images, **OPTIONS)
    assert len(together) == 2
    for image, result in zip(images, together, strict=True):
        assert len(result["masks"]) > 3
        assert_same(result, generator(image, **OPTIONS))


@needs_crops
def test_crops_with_fewer_points(generator, stock_generator):
    """Stock fails on grids of different sizes; the same masks come from its parts, run crop by crop."""
    image = colours(150, 220)
    options = OPTIONS | {"crops_n_layers": 1, "crop_n_points_downscale_factor": 2, "points_per_crop": 16}
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        stock_generator(image, **options)
    ours = generator(image, **options)

    processor, model = stock_processor(), stock_generator.model
    found = []
    for points_per_side, is_wanted in ((16, lambda crop: crop == 0), (8, lambda crop: crop > 0)):
        boxes, points, crops, labels = processor.generate_crop_boxes(image, IMAGE, 1, points_per_crop=points_per_side)
        inputs = processor(crops, return_tensors="pt")
        for crop in filter(is_wanted, range(5)):
            with torch.no_grad():
                output = model(
                    inputs.pixel_values[crop : crop + 1],
                    input_points=points[:, :, crop : crop + 1],
                    input_labels=labels[:, :, crop : crop + 1],
                )
            sizes = inputs.original_sizes[crop : crop + 1], inputs.reshaped_input_sizes[crop : crop + 1]
            (logits,) = processor.post_process_masks(output.pred_masks, *sizes, binarize=False)
            found.append(
                processor.filter_masks(logits, output.iou_scores[0], (150, 220), boxes[crop], 0, 0.02, 0.3, 0.05)
            )
    masks, scores, boxes = zip(*found, strict=True)
    expected = processor.post_process_for_mask_generation(sum(masks, []), torch.cat(scores), torch.cat(boxes), 0.9)
    names = ("masks", "scores", "rle_mask", "bounding_boxes")
    assert sum(len(crop) for crop in masks[1:]) > 10
    assert_same(ours, dict(zip(names, expected, strict=True)), tolerance=TOLERANCE)


@needs_crops
def test_masks_run_lengths_and_boxes_describe_the_same(generator):
    result = generator(colours(150, 220), **OPTIONS, crops_n_layers=1)
    assert result["scores"].tolist() == sorted(result["scores"].tolist(), reverse=True)
    for mask, rle, box in zip(*(result[name] for name in ("masks", "rle_mask", "bounding_boxes")), strict=True):
        assert np.array_equal(coco.decode(coco.frPyObjects(rle, *rle["size"])), mask)
        rows, columns = torch.where(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_model_with_all_features_equals_its_own_forward():
    """High-resolution features make the image embedding a list, which the pipeline must hand through."""
    model = attentive_model(vision={"high_res_layers": [0, 1]}, decoder={"use_object_score": True})
    processor = our_processor()
    image = colours(150, 220)
    keep_all = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "crops_nms_thresh": 1.0}
    result = mask_generator(model, processor)(image, points_per_crop=4, points_per_batch=5, **keep_all)
    inputs = processor(image, return_tensors="pt")
    points = clicks_in_crop(click_grid(4), (150, 220), tuple(inputs.reshaped_input_sizes[0].tolist()))
    with torch.no_grad():
        output = model(inputs.pixel_values, input_points=points[None, :, None])
    scores, order = output.iou_scores.flatten().sort(descending=True, stable=True)
    torch.testing.assert_close(result["scores"], scores, rtol=0, atol=1e-6)
    (masks,) = processor.post_process_masks(output.pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes)
    assert len(result["masks"]) == 16 * 3
    assert sum((a != b).sum() for a, b in zip(result["masks"], masks.flatten(0, 1)[order], strict=True)) < 10


def test_half_precision(model):
    generator = mask_generator(attentive_model().to(torch.bfloat16), our_processor())
    assert generator.model.dtype == torch.bfloat16
    result = generator(colours(150, 220), **OPTIONS)
    assert len(result["masks"]) > 3 and result["masks"][0].dtype == torch.bool


def test_nothing_found_is_an_empty_result(generator):
    result = generator(colours(40, 60), **OPTIONS | {"pred_iou_thresh": 5.0})
    assert result["masks"] == [] and result["rle_mask"] == [] and result["bounding_boxes"].shape == (0, 4)


def blobs(count: int, height: int, width: int) -> Tensor:
    """Logits [count, 1, H, W]: ellipses, soft or steep, some cut by the border, some without a positive pixel."""
    random = torch.rand(count, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    x, y, a, b, slope = random.unbind(1)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    squared = ((rows - y * height) / (2 + 30 * a)) ** 2 + ((columns - x * width) / (2 + 30 * b)) ** 2
    logits = (2 + 20 * slope) * (1 - squared)
    logits[::7] -= 50
    return logits[:, None]


@needs_crops
@pytest.mark.parametrize("crop", [(0, 0, 400, 300), (0, 0, 230, 210), (170, 90, 400, 300), (121, 0, 351, 210)])
@pytest.mark.parametrize("thresholds", [(0.5, 0.7), (0.5, 0.0), (0.0, 0.7), (-1.0, -1.0)])
def test_filter_and_suppression_equal_stock(crop, thresholds):
    x1, y1, x2, y2 = crop
    logits = blobs(200, y2 - y1, x2 - x1)
    scores = torch.rand(200, 1, generator=torch.Generator().manual_seed(1))
    arguments = (logits, scores, (300, 400), torch.tensor(crop, dtype=torch.float32), *thresholds)
    ours, stock = our_processor().filter_masks(*arguments), stock_processor().filter_masks(*arguments)
    assert 10 < len(ours[0]) < 200 or (max(thresholds) < 0 and crop == (0, 0, 400, 300))
    assert ours[0] == stock[0] and torch.equal(ours[1], stock[1]) and torch.equal(ours[2], stock[2])
    kept = our_processor().post_process_for_mask_generation(*ours, 0.3)
    stock = stock_processor().post_process_for_mask_generation(*stock, 0.3)
    assert 10 < len(kept[0]) < len(ours[0])
    assert all(torch.equal(one, other) for one, other in zip(kept[0], stock[0], strict=True))
    assert torch.equal(kept[1], stock[1]) and kept[2] == stock[2] and torch.equal(kept[3], stock[3])


@needs_crops
@pytest.mark.parametrize("size", [(64, 64), (150, 220), (1080, 721), (721, 130)])
@pytest.mark.parametrize("overlap", [512 / 1500, 0.0, 0.25])
def test_crops_and_points_equal_stock(size, overlap):
    image = np.zeros((*size, 3), np.uint8)
    ours = SamHfImageProcessor().generate_crop_boxes(image, 1024, 2, overlap, 7)
    stock = SamImageProcessor().generate_crop_boxes(image, 1024, 2, overlap, 7)
    assert [crop.shape for crop in ours[2]] == [crop.shape for crop in stock[2]] and len(ours[2]) == 21
    for index in (0, 1, 3):
        assert ours[index].dtype == stock[index].dtype and torch.equal(ours[index], stock[index])


def test_crops_cover_the_image_and_points_lie_in_them():
    for _, (x1, y1, x2, y2) in generate_crops((35, 61), 2):
        assert 0 <= x1 < x2 <= 61 and 0 <= y1 < y2 <= 35
    covered = np.zeros((3, 35, 61), bool)
    for layer, (x1, y1, x2, y2) in generate_crops((35, 61), 2):
        covered[layer, y1:y2, x1:x2] = True
    assert covered.all()
    # A strip of five rows has no four crops above each other.
    assert {box[1::2] for layer, box in generate_crops((5, 900), 2) if layer == 2} == {(0, 2), (2, 4), (4, 5)}
    grid = click_grid(2)
    assert grid.tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert clicks_in_crop(grid, (10, 40), (20, 80)).tolist() == [[20, 5], [60, 5], [20, 15], [60, 15]]


def test_boxes_and_stability_of_known_masks():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2:5, 1:3] = True
    masks[1, 5, 7] = True
    assert mask_boxes(masks).tolist() == [[1, 2, 2, 4], [7, 5, 7, 5], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)
    logits = torch.tensor([[-2.0, -0.5, 0.5, 2.0]]).expand(3, 1, 4).clone()
    logits[2] = -5
    assert stability_scores(logits[:, None], 0.0, 1.0).tolist() == [[torch.tensor(1 / 3).item()]] * 2 + [[0.0]]


def test_run_lengths_come_back():
    masks = torch.rand(9, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    masks[0], masks[1] = False, True
    encoded = encode_rle(masks)
    assert encoded[:2] == [{"size": [5, 7], "counts": [35]}, {"size": [5, 7], "counts": [0, 35]}]
    assert all(torch.equal(decode_rle(rle), mask) for rle, mask in zip(encoded, masks, strict=True))
    assert encode_rle(masks[:0]) == []


def test_suppression_takes_half_precision_scores():
    boxes = torch.tensor([[0, 0, 999, 999], [0, 0, 1000, 1000], [500, 0, 1500, 1000]])
    scores = torch.tensor([0.5, 0.75, 0.25], dtype=torch.bfloat16)
    assert suppress_duplicates(boxes, scores).tolist() == [1, 2]


def test_wrong_arguments_are_named():
    image = np.zeros((40, 60, 3), np.uint8)
    with pytest.raises(ValueError, match=r"2 points per side, divided by 3 .* are \[2, 0\]"):
        our_processor().generate_crop_boxes(image, IMAGE, 1, points_per_crop=2, crop_n_points_downscale_factor=3)
    with pytest.raises(ValueError, match=r"overlap_ratio in \[0, 1\), but got 1 and 1.5"):
        our_processor().generate_crop_boxes(image, IMAGE, 1, 1.5)
    with pytest.raises(ValueError, match=r"iou_scores should be \[2, 3\]"):
        our_processor().filter_masks(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1), (4, 4), torch.zeros(4))
