"""An evaluation by all processes: its images are shared out, and all get the same result."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data import FaultLog, Records
from ..data.faults import read_checked, why_empty
from .interactive import MAX_OBJECTS, ClickTrace, trace_image
from .negatives import score_negative
from .predictors import Predictor
from .protocols import PROTOCOLS, Protocol
from .summary import NUM_ROWS, ClickSummary, summarise_clicks

FIVE_CLICKS = PROTOCOLS["sam"].shortened(5)


@dataclass
class ImageResult:
    """What one process tells the others of an image.

    Args:
        place: of the image in the evaluation.
        faults: why it could not be used, if so.
        traces: none without objects.
        negative: of `score_negative`, if it is annotated with nothing.
    """

    place: int
    faults: list[str] = field(default_factory=list)
    traces: list[ClickTrace] = field(default_factory=list)
    negative: float | None = None


def evaluate(
    predictor: Predictor,
    dataset: Records,
    faults: FaultLog,
    num_images: int | None = None,
    *,
    accelerator: Accelerator,
    protocol: Protocol = FIVE_CLICKS,
    max_objects: int = MAX_OBJECTS,
    seed: int = 0,
    stretch_contrast: bool | None = None,
    is_interrupted: Callable[[], bool] = lambda: False,
    show_progress: bool = False,
) -> ClickSummary | None:
    """Prompt a model for objects of `num_images` evenly spaced images, or of all that can be read.

    To be called by all processes, as `share_images`.

    Args:
        protocol, max_objects, seed, stretch_contrast: see `trace_image`.
        is_interrupted, show_progress: see `share_images`.

    Returns:
        the same for all processes, and for any number of them; None if one was interrupted.

    Raises:
        ValueError: if there is no object in any image, or too many cannot be used; in all processes.
    """
    given = {"max_objects": max_objects, "seed": seed, "stretch_contrast": stretch_contrast}
    pictures: dict[int, np.ndarray] = {}

    def look(place: int, index: int) -> ImageResult:
        result = click_through(predictor, dataset, place, index, protocol, **given)
        for trace in result.traces:
            if len(pictures) < NUM_ROWS and trace.image is not None:
                pictures[place] = trace.image
            trace.image = None  # they are large: only those that a picture shows are sent
        return result

    gathered = share_images(
        look, len(dataset), faults, num_images, accelerator, is_interrupted=is_interrupted, show_progress=show_progress
    )
    if gathered is None:
        return None
    found = {result.place: result.traces for result in gathered if result.traces}
    shown = sorted(found)[:NUM_ROWS]
    for place, image in gather_object([(place, image) for place, image in pictures.items() if place in shown]):
        found[place][0].image = image
    negatives = [result.negative for result in gathered if result.negative is not None]
    return summarise_clicks((trace for traces in found.values() for trace in traces), negatives)


def share_images(
    look: Callable[[int, int], Any],
    num_records: int,
    faults: FaultLog,
    num_images: int | None,
    accelerator: Accelerator,
    *,
    is_interrupted: Callable[[], bool] = lambda: False,
    show_progress: bool = False,
) -> list[Any] | None:
    """What `look(place, index)` makes of evenly spaced images, each in one of the processes, in their precision.

    Args:
        look: returns something with `place` and `faults`, which can be sent.
        faults: takes note of the faults, as if there were one process.
        is_interrupted: asked before every image; this process then stops.
        show_progress: a bar of the main process, which counts its own images.

    Returns:
        the results of all processes in order; None if one was interrupted.

    Raises:
        ValueError: if no record can be used, or too many cannot; in all processes.
    """
    num_images = min(num_images or num_records, num_records)
    indices = np.linspace(0, num_records - 1, num_images).round().astype(int).tolist()
    share = list(enumerate(indices))[accelerator.process_index :: accelerator.num_processes]
    results = []
    with accelerator.autocast():
        for place, index in tqdm(share, unit="image", disable=not (show_progress and accelerator.is_main_process)):
            if is_interrupted():
                break
            results.append(look(place, index))
    gathered = sorted(gather_object(results), key=lambda result: result.place)
    if len(gathered) < num_images:
        return None
    for result in gathered:
        faults.note(result.faults, 1 - len(result.faults), is_told=accelerator.is_main_process)
    if all(result.faults for result in gathered):
        raise ValueError(f"no image can be used: {gathered[0].faults[0] if gathered else 'there is none'}")
    return gathered


def click_through(
    predictor: Predictor, dataset: Records, place: int, index: int, protocol: Protocol, **given: Any
) -> ImageResult:
    """One image of an evaluation; `given` is for `trace_image`."""
    try:
        record = read_checked(dataset, index)
    except (OSError, ValueError) as error:
        return ImageResult(place, [str(error)])
    if record["objects"]:
        traces = trace_image(predictor, record, protocol, **given)
        return ImageResult(place, [], [replace(trace, index=index) for trace in traces])
    if why_empty(dataset, index):
        return ImageResult(place)
    return ImageResult(place, negative=score_negative(predictor, record, given["stretch_contrast"]))


__all__ = ["FIVE_CLICKS", "evaluate", "share_images"]
