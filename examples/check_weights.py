"""Compare published checkpoints here and in transformers: run it once, on a machine with a network.

    python examples/check_weights.py facebook/sam-vit-base facebook/sam2.1-hiera-tiny
    python examples/check_weights.py facebook/sam2.1-hiera-tiny --meta sam2.1_hiera_tiny.pt --dataset FOLDER

Prints a table, and ends with 1 if anything differs: preprocessing, masks of a click and of a box, the weights after
going back to transformers, the weights in Meta's file. `--dataset` also evaluates each, by `examples/evaluate.py`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import AutoConfig, AutoProcessor, EdgeTamModel, Sam2Model, Sam3TrackerModel, SamModel

from sam_hf import SamHfModel, SamHfProcessor
from sam_hf.convert import load_checkpoint
from sam_hf.convert import main as convert

STOCK = {
    "sam": SamModel,
    "sam2": Sam2Model,
    "sam2_video": Sam2Model,
    "edgetam": EdgeTamModel,
    "sam3_tracker": Sam3TrackerModel,
}
# Of the largest value; a pixel of 8 bits where pictures are resized.
TOLERANCE, PIXEL_TOLERANCE = 1e-4, 0.02
# Of the models in STOCK, those that can go back.
RETURN = ("sam", "sam2", "sam2_video")
Check = tuple[str, float, float]  # what, how far apart, how far at most


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="folders or Hub ids of models of transformers")
    parser.add_argument("--image", help="a photograph, instead of a drawing")
    parser.add_argument("--meta", help="Meta's file with the same weights as the first model")
    parser.add_argument("--dataset", help="also evaluate zero-shot on it")
    return parser.parse_args()


def drawing() -> Image.Image:
    """An ellipse, partly behind a rectangle, 500 x 300."""
    image = Image.new("RGB", (500, 300), (70, 110, 60))
    draw = ImageDraw.Draw(image)
    draw.ellipse((90, 60, 290, 240), fill=(200, 170, 90))
    draw.rectangle((250, 150, 420, 280), fill=(60, 70, 160))
    return image


def largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


@torch.no_grad()
def checks(source: str, image: Image.Image, meta: str | None) -> Iterator[Check]:
    model_type = AutoConfig.from_pretrained(source).model_type
    if model_type not in STOCK:
        sys.exit(f"{source} is a {model_type!r} model, expected one of {', '.join(STOCK)}.")
    ours, stock = SamHfModel.from_pretrained(source).eval(), STOCK[model_type].from_pretrained(source).eval()
    processor, stock_processor = SamHfProcessor.from_pretrained(source), AutoProcessor.from_pretrained(source)
    x, y = image.width * 0.3, image.height * 0.5
    box = [image.width * 0.1, image.height * 0.1, image.width * 0.6, image.height * 0.9]
    for prompt, given in (("a click", {"input_points": [[[[x, y]]]]}), ("a box", {"input_boxes": [[box]]})):
        theirs = stock_processor(image, return_tensors="pt", **given)
        if prompt == "a click":
            own = processor(image, input_points=[[[x, y]]], input_labels=[[1]])
            yield "pixels", largest(own["pixel_values"], theirs["pixel_values"]), PIXEL_TOLERANCE
        inputs = {name: theirs[name] for name in ("pixel_values", *given)}
        for multimask_output in (True, False):
            answers = [model(**inputs, multimask_output=multimask_output) for model in (ours, stock)]
            kind = "candidates" if multimask_output else "the mask"
            yield f"{kind} of {prompt}", largest(*(answer.pred_masks for answer in answers)), TOLERANCE
            yield f"IoU of {kind} of {prompt}", largest(*(answer.iou_scores for answer in answers)), TOLERANCE
    if model_type in RETURN:
        with tempfile.TemporaryDirectory() as folder:
            base = ["--base", source] if model_type == "sam2_video" else []
            convert([source, f"{folder}/back", "--to", "transformers", *base])
            back = STOCK[model_type].from_pretrained(f"{folder}/back").state_dict()
        differ = sum(not torch.equal(value, back[name]) for name, value in stock.state_dict().items())
        yield "weights that are others after going back", differ, 0
    if meta is not None:
        found = load_checkpoint(meta).model.state_dict()
        differ = sum(not torch.equal(value, found[name]) for name, value in ours.state_dict().items())
        yield f"weights that are others in {Path(meta).name}", differ, 0


def main() -> None:
    options = parse_arguments()
    image = Image.open(options.image).convert("RGB") if options.image else drawing()
    failed = False
    for index, source in enumerate(options.models):
        print(f"\n{source}\n\n| what | difference | at most |\n|---|---|---|")
        for what, difference, limit in checks(source, image, options.meta if index == 0 else None):
            failed |= not difference <= limit
            print(
                f"| {what} | {difference:.2g}{'' if difference <= limit else ' **differs**'} | {limit:g} |", flush=True
            )
        if options.dataset:
            script = Path(__file__).with_name("evaluate.py")
            subprocess.run([sys.executable, script, "--model", source, "--dataset", options.dataset], check=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
