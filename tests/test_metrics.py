"""Numbers of an evaluation: against values by hand, against other implementations, and as modules of `evaluate`."""

import doctest
import json
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import sam_hf.evaluation
from sam_hf.evaluation.metrics import BoundaryIou, ClickIou, InstanceSegmentation, IouCalibration, ObjectScore
from sam_hf.evaluation.metrics.boundary import boundary_ious, boundary_width, mask_boundary
from sam_hf.evaluation.metrics.calibration import (
    calibration_scores,
    expected_calibration_error,
    object_score_numbers,
    pearson_correlation,
    reliability_curve,
)
from sam_hf.evaluation.metrics.click_numbers import click_scores, clicks_needed, iou_drops, number_of_clicks
from sam_hf.evaluation.metrics.instances import (
    THRESHOLDS,
    InstanceImage,
    accuracy_scores,
    average_precision,
    count_matches,
    counted_ious,
    instance_scores,
    mask_ious,
    match_masks,
    panoptic_scores,
    segmentation_accuracy,
)

METRICS = Path(sam_hf.evaluation.__file__).parent / "metrics"
CLASSES = {
    "boundary_iou": BoundaryIou,
    "click_iou": ClickIou,
    "instance_segmentation": InstanceSegmentation,
    "iou_calibration": IouCalibration,
    "object_score": ObjectScore,
}
HEIGHT, WIDTH = 40, 50


