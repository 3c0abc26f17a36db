"""The simulated user of evaluation, against models whose answers are known."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import IMAGE, tiny_model
from torch import Tensor

from sam_hf import BACKGROUND, FOREGROUND, SamHfImageProcessor, SamHfProcessor
from sam_hf.data.schema import objects_from_masks
from sam_hf.evaluation import ClickTrace, simulate_clicks, summarise_clicks
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


def test_means_are_over_objects(processor):
    def trace(iou: list[list[float]]) -> ClickTrace:
        clicks, objects = len(iou[0]), len(iou)
        masks = [item["segmentation"] for item in objects_from_masks(np.zeros((objects, 4, 4), dtype=bool))]
        return ClickTrace(
            image_id="a",
            draw=0,
            image=np.zeros((4, 4, 3), dtype=np.uint8),
            objects=masks,
            ignored=None,
            answers=[masks] * clicks,
            points=np.zeros((objects, clicks, 2), dtype=np.float32),
            labels=np.ones((objects, clicks), dtype=np.int64),
            boxes=None,
            iou=np.array(iou, dtype=np.float32),
            predicted_iou=np.array(iou, dtype=np.float32),
            oracle_iou=np.array(iou, dtype=np.float32)[:, 0],
            object_scores=np.zeros(objects, dtype=np.float32),
            encode_seconds=0.0,
            decode_seconds=[0.0] * clicks,
        )

    traces = [trace([[0.0, 0.5]]), trace([[0.5, 0.75], [1.0, 1.0]])]
    summary = summarise_clicks(traces)
    assert summary.iou_per_click == pytest.approx([0.5, 0.75]) and summary.score == pytest.approx(0.625)
    assert summary.metrics()["num_images"] == 2 and summary.metrics()["num_objects"] == 3


def test_no_object_at_all_is_an_error(processor):
    with pytest.raises(ValueError, match="no object to click on"):
        summarise_clicks(simulate_clicks(ScriptedModel([]), processor, [make_record()]))
