"""The numbers of an evaluation, as functions and as modules of `evaluate`, which collect batches and merge processes.

`evaluate.load(folder("click_iou"))` needs no network.
"""

from pathlib import Path

from ..evaluate_library import evaluate  # noqa: F401  # before the modules import what goes by that name
from .boundary_iou.boundary_iou import BoundaryIou
from .click_iou.click_iou import ClickIou
from .instance_segmentation.instance_segmentation import InstanceSegmentation
from .iou_calibration.iou_calibration import IouCalibration
from .object_score.object_score import ObjectScore


def folder(name: str) -> str:
    """What `evaluate.load` takes for a module.

    Raises:
        ValueError: if there is no such module.
    """
    place = Path(__file__).parent / name
    if not (place / f"{name}.py").exists():
        known = sorted(found.parent.name for found in place.parent.glob("*/*.py") if found.stem == found.parent.name)
        raise ValueError(f"there is no metric {name!r}; choose from {', '.join(known)}.")
    return str(place)


__all__ = ["BoundaryIou", "ClickIou", "InstanceSegmentation", "IouCalibration", "ObjectScore", "folder"]
