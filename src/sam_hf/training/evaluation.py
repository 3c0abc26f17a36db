"""The evaluation of a run: its images are shared out to the processes, and all of them get the same summary."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel

from ..data import FaultLog, Records
from ..data.faults import read_checked, why_empty
from ..evaluation import ClickSummary, ClickTrace, score_negative, simulate_clicks
from ..evaluation.summary import NUM_ROWS, sheet_row, summarise_images
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from ..visualization import SheetRow


@dataclass
class ImageResult:
    """What one process tells the others of an image.

    Args:
        place: of the image in the evaluation.
        faults: why it could not be used, if so.
        iou: float32 [N, clicks]; None without objects.
        negative: of `score_negative`, if it is annotated with nothing.
    """

    place: int
    faults: list[str]
    iou: np.ndarray | None = None
    negative: float | None = None


def evaluate(
    model: SamHfModel | PeftModel,
    processor: SamHfProcessor,
    dataset: Records,
    faults: FaultLog,
    num_images: int | None = None,
    *,
    accelerator: Accelerator,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> ClickSummary | None:
    """Five clicks on objects of `num_images` evenly spaced images, or of all that can be read.

    To be called by all processes: each takes its share of the images, in the precision of the run. Leaves the model in
    training mode.

    Args:
        is_interrupted: asked before every image; this process then stops.

    Returns:
        the same for all processes, and for any number of them; None if one was interrupted.

    Raises:
        ValueError: if there is no object in any image, or too many cannot be used; in all processes.
    """
    num_images = min(num_images or len(dataset), len(dataset))
    indices = np.linspace(0, len(dataset) - 1, num_images).round().astype(int).tolist()
    share = list(enumerate(indices))[accelerator.process_index :: accelerator.num_processes]
    results: list[ImageResult] = []
    rows: dict[int, SheetRow] = {}
    model.eval()
    with accelerator.autocast():
        for place, index in share:
            if is_interrupted():
                break
            result, trace = click_through(model, processor, dataset, place, index)
            results.append(result)
            if trace is not None and len(rows) < NUM_ROWS:
                rows[place] = sheet_row(trace)
    model.train()
    gathered = sorted(gather_object(results), key=lambda result: result.place)
    if len(gathered) < num_images:
        return None
    for result in gathered:
        faults.note(result.faults, 1 - len(result.faults), is_told=accelerator.is_main_process)
    found = {result.place: result.iou for result in gathered if result.iou is not None}
    shown = sorted(found)[:NUM_ROWS]  # pictures are large: only these are sent
    pictures = dict(gather_object([(place, row) for place, row in rows.items() if place in shown]))
    negatives = [result.negative for result in gathered if result.negative is not None]
    return summarise_images(list(found.values()), [pictures[place] for place in shown], negatives)


def click_through(
    model: SamHfModel | PeftModel, processor: SamHfProcessor, dataset: Records, place: int, index: int
) -> tuple[ImageResult, ClickTrace | None]:
    """One image of an evaluation."""
    try:
        record = read_checked(dataset, index)
    except (OSError, ValueError) as error:
        return ImageResult(place, [str(error)]), None
    # Adapters leave the methods of the model as they are.
    plain = cast(SamHfModel, model)
    if not record["objects"]:
        is_negative = not why_empty(dataset, index)
        return ImageResult(place, [], None, score_negative(plain, processor, record) if is_negative else None), None
    trace = next(simulate_clicks(plain, processor, [record]), None)
    return ImageResult(place, [], None if trace is None else trace.iou), trace


__all__ = ["evaluate"]
