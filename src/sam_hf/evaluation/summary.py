"""What the simulated clicks of an evaluation amount to: numbers and a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..visualization import SheetRow, prediction_sheet
from .interactive import ClickTrace

SHOWN_CLICKS = (1, 3, 5)
NUM_ROWS = 6


@dataclass
class ClickSummary:
    """Result of an evaluation.

    Args:
        iou: float32 [objects, clicks], IoU of every object after each click.
        num_images: images that have objects.
        rows: the first object of the first images, for `picture`.
        negatives: float [images], the object scores of images without objects, see `score_negative`.
    """

    iou: np.ndarray
    num_images: int
    rows: list[SheetRow]
    negatives: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def iou_per_click(self) -> list[float]:
        """Mean over objects after 1, 2, ... clicks."""
        return self.iou.mean(axis=0, dtype=np.float64).tolist()

    @property
    def score(self) -> float:
        """Mean over objects and clicks: one number that rewards a good first mask and what further clicks gain."""
        return float(self.iou.mean(dtype=np.float64))

    def metrics(self) -> dict[str, Any]:
        """By name; `negatives_rejected` is the share of images without objects where a click is answered by none."""
        metrics: dict[str, Any] = {
            "iou_per_click": self.iou_per_click,
            "score": self.score,
            "num_images": self.num_images,
            "num_objects": len(self.iou),
        }
        if len(self.negatives):
            rejected = float((self.negatives <= 0).mean())
            metrics |= {"num_negatives": len(self.negatives), "negatives_rejected": rejected}
        return metrics

    def table(self) -> str:
        """Markdown."""
        means = self.iou_per_click
        lines = (
            ["clicks", *(str(n + 1) for n in range(len(means)))],
            ["---"] * (len(means) + 1),
            ["mean IoU", *(f"{mean:.3f}" for mean in means)],
        )
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def picture(self) -> Image.Image:
        """Image, ground truth, and the masks after `SHOWN_CLICKS`."""
        return prediction_sheet(self.rows)


def summarise_clicks(traces: Iterable[ClickTrace], num_rows: int = NUM_ROWS) -> ClickSummary:
    """Consume traces one by one; only those of the picture are kept.

    Raises:
        ValueError: if there is no object in any of them.
    """
    iou: list[np.ndarray] = []
    rows: list[SheetRow] = []
    for trace in traces:
        iou.append(trace.iou)
        if len(rows) < num_rows:
            rows.append(sheet_row(trace))
    return summarise_images(iou, rows)


def summarise_images(iou: Sequence[np.ndarray], rows: list[SheetRow], negatives: Sequence[float] = ()) -> ClickSummary:
    """From the IoU [N, clicks] of the objects of each image, what a picture shows of the first ones, and the scores of
    images without objects.

    Raises:
        ValueError: if there is no image with objects.
    """
    if not iou:
        raise ValueError("there is no object to click on: no record of the evaluation has any.")
    return ClickSummary(np.concatenate(iou), len(iou), rows, np.array(negatives))


def sheet_row(trace: ClickTrace) -> SheetRow:
    """The first object of an image."""
    clicks = [count for count in SHOWN_CLICKS if count <= len(trace.predictions)]
    return SheetRow(
        image=trace.image,
        target=trace.target[0],
        # Copied out of the masks of all objects, so that those can be freed.
        predictions={count: trace.predictions[count - 1, 0].copy() for count in clicks},
        points=trace.points[0],
        labels=trace.labels[0],
    )


__all__ = ["NUM_ROWS", "SHOWN_CLICKS", "ClickSummary", "sheet_row", "summarise_clicks", "summarise_images"]
