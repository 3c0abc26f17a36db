"""What the scores of a model are worth, found on images with ground truth, and kept with the model.

Automatic masks pass two thresholds, of predicted IoU and of stability. SAM's suit its checkpoints; a model that was
trained on little data scores lower, and finds nothing with them. `fit_thresholds` finds those of a model, which its
processor saves. Before that `fit_temperature` brings predicted IoU to the scale of true IoU (temperature scaling, Guo
et al. 2017), in the weights themselves. K counts masks, G objects of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..automatic import MaskGenerator
from ..data.faults import read_checked
from ..data.schema import Record, Records
from ..image_processing_sam_hf import PRED_IOU_THRESH, STABILITY_SCORE_THRESH
from ..masks import suppress_duplicates
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from .interactive import simulate_clicks
from .metrics.instances import counted_predictions, mask_ious, segmentation_accuracy

# A temperature beyond this, or below its inverse, means that predicted IoU tells nothing of the true one.
MAX_TEMPERATURE = 10.0
NUM_PRED_IOUS, NUM_STABILITIES = 24, 12
# Of the candidates that are looked at, the share that the highest threshold of predicted IoU leaves.
SMALLEST_SHARE = 1 / 256
PREVIEW_SIDE = 8
ALL_CANDIDATES: dict[str, Any] = {
    "prompts": "grid",
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "crop_nms_thresh": 1.0,
    "output_mode": "coco_rle",
}
# Of the maps of an instance decoder, the likeliest first.
MAP_THRESHOLDS = (0.5, 0.4, 0.6, 0.3, 0.7)


@dataclass(frozen=True)
class FittedTemperature:
    """How predicted IoU was changed.

    Args:
        temperature: predicted IoU is now `sigmoid(logit / temperature)`, or for a head without sigmoid
            `score / temperature + offset`. 1 and 0 where it was left as it is.
        offset: see there.
        error_before, error: root mean squared difference of predicted and true IoU.
        num_answers: that it was fitted to.
    """

    temperature: float
    offset: float
    error_before: float
    error: float
    num_answers: int


@dataclass(frozen=True)
class FittedThresholds:
    """The thresholds of a model, and what they are worth on the images that they were fitted to.

    Args:
        pred_iou_thresh, stability_score_thresh: as `MaskGenerator` takes them.
        accuracy: mean over images of `segmentation_accuracy`, and over its IoU thresholds.
        accuracy_of_defaults: the same with SAM's thresholds, of the same scores.
        num_masks, num_masks_of_defaults: mean over images.
        num_images: fitted to.
        iou_temperature, iou_offset, calibration_error_before, calibration_error: see `FittedTemperature`.
        foreground_thresh, seed_thresh: of a model with an instance decoder; None of others.
        accuracy_of_instances: what they are worth by `prompts="instances"`.
    """

    pred_iou_thresh: float
    stability_score_thresh: float
    accuracy: float
    accuracy_of_defaults: float
    num_masks: float
    num_masks_of_defaults: float
    num_images: int
    iou_temperature: float
    iou_offset: float
    calibration_error_before: float
    calibration_error: float
    foreground_thresh: float | None = None
    seed_thresh: float | None = None
    accuracy_of_instances: float | None = None


@dataclass(frozen=True)
class ScoredMasks:
    """K masks of an image, and what they are worth.

    Args:
        scores, stability: float32 [K].
        boxes: int64 [K, 4], (x1, y1, x2, y2) in pixels of the image.
        iou: float64 [K, G].
        counts: bool [K], False for what lies in a crowd, see `counted_predictions`.
    """

    scores: Tensor
    stability: Tensor
    boxes: Tensor
    iou: np.ndarray
    counts: np.ndarray


def fit_thresholds(
    model: SamHfModel,
    processor: SamHfProcessor,
    records: Records,
    *,
    num_images: int = 8,
    max_candidates: int = 1024,
    points_per_side: int = MaskGenerator.points_per_side,
    show_progress: bool = False,
) -> FittedThresholds:
    """Find the thresholds with which `MaskGenerator` is most accurate, and write them to the processor, in place.

    The model changes, too: `fit_temperature` comes first, because thresholds are in units of predicted IoU. All
    candidates of an image are predicted once, and then filtered with each pair of thresholds as the generator does. Of
    pairs that are equally good SAM's stays, or else the strictest is taken, predicted IoU first. All that is by the
    grid of clicks; for a model with an instance decoder `fit_map_thresholds` finds the others.

    Args:
        model: in eval mode, on its device.
        processor: its own.
        records: images with objects, not those that the model was trained on; see `spread_records`.
        num_images: of them, at most.
        max_candidates: about so many of each image, those of the highest predicted IoU, are looked at: bounds time.
        points_per_side: as it will be for `MaskGenerator`: of more clicks more masks are wrong.
        show_progress: a bar that counts images.

    Raises:
        ValueError: if there is no object in any record, or the model is in training mode.
    """
    images = list(spread_records(records, num_images))
    fitted = fit_temperature(model, processor, images, num_images=len(images))
    floor = lowest_threshold(model, processor, images, max_candidates, points_per_side)
    generator = MaskGenerator(
        model, processor, points_per_side=points_per_side, pred_iou_thresh=floor, **ALL_CANDIDATES
    )
    found = [score_masks(generator, record) for record in tqdm(images, unit="image", disable=not show_progress)]
    pred_ious, stabilities = threshold_grid(found, floor)
    accuracy, num_masks = search(found, pred_ious, stabilities)
    default = int(pred_ious.searchsorted(PRED_IOU_THRESH)), int(stabilities.searchsorted(STABILITY_SCORE_THRESH))
    best = choose(accuracy, default)
    pred_iou_thresh, stability_score_thresh = float(pred_ious[best[0]]), float(stabilities[best[1]])
    processor.image_processor.pred_iou_thresh = pred_iou_thresh
    processor.image_processor.stability_score_thresh = stability_score_thresh
    return FittedThresholds(
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        accuracy=float(accuracy[best]),
        accuracy_of_defaults=float(accuracy[default]),
        num_masks=float(num_masks[best]),
        num_masks_of_defaults=float(num_masks[default]),
        num_images=len(images),
        iou_temperature=fitted.temperature,
        iou_offset=fitted.offset,
        calibration_error_before=fitted.error_before,
        calibration_error=fitted.error,
        **fit_map_thresholds(model, processor, images),
    )


def fit_map_thresholds(
    model: SamHfModel, processor: SamHfProcessor, images: Sequence[Record]
) -> dict[str, float | None]:
    """Find the thresholds of the maps with which clicks in centres are most accurate, and write them to the processor.

    First that of seeds is varied and then that of the foreground, which matters less; the first of equals wins.

    Returns:
        fields of `FittedThresholds`; nothing for a model without an instance decoder.
    """
    if model.instance_decoder is None:
        return {}
    own = processor.image_processor
    own.foreground_thresh = own.seed_thresh = MAP_THRESHOLDS[0]

    def accuracy() -> float:
        generator = MaskGenerator(model, processor, prompts="instances", output_mode="coco_rle")
        found = [score_masks(generator, record) for record in images]
        return float(np.mean([accuracy_of(masks, torch.arange(len(masks.scores))) for masks in found]))

    best = accuracy()
    for name in ("seed_thresh", "foreground_thresh"):
        for value in MAP_THRESHOLDS[1:]:
            before = getattr(own, name)
            setattr(own, name, value)
            if (reached := accuracy()) > best:
                best = reached
            else:
                setattr(own, name, before)
    return {
        "foreground_thresh": own.foreground_thresh,
        "seed_thresh": own.seed_thresh,
        "accuracy_of_instances": best,
    }


def spread_records(records: Records, num_images: int) -> Iterator[Record]:
    """At most `num_images` records with objects: the first one that has any of each of as many equal parts.

    Those that cannot be used are passed over.
    """
    for begin, end in pairwise(np.linspace(0, len(records), num_images + 1).astype(int).tolist()):
        for index in range(begin, end):
            try:
                record = read_checked(records, index)
            except (OSError, ValueError):
                continue
            if any(not item["iscrowd"] for item in record["objects"]):
                yield record
                break


def fit_temperature(
    model: SamHfModel,
    processor: SamHfProcessor,
    records: Records,
    *,
    num_images: int = 8,
) -> FittedTemperature:
    """Bring predicted IoU closer to the true one, in the weights of the last layer of the head that predicts it.

    It is compared for the answers to simulated clicks. All candidates change alike and keep their order, so that
    every mask stays as it is; what is fitted again stays, too. A model whose predicted IoU tells nothing
    (`MAX_TEMPERATURE`) is left as it is.

    Args:
        model: in eval mode, on its device.
        processor: its own.
        records: images with objects; see `spread_records` for which `num_images` of them.

    Raises:
        ValueError: if there is no object in any record, or the model is in training mode.
    """
    if model.training:
        raise ValueError("the model is in training mode, in which its masks are random: call model.eval() before.")
    images = spread_records(records, num_images)
    traces = simulate_clicks(model, processor, images)
    answers = [(trace.predicted_iou.ravel(), trace.iou.ravel()) for trace in traces]
    if not answers:
        raise ValueError("there is no object to click on: no record has any, expected at least one.")
    predicted, true = (np.concatenate(values).astype(np.float64) for values in zip(*answers, strict=True))
    if model.config.mask_decoder_config.iou_prediction_use_sigmoid:
        temperature, offset = best_temperature(predicted, true), 0.0
        calibrated = tempered(predicted, temperature)
    else:
        temperature, offset = best_line(predicted, true)
        calibrated = predicted / temperature + offset
    rescale_outputs(model.mask_decoder.iou_prediction_head.proj_out, 1 / temperature, offset)
    return FittedTemperature(
        temperature=temperature,
        offset=offset,
        error_before=calibration_error(predicted, true),
        error=calibration_error(calibrated, true),
        num_answers=len(true),
    )


def best_temperature(predicted: np.ndarray, true: np.ndarray) -> float:
    """T of the least squared error of `sigmoid(logit(predicted) / T)`, or 1 where none in the range is better.

    Args:
        predicted: float64 [K] in [0, 1]; true: float64 [K].
    """
    limit = np.log(MAX_TEMPERATURE)
    found = minimize_scalar(
        lambda log_temperature: calibration_error(tempered(predicted, np.exp(log_temperature)), true),
        bounds=(-limit, limit),
        method="bounded",
        options={"xatol": 1e-6},
    )
    is_better = found.fun < calibration_error(predicted, true) and abs(found.x) < limit - 1e-3
    return float(np.exp(found.x)) if is_better else 1.0


def best_line(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """T and b of the least squared error of `predicted / T + b`, or (1, 0) where T is not within the range.

    Args:
        predicted, true: float64 [K].
    """
    if np.ptp(predicted) == 0:
        return 1.0, 0.0
    slope = ((predicted - predicted.mean()) * (true - true.mean())).mean() / predicted.var()
    if not 1 / MAX_TEMPERATURE < slope < MAX_TEMPERATURE:
        return 1.0, 0.0
    return float(1 / slope), float(true.mean() - slope * predicted.mean())


def tempered(predicted: np.ndarray, temperature: float) -> np.ndarray:
    """`sigmoid(logit(predicted) / temperature)`; a score that float32 rounded to 0 or 1 has the nearest logit."""
    margin = np.finfo(np.float32).eps / 2
    return expit(logit(predicted.clip(margin, 1 - margin)) / temperature)


def calibration_error(predicted: np.ndarray, true: np.ndarray) -> float:
    """Root mean squared difference of predicted and true IoU [K]."""
    return float(np.sqrt(np.mean((predicted - true) ** 2)))


@torch.no_grad()
def rescale_outputs(layer: nn.Linear, factor: float, offset: float) -> None:
    """Fold `factor * output + offset` into the layer, in place."""
    layer.weight.mul_(factor)
    layer.bias.mul_(factor).add_(offset)


def lowest_threshold(
    model: SamHfModel, processor: SamHfProcessor, images: Sequence[Record], max_candidates: int, points_per_side: int
) -> float:
    """Predicted IoU above which about `max_candidates` of an image lie, at most SAM's threshold; by a coarser grid."""
    side = min(PREVIEW_SIDE, points_per_side)
    generator = MaskGenerator(model, processor, points_per_side=side, pred_iou_thresh=0.0, **ALL_CANDIDATES)
    scores = [mask["predicted_iou"] for record in images for mask in generator(record["image"])]
    share = max_candidates * len(images) / (len(scores) * (points_per_side / side) ** 2)
    floor = float(np.quantile(scores, max(0.0, 1 - share)))
    # 0 keeps also what is lower.
    return 0.0 if share >= 1 else max(0.0, min(np.floor(1000 * floor) / 1000, PRED_IOU_THRESH))


