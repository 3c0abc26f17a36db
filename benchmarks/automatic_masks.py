"""Everything in a photograph, against transformers' pipeline and Meta's generator."""

from collections.abc import Iterator

import numpy as np
import PIL.Image
import torch
from measuring import Limits, Row, alternate
from models import SIZES, Setup, our_model, stock_image_processor, stock_model
from transformers import pipeline

from sam_hf import MaskGenerator, SamHfImageProcessor
from sam_hf.crops import click_grid, clicks_in_crop
from sam_hf.masks import stability_scores

# Shares of masks that a trained SAM drops for their predicted IoU, and of the others for their stability, roughly.
DROPPED_FOR_IOU, DROPPED_FOR_STABILITY = 0.5, 0.5


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


@torch.no_grad()
def shift_predicted_iou(*models: torch.nn.Module) -> None:
    """Thresholds count from 0 up, and the predicted IoU of random weights need not."""
    for model in models:
        model.mask_decoder.iou_prediction_head.proj_out.bias += 5
