"""All masks that a model finds in an image by itself, against the objects there."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ..data import FaultLog, Records, rgb_array
from ..data.faults import read_checked, why_empty
from ..data.schema import decode_rles
from ..visualization import draw_masks
from .markdown import markdown_table
from .metrics import InstanceSegmentation
from .metrics.instances import InstanceImage, counted_ious, segmentation_accuracy
from .metrics.stored_inputs import run_lengths
from .numbers import computed
from .options import FOUND, EvaluationOptions
from .predictors import AutomaticPredictor, Predictor, SamHfPredictor, open_predictor
from .processes import share_images
from .report import as_json, names_of

SIDE = 384  # of a picture in a sheet
NUMBERS = {
    "image_accuracy_50": "AP50 (mean over images)",
    "image_accuracy_75": "AP75",
    "image_accuracy": "mSA",
    "pooled_accuracy_50": "accuracy, pooled, .5",
    "panoptic_quality": "PQ",
    "coco_ap": "COCO AP",
    "coco_ar_1000": "AR@1000",
    "masks_per_image": "masks an image",
    "seconds": "seconds an image",
}


@dataclass
class FoundMasks:
    """What was found in an image, and what there is; masks are COCO's compressed run lengths.

    Args:
        place: of the image in the evaluation; index: in its data set; image_id: its name.
        faults: why it could not be used, if so.
        predictions, scores: the masks, and what ranks them.
        references: the objects; crowds: regions that nobody divided into objects.
        seconds: that it took.
    """

    place: int
    index: int
    image_id: str = ""
    faults: list[str] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    references: list[dict[str, Any]] = field(default_factory=list)
    crowds: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def evaluate_everything(
    predictor: Predictor,
    dataset: Records,
    faults: FaultLog,
    num_images: int | None = None,
    *,
    accelerator: Accelerator,
    stretch_contrast: bool | None = None,
    show_progress: bool = False,
) -> list[FoundMasks]:
    """Find all masks of evenly spaced images. To be called by all processes, as `share_images`.

    Args:
        stretch_contrast: whether the model sees the images so; as it wants when None.

    Raises:
        ValueError: if the model finds no masks by itself, or too many images cannot be used.
    """
    if not isinstance(predictor, AutomaticPredictor):
        raise ValueError(f"{type(predictor).__name__} has no `find_all`: it finds nothing without prompts.")
    stretch = predictor.stretch_contrast if stretch_contrast is None else stretch_contrast

    def look(place: int, index: int) -> FoundMasks:
        try:
            record = read_checked(dataset, index)
        except (OSError, ValueError) as error:
            return FoundMasks(place, index, faults=[str(error)])
        if not record["objects"] and (why := why_empty(dataset, index)):
            return FoundMasks(place, index, faults=[f"record {record['image_id']!r} has no object: {why}"])
        image = rgb_array(record["image"], stretch_contrast=stretch)
        begin = time.perf_counter()
        found = predictor.find_all(image)
        seconds = time.perf_counter() - begin
        objects = {crowd: [o["segmentation"] for o in record["objects"] if o["iscrowd"] == crowd] for crowd in (0, 1)}
        return FoundMasks(
            place=place,
            index=index,
            image_id=record["image_id"],
            predictions=[run_lengths(item["segmentation"]) for item in found],
            scores=[float(item["predicted_iou"]) for item in found],
            references=objects[0],
            crowds=objects[1],
            seconds=seconds,
        )

    results = share_images(look, len(dataset), faults, num_images, accelerator, show_progress=show_progress)
    assert results is not None, "nothing interrupts it"
    return [result for result in results if not result.faults]


def instance_numbers(images: Sequence[FoundMasks]) -> dict[str, float]:
    """Of `InstanceSegmentation`, the masks of an image, and the median of the seconds."""
    metric = InstanceSegmentation(keep_in_memory=True)
    metric.add_batch(
        predictions=[image.predictions for image in images],
        references=[image.references for image in images],
        scores=[image.scores for image in images],
        crowds=[image.crowds for image in images],
    )
    masks = float(np.mean([len(image.predictions) for image in images]))
    times = float(np.median([image.seconds for image in images]))
    return computed(metric) | {"masks_per_image": masks, "seconds": times}


def instance_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown of the numbers of one or several models, by their names."""
    lines = [["model", *NUMBERS.values()]]
    for name, numbers in results.items():
        lines.append([name, *(f"{numbers.get(key, 0):.3f}" for key in NUMBERS)])  # no mask at all has no COCO AP
    return markdown_table(lines)


