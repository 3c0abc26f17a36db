"""How well all masks of an image agree with its objects: accuracy, panoptic quality, and COCO's precision and recall.

Masks are COCO's compressed run lengths, `{"size": [height, width], "counts": str}`, as in `data.schema`, and may
overlap. K counts predictions, G objects of the ground truth, T thresholds. The name "average precision" stands for two
things in the literature, which have two names here: TP / (TP + FP + FN) is *accuracy* (StarDist's name; Cellpose calls
it average precision), and *average precision* is COCO's, the area under precision over recall of ranked masks.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

# Whole hundredths: np.arange(0.5, 1, 0.05) has 0.6000000000000001, which an IoU of 3/5 does not reach.
THRESHOLDS = tuple(hundredths / 100 for hundredths in range(50, 100, 5))
# COCO's AP looks at the best 100 masks of an image; SAM's paper reports recall of 1000 (appendix D.3).
MAX_MASKS = (100, 1000)
# Panoptic quality wants more than a half, all else at least a threshold.
ABOVE_HALF = float(np.nextafter(0.5, 1))


@dataclass(frozen=True)
class InstanceImage:
    """What was found in an image, and what there is.

    Args:
        predictions: run lengths of K masks.
        references: run lengths of G objects.
        crowds: run lengths of regions that nobody divided into objects.
        scores: K numbers that rank the predictions, higher first; None where nothing ranks them.

    Raises:
        ValueError: if masks differ in size, or the scores are not as many as the predictions, or not finite.
    """

    predictions: Sequence[dict[str, Any]]
    references: Sequence[dict[str, Any]]
    crowds: Sequence[dict[str, Any]] = ()
    scores: Sequence[float] | None = None

    def __post_init__(self) -> None:
        _check_one_size([*self.predictions, *self.references, *self.crowds])
        if self.scores is None:
            return
        if len(self.scores) != len(self.predictions):
            raise ValueError(
                f"got {len(self.scores)} scores of {len(self.predictions)} predictions, expected one for each; "
                "leave scores out for masks that nothing ranks"
            )
        if not np.isfinite(np.asarray(self.scores, dtype=np.float64)).all():
            raise ValueError(
                "scores must be finite numbers, got NaN or infinity; drop these masks, or rate them lowest"
            )


def _check_one_size(masks: Sequence[dict[str, Any]]) -> None:
    sizes = {tuple(rle["size"]) for rle in masks}
    if len(sizes) > 1:
        raise ValueError(
            f"masks of the sizes (height, width) {sorted(sizes)}, expected those of one image; bring predictions to "
            "the size of the ground truth, such as by post_process_masks"
        )


def mask_ious(predictions: Sequence[dict[str, Any]], references: Sequence[dict[str, Any]]) -> np.ndarray:
    """IoU of every prediction with every object of an image, float64 [K, G]; 0 where both masks are empty.

    Args:
        predictions, references: run lengths of K and G masks.

    Raises:
        ValueError: if they are of images of several sizes.
    """
    return _overlaps(predictions, references, in_crowd=False)


def _overlaps(
    predictions: Sequence[dict[str, Any]], references: Sequence[dict[str, Any]], *, in_crowd: bool
) -> np.ndarray:
    """float64 [K, G]: IoU, or the share of the prediction that lies in the reference."""
    _check_one_size([*predictions, *references])
    if not predictions or not references:
        return np.zeros((len(predictions), len(references)))
    return np.asarray(coco.iou(list(predictions), list(references), [in_crowd] * len(references)))


def count_matches(iou: np.ndarray, threshold: float) -> int:
    """How many pairs of one prediction and one object have an IoU of at least `threshold`, at most: true positives.

    That many has the assignment of StarDist, Cellpose and elf, too (`match_masks`): what breaks ties there adds up to
    at most half a pair.

    Args:
        iou: float [K, G]; rows may be left out to see what fewer predictions are worth.
    """
    partners = maximum_bipartite_matching(csr_array(np.asarray(iou) >= threshold), perm_type="column")
    return int(np.count_nonzero(partners >= 0))


def match_masks(iou: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that count as true positives, as StarDist's `matching` assigns them.

    The assignment is that of the lowest sum of `-(iou >= threshold) - iou / (2 * min(K, G))`: as many pairs as
    possible, then the highest IoU.

    Args:
        iou: float [K, G].

    Returns:
        Indices of predictions and of objects, int64 [TP] each.
    """
    iou = np.asarray(iou, dtype=np.float64)
    cost = -(iou >= threshold).astype(np.float64) - iou / (2 * max(1, min(iou.shape)))
    rows, columns = linear_sum_assignment(cost)
    is_match = iou[rows, columns] >= threshold
    return rows[is_match], columns[is_match]


