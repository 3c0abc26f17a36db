"""What an evaluation leaves in a folder: numbers, a page of Markdown, curves, and the best and worst cases."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.schema import Records, rgb_array
from ..visualization import prediction_sheet
from .numbers import tables
from .protocols import Protocol
from .summary import ClickSummary, sheet_row

CASES = 3  # best, median and worst ones, each
BAND = "band: 95 % of 1,000 draws of images with replacement"


def names_of(models: Mapping[str, str]) -> dict[str, str]:
    """What to call what was given, such as folders: by its model, or by itself where two are of one model."""
    return dict(models) if len(set(models.values())) == len(models) else {given: given for given in models}


def as_json(value: Any) -> str:
    """JSON; what is not a number is null, since other languages read no NaN."""

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {name: plain(item) for name, item in part.items()}
        if isinstance(part, (list, tuple)):
            return [plain(item) for item in part]
        return None if isinstance(part, float) and not np.isfinite(part) else part

    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def draw_curves(path: str | Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the mean IoU after each prompt, with a band, and true against predicted IoU, to a picture file.

    Args:
        results: of `evaluation_numbers`, by the names of models.
    """
    # A second to import, and only needed here.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 4.5))
    axes, reliability = figure.subplots(1, 2, width_ratios=(7, 4.5))
    for name, numbers in results.items():
        prompts = np.arange(1, len(numbers["mean"]) + 1)
        (line,) = axes.plot(prompts, numbers["mean"], marker="o", label=name)
        axes.fill_between(prompts, numbers["low"], numbers["high"], color=line.get_color(), alpha=0.2, linewidth=0)
        if numbers["calibration"]:
            curve = numbers["calibration"]["curve"]
            reliability.plot(curve["predicted"], curve["true"], marker="o", color=line.get_color())
    reliability.plot((0, 1), (0, 1), color="grey", linewidth=1)
    reliability.set(xlabel="predicted IoU (means of ten bins)", ylabel="true IoU", xlim=(0, 1), ylim=(0, 1))
    reliability.grid(alpha=0.3)
    axes.set(xlabel=f"prompts ({BAND})", ylabel="mean IoU", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def draw_cases(summary: ClickSummary, dataset: Records, *, stretch_contrast: bool) -> Image.Image:
    """A sheet of the objects whose IoU, as the mean over all prompts, is the highest, in the middle, and the lowest.

    Args:
        dataset: what was evaluated; the images are read from it again.
        stretch_contrast: whether they are shown so.
    """
    objects = [(trace, place) for trace in summary.traces for place in range(len(trace.objects))]
    order = np.argsort(-summary.iou.mean(axis=1), kind="stable").tolist()
    middle = max((len(order) - CASES) // 2, 0)
    chosen = dict.fromkeys([*order[:CASES], *order[middle : middle + CASES], *order[-CASES:]])
    rows = []
    for trace, place in (objects[index] for index in chosen):
        if trace.index is None:
            raise ValueError(f"it is not known where {trace.image_id!r} is in the data set: evaluate by `evaluate`.")
        image = dataset[trace.index]["image"]
        rows.append(sheet_row(trace, rgb_array(image, stretch_contrast=stretch_contrast), place))
    return prediction_sheet(rows)


def write_report(
    folder: Path,
    results: Mapping[str, Mapping[str, Any]],
    protocol: Protocol,
    settings: Mapping[str, Any],
    text: str = "",
) -> str:
    """Write `numbers.json`, `report.md` and `curves.png`.

    Args:
        results: of `evaluation_numbers`, by the names of models.
        settings: of the evaluation, to be told.
        text: Markdown to add to the tables.

    Returns:
        the tables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "numbers.json").write_text(as_json({"settings": settings, "results": results}))
    draw_curves(folder / "curves.png", results)
    told = "\n\n".join(filter(None, [tables(results, protocol), text]))
    first = next(iter(results.values()))
    about = (
        f"`{settings['dataset']}`, split `{settings['eval_split']}`: {first['num_objects']} objects in "
        f"{first['num_images']} images; protocol `{protocol.name}`, {protocol.num_prompts} prompts, "
        f"{first['num_draws']} user(s), seed {settings['seed']}."
    )
    page = [f"# {' and '.join(results)}", about, told, "![Mean IoU after each prompt](curves.png)"]
    if len(results) == 1 and (folder / "cases.png").exists():
        page.append("![The best, middle and worst objects](cases.png)")
    (folder / "report.md").write_text("\n\n".join(page) + "\n")
    return told


__all__ = ["as_json", "draw_cases", "draw_curves", "names_of", "write_report"]