def score_masks(generator: MaskGenerator, record: Record) -> ScoredMasks:
    """All masks that the generator lets pass, against the ground truth."""
    masks = generator(record["image"])
    rles = [mask["segmentation"] for mask in masks]
    references, crowds = (
        [item["segmentation"] for item in record["objects"] if bool(item["iscrowd"]) == is_crowd]
        for is_crowd in (False, True)
    )
    iou = mask_ious(rles, references)
    x, y, width, height = torch.tensor([mask["bbox"] for mask in masks], dtype=torch.int64).reshape(-1, 4).unbind(1)
    return ScoredMasks(
        scores=torch.tensor([mask["predicted_iou"] for mask in masks], dtype=torch.float32),
        stability=torch.tensor([mask["stability_score"] for mask in masks], dtype=torch.float32),
        boxes=torch.stack([x, y, x + width, y + height], dim=1),
        iou=iou,
        counts=counted_predictions(rles, crowds, iou),
    )


def threshold_grid(found: Sequence[ScoredMasks], floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds to try, ascending, of predicted IoU and of stability: what is observed, and SAM's.

    Those of predicted IoU leave all masks, and then fewer and fewer by equal ratios, because few of the many masks of
    a grid of clicks belong to objects. They are rounded to three digits.
    """
    scores, stability = (
        np.concatenate(values) for values in zip(*((m.scores, m.stability) for m in found), strict=True)
    )
    kept = np.geomspace(1, SMALLEST_SHARE, NUM_PRED_IOUS)
    rejected = np.arange(NUM_STABILITIES) / NUM_STABILITIES
    pred_ious = np.quantile(scores, 1 - kept) if len(scores) else []
    stabilities = np.quantile(stability, rejected) if len(scores) else []
    return (
        np.unique(np.maximum(np.round([floor, *pred_ious, PRED_IOU_THRESH], 3), floor)),
        np.unique(np.round([0.0, *stabilities, STABILITY_SCORE_THRESH], 3)),
    )


def search(
    found: Sequence[ScoredMasks], pred_ious: np.ndarray, stabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy, and number of masks, for every pair of thresholds: mean over images, float64 [P, S] each.

    Args:
        pred_ious: [P] thresholds, none lower than what the masks have passed; stabilities: [S].
    """
    accuracy, num_masks = np.zeros((2, len(found), len(pred_ious), len(stabilities)))
    for image, masks in enumerate(found):
        for column, stability in enumerate(stabilities):
            # Suppression goes from the best score down: a higher threshold only cuts off the end of what it keeps.
            kept = kept_masks(masks, float(stability))
            scores = masks.scores[kept]
            lengths = [int((scores > limit).sum()) if limit > 0 else len(kept) for limit in pred_ious.tolist()]
            worth = {length: accuracy_of(masks, kept[:length]) for length in set(lengths)}
            accuracy[image, :, column] = [worth[length] for length in lengths]
            num_masks[image, :, column] = lengths
    return accuracy.mean(axis=0), num_masks.mean(axis=0)


def kept_masks(masks: ScoredMasks, stability_score_thresh: float) -> Tensor:
    """What of one image is stable and has no better duplicate, as in `MaskGenerator`: int64 [k], best score first."""
    index = torch.arange(len(masks.scores))
    if stability_score_thresh > 0:
        index = index[masks.stability >= stability_score_thresh]
    return index[suppress_duplicates(masks.boxes[index], masks.scores[index], MaskGenerator.box_nms_thresh)]


def accuracy_of(masks: ScoredMasks, kept: Tensor) -> float:
    """Mean over IoU thresholds of the accuracy of some of the masks."""
    index = kept.numpy()
    return float(segmentation_accuracy(masks.iou[index[masks.counts[index]]]).mean())


def choose(accuracy: np.ndarray, default: tuple[int, int]) -> tuple[int, int]:
    """Where the accuracy [P, S] is best: at `default` if it is so there, else at the last such row and column."""
    is_best = accuracy == accuracy.max()
    if is_best[default]:
        return default
    row, column = np.argwhere(is_best)[-1].tolist()
    return row, column


__all__ = [
    "FittedTemperature",
    "FittedThresholds",
    "ScoredMasks",
    "best_line",
    "best_temperature",
    "fit_map_thresholds",
    "fit_temperature",
    "fit_thresholds",
    "search",
    "spread_records",
    "tempered",
]
