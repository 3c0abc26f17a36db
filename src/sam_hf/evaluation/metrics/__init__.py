"""The numbers of this folder's parent as modules of `evaluate`, which collect batches and merge processes.

`evaluate.load` takes the path of a folder here, such as `src/sam_hf/evaluation/metrics/click_iou`, without network.
"""

from .boundary_iou.boundary_iou import BoundaryIou
from .click_iou.click_iou import ClickIou
from .instance_segmentation.instance_segmentation import InstanceSegmentation
from .iou_calibration.iou_calibration import IouCalibration
from .object_score.object_score import ObjectScore

__all__ = ["BoundaryIou", "ClickIou", "InstanceSegmentation", "IouCalibration", "ObjectScore"]