def segmentation_accuracy(iou: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """TP / (TP + FP + FN) of one image at every threshold, float64 [T].

    Their mean over images is average precision for Cellpose (`average_precision`), and the mean of that over
    `THRESHOLDS` is mean segmentation accuracy (mSA) for elf and micro-sam.

    An image without objects that is answered by no masks is right and counts 1, as in all IoU of this package. The
    others differ in that: it counts 0 for StarDist (by image) and elf, and makes the mean NaN for Cellpose.

    Args:
        iou: float [K, G].
    """
    num_predictions, num_references = np.shape(iou)
    if not num_predictions and not num_references:
        return np.ones(len(thresholds))
    matches = np.array([count_matches(iou, threshold) for threshold in thresholds], dtype=np.float64)
    return matches / (num_predictions + num_references - matches)


def counted_predictions(
    predictions: Sequence[dict[str, Any]], crowds: Sequence[dict[str, Any]], iou: np.ndarray
) -> np.ndarray:
    """Which predictions count, bool [K]: not those of which more than half lies in a crowd.

    A prediction that fits an object (IoU of at least 0.5) counts wherever it lies: a bag in a crowd of people is
    still found.

    Args:
        predictions: run lengths of K masks.
        crowds: run lengths of regions that nobody divided into objects.
        iou: float [K, G], of the same predictions.
    """
    if not crowds:
        return np.ones(len(predictions), dtype=bool)
    share = _overlaps(predictions, [coco.merge(list(crowds))], in_crowd=True)[:, 0]
    return (share <= 0.5) | (np.asarray(iou) >= 0.5).any(axis=1)


def counted_ious(image: InstanceImage) -> np.ndarray:
    """IoU of the predictions that count with the objects of an image, float64 [k, G]."""
    iou = mask_ious(image.predictions, image.references)
    return iou[counted_predictions(image.predictions, image.crowds, iou)]


def accuracy_scores(ious: Sequence[np.ndarray]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 over images, from the IoU [K, G] of each.

    Returns:
        `image_accuracy_50`, `image_accuracy_75`: mean over images of their accuracy (AP50 and AP75 of Cellpose);
        `image_accuracy`: its mean over `THRESHOLDS` (mSA of elf and micro-sam).
        `pooled_accuracy_50`, `pooled_accuracy_75`: of the counts of all images together (accuracy of StarDist's
        `matching_dataset`); `pooled_accuracy`: its mean over `THRESHOLDS`. `precision_50`, `recall_50`, `f1_50` and
        those at 75 are pooled, too. Pooled numbers are 0 without any match, as for StarDist, and NaN if there is no
        prediction and no object at all.

    Raises:
        ValueError: if there is no image.
    """
    _check_any(ious)
    by_image = np.mean([segmentation_accuracy(iou) for iou in ious], axis=0)
    matches = np.sum([[count_matches(iou, threshold) for threshold in THRESHOLDS] for iou in ious], axis=0)
    num_predictions, num_references = _num_masks(ious)
    pooled = {
        "pooled_accuracy": _share(matches, num_predictions + num_references - matches),
        "precision": _share(matches, num_predictions, num_predictions + num_references),
        "recall": _share(matches, num_references, num_predictions + num_references),
        "f1": _share(2 * matches, num_predictions + num_references),
    }
    columns = {name: THRESHOLDS.index(name / 100) for name in (50, 75)}
    scores = {f"image_accuracy_{name}": float(by_image[column]) for name, column in columns.items()}
    scores["image_accuracy"] = float(by_image.mean())
    scores["pooled_accuracy"] = float(pooled["pooled_accuracy"].mean())
    for key, values in pooled.items():
        scores |= {f"{key}_{name}": float(values[column]) for name, column in columns.items()}
    return scores


def _check_any(images: Sequence[Any]) -> None:
    if not images:
        raise ValueError("got no image, expected at least one: is the data set empty, or were no batches added?")


def _num_masks(ious: Sequence[np.ndarray]) -> tuple[int, int]:
    """Predictions and objects of all images."""
    return sum(len(iou) for iou in ious), sum(iou.shape[1] for iou in ious)


def _share(part: np.ndarray, whole: np.ndarray | int, num_masks: int | None = None) -> np.ndarray:
    """`part / whole`, 0 where that is 0 / 0; but NaN where `num_masks`, which is `whole` if not given, is 0."""
    nothing = np.asarray(whole if num_masks is None else num_masks) == 0
    return np.where(nothing, np.nan, part / np.maximum(whole, 1))


def panoptic_scores(ious: Sequence[np.ndarray]) -> dict[str, float]:
    """Panoptic quality (Kirillov et al. 2019, eq. 1) of one class over images, from the IoU [K, G] of each.

    A match has an IoU above 0.5. With masks that overlap an object can have several such predictions; the assignment
    of `match_masks` keeps one.

    Returns:
        `segmentation_quality`, the mean IoU of the matches of all images; `recognition_quality`, which is F1;
        `panoptic_quality`, their product. 0 without any match, NaN if there is no prediction and no object.

    Raises:
        ValueError: if there is no image.
    """
    _check_any(ious)
    matched = np.concatenate([iou[match_masks(iou, ABOVE_HALF)] for iou in ious])
    num_masks = sum(_num_masks(ious))
    segmentation = _share(matched.sum(), len(matched), num_masks)
    recognition = _share(np.array(2 * len(matched)), num_masks)
    return {
        "panoptic_quality": float(segmentation * recognition),
        "segmentation_quality": float(segmentation),
        "recognition_quality": float(recognition),
    }


def average_precision(images: Sequence[InstanceImage]) -> dict[str, float]:
    """COCO's average precision and recall by pycocotools, all masks of one class, ranked by their scores.

    Crowds are COCO's: a prediction that lies in one by the threshold of the IoU neither counts nor harms.

    Returns:
        `coco_ap` (mean over IoU thresholds 0.5, 0.55, ... 0.95), `coco_ap_50`, `coco_ap_75`, of the best 100 masks of
        each image; `coco_ar_100` and `coco_ar_1000`, the mean over thresholds of the recall of that many. NaN without
        objects.

    Raises:
        ValueError: if there is no image, or predictions of one have no scores.
    """
    _check_any(images)
    unranked = [index for index, image in enumerate(images) if len(image.predictions) and image.scores is None]
    if unranked:
        raise ValueError(
            f"predictions of image {unranked[0]} have no scores, by which average precision ranks them; expected one "
            f"for each prediction of all {len(images)} images, such as the predicted IoU"
        )
    if not any(len(image.references) for image in images):
        return dict.fromkeys(("coco_ap", "coco_ap_50", "coco_ap_75", "coco_ar_100", "coco_ar_1000"), float("nan"))
    evaluation = _coco_evaluation(images)
    # [T, recall, class, area, max masks] and [T, class, area, max masks]
    precision = evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)
    recall = evaluation.eval["recall"][:, 0, 0].mean(axis=0)
    return {
        "coco_ap": float(precision.mean()),
        **{f"coco_ap_{name}": float(precision[THRESHOLDS.index(name / 100)]) for name in (50, 75)},
        **{f"coco_ar_{count}": float(value) for count, value in zip(MAX_MASKS, recall, strict=True)},
    }


def _coco_evaluation(images: Sequence[InstanceImage]) -> COCOeval:
    """Accumulated, with `THRESHOLDS` and `MAX_MASKS`, and objects of all sizes together."""
    truth = [
        (index, {"segmentation": rle, "iscrowd": iscrowd})
        for index, image in enumerate(images)
        for iscrowd, rles in ((0, image.references), (1, image.crowds))
        for rle in rles
    ]
    found = [
        (index, {"segmentation": rle, "score": float(score)})
        for index, image in enumerate(images)
        for rle, score in zip(image.predictions, () if image.scores is None else image.scores, strict=True)
    ]
    # It prints what it does, and has no switch for that.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco_dataset(images, truth), _coco_dataset(images, found), "segm")
        evaluation.params.iouThrs = np.array(THRESHOLDS)
        evaluation.params.maxDets = list(MAX_MASKS)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, float("inf")]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _coco_dataset(images: Sequence[InstanceImage], annotations: Sequence[tuple[int, dict[str, Any]]]) -> COCO:
    """From the (place of the image, annotation) of every mask."""
    dataset = COCO()
    dataset.dataset = {
        # The size is asked for and not used: run lengths have their own.
        "images": [{"id": index, "height": 0, "width": 0} for index in range(len(images))],
        "categories": [{"id": 1}],
        "annotations": [
            # Numbers start with 1: 0 stands for no match.
            {"id": number, "image_id": image, "category_id": 1, "area": float(coco.area(item["segmentation"])), **item}
            for number, (image, item) in enumerate(annotations, start=1)
        ],
    }
    dataset.createIndex()
    return dataset


def instance_scores(images: Sequence[InstanceImage]) -> dict[str, float]:
    """All of `accuracy_scores` and `panoptic_scores`, and of `average_precision` if the predictions have scores.

    Predictions of which more than half lies in a crowd are left out (`counted_predictions`).

    Returns:
        Also `num_images`; `num_empty_images`, of these without objects and without predictions, each of which counts 1
        in the means over images; `num_predictions` and `num_references`, which are those that count.

    Raises:
        ValueError: if there is no image, or some predictions have scores and others do not.
    """
    ious = [counted_ious(image) for image in images]
    scores = accuracy_scores(ious) | panoptic_scores(ious)
    if any(image.scores is not None for image in images if len(image.predictions)):
        scores |= average_precision(images)
    num_predictions, num_references = _num_masks(ious)
    return scores | {
        "num_images": len(ious),
        "num_empty_images": sum(iou.shape == (0, 0) for iou in ious),
        "num_predictions": num_predictions,
        "num_references": num_references,
    }


__all__ = [
    "ABOVE_HALF",
    "MAX_MASKS",
    "THRESHOLDS",
    "InstanceImage",
    "accuracy_scores",
    "average_precision",
    "count_matches",
    "counted_ious",
    "counted_predictions",
    "instance_scores",
    "mask_ious",
    "match_masks",
    "panoptic_scores",
    "segmentation_accuracy",
]
