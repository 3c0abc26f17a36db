"""Everything in a photograph, against the pipeline of transformers; and by an instance decoder, against a grid."""

from collections.abc import Iterator

import numpy as np
import PIL.Image
import torch
from measuring import Limits, Row, alternate
from models import SIZES, Setup, our_model, prepare, stock_image_processor, stock_model
from transformers import pipeline

from sam_hf import MaskGenerator, SamHfConfig, SamHfImageProcessor, SamHfModel
from sam_hf.crops import click_grid, clicks_in_crop
from sam_hf.masks import stability_scores
from sam_hf.training.instance_targets import instance_targets

# Shares of masks that a trained SAM drops for their predicted IoU, and of the others for their stability, roughly.
DROPPED_FOR_IOU, DROPPED_FOR_STABILITY = 0.5, 0.5
# Discs in a row and a column of what an instance decoder is made to see.
DISCS = 7


def painted_image() -> PIL.Image.Image:
    """1800 x 1200 pixels of smooth colours, where there is no photograph."""
    cells = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    return PIL.Image.fromarray(cells).resize((1800, 1200), PIL.Image.Resampling.BICUBIC)


@torch.no_grad()
def thresholds(model, processor: SamHfImageProcessor, image: PIL.Image.Image) -> dict[str, float]:
    """Such that as large a share of masks passes as with trained weights: the work of both depends on it."""
    inputs = processor(image, return_tensors="pt").to(model.device)
    size = tuple(inputs["reshaped_input_sizes"][0].tolist())
    clicks = clicks_in_crop(click_grid(6), image.size[::-1], size).to(model.device)
    output = model(inputs["pixel_values"], input_points=clicks[None, :, None], multimask_output=True)
    scores, stability = output.iou_scores.float(), stability_scores(output.pred_masks.float())
    lowest_score = scores.quantile(DROPPED_FOR_IOU)
    return {
        "pred_iou_thresh": lowest_score.item(),
        "stability_score_thresh": stability[scores > lowest_score].quantile(DROPPED_FOR_STABILITY).item(),
    }


def automatic_mask_rows(setup: Setup, limits: Limits) -> Iterator[Row]:
    image = PIL.Image.open(setup.image).convert("RGB") if setup.image else painted_image()
    side = SIZES[setup.size]["image_size"]
    ours, stock = our_model(setup, setup.size), stock_model(setup, setup.size)
    shift_predicted_iou(ours, stock)
    processor = SamHfImageProcessor(size={"longest_edge": side})
    stock_processor = stock_image_processor(side)
    options = thresholds(ours, processor, image)
    generator = MaskGenerator(
        ours, processor, points_per_side=setup.points_per_side, output_mode="uncompressed_rle", **options
    )
    theirs = pipeline("mask-generation", model=stock, image_processor=stock_processor, device=setup.device)
    pipeline_options = {"points_per_crop": setup.points_per_side, "points_per_batch": 64, **options}
    functions = {
        "ours": lambda: len(generator(image)),
        "transformers": lambda: len(theirs(image, **pipeline_options)["masks"]),
    }
    times, found = alternate(functions, setup)
    yield Row(
        f"automatic masks, {setup.points_per_side} x {setup.points_per_side} grid",
        "transformers pipeline",
        times["ours"],
        times["transformers"],
        note=f"{found['ours']} and {found['transformers']} masks",
    )


def instance_rows(setup: Setup, limits: Limits) -> Iterator[Row]:
    """A model that is trained from scratch, of random weights, whose maps are replaced by those of 49 discs."""
    image = PIL.Image.open(setup.image).convert("RGB") if setup.image else painted_image()
    vision = SIZES[setup.training_size]
    side = vision["image_size"] * 3 // 2
    torch.manual_seed(0)
    config = SamHfConfig(vision_config=vision | {"image_size": side}, instance_decoder_config={})
    model = SamHfModel(config).eval()
    model = prepare(model, setup, None, model.vision_encoder, model.mask_decoder)
    shift_predicted_iou(model)
    show_discs(model, image.size)
    processor = SamHfImageProcessor(size={"longest_edge": side})
    of_grid = {"points_per_side": setup.points_per_side, **thresholds(model, processor, image)}
    generators = {
        way: MaskGenerator(model, processor, prompts=way, output_mode="uncompressed_rle", **options)
        for way, options in (("grid", of_grid), ("instances", {"box_nms_thresh": 1.0}), ("watershed", {}))
    }
    functions = {way: lambda generator=generator: len(generator(image)) for way, generator in generators.items()}
    times, found = alternate(functions, setup)
    for way in ("instances", "watershed"):
        yield Row(
            f"automatic masks by {way}, {side} pixels",
            f"{setup.points_per_side} x {setup.points_per_side} grid",
            times[way],
            times["grid"],
            note=f"{found[way]} and {found['grid']} masks",
        )


def show_discs(model: SamHfModel, size: tuple[int, int]) -> None:
    """Let the maps of the model, which it still computes, be those of discs in an image of (width, height) `size`."""
    grid = model.config.vision_config.image_size * 4 // model.config.vision_config.patch_size
    width, height = (side * grid // max(size) for side in size)
    rows, columns = np.mgrid[:grid, :grid]
    down, across = rows * DISCS // height, columns * DISCS // width
    away = np.hypot((rows + 0.5) * DISCS / height % 1 - 0.5, (columns + 0.5) * DISCS / width % 1 - 0.5)
    labels = np.where((away < 0.4) & (down < DISCS) & (across < DISCS), 1 + down * DISCS + across, 0)
    maps = torch.from_numpy(instance_targets(labels, labels.shape))[None].to(model.device)
    compute = model.get_instance_maps
    model.get_instance_maps = lambda embeddings: torch.where(compute(embeddings) >= 0, maps, 0)


@torch.no_grad()
def shift_predicted_iou(*models: torch.nn.Module) -> None:
    """Thresholds count from 0 up, and the predicted IoU of random weights need not."""
    for model in models:
        model.mask_decoder.iou_prediction_head.proj_out.bias += 5
