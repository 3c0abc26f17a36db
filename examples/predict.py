"""Segment what clicks and boxes point at, and save the masks.

    python examples/predict.py --model runs/nuclei/best --image photo.jpg --point 120,80 --point 10,10,0

Coordinates are pixels of the image as it is displayed; label 0 makes a background click. `--object` starts
the prompts of another object:

    ... --object --point 120,80 --point 10,10,0 --object --box 30,40,200,220 --object --point 300,50

Writes `overlay.png` (masks, clicks and boxes over the image) and `mask.png` (a label map: pixel value k is
the k-th object, later ones on top, 0 is none; its palette holds the colours of the overlay), both in the size
of the image.

`--everything` needs no prompts. A model with an instance decoder finds the objects itself, and clicks into each
(`--prompts watershed`: without clicks); any other clicks on a grid (`--prompts grid`) and keeps the masks that it is
sure of. The thresholds are those that are saved with the model, or else SAM's. It writes
`overlay.png` and `masks.json`, the records of `sam_hf.MaskGenerator` with run lengths as pycocotools reads them:

    ... --everything --prompts grid --pred-iou-thresh 0.8 --stability-score-thresh 0.9

It also adds the image and its masks to the folder `records/`, in the form of SA-1B: training data, once they are
corrected.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from transformers import AutoModel, AutoProcessor

from sam_hf import (
    MaskGenerator,
    SamHfModel,
    SamHfProcessor,
)  # the import also registers the model with the Auto classes
from sam_hf.automatic import WAYS
from sam_hf.image_processing_sam_hf import PRED_IOU_THRESH, STABILITY_SCORE_THRESH
from sam_hf.masks import best_masks, decode_rle
from sam_hf.pixels import read_image
from sam_hf.prompt_encoder import BACKGROUND, FOREGROUND
from sam_hf.prompted import PromptedImage
from sam_hf.visualization import draw_boxes, draw_clicks, draw_masks, object_colors


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(args.model).to(device)
    processor = AutoProcessor.from_pretrained(args.model)
    image_processor = processor.image_processor
    image = to_pil_image(read_image(args.image, stretch_contrast=bool(image_processor.do_stretch_contrast)))
    image_processor.do_stretch_contrast = False  # done, from the values of the file, which the picture no longer has
    args.output.mkdir(parents=True, exist_ok=True)
    if args.everything:
        segment_everything(model, processor, image, args)
    else:
        segment_objects(model, processor, image, args)


def segment_everything(
    model: SamHfModel, processor: SamHfProcessor, image: Image.Image, args: argparse.Namespace
) -> None:
    generator = MaskGenerator(
        model,
        processor,
        prompts=args.way,
        points_per_side=args.points_per_side,
        pred_iou_thresh=args.pred_iou_thresh,
        stability_score_thresh=args.stability_score_thresh,
        output_mode="uncompressed_rle",
    )
    records = generator(image, show_progress=True)
    print(f"{len(records)} masks")
    (args.output / "masks.json").write_text(json.dumps(records))
    save_record(image, records, args.output / "records", Path(args.image).stem or "image")
    largest_first = sorted(records, key=lambda record: -record["area"])
    masks = [decode_rle(record["segmentation"]).numpy() for record in largest_first]
    masks = np.array(masks, dtype=bool).reshape(-1, image.height, image.width)  # there may be none
    draw_masks(image, masks).save(args.output / "overlay.png")


def save_record(image: Image.Image, records: list[dict], folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    image.save(folder / f"{name}.png")
    about = {"image_id": name, "file_name": f"{name}.png", "height": image.height, "width": image.width}
    (folder / f"{name}.json").write_text(json.dumps({"image": about, "annotations": records}))


def segment_objects(
    model: SamHfModel, processor: SamHfProcessor, image: Image.Image, args: argparse.Namespace
) -> None:
    # Checked, and in pixels of the image, as nothing is resized.
    prompts = processor(original_sizes=image.size[::-1], do_resize=False, **processor_prompts(args.objects))
    prompted = PromptedImage(model, processor, np.asarray(image))
    answers = prompted.predict(*(prompts[name][0] for name in ("input_points", "input_labels", "input_boxes")))
    shown = best_masks(answers.logits, answers.iou_scores)[:, :, None]
    masks = prompted.to_pixels(shown, answers.views)[:, 0].cpu().numpy()  # bool [N, H, W]
    scores = answers.iou_scores[0].max(dim=-1).values

    for index, (mask, score) in enumerate(zip(masks, scores.tolist(), strict=True), start=1):
        print(f"object {index}: predicted IoU {score:.3f}, {mask.sum()} pixels")
    overlay(image, masks, args.objects).save(args.output / "overlay.png")
    label_map(masks).save(args.output / "mask.png")


def processor_prompts(objects: list[dict]) -> dict[str, list]:
    """Arguments of the processor, with None for what an object does not have."""
    return {
        "input_points": [[point[:2] for point in prompt["point"]] or None for prompt in objects],
        "input_labels": [[int(point[2]) for point in prompt["point"]] or None for prompt in objects],
        "input_boxes": [prompt["box"][0] if prompt["box"] else None for prompt in objects],
    }


def overlay(image: Image.Image, masks: np.ndarray, objects: list[dict]) -> Image.Image:
    picture = draw_masks(image, masks)
    for prompt, color in zip(objects, object_colors(len(objects)), strict=True):
        points = np.array(prompt["point"]).reshape(-1, 3)
        picture = draw_boxes(picture, np.array(prompt["box"]).reshape(-1, 4), [color])
        picture = draw_clicks(picture, points[:, :2], points[:, 2])
    return picture


def label_map(masks: np.ndarray) -> Image.Image:
    labels = np.zeros(masks.shape[1:], dtype=np.uint8)
    for index, mask in enumerate(masks, start=1):
        labels[mask] = index
    picture = Image.fromarray(labels)
    picture.putpalette([0, 0, 0, *np.ravel(object_colors(len(masks))).tolist()])
    return picture


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with prompts as `objects`: per object its points (x, y, label) and at most one box."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--image", required=True, help="file or URL")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the pictures")
    # One list for all prompts keeps their order on the command line, which says what belongs to which object.
    prompts = {"dest": "prompts", "default": []}
    parser.add_argument("--point", action="append", type=parse_point, metavar="X,Y[,LABEL]", **prompts)
    parser.add_argument("--box", action="append", type=parse_box, metavar="X1,Y1,X2,Y2", **prompts)
    parser.add_argument("--object", action="append_const", const=("object", None), **prompts)
    parser.add_argument("--everything", action="store_true", help="all masks of the image, without prompts")
    ways = (
        "how --everything finds objects; instances, if the model has an instance decoder, and else grid, if not given"
    )
    parser.add_argument("--prompts", dest="way", choices=WAYS, help=ways)
    parser.add_argument("--points-per-side", type=int, default=32, help="of the grid for --everything")
    own = "lower it to get more of everything (the model's own, or SAM's {})"
    parser.add_argument("--pred-iou-thresh", type=float, help=own.format(PRED_IOU_THRESH))
    parser.add_argument("--stability-score-thresh", type=float, help=own.format(STABILITY_SCORE_THRESH))
    args = parser.parse_args(argv)

    args.objects = [{"point": [], "box": []}]
    for kind, values in args.prompts:
        if kind == "object":
            args.objects.append({"point": [], "box": []})
        else:
            args.objects[-1][kind].append(values)
    args.objects = [prompt for prompt in args.objects if prompt["point"] or prompt["box"]]
    if args.everything == bool(args.objects):
        parser.error("give either at least one --point or --box, or --everything")
    if any(len(prompt["box"]) > 1 for prompt in args.objects):
        parser.error("an object has several boxes: put --object between them")
    return args


def parse_point(text: str) -> tuple[str, list[float]]:
    values = parse_numbers(text, "X,Y or X,Y,LABEL")
    if len(values) == 2:
        values.append(FOREGROUND)
    if len(values) != 3 or values[2] not in (FOREGROUND, BACKGROUND):
        raise argparse.ArgumentTypeError(f"expected X,Y or X,Y,LABEL with label 1 or 0, got {text!r}")
    return "point", values


def parse_box(text: str) -> tuple[str, list[float]]:
    values = parse_numbers(text, "X1,Y1,X2,Y2")
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"expected X1,Y1,X2,Y2, got {text!r}")
    return "box", values


def parse_numbers(text: str, expected: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None


if __name__ == "__main__":
    main()