def save_found(path: Path, images: Sequence[FoundMasks], about: Mapping[str, Any]) -> None:
    """As JSON, from which `load_found` and `instance_numbers` give all numbers again."""
    path.write_text(json.dumps({"about": about, "images": [asdict(image) for image in images]}) + "\n")


def load_found(path: Path) -> tuple[list[FoundMasks], dict[str, Any]]:
    """Undo `save_found`."""
    written = json.loads(path.read_text())
    return [FoundMasks(**image) for image in written["images"]], written["about"]


def draw_found(images: Sequence[FoundMasks], dataset: Records, *, stretch_contrast: bool) -> Image.Image:
    """A sheet of the images with the best, middle and worst accuracy at .5: image, objects, found masks."""
    order = sorted(images, key=accuracy_50, reverse=True)
    chosen = sorted({0, len(order) // 2, len(order) - 1})
    sheet = Image.new("RGB", (3 * SIDE, len(chosen) * SIDE), "white")
    for row, found in enumerate(order[place] for place in chosen):
        pixels = rgb_array(dataset[found.index]["image"], stretch_contrast=stretch_contrast)
        image = Image.fromarray(pixels)
        image.thumbnail((SIDE, SIDE))
        for column, masks in enumerate(([], found.references, found.predictions)):
            sheet.paste(draw_masks(image, _small_masks(masks, image.size)), (column * SIDE, row * SIDE))
    return sheet


def accuracy_50(image: FoundMasks) -> float:
    """TP / (TP + FP + FN) of an image, an IoU of .5 is a match."""
    iou = counted_ious(InstanceImage(image.predictions, image.references, image.crowds))
    return float(segmentation_accuracy(iou, [0.5])[0])


def _small_masks(masks: Sequence[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """bool [K, H, W] of (width, height) `size`, large ones first; one is decoded at a time."""
    small = [np.asarray(Image.fromarray(decode_rles([mask])[0]).resize(size)) for mask in masks]
    small.sort(key=lambda mask: -mask.sum())
    return np.array(small, dtype=bool).reshape(-1, size[1], size[0])


def report_everything(options: EvaluationOptions, accelerator: Accelerator) -> None:
    """Evaluate the models of some options, or load what was found before; print and write what came of it."""
    found: dict[str, list[FoundMasks]] = {}
    models: dict[str, str] = {}
    for name, folder in options.folders().items():
        if options.is_stored(name):
            found[name], settings = load_found(Path(name) / FOUND)
        else:
            found[name], way = find_everything(name, folder, options, accelerator)
            settings = asdict(options) | {"model": name, "prompts": way}
        models[name] = settings["model"] + (f" ({way})" if (way := settings.get("prompts")) else "")
    first, *others = found.values()
    if any([image.references for image in other] != [image.references for image in first] for other in others):
        raise ValueError(f"{' and '.join(found)} were evaluated on other objects: give both the same data.")
    if accelerator.is_main_process:
        results = {called: instance_numbers(found[name]) for name, called in names_of(models).items()}
        print(table := instance_table(results))
        output = Path(options.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        (output / "numbers.json").write_text(as_json({"settings": settings, "results": results}))
        (output / "report.md").write_text(f"{table}\n")


def find_everything(
    name: str, folder: Path, options: EvaluationOptions, accelerator: Accelerator
) -> tuple[list[FoundMasks], str | None]:
    """Evaluate one model, and write its masks and pictures; returns also the way that it finds them."""
    dataset, faults = options.open_records()
    predictor = open_predictor(name, accelerator.device)
    way = choose_way(predictor, options.prompts)
    given: Any = {"stretch_contrast": options.stretch_contrast, "show_progress": True}
    images = evaluate_everything(predictor, dataset, faults, options.max_images, accelerator=accelerator, **given)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_found(folder / FOUND, images, asdict(options) | {"model": name, "prompts": way})
        stretch = predictor.stretch_contrast if options.stretch_contrast is None else options.stretch_contrast
        draw_found(images, dataset, stretch_contrast=stretch).save(folder / "cases.png")
    return images, way


def choose_way(predictor: Predictor, prompts: str | None) -> str | None:
    """Let a model of this package find everything by `prompts`; the way that this is, None for other models.

    Raises:
        ValueError: if the model cannot be prompted so.
    """
    if isinstance(predictor, SamHfPredictor):
        predictor.prompts = prompts
        return predictor.mask_generator().way
    if prompts is not None:
        raise ValueError(f"--prompts {prompts} is for models of this package, not for a {type(predictor).__name__}.")
    return None


__all__ = [
    "FoundMasks",
    "draw_found",
    "evaluate_everything",
    "instance_numbers",
    "instance_table",
    "load_found",
    "report_everything",
    "save_found",
]
