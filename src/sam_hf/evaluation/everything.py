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

from ..data import FaultLog, Records, decode_masks, objects_from_masks, rgb_array
from ..data.faults import read_checked
from ..visualization import draw_masks
from .metrics import InstanceSegmentation
from .numbers import computed
from .options import FOUND, EvaluationOptions, names_of
from .predictors import AutomaticPredictor, Predictor, open_predictor
from .processes import share_images
from .report import as_json

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
        image = rgb_array(record["image"], stretch_contrast=stretch)
        begin = time.perf_counter()
        found = predictor.find_all(image)
        objects = {crowd: [o["segmentation"] for o in record["objects"] if o["iscrowd"] == crowd] for crowd in (0, 1)}
        return FoundMasks(
            place=place,
            index=index,
            image_id=record["image_id"],
            predictions=[_run_lengths(item["segmentation"]) for item in found],
            scores=[float(item["predicted_iou"]) for item in found],
            references=objects[0],
            crowds=objects[1],
            seconds=time.perf_counter() - begin,
        )

    results = share_images(look, len(dataset), faults, num_images, accelerator, show_progress=show_progress)
    assert results is not None, "nothing interrupts it"
    if all(result.faults for result in results):
        raise ValueError(f"no image can be used: {results[0].faults[0]}")
    return [result for result in results if not result.faults]


def _run_lengths(mask: Any) -> dict[str, Any]:
    return mask if isinstance(mask, dict) else objects_from_masks(np.asarray(mask)[None])[0]["segmentation"]


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
    lines = [["model", *NUMBERS.values()], ["---"] * (len(NUMBERS) + 1)]
    for name, numbers in results.items():
        lines.append([name, *(f"{numbers.get(key, 0):.3f}" for key in NUMBERS)])  # no mask at all has no COCO AP
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save_found(path: Path, images: Sequence[FoundMasks], about: Mapping[str, Any]) -> None:
    """As JSON, from which `load_found` and `instance_numbers` give all numbers again."""
    path.write_text(json.dumps({"about": about, "images": [asdict(image) for image in images]}) + "\n")


def load_found(path: Path) -> tuple[list[FoundMasks], dict[str, Any]]:
    """Undo `save_found`."""
    written = json.loads(path.read_text())
    return [FoundMasks(**image) for image in written["images"]], written["about"]


def draw_found(
    images: Sequence[FoundMasks], dataset: Records, *, stretch_contrast: bool, side: int = 384
) -> Image.Image:
    """A sheet of three images, those with the best, middle and worst accuracy at .5: image, objects, found masks."""
    order = sorted(images, key=lambda image: -instance_numbers([image])["image_accuracy_50"])
    chosen = [order[0], order[len(order) // 2], order[-1]]
    sheet = Image.new("RGB", (3 * side, 3 * side), "white")
    for row, found in enumerate(chosen):
        image = rgb_array(dataset[found.index]["image"], stretch_contrast=stretch_contrast)
        for column, masks in enumerate(([], found.references, found.predictions)):
            picture = draw_masks(image, _pixels(masks, image.shape[:2]))
            picture.thumbnail((side, side))
            sheet.paste(picture, (column * side, row * side))
    return sheet


def _pixels(masks: Sequence[dict[str, Any]], size: tuple[int, ...]) -> np.ndarray:
    decoded = [decode_masks([{"segmentation": mask, "area": 0, "bbox": [], "iscrowd": 0}])[0] for mask in masks]
    return np.array(sorted(decoded, key=lambda mask: -mask.sum()), dtype=bool).reshape(-1, *size)


def report_everything(options: EvaluationOptions, accelerator: Accelerator) -> None:
    """Evaluate the models of some options, or load what was found before; print and write what came of it."""
    found: dict[str, list[FoundMasks]] = {}
    models: dict[str, str] = {}
    for name, folder in options.folders().items():
        if (Path(name) / FOUND).exists():
            found[name], settings = load_found(Path(name) / FOUND)
        else:
            settings = asdict(options) | {"model": name}
            found[name] = find_everything(name, folder, options, accelerator)
        models[name] = settings["model"]
    if accelerator.is_main_process:
        results = {called: instance_numbers(found[name]) for name, called in names_of(models).items()}
        print(table := instance_table(results))
        output = Path(options.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        (output / "numbers.json").write_text(as_json({"settings": settings, "results": results}))
        (output / "report.md").write_text(f"{table}\n")


def find_everything(name: str, folder: Path, options: EvaluationOptions, accelerator: Accelerator) -> list[FoundMasks]:
    """Evaluate one model, and write its masks and pictures."""
    dataset, faults = options.open_records()
    predictor = open_predictor(name, accelerator.device)
    given: Any = {"stretch_contrast": options.stretch_contrast, "show_progress": True}
    images = evaluate_everything(predictor, dataset, faults, options.max_images, accelerator=accelerator, **given)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_found(folder / FOUND, images, asdict(options) | {"model": name})
        stretch = predictor.stretch_contrast if options.stretch_contrast is None else options.stretch_contrast
        draw_found(images, dataset, stretch_contrast=stretch).save(folder / "cases.png")
    return images


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