def rectangle(top: int, left: int, height: int, width: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def encoded(*masks: np.ndarray) -> list[dict[str, Any]]:
    rles = [coco.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rles]


def random_labels(rng: np.random.Generator, num_objects: int) -> np.ndarray:
    """A label map of rectangles, later ones over earlier ones, numbered 1, 2, ... without gaps."""
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    for label in range(1, num_objects + 1):
        top, left = rng.integers(0, (HEIGHT - 12, WIDTH - 12))
        height, width = rng.integers(8, 13, size=2)
        labels[top : top + height, left : left + width] = label
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def random_pairs(num_images: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    """Label maps (found, true): the objects moved a little, with some more and some less."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(num_images):
        true = random_labels(rng, 3 + index % 6)
        found = np.roll(true, rng.integers(-1, 2, size=2), axis=(0, 1))
        found[found == 1 + index % 3] = 0
        extra = random_labels(rng, index % 4)
        found = np.where(extra > 0, extra + 100, found)
        pairs.append((np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.int32), true))
    return pairs


def masks_of(labels: np.ndarray) -> list[dict[str, Any]]:
    return encoded(*(labels == label for label in range(1, labels.max() + 1)))


def random_images(with_crowds: bool = False) -> list[InstanceImage]:
    rng = np.random.default_rng(1)
    images = []
    for found, true in random_pairs():
        predictions = masks_of(found)
        crowds = encoded(rectangle(*rng.integers(0, 20, size=2), 20, 20)) if with_crowds else ()
        images.append(InstanceImage(predictions, masks_of(true), crowds, rng.permutation(len(predictions)) / 100))
    return images


def ious_of(images: list[InstanceImage]) -> list[np.ndarray]:
    return [counted_ious(image) for image in images]


class TestClicks:
    AT_LAST = [0.5] * 19 + [0.9]
    NEVER = [0.5] * 20
    FALLS = [0.25, 0.95, 0.5] + [0.5] * 17
    IOU = np.array([AT_LAST, NEVER, FALLS])

    def test_clicks_needed(self):
        assert clicks_needed(self.IOU, 0.9).tolist() == [20, 0, 2]

    def test_number_of_clicks(self):
        numbers = number_of_clicks(self.IOU, 0.9)
        assert numbers["noc"] == pytest.approx((20 + 20 + 2) / 3)
        assert numbers["noc_failures_plus_one"] == pytest.approx((20 + 21 + 2) / 3)
        assert (numbers["failures"], numbers["failure_rate"], numbers["at_limit"]) == (1, pytest.approx(1 / 3), 2)

    def test_a_float32_meets_the_target_that_it_was_rounded_from(self):
        ninths = np.float32([[9 / 10]])
        assert float(ninths[0, 0]) < 0.9
        assert clicks_needed(ninths, 0.9).tolist() == [1]
        assert click_scores(ninths)["failures_90"] == 0

    def test_drops(self):
        assert iou_drops(self.IOU) == {"drop_rate": pytest.approx(1 / 57), "mean_drop": pytest.approx(0.45)}
        assert iou_drops([[0.5, 0.5]]) == {"drop_rate": 0, "mean_drop": 0}
        assert np.isnan(iou_drops([[0.5]])["drop_rate"])

    def test_means(self):
        means = click_scores(self.IOU)["iou_per_click"]
        assert (means[0], means[19]) == (pytest.approx(1.25 / 3), pytest.approx(1.9 / 3))

    def test_scores_have_all_targets(self):
        scores = click_scores(self.IOU)
        assert scores["iou_per_click"][:2] == pytest.approx([1.25 / 3, 1.95 / 3])
        assert [scores[f"failures_{target}"] for target in (80, 85, 90, 95)] == [1, 1, 1, 2]
        assert scores["at_limit_95"] == 2 and scores["num_objects"] == 3
        assert "noc_92.5" in click_scores(self.IOU, [0.925])

    def test_order_of_objects_changes_nothing(self):
        iou = np.random.default_rng(0).random((9, 5))
        scores, turned = click_scores(iou), click_scores(iou[::-1])
        assert turned.pop("iou_per_click") == pytest.approx(scores.pop("iou_per_click"))
        assert turned == pytest.approx(scores)

    @pytest.mark.parametrize(
        ("iou", "told"),
        [
            ([0.5, 0.5], r"shape \[2\], expected \[objects, clicks\]"),
            (np.zeros((0, 3)), r"shape \[0, 3\]"),
            ([[0.5, float("nan")]], "object 0 after click 2 is nan"),
            ([[0.5], [90.0]], "object 1 after click 1 is 90"),
        ],
    )
    def test_what_is_no_iou_is_refused(self, iou, told):
        with pytest.raises(ValueError, match=told):
            click_scores(iou)


class TestBoundary:
    """The squares lie in an image of 100 x 100 pixels, whose boundaries are round(0.02 * 141.4) = 3 wide."""

    SIZE = (100, 100)

    def naive_boundary(self, mask: np.ndarray, width: int) -> np.ndarray:
        height, columns = mask.shape
        kept = mask
        for _ in range(width):
            padded = np.pad(kept, 1)
            kept = np.array(
                [[padded[y : y + 3, x : x + 3].all() for x in range(columns)] for y in range(height)], dtype=bool
            )
        return mask & ~kept

    def test_width(self):
        assert boundary_width(self.SIZE) == 3
        assert boundary_width((10, 10)) == 1  # and not 0
        assert boundary_width((75, 100)) == 2  # 2.5 is rounded to even, as by Cheng et al.
        assert boundary_width(self.SIZE, 0.1) == 14

    def test_squares_by_hand(self):
        square, inner = rectangle(30, 30, 20, 20, self.SIZE), rectangle(35, 35, 10, 10, self.SIZE)
        moved = rectangle(30, 31, 20, 20, self.SIZE)
        assert mask_boundary(square, 3).sum() == 20**2 - 14**2
        # 19 x 20 pixels are of both, 15 x 14 of them inside of one.
        expected = (19 * 20 - 15 * 14) / (2 * 204 - 170)
        ious = boundary_ious(np.stack([square, inner, moved]), np.stack([square] * 3))
        np.testing.assert_allclose(ious, [1, 0, expected])

    def test_the_edge_of_the_image_is_boundary(self):
        assert mask_boundary(np.ones((50, 50), dtype=bool), 1).sum() == 50**2 - 48**2

    def test_empty_masks(self):
        empty, square = np.zeros(self.SIZE, dtype=bool), rectangle(0, 0, 9, 9, self.SIZE)
        pairs = np.stack([empty, empty, square]), np.stack([empty, square, empty])
        assert boundary_ious(*pairs).tolist() == [1, 0, 0]

    def test_pixels_that_do_not_count(self):
        square, wider = rectangle(30, 30, 20, 20, self.SIZE)[None], rectangle(30, 30, 20, 30, self.SIZE)[None]
        left = np.zeros(self.SIZE, dtype=bool)
        left[:, :40] = True
        assert boundary_ious(square, wider)[0] < 1
        # Up to column 40 they are the same; the edge of the region is no boundary.
        assert boundary_ious(square, wider, valid=left).tolist() == [1]
        assert boundary_ious(square, wider, valid=left[None]).tolist() == [1]
        assert boundary_ious(square, square[:, ::-1], valid=np.zeros(self.SIZE, dtype=bool)).tolist() == [1]

    @pytest.mark.parametrize("width", [1, 2, 4])
    def test_equals_erosions_one_after_the_other(self, width):
        rng = np.random.default_rng(width)
        for density in (0.05, 0.5, 0.98):
            mask = np.kron(rng.random((7, 9)) < density, np.ones((4, 4))).astype(bool) & (rng.random((28, 36)) < 0.999)
            np.testing.assert_array_equal(mask_boundary(mask, width), self.naive_boundary(mask, width))

    @pytest.mark.parametrize(
        ("predictions", "given", "told"),
        [
            (np.zeros((1, 4, 4)), {}, "predictions are float64, expected bool"),
            (np.zeros((1, 4, 5), dtype=bool), {}, r"predictions are \[1, 4, 5\] and references \[1, 4, 4\]"),
            (np.zeros((1, 4, 4), dtype=bool), {"valid": np.zeros((4, 5), dtype=bool)}, r"valid is \[4, 5\]"),
            (np.zeros((1, 4, 4), dtype=bool), {"ratio": 0}, "got ratio 0"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, predictions, given, told):
        with pytest.raises(ValueError, match=told):
            boundary_ious(predictions, np.zeros((1, 4, 4), dtype=bool), **given)


class TestInstances:
    OBJECT = rectangle(0, 0, 10, 10)

    def test_ious(self):
        empty = np.zeros_like(self.OBJECT)
        found = encoded(rectangle(0, 0, 5, 10), rectangle(0, 5, 10, 10), empty)
        np.testing.assert_allclose(mask_ious(found, encoded(self.OBJECT, empty)), [[0.5, 0], [1 / 3, 0], [0, 0]])
        assert mask_ious([], encoded(self.OBJECT)).shape == (0, 1)
        assert mask_ious(found, []).shape == (3, 0)

    def test_predictions_that_overlap(self):
        """Of two predictions of one object, which share 60 pixels, one is right and the other too much."""
        image = InstanceImage(encoded(rectangle(0, 0, 8, 10), rectangle(0, 0, 6, 10)), encoded(self.OBJECT))
        iou = counted_ious(image)
        np.testing.assert_allclose(iou, [[0.8], [0.6]])
        # 0.5, 0.55, ... 0.8, which is met.
        np.testing.assert_allclose(segmentation_accuracy(iou), [0.5] * 7 + [0] * 3)
        scores = instance_scores([image])
        assert scores["image_accuracy"] == pytest.approx(0.35)
        assert scores["segmentation_quality"] == pytest.approx(0.8)
        assert scores["recognition_quality"] == pytest.approx(2 / 3)
        assert scores["panoptic_quality"] == pytest.approx(1.6 / 3)

    def test_as_many_matches_as_possible(self):
        """The best pair is not taken where that leaves another prediction without any."""
        iou = np.array([[0.9, 0.6], [0.6, 0]])
        assert count_matches(iou, 0.5) == 2
        assert [indices.tolist() for indices in match_masks(iou, 0.5)] == [[0, 1], [1, 0]]
        assert count_matches(iou, 0.75) == 1
        assert panoptic_scores([iou])["segmentation_quality"] == pytest.approx(0.6)

    def test_count_equals_the_assignment(self):
        rng = np.random.default_rng(2)
        for shape in [(1, 1), (4, 9), (9, 4), (0, 3), (3, 0), (30, 30)]:
            iou = rng.random(shape) * (rng.random(shape) < 0.3)
            for threshold in THRESHOLDS:
                assert count_matches(iou, threshold) == len(match_masks(iou, threshold)[0])

    def test_a_half_is_a_match_but_not_for_panoptic_quality(self):
        scores = instance_scores([InstanceImage(encoded(rectangle(0, 0, 5, 10)), encoded(self.OBJECT))])
        assert scores["image_accuracy_50"] == 1 and scores["image_accuracy_75"] == 0
        assert scores["panoptic_quality"] == 0

    def test_thresholds_are_what_they_say(self):
        """0.5 + 0.05 + 0.05 is more than 3/5."""
        found = encoded(rectangle(0, 0, 6, 10))
        np.testing.assert_allclose(segmentation_accuracy(mask_ious(found, encoded(self.OBJECT))), [1] * 3 + [0] * 7)

    def test_means_over_images_and_of_all_together(self):
        right, one_of_three = np.ones((1, 1)), np.array([[1.0, 0, 0]])
        scores = accuracy_scores([right, one_of_three])
        assert scores["image_accuracy_75"] == pytest.approx((1 + 1 / 3) / 2)
        assert scores["pooled_accuracy_75"] == scores["pooled_accuracy"] == pytest.approx(2 / 4)
        assert scores["precision_50"] == 1
        assert scores["recall_50"] == pytest.approx(2 / 4)
        assert scores["f1_50"] == pytest.approx(4 / 6)

    def test_images_without_objects(self):
        """Right when nothing is found there: 1, where StarDist and elf say 0, and Cellpose NaN."""
        nothing, missed, invented = np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((3, 0))
        values = [segmentation_accuracy(iou)[0] for iou in (nothing, missed, invented)]
        assert values == [1, 0, 0]
        alone = instance_scores([InstanceImage([], [])])
        assert alone["image_accuracy"] == 1 and alone["num_empty_images"] == 1
        for name in ("pooled_accuracy_50", "precision_50", "recall_50", "f1_50", "panoptic_quality"):
            assert np.isnan(alone[name])
        # They change no pooled number.
        scores, with_empty = (
            accuracy_scores(ious) | panoptic_scores(ious) for ious in ([np.eye(2, 3)], [np.eye(2, 3), nothing])
        )
        pooled = [name for name in scores if not name.startswith("image")]
        assert {name: scores[name] for name in pooled} == {name: with_empty[name] for name in pooled}

    @pytest.mark.parametrize("iou", [np.zeros((0, 2)), np.zeros((3, 0)), np.zeros((2, 2))])
    def test_without_a_match_all_is_0(self, iou):
        scores = accuracy_scores([iou]) | panoptic_scores([iou])
        assert set(scores.values()) == {0}

    def test_crowds(self):
        """A prediction in a crowd is left out, unless half of it lies beside it, or it fits an object in the crowd."""
        crowd, bag = rectangle(0, 0, 20, 20), rectangle(0, 0, 4, 4)
        inside, half, more = rectangle(5, 5, 5, 5), rectangle(10, 15, 4, 10), rectangle(15, 14, 4, 10)
        image = InstanceImage(encoded(inside, half, more, bag), encoded(bag), encoded(crowd), [0.9, 0.8, 0.7, 0.6])
        np.testing.assert_allclose(counted_ious(image), [[0], [1]])
        scores = instance_scores([image])
        assert scores["precision_50"] == 0.5 and scores["recall_50"] == 1 and scores["num_predictions"] == 2
        # For COCO half a prediction in a crowd is enough.
        assert scores["coco_ap_50"] == pytest.approx(1)
        # Two crowds that share its pixels are not two halves.
        parts = encoded(rectangle(0, 0, 20, 7), rectangle(0, 7, 20, 13))
        assert len(counted_ious(InstanceImage(encoded(inside), (), parts))) == 0

    def test_average_precision_by_hand(self):
        other = rectangle(20, 20, 10, 10)
        image = InstanceImage(
            encoded(other, self.OBJECT, rectangle(20, 0, 5, 5)), encoded(self.OBJECT, other), (), [0.7, 0.9, 0.8]
        )
        scores = average_precision([image])
        # 51 of COCO's 101 levels of recall are reached with the first prediction, 50 with all three.
        assert scores["coco_ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)
        assert scores["coco_ap_50"] == scores["coco_ap_75"] == pytest.approx(scores["coco_ap"])
        assert scores["coco_ar_100"] == scores["coco_ar_1000"] == 1

    def test_recall_of_the_best_100_and_1000(self):
        wrong = encoded(rectangle(30, 30, 5, 5)) * 100
        image = InstanceImage([*wrong, *encoded(self.OBJECT)], encoded(self.OBJECT), (), [*[0.9] * 100, 0.5])
        scores = average_precision([image])
        assert (scores["coco_ar_100"], scores["coco_ar_1000"], scores["coco_ap"]) == (0, 1, 0)

    def test_average_precision_needs_objects_and_scores(self):
        assert np.isnan(average_precision([InstanceImage(encoded(self.OBJECT), [], (), [0.5])])["coco_ap"])
        unranked, ranked = (InstanceImage(encoded(self.OBJECT), [], (), scores) for scores in (None, [0.5]))
        assert "coco_ap" not in instance_scores([unranked])
        with pytest.raises(ValueError, match="predictions of image 1 have no scores"):
            instance_scores([ranked, unranked])

    def test_pycocotools_by_its_files(self, tmp_path, capsys):
        images = random_images(with_crowds=True)
        (tmp_path / "truth.json").write_text(json.dumps(self.truth(images)))
        found = [
            {"image_id": index, "category_id": 1, "segmentation": rle, "score": score}
            for index, image in enumerate(images)
            for rle, score in zip(image.predictions, image.scores, strict=True)
        ]
        scores = average_precision(images)
        assert capsys.readouterr().out == ""
        truth = COCO(tmp_path / "truth.json")
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        names = {"coco_ap": 0, "coco_ap_50": 1, "coco_ap_75": 2, "coco_ar_100": 8}
        assert 0.1 < scores["coco_ap"] < 0.9
        for name, place in names.items():
            assert scores[name] == pytest.approx(evaluation.stats[place], abs=1e-12)

    def truth(self, images: list[InstanceImage]) -> dict[str, Any]:
        annotations = [
            {"image_id": index, "segmentation": rle, "iscrowd": iscrowd, "area": int(coco.area(rle))}
            for index, image in enumerate(images)
            for iscrowd, rles in ((0, image.references), (1, image.crowds))
            for rle in rles
        ]
        return {
            "images": [{"id": index, "height": HEIGHT, "width": WIDTH} for index in range(len(images))],
            "categories": [{"id": 1, "name": "object"}],
            "annotations": [{"id": 1 + n, "category_id": 1, **item} for n, item in enumerate(annotations)],
        }

    @pytest.mark.parametrize("threshold", [50, 75])
    def test_stardist(self, threshold):
        matching = pytest.importorskip("stardist.matching")
        found, true = zip(*random_pairs(), strict=True)
        scores = accuracy_scores(ious_of(random_images()))
        settings = {"thresh": threshold / 100, "show_progress": False}
        pooled = matching.matching_dataset(true, found, **settings)
        assert 0.1 < pooled.accuracy < 0.9
        for name in ("precision", "recall", "f1"):
            assert scores[f"{name}_{threshold}"] == pytest.approx(getattr(pooled, name))
        assert scores[f"pooled_accuracy_{threshold}"] == pytest.approx(pooled.accuracy)
        by_image = matching.matching_dataset(true, found, by_image=True, **settings)
        assert scores[f"image_accuracy_{threshold}"] == pytest.approx(by_image.accuracy)

    def test_panoptic_quality_of_stardist(self):
        matching = pytest.importorskip("stardist.matching")
        found, true = zip(*random_pairs(), strict=True)
        # Its IoU are float32, and at least the threshold, where ours are above it.
        expected = matching.matching_dataset(true, found, thresh=0.500001, show_progress=False)
        scores = panoptic_scores(ious_of(random_images()))
        assert scores["panoptic_quality"] == pytest.approx(expected.panoptic_quality)
        assert scores["segmentation_quality"] == pytest.approx(expected.mean_matched_score)
        assert scores["recognition_quality"] == pytest.approx(expected.f1)

    def test_stardist_at_every_threshold(self):
        matching = pytest.importorskip("stardist.matching")
        found, true = zip(*random_pairs(), strict=True)
        by_image = matching.matching_dataset(true, found, thresh=THRESHOLDS, by_image=True, show_progress=False)
        scores = accuracy_scores(ious_of(random_images()))
        assert scores["image_accuracy"] == pytest.approx(np.mean([result.accuracy for result in by_image]))

    def test_torchmetrics(self):
        detection = pytest.importorskip("torchmetrics.detection")
        torch = pytest.importorskip("torch")
        metric = detection.PanopticQuality(things={1}, stuffs={0}, return_per_class=True, return_sq_and_rq=True)
        for pair in random_pairs():
            # (class, instance) of every pixel; what is no object is one region of another class.
            pixels = (np.stack([labels > 0, labels], axis=-1).astype(int)[None] for labels in pair)
            metric.update(*map(torch.from_numpy, pixels))
        expected = metric.compute()[0].tolist()
        scores = panoptic_scores(ious_of(random_images()))
        names = ("panoptic_quality", "segmentation_quality", "recognition_quality")
        assert [scores[name] for name in names] == pytest.approx(expected)

    def test_order_of_images_and_masks_changes_nothing(self):
        images = random_images(with_crowds=True)
        # Equal scores are ranked by their order.
        images = [
            InstanceImage(image.predictions, image.references, image.crowds, np.array(image.scores) + index / 1e4)
            for index, image in enumerate(images)
        ]
        turned = [
            InstanceImage(image.predictions[::-1], image.references[::-1], image.crowds, image.scores[::-1])
            for image in images[::-1]
        ]
        assert instance_scores(turned) == pytest.approx(instance_scores(images))

    def test_fewer_predictions_are_rows_of_the_matrix(self):
        image = random_images()[5]
        iou = mask_ious(image.predictions, image.references)
        some = mask_ious(image.predictions[1:], image.references)
        np.testing.assert_array_equal(iou[1:], some)
        assert segmentation_accuracy(iou[1:], [0.5, 0.6]).shape == (2,)

    def test_what_does_not_fit_is_refused(self):
        small = encoded(np.ones((4, 4), dtype=bool))
        with pytest.raises(ValueError, match=r"sizes \(height, width\) \[\(4, 4\), \(40, 50\)\]"):
            mask_ious(small, encoded(self.OBJECT))
        with pytest.raises(ValueError, match="got 2 scores of 1 predictions"):
            InstanceImage(small, [], (), [0.5, 0.5])
        with pytest.raises(ValueError, match="NaN"):
            InstanceImage(small, [], (), [float("nan")])
        with pytest.raises(ValueError, match="got no image"):
            instance_scores([])


class TestCalibration:
    PREDICTED, TRUE = (0.05, 0.95, 0.95), (0.25, 0.75, 0.95)

    def test_by_hand(self):
        scores = calibration_scores(self.PREDICTED, self.TRUE)
        assert scores["mean_absolute_error"] == pytest.approx(0.4 / 3)
        assert scores["bias"] == pytest.approx(0)
        # 0.05 against 0.25, and twice 0.95 against their mean of 0.85.
        assert scores["expected_calibration_error"] == pytest.approx((0.2 + 2 * 0.1) / 3)
        # Deviations (-2, 1, 1) * 0.3 and (-4, 1, 3) * 0.1.
        assert scores["correlation"] == pytest.approx(12 / np.sqrt(6 * 26))
        assert scores["num_masks"] == 3

    def test_curve(self):
        curve = reliability_curve(self.PREDICTED, self.TRUE)
        np.testing.assert_allclose(curve["centers"], np.linspace(0.05, 0.95, 10))
        assert curve["counts"].tolist() == [1] + [0] * 8 + [2]
        np.testing.assert_allclose(curve["predicted"], [0.05] + [np.nan] * 8 + [0.95])
        np.testing.assert_allclose(curve["true"], [0.25] + [np.nan] * 8 + [0.85])

    def test_edges_of_bins(self):
        predicted = [-0.2, 0, 0.1, 0.3, 0.6, 0.7, 0.9, 1, 1.2]
        counts = reliability_curve(predicted, [0.5] * 9)["counts"]
        assert counts.tolist() == [2, 1, 0, 1, 0, 0, 1, 1, 0, 3]

    def test_bias_has_a_sign(self):
        assert calibration_scores([0.75], [0.5])["bias"] == 0.25

    def test_no_correlation_of_what_is_the_same(self):
        assert np.isnan(pearson_correlation([0.1] * 7, np.linspace(0, 1, 7)))
        assert np.isnan(calibration_scores([0.5], [0.5])["correlation"])

    def test_order_changes_nothing(self):
        predicted, true = np.random.default_rng(0).random((2, 50))
        turned = calibration_scores(predicted[::-1], true[::-1])
        curve = turned.pop("curve")
        scores = calibration_scores(predicted, true)
        for name, values in scores.pop("curve").items():
            np.testing.assert_allclose(curve[name], values)
        assert turned == pytest.approx(scores)

    @pytest.mark.parametrize(
        ("predicted", "true", "told"),
        [
            ([0.5], [0.5, 0.5], r"predicted IoU \[1\] and true IoU \[2\]"),
            ([], [], "N at least 1"),
            ([float("nan")], [0.5], "not finite"),
            ([0.5], [1.5], "outside of 0 to 1"),
        ],
    )
    def test_what_is_no_pair_is_refused(self, predicted, true, told):
        with pytest.raises(ValueError, match=told):
            calibration_scores(predicted, true)

    def test_there_is_a_bin(self):
        with pytest.raises(ValueError, match="num_bins 0"):
            expected_calibration_error([0.5], [0.5], 0)


class TestObjectScore:
    def test_by_hand(self):
        """Of four pairs of object and no object three are in order, and one is a tie."""
        scores = object_score_numbers([2.0, -1.0, -1.0, -3.0], [True, True, False, False])
        assert scores == {
            "auroc": 3.5 / 4,
            "rejected_negatives": 1,
            "rejected_positives": 0.5,
            "num_positives": 2,
            "num_negatives": 2,
        }

    def test_a_logit_of_0_is_a_rejection(self):
        assert object_score_numbers([0.0, 0.1], [0, 0])["rejected_negatives"] == 0.5

    @pytest.mark.parametrize(("labels", "missing"), [([1, 1], "negatives"), ([0, 0], "positives")])
    def test_one_class_is_missing(self, labels, missing):
        scores = object_score_numbers([-1.0, 1.0], labels)
        assert scores["auroc"] is None and scores[f"rejected_{missing}"] is None
        present = {"negatives": "positives", "positives": "negatives"}[missing]
        assert scores[f"rejected_{present}"] == 0.5

    def test_torchmetrics(self):
        classification = pytest.importorskip("torchmetrics.classification")
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(0)
        logits, labels = rng.integers(-5, 6, 200) / 4, rng.integers(0, 2, 200)
        expected = classification.BinaryAUROC()(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        assert object_score_numbers(logits, labels)["auroc"] == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(
        ("logits", "labels", "told"),
        [
            ([0.5], [1, 0], r"logits \[1\] and labels \[2\]"),
            ([float("nan")], [1], "NaN"),
            ([0.5], [2], "not 0 or 1"),
        ],
    )
    def test_what_is_no_pair_is_refused(self, logits, labels, told):
        with pytest.raises(ValueError, match=told):
            object_score_numbers(logits, labels)


def examples_of(name: str) -> dict[str, list[Any]]:
    """Inputs of a metric for some examples, an odd number."""
    rng = np.random.default_rng(3)
    if name == "click_iou":
        return {"predictions": rng.random((5, 4)).tolist()}
    if name == "boundary_iou":
        squares = [rectangle(*rng.integers(0, 20, size=2), 15, 15) for _ in range(10)]
        return {"predictions": squares[:5], "references": squares[5:]}
    if name == "instance_segmentation":
        images = random_images(with_crowds=True)[:5]
        names = ("predictions", "references", "scores", "crowds")
        return {name: [getattr(image, name) for image in images] for name in names}
    if name == "iou_calibration":
        return {"predictions": rng.random(5).tolist(), "references": rng.random(5).tolist()}
    return {"predictions": rng.normal(size=5).tolist(), "references": [1, 0, 1, 1, 0]}


def part(inputs: dict[str, list[Any]], start: int, stop: int) -> dict[str, list[Any]]:
    return {name: values[start:stop] for name, values in inputs.items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    """NaN equals NaN, inside of lists, too."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, dict):
            same(value, second[name])
        else:
            np.testing.assert_array_equal(value, second[name])


def compute_in_one_of_two(process_id: int, folder: str, queue: Any) -> None:
    """Add the first two examples, or the other three, of every metric, and hand back what comes out."""
    results = {}
    for name, metric_class in CLASSES.items():
        metric = metric_class(
            cache_dir=folder, num_process=2, process_id=process_id, experiment_id="of_two", timeout=300
        )
        inputs = examples_of(name)
        metric.add_batch(**part(inputs, *((0, 2), (2, 5))[process_id]))
        results[name] = metric.compute()
    queue.put((process_id, results))


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test leaves anything in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_METRICS_CACHE", "HF_MODULES_CACHE"):
            patch.setattr(evaluate.config, name, str(tmp_path_factory.mktemp(name)))
        yield


@pytest.mark.parametrize("name", CLASSES)
class TestModules:
    def test_a_folder_is_loaded_without_network(self, name, monkeypatch):
        def refused(*_: object) -> None:
            raise AssertionError("a metric needs no network")

        monkeypatch.setattr(socket.socket, "connect", refused)
        metric = evaluate.load(str(METRICS / name))
        assert type(metric).__name__ == CLASSES[name].__name__ and metric.name == name
        assert metric.description and metric.citation and metric.inputs_description
        same(metric.compute(**examples_of(name)), CLASSES[name]().compute(**examples_of(name)))

    def test_the_example_of_the_description_runs(self, name):
        example = doctest.DocTestParser().get_doctest(CLASSES[name]().inputs_description, {}, name, None, None)
        result = doctest.DocTestRunner().run(example)
        assert result.attempted and not result.failed

    @pytest.mark.parametrize("in_memory", [False, True])
    def test_batches_are_as_one(self, name, in_memory):
        inputs = examples_of(name)
        metric = CLASSES[name](keep_in_memory=in_memory)
        metric.add_batch(**part(inputs, 0, 2))
        metric.add_batch(**part(inputs, 2, 5))
        same(metric.compute(), CLASSES[name]().compute(**inputs))

    def test_one_by_one(self, name):
        inputs, metric = examples_of(name), CLASSES[name]()
        singular = {"predictions": "prediction", "references": "reference"}
        for values in zip(*inputs.values(), strict=True):
            metric.add(**{singular.get(key, key): value for key, value in zip(inputs, values, strict=True)})
        same(metric.compute(), CLASSES[name]().compute(**inputs))

    def test_numbers_are_those_of_json(self, name):
        scores = CLASSES[name]().compute(**examples_of(name))
        assert json.loads(json.dumps(scores)).keys() == scores.keys()

    def test_it_starts_anew_after_compute(self, name):
        inputs, metric = examples_of(name), CLASSES[name]()
        first = metric.compute(**part(inputs, 0, 2))
        metric.compute(**part(inputs, 2, 5))
        same(metric.compute(**part(inputs, 0, 2)), first)


def test_two_processes_are_as_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=compute_in_one_of_two, args=(n, str(tmp_path), queue)) for n in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    for name, metric_class in CLASSES.items():
        assert results[1][name] is None
        same(results[0][name], metric_class().compute(**examples_of(name)))


class TestMasksOfModules:
    SQUARE, WIDE, TALL = rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 20), rectangle(0, 0, 20, 10)

    @pytest.mark.parametrize(
        "written",
        [
            lambda mask: mask,
            lambda mask: mask.tolist(),
            lambda mask: encoded(mask)[0],
            lambda mask: coco.encode(np.asfortranarray(mask.view(np.uint8))),
            lambda mask: {"size": [HEIGHT, WIDTH], "counts": run_lengths_by_hand(mask)},
        ],
        ids=["bool", "lists", "text", "bytes", "numbers"],
    )
    def test_all_forms_of_a_mask(self, written: Callable[[np.ndarray], Any]):
        masks = [written(mask) for mask in (self.SQUARE, self.WIDE, self.TALL)]
        clicks = ClickIou().compute(predictions=[masks], references=[masks[0]])
        assert clicks["iou_per_click"] == [1, 0.5, 0.5]
        found = InstanceSegmentation().compute(predictions=[masks[:2]], references=[masks[:1]])
        assert found["precision_50"] == 0.5 and found["recall_50"] == 1
        assert "coco_ap" not in found
        outlines = BoundaryIou().compute(predictions=masks[:1], references=masks[1:2])["boundary_iou"]
        assert outlines == boundary_ious(self.SQUARE[None], self.WIDE[None])[0]

    def test_masks_of_an_image_in_one_array(self):
        masks = np.stack([self.SQUARE, self.WIDE])
        scores = InstanceSegmentation().compute(predictions=[masks, masks[:0]], references=[masks[:1], masks[:0]])
        assert scores["num_empty_images"] == 1 and scores["image_accuracy_50"] == 0.75

    def test_pixels_that_do_not_count(self):
        left = np.zeros_like(self.SQUARE)
        left[:, :10] = True
        masks = {"predictions": [[self.WIDE]], "references": [self.SQUARE]}
        assert ClickIou().compute(**masks)["iou_per_click"] == [0.5]
        assert ClickIou().compute(**masks, valid=[left])["iou_per_click"] == [1]
        outlines = {"predictions": [self.WIDE, self.WIDE], "references": [self.SQUARE, self.WIDE]}
        some = BoundaryIou().compute(**outlines, valid=[left, left])["boundary_iou"]
        assert BoundaryIou().compute(**outlines)["boundary_iou"] < some
        # Batches with and without.
        metric = BoundaryIou()
        metric.add_batch(**part(outlines, 0, 1), valid=encoded(left))
        metric.add_batch(**part(outlines, 1, 2))
        assert metric.compute()["boundary_iou"] == some

    def test_two_empty_masks_agree(self):
        empty = np.zeros_like(self.SQUARE)
        assert ClickIou().compute(predictions=[[empty, self.SQUARE]], references=[empty])["iou_per_click"] == [1, 0]

    def test_options_of_compute(self):
        assert "noc_50" in ClickIou().compute(predictions=[[0.5]], targets=[0.5])
        metric, masks = BoundaryIou(), {"predictions": [self.WIDE], "references": [self.SQUARE]}
        assert metric.compute(**masks, ratio=1.0)["boundary_iou"] == 0.5

    @pytest.mark.parametrize(
        ("metric_class", "inputs", "told"),
        [
            (
                BoundaryIou,
                {"predictions": [SQUARE]},
                r"got the inputs \['predictions'\], expected \['predictions', 'ref",
            ),
            (BoundaryIou, {"predictions": [SQUARE], "references": []}, "inputs have the lengths"),
            (BoundaryIou, {"predictions": [SQUARE * 1.0], "references": [SQUARE]}, "got a mask float64"),
            (BoundaryIou, {"predictions": [SQUARE[:9]], "references": [SQUARE]}, "expected one size"),
            (BoundaryIou, {"predictions": [{"size": [9, 9], "counts": "1"}], "references": [SQUARE]}, "malformed RLE"),
            (BoundaryIou, {"predictions": [{"counts": "1"}], "references": [SQUARE]}, r"expected \[height, width\]"),
            (ClickIou, {"predictions": [[SQUARE]]}, "masks without references"),
            (ClickIou, {"predictions": [[SQUARE[:9]]], "references": [SQUARE]}, "expected one size"),
            (ClickIou, {"predictions": [[SQUARE]], "references": [SQUARE], "valid": [SQUARE[:9]]}, "valid is"),
            (ClickIou, {"predictions": [[0.5], [0.5, 0.6]]}, r"objects have \[1, 2\] clicks"),
            (ClickIou, {"predictions": [[1.5]]}, "expected 0 to 1"),
            (InstanceSegmentation, {"predictions": [[SQUARE]], "references": [[SQUARE[:9]]]}, "those of one image"),
            (InstanceSegmentation, {"predictions": [[SQUARE]], "references": [[]], "scores": [[]]}, "got 0 scores"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, metric_class, inputs, told):
        with pytest.raises(ValueError, match=told):
            metric_class().compute(**inputs)

    def test_an_unknown_input_is_named(self):
        with pytest.raises(ValueError, match="'weights'"):
            ClickIou().add_batch(predictions=[[0.5]], weights=[1])


def run_lengths_by_hand(mask: np.ndarray) -> list[int]:
    """Of a mask whose first pixel is in it."""
    counts, last = [0], True
    counts.append(0)
    for pixel in mask.ravel(order="F").tolist():
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return counts
