"""What the simulated clicks of an evaluation amount to: numbers and a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..data.schema import decode_rles
from ..visualization import SheetRow, prediction_sheet
from .interactive import ClickTrace
from .markdown import markdown_table

SHOWN_CLICKS = (1, 3, 5)
NUM_ROWS = 6


@dataclass
class ClickSummary:
    """Result of an evaluation.

    Args:
        traces: one for each image with objects and each user; the first ones with their image.
        negatives: float [images], the object scores of images without objects, see `score_negative`.
    """

    traces: list[ClickTrace]
    negatives: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def iou(self) -> np.ndarray:
        """float32 [objects, prompts], IoU of every object of every user after each prompt."""
        return np.concatenate([trace.iou for trace in self.traces])

    @property
    def num_images(self) -> int:
        """Images that have objects."""
        return sum(trace.draw == 0 for trace in self.traces)

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

    def table(self, before: Sequence[float] | None = None) -> str:
        """Markdown.

        Args:
            before: mean IoU of the same objects before training, to tell what was gained.
        """
        means = self.iou_per_click
        lines = [
            ["clicks", *(str(n + 1) for n in range(len(means)))],
            ["mean IoU", *(f"{mean:.3f}" for mean in means)],
        ]
        if before:
            gains = [mean - other for mean, other in zip(means, before, strict=True)]
            lines.append(["before training", *(f"{mean:.3f}" for mean in before)])
            lines.append(["gain", *(f"{gain:+.3f}" for gain in gains)])
        return markdown_table(lines)

    def picture(self) -> Image.Image:
        """Image, ground truth, and the masks after `SHOWN_CLICKS`, of the first object of the first images."""
        return prediction_sheet([sheet_row(trace, trace.image) for trace in self.traces if trace.image is not None])


def summarise_clicks(traces: Iterable[ClickTrace], negatives: Sequence[float] = ()) -> ClickSummary:
    """Consume traces one by one; only the first `NUM_ROWS` images are kept, once each.

    Raises:
        ValueError: if there is no object in any of them.
    """
    kept: list[ClickTrace] = []
    num_images = 0
    for trace in traces:
        if trace.draw > 0 or num_images >= NUM_ROWS:
            trace.image = None
        num_images += trace.image is not None
        kept.append(trace)
    if not kept:
        raise ValueError("there is no object to click on: no record of the evaluation has any.")
    return ClickSummary(kept, np.array(negatives))


def sheet_row(trace: ClickTrace, image: np.ndarray, place: int = 0) -> SheetRow:
    """The object at a place of a trace, after `SHOWN_CLICKS` prompts."""
    shown = [count for count in SHOWN_CLICKS if count <= len(trace.answers)]
    return SheetRow(
        image=image,
        target=decode_rles([trace.objects[place]])[0],
        predictions={count: decode_rles([trace.answers[count - 1][place]])[0] for count in shown},
        points=trace.points[place],
        labels=trace.labels[place],
        box=None if trace.boxes is None else trace.boxes[place],
    )


__all__ = ["NUM_ROWS", "SHOWN_CLICKS", "ClickSummary", "sheet_row", "summarise_clicks"]
