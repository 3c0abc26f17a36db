"""Whether one model is better than another on the same objects, or chance made it so."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .intervals import bootstrap
from .markdown import markdown_table
from .protocols import Protocol
from .summary import ClickSummary


@dataclass(frozen=True)
class Comparison:
    """The second model against the first, after each of P prompts.

    Args:
        difference: float64 [P], mean over objects of the IoU of the second minus that of the first.
        low, high: float64 [P], 95 % interval of it, by drawing images with replacement.
        p_value: float64 [P], two-sided Wilcoxon signed-rank test of the mean differences of images, since objects of
            an image are no independent cases. 1 where no image differs.
        wins, losses: int64 [P], images that are better and worse with the second.
    """

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    wins: np.ndarray
    losses: np.ndarray


def compare(first: ClickSummary, second: ClickSummary) -> Comparison:
    """Pair the objects of two evaluations of the same data by the same protocol, in whatever order their images are.

    Users are averaged before.

    Raises:
        ValueError: if they are not of the same objects, or of other numbers of prompts.
    """
    from scipy.stats import wilcoxon

    ious = [_of_images(summary) for summary in (first, second)]
    if ious[0].keys() != ious[1].keys() or any(ious[0][key].shape != ious[1][key].shape for key in ious[0]):
        raise ValueError(
            f"the evaluations are of other objects or prompts: {_told(first)} and {_told(second)}. "
            "Evaluate both on the same data, by the same protocol and seed."
        )
    differences = [ious[1][key] - ious[0][key] for key in ious[0]]
    means = np.stack([difference.mean(axis=0) for difference in differences])  # [images, P]
    p_value = [wilcoxon(column).pvalue if np.any(column) else 1.0 for column in means.T]
    mean, low, high = bootstrap(differences)
    return Comparison(mean, low, high, np.array(p_value), (means > 0).sum(axis=0), (means < 0).sum(axis=0))


def _of_images(summary: ClickSummary) -> dict[tuple[str, ...], np.ndarray]:
    """IoU [N, P] of the objects of every image, the mean over users; by the image and its objects."""
    found: dict[tuple[str, ...], list[np.ndarray]] = {}
    for trace in summary.traces:
        key = trace.image_id, *(item["counts"] for item in trace.objects)
        found.setdefault(key, []).append(trace.iou.astype(np.float64))
    return {key: np.mean(ious, axis=0) for key, ious in found.items()}


def _told(summary: ClickSummary) -> str:
    num_objects, num_prompts = summary.iou.shape
    return f"{num_objects} in {summary.num_images} images with {num_prompts} prompts"


def comparison_table(summaries: Mapping[str, ClickSummary], protocol: Protocol) -> str:
    """Markdown of two evaluations, by the names of the models."""
    (first, second), found = summaries, compare(*summaries.values())
    lines = [[f"{second} against {first}, after", "IoU", "95 % over images", "better : worse images", "p (Wilcoxon)"]]
    for count in protocol.reported:
        place = count - 1
        interval = f"{found.low[place]:+.3f} to {found.high[place]:+.3f}"
        images = f"{found.wins[place]} : {found.losses[place]}"
        lines.append([str(count), f"{found.difference[place]:+.3f}", interval, images, f"{found.p_value[place]:.2g}"])
    return markdown_table(lines)


__all__ = ["Comparison", "compare", "comparison_table"]
