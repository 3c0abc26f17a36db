"""Thresholds and temperature that a model is given: closed forms, and the generator itself as the reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit, logit
from test_automatic_instances import Oracle, oracle_processor, scene_image
from tiny_models import random_pixels, random_prompts, tiny_model, unpack_trained_model

from sam_hf import MaskGenerator, SamHfModel, SamHfProcessor
from sam_hf.data import objects_from_masks, open_dataset
from sam_hf.data.schema import Record
from sam_hf.evaluation import simulate_clicks, thresholds
from sam_hf.evaluation.metrics.instances import mask_ious, segmentation_accuracy
from sam_hf.evaluation.thresholds import (
    ScoredMasks,
    best_line,
    best_temperature,
    fit_map_thresholds,
    fit_temperature,
    fit_thresholds,
    search,
    spread_records,
    tempered,
)

SIDE = 8  # clicks


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory) -> Path:
    return unpack_trained_model(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def trained(trained_folder) -> tuple[SamHfModel, SamHfProcessor]:
    """A new one for each test, because fitting changes it."""
    model = SamHfModel.from_pretrained(trained_folder, dtype=torch.float32).eval()
    return model, SamHfProcessor.from_pretrained(trained_folder)


@pytest.fixture(scope="module")
def scenes() -> list[Record]:
    dataset = open_dataset("scenes", "validation", num_scenes=8, size=(96, 96))
    return [dataset[index] for index in range(8)]


def accuracy_of(generator: MaskGenerator, record: Record) -> float:
    found = [mask["segmentation"] for mask in generator(record["image"])]
    references = [item["segmentation"] for item in record["objects"]]
    return segmentation_accuracy(mask_ious(found, references)).mean()


def record_of(*iscrowd: int) -> Record:
    masks = np.zeros((len(iscrowd), 8, 8), dtype=bool)
    masks[:, 2:5, 2:5] = True
    objects = [item | {"iscrowd": crowd} for item, crowd in zip(objects_from_masks(masks), iscrowd, strict=True)]
    return {"image": Image.new("RGB", (8, 8)), "objects": objects, "image_id": "a"}


def scored(scores: list[float], stability: list[float], boxes: list[list[int]], iou: list[list[float]], counts=None):
    return ScoredMasks(
        scores=torch.tensor(scores),
        stability=torch.tensor(stability),
        boxes=torch.tensor(boxes),
        iou=np.array(iou),
        counts=np.ones(len(scores), dtype=bool) if counts is None else np.array(counts),
    )


A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]


def test_accuracy_of_every_pair_in_closed_form():
    """Two objects. The first mask is exact; the second has a stable duplicate; the third is wrong."""
    masks = scored(
        [0.9, 0.8, 0.7, 0.6],
        [0.9, 0.3, 0.6, 0.6],
        [A, B, [20, 0, 30, 11], C],
        [[1.0, 0.0], [0.0, 0.62], [0.0, 1.0], [0.0, 0.0]],
    )
    accuracy, num_masks = search([masks], np.array([0.0, 0.6, 0.7, 0.8, 0.9]), np.array([0.0, 0.3, 0.5, 0.7]))
    weak = (3 * 2 / 3 + 7 * 1 / 4) / 10  # 0.62 is a match at 0.5, 0.55 and 0.6
    alone = (3 * 1 + 7 * 1 / 3) / 10
    assert accuracy.T.tolist() == [
        pytest.approx([weak, alone, alone, 0.5, 0.0]),  # 0.6 is not above 0.6
        pytest.approx([weak, alone, alone, 0.5, 0.0]),  # 0.3 is stable enough for 0.3
        pytest.approx([2 / 3, 1.0, 0.5, 0.5, 0.0]),
        pytest.approx([0.5, 0.5, 0.5, 0.5, 0.0]),
    ]
    assert num_masks.T.tolist() == [[3, 2, 2, 1, 0], [3, 2, 2, 1, 0], [3, 2, 1, 1, 0], [1, 1, 1, 1, 0]]
    empty = scored([], [], np.zeros((0, 4)), np.zeros((0, 2)))
    half, few = search([masks, empty], np.array([0.6]), np.array([0.5]))
    assert half.tolist() == [[0.5]] and few.tolist() == [[1.0]]


def test_what_lies_in_a_crowd_suppresses_but_does_not_count():
    masks = scored([0.9, 0.8], [0.9, 0.9], [A, B], [[0.0], [1.0]], counts=[False, True])
    assert search([masks], np.array([0.0]), np.array([0.0]))[0].tolist() == [[1.0]]
    masks = scored([0.9, 0.8], [0.9, 0.9], [A, A], [[0.0], [1.0]], counts=[False, True])
    assert search([masks], np.array([0.0]), np.array([0.0]))[0].tolist() == [[0.0]]


def test_of_equals_sams_and_else_the_strictest():
    accuracy = np.array([[0.1, 0.5, 0.5], [0.5, 0.2, 0.5], [0.5, 0.5, 0.1]])
    assert thresholds.choose(accuracy, (0, 1)) == (0, 1)
    assert thresholds.choose(accuracy, (0, 0)) == (2, 1)
    assert thresholds.choose(np.zeros((3, 3)), (1, 1)) == (1, 1)


def test_the_search_saw_what_the_generator_does(trained, scenes):
    """Every pair of thresholds, by a generator of its own that knows nothing of the search."""
    model, processor = trained
    images = scenes[:2]
    generator = MaskGenerator(model, processor, points_per_side=SIDE, pred_iou_thresh=0.2, **thresholds.ALL_CANDIDATES)
    found = [thresholds.score_masks(generator, record) for record in images]
    pred_ious, stabilities = np.array([0.2, 0.4, 0.6]), np.array([0.0, 0.5])
    accuracy, num_masks = search(found, pred_ious, stabilities)
    for row, pred_iou in enumerate(pred_ious):
        for column, stability in enumerate(stabilities):
            generator = MaskGenerator(
                model,
                processor,
                points_per_side=SIDE,
                pred_iou_thresh=pred_iou,
                stability_score_thresh=stability,
                output_mode="coco_rle",
            )
            seen = [masks.scores[thresholds.kept_masks(masks, stability)] for masks in found]
            for record, scores in zip(images, seen, strict=True):
                expected = [mask["predicted_iou"] for mask in generator(record["image"])]
                assert scores[scores > pred_iou].tolist() == pytest.approx(expected, abs=1e-6)
            naive = np.mean([accuracy_of(generator, record) for record in images])
            assert accuracy[row, column] == pytest.approx(naive, abs=1e-12)
            assert num_masks[row, column] == np.mean([(scores > pred_iou).sum().item() for scores in seen])
    assert len(np.unique(accuracy.round(6))) > 3 and accuracy.max() > 0.05


def test_fitted_thresholds_find_more_on_other_images_and_are_saved(trained, scenes, tmp_path):
    model, processor = trained
    fitted = fit_thresholds(model, processor, scenes[:4], num_images=4, points_per_side=SIDE)
    assert fitted.num_images == 4
    assert fitted.accuracy > fitted.accuracy_of_defaults + 0.1 and fitted.num_masks > fitted.num_masks_of_defaults
    assert fitted.calibration_error < fitted.calibration_error_before
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    model, processor = SamHfModel.from_pretrained(tmp_path).eval(), SamHfProcessor.from_pretrained(tmp_path)
    own = processor.image_processor
    assert (own.pred_iou_thresh, own.stability_score_thresh) == (fitted.pred_iou_thresh, fitted.stability_score_thresh)
    options = {"points_per_side": SIDE, "output_mode": "coco_rle"}
    generator = MaskGenerator(model, processor, **options)
    stock = MaskGenerator(model, processor, pred_iou_thresh=0.88, stability_score_thresh=0.95, **options)
    for images, expected in ((scenes[:4], fitted.accuracy), (scenes[4:], None)):
        reached = np.mean([accuracy_of(generator, record) for record in images])
        assert reached > np.mean([accuracy_of(stock, record) for record in images]) + 0.05
        if expected is not None:
            assert reached == pytest.approx(expected, abs=1e-12)
    assert fitted.num_masks == np.mean([len(generator(record["image"])) for record in scenes[:4]])
    assert fitted.accuracy_of_defaults == pytest.approx(np.mean([accuracy_of(stock, record) for record in scenes[:4]]))


def test_candidates_are_bounded(trained, scenes):
    model, processor = trained
    counts = []
    for most in (50, 10_000):
        floor = thresholds.lowest_threshold(model, processor, scenes[:3], most, SIDE)
        generator = MaskGenerator(
            model, processor, points_per_side=SIDE, pred_iou_thresh=floor, **thresholds.ALL_CANDIDATES
        )
        counts.append(np.mean([len(generator(record["image"])) for record in scenes[:3]]))
    assert counts == [pytest.approx(50, rel=0.2), 4 * SIDE**2] and floor == 0


def test_the_grid_has_sams_and_what_is_observed():
    masks = scored([0.31, 0.52, 0.73, 0.94], [0.1, 0.2, 0.3, 0.4], [A] * 4, [[0.0]] * 4)
    pred_ious, stabilities = thresholds.threshold_grid([masks], 0.3)
    assert pred_ious[0] == 0.3 and pred_ious[-1] == pytest.approx(0.94, abs=0.01) and 0.88 in pred_ious
    assert stabilities[0] == 0 and 0.1 in stabilities and stabilities[-1] == 0.95
    assert (np.diff(pred_ious) > 0).all() and (pred_ious.round(3) == pred_ious).all()
    empty = scored([], [], np.zeros((0, 4)), np.zeros((0, 2)))
    assert [values.tolist() for values in thresholds.threshold_grid([empty], 0.5)] == [[0.5, 0.88], [0.0, 0.95]]


def test_the_temperature_of_known_scores():
    predicted = np.random.default_rng(0).random(500)
    for temperature in (0.4, 1.0, 2.5):
        assert best_temperature(predicted, expit(logit(predicted) / temperature)) == pytest.approx(
            temperature, abs=1e-3
        )
    changed = tempered(predicted, 2.5)
    assert best_temperature(changed, expit(logit(predicted) / 2.5)) == pytest.approx(1, abs=1e-3)
    # What is told by chance, or the wrong way round.
    for true in (1 - predicted, np.full(500, 0.5)):
        assert best_temperature(predicted, true) == 1
    assert np.isfinite(tempered(np.array([0.0, 1.0]), 0.1)).all()


def test_the_line_of_known_scores():
    predicted = np.random.default_rng(0).random(500) * 3 - 1
    assert best_line(predicted, predicted / 2 + 0.2) == pytest.approx((2.0, 0.2))
    assert best_line(predicted, predicted) == pytest.approx((1.0, 0.0))
    for true in (-predicted, predicted / 11, np.full(500, 0.3)):
        assert best_line(predicted, true) == (1.0, 0.0)
    assert best_line(np.full(500, 0.3), predicted) == (1.0, 0.0)


@pytest.mark.parametrize("uses_sigmoid", [True, False])
@torch.no_grad()
def test_temperature_is_in_the_weights_and_changes_no_mask(trained, scenes, uses_sigmoid, tmp_path):
    model, processor = trained
    model.config.mask_decoder_config.iou_prediction_use_sigmoid = uses_sigmoid
    assert model.mask_decoder.config.iou_prediction_use_sigmoid == uses_sigmoid
    prompts, pixels = random_prompts("points", num_points=1), random_pixels()
    before, clicks = model(pixels, **prompts), list(simulate_clicks(model, processor, scenes[:3]))
    fitted = fit_temperature(model, processor, scenes[:3], num_images=3)
    after, clicks_after = model(pixels, **prompts), list(simulate_clicks(model, processor, scenes[:3]))
    assert fitted.num_answers == sum(trace.iou.size for trace in clicks) and abs(fitted.temperature - 1) > 0.01

    assert torch.equal(after.pred_masks, before.pred_masks)
    assert torch.equal(after.iou_scores.argmax(-1), before.iou_scores.argmax(-1))
    if uses_sigmoid:
        assert fitted.offset == 0
        expected = (before.iou_scores.logit() / fitted.temperature).sigmoid()
    else:
        expected = before.iou_scores / fitted.temperature + fitted.offset
    torch.testing.assert_close(after.iou_scores, expected, rtol=0, atol=1e-5)
    for trace, other in zip(clicks, clicks_after, strict=True):
        assert trace.answers == other.answers and np.array_equal(trace.points, other.points)

    def error(traces) -> float:
        difference = np.concatenate([(trace.predicted_iou - trace.iou).ravel() for trace in traces])
        return float(np.sqrt((difference**2).mean()))

    assert fitted.error_before == pytest.approx(error(clicks), abs=1e-6)
    assert fitted.error == pytest.approx(error(clicks_after), abs=1e-6) and fitted.error < fitted.error_before
    again = fit_temperature(model, processor, scenes[:3], num_images=3)
    assert again.temperature == pytest.approx(1, abs=1e-3) and again.offset == pytest.approx(0, abs=1e-3)
    model.save_pretrained(tmp_path)
    assert torch.equal(
        SamHfModel.from_pretrained(tmp_path).eval()(pixels, **prompts).iou_scores, model(pixels, **prompts).iou_scores
    )


def test_images_are_spread_over_the_data_set():
    class Numbered(list):
        opened: list[int] = []

        def __getitem__(self, index):
            self.opened.append(index)
            return super().__getitem__(index)

    records = Numbered(record_of(*objects) for objects in [(), (0,), (1,), (1, 0), (), (), (0,), (0,), (0,)])
    assert [id(record) for record in spread_records(records, 3)] == [id(list(records)[index]) for index in (1, 3, 6)]
    assert records.opened == [0, 1, 3, 6]
    assert len(list(spread_records(records, 99))) == 5
    assert list(spread_records(Numbered(), 3)) == []


def test_what_cannot_be_fitted_is_refused():
    model = tiny_model()
    processor = SamHfProcessor.from_config(model.config)
    for fit in (fit_thresholds, fit_temperature):
        with pytest.raises(ValueError, match="no object to click on"):
            fit(model, processor, [record_of(), record_of(1)])
        with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
            fit(model.train(), processor, [record_of(0)])
        model.eval()


class Doubtful(Oracle):
    """What ghosts are, of labels above 100, has a foreground of .55; true objects are known by a center of .65."""

    def get_instance_maps(self, embeddings: list[torch.Tensor]) -> torch.Tensor:
        maps, labels = super().get_instance_maps(embeddings), embeddings[0][:, 0]
        maps[:, 0] *= torch.where(labels > 100, 0.55, 0.9)
        maps[:, 2] *= self.height
        return maps


@pytest.mark.parametrize(("height", "expected"), [(1.0, (0.6, 0.5)), (0.55, (0.6, 0.4)), (0.45, (0.6, 0.3))])
def test_thresholds_of_maps_are_the_first_that_find_the_objects_and_no_ghosts(height, expected):
    labels = np.zeros((80, 120), dtype=int)
    labels[10:40, 10:40], labels[10:40, 50:80], labels[50:75, 10:40], labels[50:75, 60:100] = 1, 2, 101, 102
    masks = np.stack([labels == 1, labels == 2])
    record = {"image": scene_image(labels), "objects": objects_from_masks(masks), "image_id": "a"}
    model, processor = Doubtful(), SamHfProcessor(oracle_processor(120))
    model.height = height
    fitted = fit_map_thresholds(model, processor, [record, record])
    assert (fitted["foreground_thresh"], fitted["seed_thresh"]) == expected and fitted["accuracy_of_instances"] == 1
    own = processor.image_processor
    assert (own.foreground_thresh, own.seed_thresh) == expected
    assert len(MaskGenerator(model, processor)(record["image"])) == 2


def test_a_model_without_maps_has_no_thresholds_of_them(trained):
    assert fit_map_thresholds(*trained, []) == {}
    assert trained[1].image_processor.seed_thresh is None
