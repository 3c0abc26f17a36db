"""The simulated user of evaluation, against models whose answers are known."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_models import IMAGE, tiny_model
from torch import Tensor

from sam_hf import BACKGROUND, FOREGROUND, SamHfImageProcessor, SamHfProcessor
from sam_hf.data import FaultLog
from sam_hf.data.schema import objects_from_masks
from sam_hf.evaluation import (
    PROTOCOLS,
    ClickSummary,
    ClickTrace,
    Prediction,
    Prompts,
    Protocol,
    compare,
    comparison_table,
    evaluate,
    evaluation_numbers,
    simulate_clicks,
    summarise_clicks,
    trace_image,
)
from sam_hf.evaluation.intervals import bootstrap
from sam_hf.evaluation.numbers import tables
from sam_hf.training.interactive import FEEDBACK_LIMIT

HEIGHT, WIDTH = 80, 128  # the model sees half of it: 40 x 64


@pytest.fixture(scope="module")
def processor() -> SamHfProcessor:
    return SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE}))


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def make_record(*masks: np.ndarray, image_id: str = "a") -> dict:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    stack = np.stack(masks) if masks else np.zeros((0, HEIGHT, WIDTH), dtype=bool)
    return {"image": image, "objects": objects_from_masks(stack), "image_id": image_id}


SQUARES = rectangle(10, 10, 40, 50), rectangle(44, 60, 70, 120)


class ScriptedModel:
    """Answers click k with the k-th of given masks [N, HEIGHT, WIDTH]; among three, the last has the highest score."""

    device = torch.device("cpu")

    def __init__(self, answers: list[np.ndarray]):
        self.answers = answers
        self.calls: list[dict] = []

    def get_image_embeddings(self, pixel_values: Tensor) -> list[Tensor]:
        assert pixel_values.shape == (1, 3, IMAGE, IMAGE)
        return [pixel_values]

    def __call__(self, **arguments) -> SimpleNamespace:
        self.calls.append(arguments)
        answer = torch.zeros(1, len(self.answers[0]), 1, IMAGE, IMAGE)
        answer[0, :, 0, : HEIGHT // 2] = torch.from_numpy(self.answers[len(self.calls) - 1])[:, ::2, ::2].float()
        logits = 200 * answer - 100
        if not arguments["multimask_output"]:
            return SimpleNamespace(pred_masks=logits, iou_scores=torch.full(logits.shape[:3], 0.1))
        scores = torch.tensor([0.2, 0.3, 0.9]).expand(1, len(self.answers[0]), 3)
        return SimpleNamespace(pred_masks=torch.cat([-logits, -logits, logits], dim=2), iou_scores=scores)


def test_a_perfect_model(processor):
    model = ScriptedModel([np.stack(SQUARES)] * 3)
    (trace,) = simulate_clicks(model, processor, [make_record(*SQUARES)], num_clicks=3)
    assert isinstance(trace, ClickTrace) and trace.image_id == "a"
    assert trace.image.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(trace.target, np.stack(SQUARES))
    assert trace.predictions.shape == (3, 2, HEIGHT, WIDTH) and trace.predictions.dtype == bool
    assert trace.points.shape == (2, 3, 2) and trace.labels.shape == (2, 3)
    assert np.array_equal(trace.iou, np.ones((2, 3), dtype=np.float32))
    assert trace.labels.tolist() == [[FOREGROUND, BACKGROUND, BACKGROUND]] * 2  # nothing to correct


def test_first_click_is_the_centre_of_the_object(processor):
    model = ScriptedModel([np.stack(SQUARES)])
    (trace,) = simulate_clicks(model, processor, [make_record(*SQUARES)], num_clicks=1)
    for index, (top, left, bottom, right) in enumerate(((10, 10, 40, 50), (44, 60, 70, 120))):
        x, y = trace.points[index, 0]
        depth = min(x - left + 1, right - x, y - top + 1, bottom - y)
        assert depth == min(bottom - top, right - left) // 2


def test_the_model_gets_clicks_in_its_own_pixels(processor):
    model = ScriptedModel([np.stack(SQUARES)] * 3)
    (trace,) = simulate_clicks(model, processor, [make_record(*SQUARES)], num_clicks=3)
    for turn, call in enumerate(model.calls):
        expected = torch.from_numpy(trace.points[:, : turn + 1]) / 2
        assert torch.equal(call["input_points"][0], expected)
        assert torch.equal(call["input_labels"][0], torch.from_numpy(trace.labels[:, : turn + 1]))
        assert call["multimask_output"] is (turn == 0)
    inside = model.calls[0]["input_points"][0, 0, 0]
    assert 5 <= inside[0] < 25 and 5 <= inside[1] < 20


def test_the_model_gets_its_own_mask_back(processor):
    model = ScriptedModel([np.stack(SQUARES)] * 2)
    list(simulate_clicks(model, processor, [make_record(*SQUARES)], num_clicks=2))
    assert model.calls[0]["input_masks"] is None
    feedback = model.calls[1]["input_masks"]
    assert feedback.shape == (1, 2, IMAGE, IMAGE)
    # The candidate of the highest score, clamped.
    assert torch.equal(feedback[0, 0, : HEIGHT // 2] > 0, torch.from_numpy(SQUARES[0][::2, ::2]))
    assert feedback.unique().tolist() == [-FEEDBACK_LIMIT, FEEDBACK_LIMIT]


def test_iou_and_clicks_of_known_answers(processor):
    target = rectangle(20, 20, 60, 100)
    answers = [
        rectangle(20, 20, 60, 60),  # the left half
        rectangle(0, 0, HEIGHT, WIDTH),  # everything
        rectangle(0, 0, 0, 0),  # nothing
        target,
    ]
    model = ScriptedModel([answer[None] for answer in answers])
    (trace,) = simulate_clicks(model, processor, [make_record(target)], num_clicks=4)
    assert trace.iou[0].tolist() == pytest.approx([0.5, 40 * 80 / (HEIGHT * WIDTH), 0.0, 1.0])
    assert np.array_equal(trace.predictions[:, 0], np.stack(answers))
    assert trace.labels[0].tolist() == [FOREGROUND, FOREGROUND, BACKGROUND, FOREGROUND]
    x, y = trace.points[0, 1]
    assert 60 <= x < 100 and 20 <= y < 60  # in the half that was missed
    x, y = trace.points[0, 2].astype(int)
    assert not target[y, x]  # in what was too much
    assert trace.points[0, 3].tolist() == trace.points[0, 0].tolist()


def test_images_without_objects_and_crowds_are_passed_over(processor):
    crowded = make_record(*SQUARES, image_id="crowd")
    crowded["objects"][0]["iscrowd"] = 1
    model = ScriptedModel([SQUARES[1][None]])
    (trace,) = simulate_clicks(model, processor, [make_record(image_id="empty"), crowded], num_clicks=1)
    assert trace.image_id == "crowd" and np.array_equal(trace.target, SQUARES[1][None])


def test_pixels_of_a_crowd_are_neither_counted_nor_clicked(processor):
    target, crowd = rectangle(20, 20, 60, 60), rectangle(20, 40, 60, 100)
    crowded = make_record(target, crowd)
    crowded["objects"][1]["iscrowd"] = 1
    # All of both: what is too much lies in the crowd. The left half: what is missed is the object's own.
    model = ScriptedModel([(target | crowd)[None], rectangle(20, 20, 60, 40)[None], target[None]])
    (trace,) = simulate_clicks(model, processor, [crowded], num_clicks=3)
    assert trace.iou[0].tolist() == pytest.approx([1.0, 0.5, 1.0])
    x, y = trace.points[0, 1].astype(int)
    assert trace.labels[0].tolist() == [FOREGROUND, BACKGROUND, FOREGROUND] and not crowd[y, x]
    assert 40 <= trace.points[0, 2, 0] < 60


def test_max_objects_are_drawn_by_seed_and_image_whatever_comes_before(processor):
    columns = [rectangle(10, 4 + 12 * index, 40, 12 + 12 * index) for index in range(10)]

    def chosen(seed: int = 0, image_id: str = "a", num_before: int = 0) -> list[int]:
        records = [make_record(*columns, image_id=str(k)) for k in range(num_before)]
        records.append(make_record(*columns, image_id=image_id))
        model = ScriptedModel([np.stack(columns[:3])] * len(records))
        given = {"num_clicks": 1, "max_objects": 3, "seed": seed}
        *_, trace = simulate_clicks(model, processor, records, **given)
        return [next(i for i, column in enumerate(columns) if np.array_equal(column, m)) for m in trace.target]

    assert chosen() == chosen(num_before=2) == sorted(chosen()) and len(set(chosen())) == 3
    assert len({tuple(chosen(seed)) for seed in range(6)}) > 3
    assert len({tuple(chosen(image_id=name)) for name in "abcdef"}) > 3


def test_nothing_is_the_right_answer_to_an_object_without_pixels(processor):
    nothing = rectangle(0, 0, 0, 0)
    model = ScriptedModel([nothing[None], SQUARES[0][None]])
    (trace,) = simulate_clicks(model, processor, [make_record(nothing)], num_clicks=2)
    assert trace.iou.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    "options", [{}, {"decoder": {"use_object_score": True, "dynamic_multimask_via_stability": True}}]
)
def test_a_real_model_is_deterministic_and_its_iou_is_right(processor, options):
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE}))
    model = tiny_model(**options)
    run: Callable[[], list[ClickTrace]] = lambda: list(  # noqa: E731
        simulate_clicks(model, processor, [make_record(*SQUARES), make_record(SQUARES[0])], num_clicks=3)
    )
    torch.manual_seed(0)
    one = run()
    torch.manual_seed(1)
    other = run()
    for trace, again in zip(one, other, strict=True):
        assert np.array_equal(trace.predictions, again.predictions) and np.array_equal(trace.points, again.points)
        overlap = (trace.predictions & trace.target).sum(axis=(2, 3))
        union = (trace.predictions | trace.target).sum(axis=(2, 3))
        np.testing.assert_allclose(trace.iou, (overlap / union).T, rtol=1e-6)
    # An object is answered as if it were alone in its image.
    assert np.array_equal(one[0].points[0], one[1].points[0])
    np.testing.assert_allclose(one[0].iou[0], one[1].iou[0], atol=1e-3)


def make_trace(iou: Any, *, image_id: str = "a", draw: int = 0, **given: Any) -> ClickTrace:
    """Of given IoU [objects, clicks]; its masks are empty, and what else is not given tells nothing."""
    iou = np.array(iou, dtype=np.float32)
    objects, clicks = iou.shape
    masks = [item["segmentation"] for item in objects_from_masks(np.zeros((objects, 4, 4), dtype=bool))]
    known: dict[str, Any] = {
        "image": np.zeros((4, 4, 3), dtype=np.uint8),
        "objects": masks,
        "ignored": None,
        "answers": [masks] * clicks,
        "points": np.zeros((objects, clicks, 2), dtype=np.float32),
        "labels": np.ones((objects, clicks), dtype=np.int64),
        "boxes": None,
        "predicted_iou": iou,
        "oracle_iou": iou[:, 0],
        "object_scores": np.zeros(objects, dtype=np.float32),
        "encode_seconds": 0.0,
        "decode_seconds": [0.0] * clicks,
    }
    return ClickTrace(image_id=image_id, draw=draw, iou=iou, **{**known, **given})


def test_means_are_over_objects():
    summary = summarise_clicks([make_trace([[0.0, 0.5]]), make_trace([[0.5, 0.75], [1.0, 1.0]])])
    assert summary.iou_per_click == pytest.approx([0.5, 0.75]) and summary.score == pytest.approx(0.625)
    assert summary.metrics()["num_images"] == 2 and summary.metrics()["num_objects"] == 3


def test_no_object_at_all_is_an_error(processor):
    with pytest.raises(ValueError, match="no object to click on"):
        summarise_clicks(simulate_clicks(ScriptedModel([]), processor, [make_record()]))


class ScriptedPredictor:
    """Answers with one prediction after the other, and remembers what it was asked; stands for a model of any kind."""

    stretch_contrast = False

    def __init__(self, predictions: Sequence[Prediction]):
        self.predictions, self.asked = predictions, list[Prompts]()
        self.images = list[np.ndarray]()

    def set_image(self, image: np.ndarray) -> None:
        self.images.append(image)

    def predict(self, prompts: Prompts) -> Prediction:
        self.asked.append(prompts)
        return self.predictions[(len(self.asked) - 1) % len(self.predictions)]


def answer(*candidates: np.ndarray, scores: Sequence[float], **given: Any) -> Prediction:
    """To one object."""
    masks = torch.from_numpy(np.stack(candidates))[None]
    return Prediction(masks=masks, scores=torch.tensor([scores]), **given)


LEFT, WHOLE, NOTHING = rectangle(20, 20, 60, 60), rectangle(20, 20, 60, 100), rectangle(0, 0, 0, 0)


def test_scores_of_a_predictor_are_those_of_its_answers_and_states_go_back_to_it():
    first = answer(LEFT, WHOLE, NOTHING, scores=[0.9, 0.2, 0.1], state="after one", object_scores=torch.tensor([-3.0]))
    second = answer(WHOLE, scores=[0.75], state="after two", object_scores=torch.tensor([8.0]))
    third = answer(NOTHING, scores=[0.5], state="after three")
    predictor = ScriptedPredictor([first, second, third])
    (trace,) = trace_image(predictor, make_record(WHOLE), PROTOCOLS["sam"].shortened(3))
    assert trace.iou.tolist() == [[0.5, 1.0, 0.0]]
    assert trace.oracle_iou.tolist() == [1.0], "the second candidate is the best"
    np.testing.assert_array_equal(trace.predicted_iou, np.float32([[0.9, 0.75, 0.5]]))
    assert trace.object_scores.tolist() == [-3.0], "of the first prompt"
    assert trace.ignored is None and trace.boxes is None and trace.index is None
    assert [prompts.state for prompts in predictor.asked] == [None, "after one", "after two"]
    assert [prompts.points.shape for prompts in predictor.asked] == [(1, count, 2) for count in (1, 2, 3)]
    assert np.array_equal(predictor.asked[2].points, trace.points) and predictor.asked[0].boxes is None
    assert len(predictor.images) == 1 and np.array_equal(predictor.images[0], trace.image)
    assert len(trace.decode_seconds) == 3 and min(trace.encode_seconds, *trace.decode_seconds) >= 0


def test_a_predictor_without_scores_leaves_them_open():
    predictor = ScriptedPredictor([answer(LEFT, scores=[float("nan")])])
    (trace,) = trace_image(predictor, make_record(WHOLE), PROTOCOLS["sam"].shortened(2))
    assert np.isnan(trace.predicted_iou).all() and trace.predicted_iou.shape == (1, 2)
    assert np.isnan(trace.object_scores).all() and trace.oracle_iou.tolist() == [0.5]
    numbers = evaluation_numbers(summarise_clicks([trace]), PROTOCOLS["sam"].shortened(2))
    assert numbers["calibration"] is None and numbers["object_score"] is None


def test_the_best_candidate_is_at_least_as_good_as_the_answer(processor):
    (trace,) = simulate_clicks(tiny_model(), processor, [make_record(*SQUARES)], num_clicks=1)
    assert (trace.oracle_iou >= trace.iou[:, 0]).all() and trace.oracle_iou.shape == (2,)


def test_a_box_is_the_first_prompt_and_clicks_come_after():
    predictor = ScriptedPredictor([answer(LEFT, scores=[0.5], state=1), answer(WHOLE, scores=[0.5], state=2)])
    (trace,) = trace_image(predictor, make_record(WHOLE), PROTOCOLS["box"].shortened(3))
    assert trace.iou.tolist() == [[0.5, 1.0, 0.5]]
    assert trace.boxes.tolist() == [[20, 20, 99, 59]]
    assert trace.points.shape == (1, 2, 2) and trace.labels.tolist() == [[FOREGROUND, BACKGROUND]]
    assert 60 <= trace.points[0, 0, 0] < 100
    shapes = [(prompts.points.shape[1], prompts.boxes.tolist()) for prompts in predictor.asked]
    assert shapes == [(count, [[20.0, 20.0, 99.0, 59.0]]) for count in range(3)]


@pytest.mark.parametrize("name", ["people", "noisy_box"])
def test_several_users_encode_an_image_once_and_begin_anew(name):
    predictor = ScriptedPredictor([answer(LEFT, scores=[0.5], state=1), answer(WHOLE, scores=[0.5], state=2)])
    traces = trace_image(predictor, make_record(WHOLE), PROTOCOLS[name].shortened(2, 3))
    assert [trace.draw for trace in traces] == [0, 1, 2] and len(predictor.images) == 1
    assert [prompts.state for prompts in predictor.asked] == [None, 1] * 3
    firsts = [trace.points[0, 0] if name == "people" else trace.boxes[0] for trace in traces]
    assert len({tuple(first.tolist()) for first in firsts}) == 3
    assert all(trace.iou.tolist() == [[0.5, 1.0]] for trace in traces)
    summary = summarise_clicks(traces)
    assert summary.num_images == 1 and len(summary.iou) == 3
    assert len({trace.encode_seconds for trace in traces}) == 1


def test_crowds_are_kept_as_ignored_and_seeds_move_people():
    crowded = make_record(LEFT, rectangle(20, 40, 60, 100))
    crowded["objects"][1]["iscrowd"] = 1
    predictor = ScriptedPredictor([answer(WHOLE, scores=[0.5])])
    (trace,) = trace_image(predictor, crowded, PROTOCOLS["people"].shortened(1, 1))
    (other,) = trace_image(predictor, crowded, PROTOCOLS["people"].shortened(1, 1), seed=1)
    assert trace.ignored == crowded["objects"][1]["segmentation"] and trace.iou.tolist() == [[1.0]]
    assert np.array_equal(trace.valid[0], LEFT | ~rectangle(20, 40, 60, 100))
    assert trace.points.tolist() != other.points.tolist()


def test_a_predictor_sees_contrast_as_it_wants_or_as_it_is_told():
    record = make_record(WHOLE)
    record["image"] = record["image"] // 8
    predictor = ScriptedPredictor([answer(WHOLE, scores=[0.5])])
    for wants, told in ((False, None), (True, None), (False, True), (True, False)):
        predictor.stretch_contrast = wants
        trace_image(predictor, record, PROTOCOLS["sam"].shortened(1), stretch_contrast=told)
    assert [image.max() > 200 for image in predictor.images] == [False, True, True, False]


class SomeRecords:
    """Images with an object, but that one is unreadable, one malformed, one shows nothing, and one only a crowd."""

    def __init__(self, num_records: int = 5):
        self.num_records = num_records

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> dict:
        if index == 1:
            raise OSError("image 1 is gone")
        record = make_record(*([] if index == 2 else [WHOLE]), image_id=f"image {index}")
        if index == 3:
            record["objects"][0]["iscrowd"] = 1
        if index == 4:
            record["objects"][0]["segmentation"]["size"] = [3, 3]
        return record


@pytest.mark.usefixtures("on_cpu")
def test_an_evaluation_passes_over_what_cannot_be_used_and_clicks_on_what_shows_nothing():
    predictor = ScriptedPredictor([answer(LEFT, scores=[0.5], object_scores=torch.tensor([-2.0]))])
    faults = FaultLog(1.0)
    protocol = PROTOCOLS["people"].shortened(2, 2)
    summary = evaluate(predictor, SomeRecords(9), faults, accelerator=Accelerator(), protocol=protocol)
    assert summary is not None and [trace.image_id for trace in summary.traces] == [
        f"image {index}" for index in (0, 0, 5, 5, 6, 6, 7, 7, 8, 8)
    ]
    assert [trace.index for trace in summary.traces] == [0, 0, 5, 5, 6, 6, 7, 7, 8, 8]
    assert summary.num_images == 5 and summary.negatives.tolist() == [-2.0]
    assert summary.metrics()["negatives_rejected"] == 1.0
    assert (faults.num_failed, faults.num_tried) == (2, 9) and "image 1 is gone" in faults.messages
    # For each user anew, and for the image that shows nothing.
    assert sum(prompts.state is None for prompts in predictor.asked) == 21
    few = evaluate(predictor, SomeRecords(9), FaultLog(1.0), 3, accelerator=Accelerator(), protocol=protocol)
    assert few is not None and [trace.index for trace in few.traces if trace.draw == 0] == [0, 8]


@pytest.mark.usefixtures("on_cpu")
def test_an_evaluation_of_too_much_that_is_unreadable_or_of_nothing_ends():
    class Gone(SomeRecords):
        def __getitem__(self, index: int) -> dict:
            raise OSError(f"image {index} is gone")

    given: Any = {"accelerator": Accelerator()}
    predictor = ScriptedPredictor([answer(LEFT, scores=[0.5])])
    with pytest.raises(ValueError, match="10 of 10 records could not be used, more than a share of 0.2"):
        evaluate(predictor, Gone(12), FaultLog(0.2), **given)
    with pytest.raises(ValueError, match="no image can be used: image 0 is gone"):
        evaluate(predictor, Gone(3), FaultLog(0.2), **given)


def test_the_interval_of_one_image_is_its_mean():
    mean, low, high = bootstrap([np.array([[0.5, 1.0], [0.25, 0.0]], dtype=np.float32)])
    assert mean.tolist() == [0.375, 0.5]
    np.testing.assert_allclose([low, high], [mean, mean], rtol=1e-12)
    assert mean.dtype == low.dtype == np.float64


def test_the_interval_of_two_images_is_from_one_to_the_other_and_objects_have_equal_weights():
    """Of 1000 draws of two images a quarter are twice the one, a quarter twice the other."""
    images = [np.array([[0.1]]), np.array([[0.5], [0.6], [0.7]])]
    mean, low, high = bootstrap(images)
    assert (mean.item(), low.item(), high.item()) == pytest.approx((1.9 / 4, 0.1, 0.6))
    _, low, high = bootstrap([*[np.zeros((1, 1))] * 50, *[np.ones((9, 1))] * 50])
    assert 0.8 < low < 0.9 < high < 0.95


def test_the_interval_of_many_images_is_that_of_their_standard_error_and_repeats():
    values = np.random.default_rng(0).random((400, 1, 1))
    mean, low, high = bootstrap([*values])
    margin = 1.96 * values.std() / 20
    assert low.item() == pytest.approx(mean.item() - margin, abs=0.003)
    assert high.item() == pytest.approx(mean.item() + margin, abs=0.003)
    assert [part.item() for part in bootstrap([*values])] == [mean.item(), low.item(), high.item()]


def images_of(values: dict[str, Any], **given: Any) -> ClickSummary:
    return ClickSummary([make_trace(iou, image_id=name, **given) for name, iou in values.items()])


FIRST = {name: [[0.2, 0.5], [0.4, 0.5]] for name in "abcdef"}
# The mean of an image is better by .01, .02, ... .06 after one click, and as good after two.
SECOND = {
    name: [[0.2, 0.5], [0.4 + 0.02 * (place + 1), 0.5]] if place else [[0.22, 0.5], [0.4, 0.5]]
    for place, name in enumerate("abcdef")
}


def test_a_known_difference_is_told_with_the_exact_chance_of_it():
    found = compare(images_of(FIRST), images_of(SECOND))
    assert found.difference == pytest.approx([0.035, 0.0], abs=1e-6)
    assert found.p_value == pytest.approx([2 / 2**6, 1.0])
    assert found.wins.tolist() == [6, 0] and found.losses.tolist() == [0, 0]
    assert 0.01 < found.low[0] < 0.035 < found.high[0] < 0.06 and found.low[1] == found.high[1] == 0
    back = compare(images_of(SECOND), images_of(FIRST))
    assert back.difference[0] == -found.difference[0] and back.losses.tolist() == [6, 0]
    assert back.p_value[0] == found.p_value[0]


def test_an_evaluation_is_as_good_as_itself():
    found = compare(images_of(FIRST), images_of(FIRST))
    assert found.p_value.tolist() == [1.0, 1.0] and not np.any([found.wins, found.losses, found.difference])


def test_images_are_paired_by_name_whatever_their_order():
    backwards = images_of(dict(reversed(SECOND.items())))
    found, expected = compare(images_of(FIRST), backwards), compare(images_of(FIRST), images_of(SECOND))
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value)


def test_objects_count_alike_in_a_difference_and_images_in_its_test():
    one, two = {"a": [[0.5]] * 3, "b": [[0.5]]}, {"a": [[0.6]] * 3, "b": [[0.3]]}
    found = compare(images_of(one), images_of(two))
    assert found.difference[0] == pytest.approx((3 * 0.1 - 0.2) / 4, abs=1e-6)
    assert (found.wins[0], found.losses[0]) == (1, 1)


def test_users_are_averaged_before_images_are_paired():
    users = [
        make_trace(iou, image_id=name, draw=draw) for name in "ab" for draw, iou in enumerate([[[0.25]], [[0.75]]])
    ]
    found = compare(images_of({"a": [[0.5]], "b": [[0.25]]}), ClickSummary(users))
    assert found.difference[0] == 0.125 and found.wins[0] == 1 and found.losses[0] == 0


@pytest.mark.parametrize(
    "other",
    [
        images_of({name: FIRST[name] for name in "abcde"}),
        images_of({**{name: FIRST[name] for name in "abcde"}, "x": FIRST["f"]}),
        images_of({**FIRST, "f": [[0.2, 0.5]]}),
        images_of({name: [row[:1] for row in iou] for name, iou in FIRST.items()}),
    ],
    ids=["fewer images", "another image", "fewer objects", "fewer prompts"],
)
def test_evaluations_of_other_objects_are_not_compared(other):
    with pytest.raises(ValueError, match="of other objects or prompts: 12 in 6 images with 2 prompts and 1[012]? in"):
        compare(images_of(FIRST), other)


def test_other_masks_are_other_objects():
    square = [item["segmentation"] for item in objects_from_masks(np.eye(4, dtype=bool)[None])]
    with pytest.raises(ValueError, match="of other objects"):
        compare(images_of({"a": [[0.5]]}), images_of({"a": [[0.5]]}, objects=square))


def test_the_table_of_a_comparison():
    protocol = Protocol("sam", 2, (1, 2))
    lines = comparison_table({"one": images_of(FIRST), "two": images_of(SECOND)}, protocol).splitlines()
    head, rule, first, second = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert head[0] == "two against one, after" and set(rule) == {"---"} and len(head) == 5
    assert first[:2] == ["1", "+0.035"] and first[3:] == ["6 : 0", "0.031"]
    assert second == ["2", "+0.000", "+0.000 to +0.000", "0 : 0", "1"]


def by_hand() -> ClickSummary:
    """Two users, two images, of which the first has a region to ignore; and two images that show nothing."""
    target, half, blob = (np.zeros((20, 20), dtype=bool) for _ in range(3))
    target[2:6, 2:6] = half[2:4, 2:6] = blob[10:14, 10:14] = True

    def encoded(*masks: np.ndarray) -> list[dict]:
        return [item["segmentation"] for item in objects_from_masks(np.stack(masks))]

    def of_first(iou: list, draw: int) -> ClickTrace:
        answers = [encoded(target | blob), encoded(target)]
        about: Any = {"objects": encoded(target), "ignored": encoded(blob)[0], "answers": answers}
        scores = {"oracle_iou": np.float32([0.6]), "object_scores": np.float32([1.0])}
        # Only the first user had to wait for the encoder.
        times = {"encode_seconds": 0.2 if draw == 0 else 9.0, "decode_seconds": [0.01, 0.03]}
        return make_trace(iou, image_id="a", draw=draw, **about, **scores, **times)

    def of_second(iou: list, draw: int) -> ClickTrace:
        about: Any = {"objects": encoded(target, target), "answers": [encoded(half, half), encoded(target, target)]}
        scores = {"oracle_iou": np.float32([0.9, 0.3]), "object_scores": np.float32([2.0, -1.0])}
        times = {"encode_seconds": 0.4 if draw == 0 else 9.0, "decode_seconds": [0.02, 0.06]}
        return make_trace(iou, image_id="b", draw=draw, **about, **scores, **times)

    traces = [
        of_first([[0.5, 0.9]], 0),
        of_first([[0.7, 0.9]], 1),
        of_second([[0.8, 0.7], [0.2, 0.95]], 0),
        of_second([[0.6, 0.9], [0.4, 0.85]], 1),
    ]
    traces = [replace(trace, predicted_iou=trace.iou - np.float32(0.05)) for trace in traces]
    return ClickSummary(traces, np.array([-2.0, 0.5]))


TWO_CLICKS = Protocol("people", 2, (1, 2), clicks="people", num_draws=2)


def test_every_number_of_an_evaluation_by_hand():
    numbers = evaluation_numbers(by_hand(), TWO_CLICKS)
    assert numbers["mean"] == pytest.approx([3.2 / 6, 5.2 / 6])
    assert numbers["low"] == pytest.approx([0.5, 0.85]) and numbers["high"] == pytest.approx([0.6, 0.9])
    assert numbers["spread"] == pytest.approx([0.2 / 3 / 2**0.5, 0.1 / 3 / 2**0.5], abs=1e-6)
    expected = {
        "noc_80": 11 / 6,
        "failure_rate_80": 0,
        "noc_90": 2,
        "failure_rate_90": 2 / 6,
        "noc_failures_plus_one_90": 14 / 6,
        "failure_rate_95": 5 / 6,
        "drop_rate": 1 / 6,
        "mean_drop": 0.1,
    }
    assert {name: numbers["clicks"][name] for name in expected} == pytest.approx(expected)
    # Of the half 8 pixels are border, of the square 12; 6 are in both. What is too much is ignored.
    assert numbers["boundary"] == pytest.approx({"1": (2 * 1 + 4 * 6 / 14) / 6, "2": 1.0})
    assert numbers["oracle"] == pytest.approx((0.6 + 0.9 + 0.3) / 3)
    calibration = numbers["calibration"]
    assert (calibration["mean_absolute_error"], calibration["bias"]) == pytest.approx((0.05, -0.05), abs=1e-6)
    assert calibration["correlation"] == pytest.approx(1.0) and calibration["num_masks"] == 12
    scores = numbers["object_score"]
    assert scores["auroc"] == pytest.approx(5 / 6) and scores["rejected_negatives"] == 0.5
    assert (scores["num_positives"], scores["num_negatives"]) == (6, 2)
    assert numbers["seconds"] == pytest.approx({"encode": 0.3, "decode": 0.025, "decode_object": 0.02})
    assert (numbers["num_images"], numbers["num_objects"], numbers["num_draws"]) == (2, 3, 2)


def test_one_user_has_no_spread():
    summary = ClickSummary([trace for trace in by_hand().traces if trace.draw == 0])
    numbers = evaluation_numbers(summary, Protocol("sam", 2, (1, 2)))
    assert "spread" not in numbers and numbers["mean"] == pytest.approx([0.5, 0.85])
    assert numbers["object_score"]["auroc"] is None and numbers["num_draws"] == 1


def test_tables_of_one_model():
    text = tables({"mine": evaluation_numbers(by_hand(), TWO_CLICKS)}, TWO_CLICKS)
    assert text.splitlines()[:3] == [
        "| model | IoU after 1 clicks | 2 | best candidate, 1 |",
        "| --- | --- | --- | --- |",
        "| mine | 0.533 ± 0.047 | 0.867 ± 0.024 | 0.600 |",
    ]
    assert "± over users." in text and "| model | boundary IoU after 1 clicks | 2 |" in text
    assert "| mine | 0.619 | 1.000 |" in text
    assert "| model | NoC@80 | NoC@85 | NoC@90 | NoC@95 | IoU falls, by |" in text
    assert "| mine | 1.83 (0 %) | 2.00 (17 %) | 2.00 (33 %) | 2.00 (83 %) | 17 %, 0.100 |" in text
    assert "NoC: clicks to that IoU in %, 2 where it is never reached" in text
    assert text.splitlines()[-1] == "| mine | 0.050 | 1.00 | 0.833 | 300.0 | 25.0 | 20.0 |"


def test_tables_of_two_models_of_which_one_rates_nothing():
    box = Protocol("box", 2, (1, 2), first="box")
    known = ClickSummary([trace for trace in by_hand().traces if trace.draw == 0])
    unknown = ClickSummary(
        [
            replace(trace, predicted_iou=trace.iou * np.nan, object_scores=trace.object_scores * np.nan)
            for trace in known.traces
        ]
    )
    results = {"one": evaluation_numbers(known, box), "two": evaluation_numbers(unknown, box)}
    text = tables(results, box)
    assert "IoU after 1 prompts" in text and "clicks" not in text
    assert "| one | 0.500 (0.500 to 0.500) | 0.850 (0.825 to 0.900) | 0.600 |" in text
    assert "with the interval of 95 % over images." in text
    assert text.splitlines()[-2:] == [
        "| one | 0.050 | 1.00 | - | 300.0 | 25.0 | 20.0 |",
        "| two | - | - | - | 300.0 | 25.0 | 20.0 |",
    ]
