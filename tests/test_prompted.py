"""Prompts in images larger than the model input: which tile answers, what it sees, and what comes back."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_predict import predict  # noqa: F401  a fixture
from tiny_models import unpack_trained_model
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from sam_hf import SamHfProcessor  # the import also registers the classes
from sam_hf.clicks import FEEDBACK_LIMIT
from sam_hf.data import decode_masks
from sam_hf.data.scenes import SyntheticScenes
from sam_hf.data.schema import Record, objects_from_masks, rgb_array
from sam_hf.evaluation import Prompts, SamHfPredictor, simulate_clicks
from sam_hf.image_processing_sam_hf import MASK_PROMPT_LOGIT
from sam_hf.masks import best_masks
from sam_hf.prompted import PromptedImage

SIDE, TILE = 128, 80  # of the image, and of its 2 x 2 tiles; the model input has 64 pixels
WHOLE = 4
PADDING = -10
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return unpack_trained_model(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def model(model_folder) -> Any:
    return AutoModel.from_pretrained(model_folder).eval()


def processor_of(folder: Path, tile_size: int | None) -> SamHfProcessor:
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor.tile_size = tile_size
    return processor


def mosaic(side: int) -> Record:
    """A record of side x side scenes of 64 pixels each."""
    scenes = SyntheticScenes(side**2, size=(64, 64))
    picture, masks = np.zeros((64 * side, 64 * side, 3), np.uint8), []
    for index, (row, column) in enumerate(product(range(side), repeat=2)):
        place = slice(64 * row, 64 * row + 64), slice(64 * column, 64 * column + 64)
        picture[place] = rgb_array(scenes[index]["image"])
        for mask in decode_masks(scenes[index]["objects"]):
            masks.append(np.zeros(picture.shape[:2], bool))
            masks[-1][place] = mask
    objects = objects_from_masks(np.stack(masks))
    return {"image_id": f"mosaic of {side}", "image": Image.fromarray(picture), "objects": objects}


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return rgb_array(mosaic(2)["image"])


@pytest.fixture
def tiled(model, model_folder, scene) -> PromptedImage:
    return PromptedImage(model, processor_of(model_folder, TILE), scene)


def clicks(*objects: list[tuple[float, float, int]]) -> tuple[Tensor, Tensor]:
    """Points and labels of objects, each a list of (x, y, label), with padding."""
    most = max(map(len, objects))
    rows = torch.tensor([[*given, *[(0, 0, PADDING)] * (most - len(given))] for given in objects], dtype=torch.float32)
    return rows[..., :2], rows[..., 2].long()


def prompts(seed: int, num_objects: int, num_points: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Points, labels of which the first is 1, and boxes around the first point."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(num_objects, num_points, 2, generator=generator) * torch.tensor(size[::-1])
    labels = torch.randint(0, 2, (num_objects, num_points), generator=generator)
    labels[:, 0] = 1
    reach = 2 + 20 * torch.rand(num_objects, 1, generator=generator)
    return points, labels, torch.cat([points[:, 0] - reach, points[:, 0] + reach], dim=1)


@torch.no_grad()
def plain_answer(model: Any, processor: Any, image: np.ndarray, given: Prompts) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, scores and state by the model alone, of a whole image, as they are without tiles."""
    inputs = processor(images=image, return_tensors="pt")
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    scale = (sizes[1][0] / sizes[0][0]).flip(0)
    has_points = bool(given.points.shape[1])
    output = model(
        pixel_values=inputs["pixel_values"],
        input_points=given.points[None] * scale if has_points else None,
        input_labels=given.labels[None] if has_points else None,
        input_boxes=None if given.boxes is None else given.boxes[None] * scale.repeat(2),
        input_masks=given.state,
        multimask_output=given.state is None and given.boxes is None,
    )
    logits = output.pred_masks.clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT)
    masks = torch.cat([processor.post_process_masks(part, *sizes)[0] for part in logits.split(1, dim=1)])
    return masks, output.iou_scores[0], best_masks(logits, output.iou_scores)


@pytest.mark.parametrize("tile_size", [None, 90, 1000])
def test_an_image_of_one_tile_is_answered_bit_for_bit_as_without_tiles(model, model_folder, scene, tile_size):
    image = scene[:70, :90]
    processor = processor_of(model_folder, tile_size)
    predictor = SamHfPredictor(model, processor)
    predictor.set_image(image)
    points, labels, boxes = prompts(0, 5, 3, (70, 90))
    labels[1, 2] = PADDING
    none = torch.zeros(5, 0, 2), torch.zeros(5, 0, dtype=torch.long)
    for given in ((points[:, :1], labels[:, :1], None), (points[:, :1], labels[:, :1], boxes), (*none, boxes)):
        state, plain_state = None, None
        for prompted in (given, (points, labels, given[2])):
            found = predictor.predict(Prompts(*prompted, state))
            masks, scores, plain_state = plain_answer(model, processor, image, Prompts(*prompted, plain_state))
            state = found.state
            assert torch.equal(found.masks, masks) and masks.any()
            assert torch.equal(found.scores, scores) and torch.equal(state[0], plain_state)


def test_objects_get_the_mask_of_their_tile_given_as_an_image(model, model_folder, scene, tiled):
    points, labels, boxes = prompts(1, 12, 1, (SIDE, SIDE))
    corners = torch.tensor([[48 * (n % 2), 48 * (n // 2 % 2)] for n in range(12)])
    points = (corners[:, None] + 10 + points % 60).round()
    boxes = torch.cat([points[:, 0] - 6, points[:, 0] + 9], dim=1)
    plain = processor_of(model_folder, None)
    for given in ((points, labels, None), (points, labels, boxes)):
        answers = tiled.predict(*given, multimask_output=given[2] is None)
        assert set(answers.views.tolist()) == {0, 1, 2, 3}
        masks = tiled.to_pixels(answers.logits, answers.views)
        for n, view in enumerate(answers.views.tolist()):
            x, y = 48 * (view % 2), 48 * (view // 2)
            within = Prompts(points[n : n + 1] - torch.tensor([x, y]), labels[n : n + 1])
            if given[2] is not None:
                within = Prompts(within.points, within.labels, boxes[n : n + 1] - torch.tensor([x, y, x, y]))
            part = np.ascontiguousarray(scene[y : y + TILE, x : x + TILE])
            expected, scores, _ = plain_answer(model, plain, part, within)
            outside = masks[n].clone()
            outside[:, y : y + TILE, x : x + TILE] = False
            assert torch.equal(masks[n, :, y : y + TILE, x : x + TILE], expected[0])
            assert not outside.any()
            assert (answers.iou_scores[0, n] - scores[0]).abs().max() < TOLERANCE
        assert masks.flatten(1).any(1).sum() > 9  # the model also sees nothing


def test_objects_of_several_tiles_are_answered_together_as_alone(tiled):
    points, labels, _ = prompts(2, 9, 2, (SIDE, SIDE))
    labels[:, 1] = 0
    together = tiled.predict(points, labels, multimask_output=False)
    assert len(set(together.views.tolist())) > 2 and together.views.tolist() != sorted(together.views.tolist())
    state = together.logits[:, :, 0], together.views
    later = tiled.predict(points, labels, None, state, multimask_output=False)
    for n in range(9):
        one = slice(n, n + 1)
        alone = tiled.predict(points[one], labels[one], multimask_output=False)
        assert torch.equal(alone.views, together.views[one])
        assert (alone.logits - together.logits[:, one]).abs().max() < TOLERANCE
        assert (alone.object_scores - together.object_scores[:, one]).abs().max() < TOLERANCE
        alone = tiled.predict(points[one], labels[one], None, (state[0][:, one], state[1][one]), False)
        assert (alone.logits - later.logits[:, one]).abs().max() < TOLERANCE
    assert (later.logits - together.logits).abs().max() > 100 * TOLERANCE


def test_tiles_are_encoded_once_and_only_where_prompted(model, model_folder, scene, monkeypatch):
    encode, calls = model.get_image_embeddings, []
    monkeypatch.setattr(model, "get_image_embeddings", lambda pixels: calls.append(pixels) or encode(pixels))
    large = np.tile(scene, (8, 8, 1))
    prompted = PromptedImage(model, processor_of(model_folder, TILE), large)
    assert len(prompted.levels[0]) > 200 and not calls
    for _ in range(2):
        prompted.predict(*clicks([(10, 10, 1)], [(20, 15, 1)], [(1000, 1000, 1)]))
    assert len(calls) == 2 and len(prompted.encoded) == 2
    PromptedImage(model, processor_of(model_folder, None), large)
    assert len(calls) == 3  # an image that is one view is encoded when it is given


@pytest.mark.parametrize(
    ("prompted", "view"),
    [
        ([(10, 10, 1)], 0),
        ([(66, 30, 1)], 1),
        ([(52, 55, 1)], 0),
        ([(52, 55, 1), (60, 90, 1)], 2),  # a click makes it move
        ([(10, 10, 1), (120, 10, 1)], WHOLE),
        ([(10, 10, 1), (120, 10, 0)], 0),  # there is no mask to correct
        ([(10, 10, 0), (120, 10, 0)], WHOLE),
        ([(10, 10, 0), (40, 70, 0)], 0),
        ([(10, 10, 1), (79.4, 10, 1)], WHOLE),
    ],
)
def test_the_tile_that_holds_all_foreground_clicks_answers(tiled, prompted, view):
    assert tiled.predict(*clicks(prompted)).views.tolist() == [view]
    # The same beside other objects, which have other numbers of clicks.
    together = clicks([(100, 100, 1), (90, 100, 1), (95, 90, 0)], prompted)
    assert tiled.predict(*together).views.tolist() == [3, view]


def test_boxes_choose_the_tile(tiled):
    none = torch.zeros(5, 0, 2), torch.zeros(5, 0, dtype=torch.long)
    boxes = torch.tensor(
        [[50, 50, 127, 127], [47, 50, 127, 127], [-3, -3, 60, 79], [0, 0, 79.5, 79], [5, 90, 30, 131]]
    )
    answers = tiled.predict(*none, boxes)
    assert answers.views.tolist() == [3, WHOLE, 0, WHOLE, 2]
    # A click and a box of one object; objects without a box.
    points, labels = clicks([(20, 20, 1)], [(20, 20, 1)], [(0, 0, PADDING)])
    boxes = torch.tensor([[10.0, 10, 30, 110], [torch.nan] * 4, [90, 90, 110, 110]])
    assert tiled.predict(points, labels, boxes).views.tolist() == [WHOLE, 0, 3]


def test_the_whole_image_answers_what_no_tile_holds(model, model_folder, scene, tiled):
    points, labels = clicks([(10, 10, 1), (120, 100, 1), (60, 60, 0)])
    answers = tiled.predict(points, labels, multimask_output=False)
    whole = PromptedImage(model, processor_of(model_folder, None), scene)
    expected = whole.predict(points, labels, multimask_output=False)
    assert torch.equal(answers.logits, expected.logits)
    assert torch.equal(
        tiled.to_pixels(answers.logits, answers.views), whole.to_pixels(expected.logits, expected.views)
    )


def test_the_smallest_tiles_that_hold_it_answer_an_object(model, model_folder, scene):
    prompted = PromptedImage(model, processor_of(model_folder, TILE), np.tile(scene, (5, 7, 1)))
    sides = [{(x2 - x1, y2 - y1) for x1, y1, x2, y2 in level} for level in prompted.levels]
    assert sides == [{(80, 80)}, {(160, 160)}, {(320, 320)}, {(640, 640)}, {(896, 640)}]
    boxes = torch.tensor([[400.0, 300, 420, 310], [500, 5, 595, 30], [100, 150, 400, 300], [5, 5, 800, 600]])
    none = torch.zeros(4, 0, 2), torch.zeros(4, 0, dtype=torch.long)
    answers = prompted.predict(*none, boxes)
    found = [prompted.views[view] for view in answers.views.tolist()]
    assert [x2 - x1 for x1, _, x2, _ in found] == [80, 320, 640, 896]
    for (x1, y1, x2, y2), view in zip(boxes.tolist(), found, strict=True):
        held = [v for v in prompted.views if v[0] <= x1 and v[1] <= y1 and x2 < v[2] and y2 < v[3]]
        assert view in held and view[2] - view[0] == min(v[2] - v[0] for v in held)


def test_background_clicks_outside_of_the_tile_are_left_out(tiled):
    far = tiled.predict(*clicks([(20, 30, 1), (120, 30, 0), (40, 40, 0)]), multimask_output=False)
    without = tiled.predict(*clicks([(20, 30, 1), (40, 40, 0)]), multimask_output=False)
    near = tiled.predict(*clicks([(20, 30, 1), (79, 30, 0), (40, 40, 0)]), multimask_output=False)
    assert far.views.tolist() == [0] and (far.logits - without.logits).abs().max() < TOLERANCE
    assert (near.logits - without.logits).abs().max() > 10 * TOLERANCE


def test_candidates_are_offered_by_all_objects_and_not_by_those_of_a_tile(tiled):
    """As without tiles: candidates for single clicks, one for all if any object has more."""
    assert tiled.predict(*clicks([(10, 10, 1)], [(120, 120, 1)])).logits.shape[2] == 4
    assert tiled.predict(*clicks([(10, 10, 1)], [(120, 120, 1), (100, 120, 0)])).logits.shape[2] == 1
    box = torch.tensor([[torch.nan] * 4, [90.0, 90, 110, 110]])
    assert tiled.predict(*clicks([(10, 10, 1)], [(120, 120, 1)]), box).logits.shape[2] == 1


def test_an_answer_moves_with_its_object(tiled, monkeypatch):
    """A plane is the same plane in the other view, -10 beyond the old one."""
    length = 32
    for old, new in product(range(5), repeat=2):
        grids = []
        for view in (old, new):
            x1, y1, x2, y2 = tiled.views[view]
            cells = (torch.arange(length) + 0.5) / length
            grids.append((y1 + cells[:, None] * (y2 - y1), x1 + cells[None] * (x2 - x1)))
        (y, x), (new_y, new_x) = grids
        moved = tiled.resample(0.02 * x - 0.03 * y, old, new)
        x1, y1, x2, y2 = tiled.views[old]
        known = (new_x >= x1) & (new_x < x2) & (new_y >= y1) & (new_y < y2)
        assert (moved[~known] == -MASK_PROMPT_LOGIT).all()
        # Within half a cell of the old border the nearest cell counts.
        half = (x2 - x1) / length / 2
        inner = (new_x > x1 + half) & (new_x < x2 - half) & (new_y > y1 + half) & (new_y < y2 - half)
        expected = 0.02 * new_x - 0.03 * new_y
        assert inner.any() and (moved - expected)[inner].abs().max() < TOLERANCE
        assert (moved - expected)[known].abs().max() < 0.05 * half + TOLERANCE


def test_an_answer_moves_between_views_of_padded_inputs(model, model_folder, scene):
    """Strips, whose tiles fill a part of the model input: only what is in the image is taken."""
    strip = PromptedImage(model, processor_of(model_folder, TILE), scene[:50])
    assert strip.views == [(0, 0, 80, 50), (48, 0, 128, 50), (0, 0, 128, 50)]
    logits = torch.arange(32.0).expand(32, 32)  # cells are 2.5 pixels of the image wide in tiles
    moved = strip.resample(logits, 0, 1)
    columns = torch.arange(32) + 48 / 2.5
    assert (moved[:, columns >= 32] == -MASK_PROMPT_LOGIT).all()
    torch.testing.assert_close(moved[:20, :12], columns[:12].expand(20, 12))
    assert (moved[20:] == -MASK_PROMPT_LOGIT).all()  # 50 pixels are 20 cells
    moved = strip.resample(logits, 1, 2)  # cells of 4 pixels
    torch.testing.assert_close(moved[:12, 13:31], ((torch.arange(13, 31) * 4 + 2 - 48) / 2.5 - 0.5).expand(12, 18))
    assert (moved[:, :12] == -MASK_PROMPT_LOGIT).all() and (moved[13:] == -MASK_PROMPT_LOGIT).all()


def test_the_model_gets_the_answer_back_where_the_object_is_now(tiled, monkeypatch):
    points, labels = clicks([(52, 55, 1)], [(100, 100, 1)])
    first = tiled.predict(points, labels, multimask_output=False)
    state = first.logits[:, :, 0], first.views
    kept, given, forward = state[0].clone(), [], tiled.model.forward
    monkeypatch.setattr(tiled.model, "forward", lambda **inputs: given.append(inputs) or forward(**inputs))
    points, labels = clicks([(52, 55, 1), (60, 90, 1)], [(100, 100, 1), (100, 90, 1)])
    second = tiled.predict(points, labels, None, state)
    assert first.views.tolist() == [0, 3] and second.views.tolist() == [2, 3]
    moved, stayed = (inputs["input_masks"][0, 0] for inputs in given)
    assert torch.equal(stayed, state[0][0, 1])
    assert torch.equal(moved, tiled.resample(state[0][0, 0], 0, 2))
    assert torch.equal(state[0], kept)


def test_a_processor_of_older_code_has_no_tiles(model, model_folder, scene):
    processor = processor_of(model_folder, TILE)

    class Older:
        def __init__(self, own: Any):
            self.own = own

        def __getattr__(self, name: str) -> Any:
            if name == "tile_size":
                raise AttributeError(name)
            return getattr(self.own, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.own(*args, **kwargs)

    processor.image_processor = Older(processor.image_processor)
    assert len(PromptedImage(model, processor, scene).views) == 1


def test_the_script_answers_as_the_evaluation(predict, model, model_folder, scene, tmp_path, capsys):  # noqa: F811
    folder = tmp_path / "model"
    processor = processor_of(model_folder, TILE)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    Image.fromarray(scene).save(tmp_path / "scene.png")
    given = "--point 20,30 --point 60,10,0 --object --box 55,60,110,100 --object --point 100,25 --object --point 9,90"
    paths = ["--model", str(folder), "--image", str(tmp_path / "scene.png"), "--output", str(tmp_path)]
    predict.main([*paths, *given.split()])
    points, labels = clicks([(20, 30, 1), (60, 10, 0)], [(0, 0, PADDING)], [(100, 25, 1)], [(9, 90, 1)])
    boxes = torch.full((4, 4), torch.nan)
    boxes[1] = torch.tensor([55.0, 60, 110, 100])
    predictor = SamHfPredictor(model, processor)
    predictor.set_image(scene)
    answer = predictor.predict(Prompts(points, labels, boxes))
    assert answer.state[1].tolist() == [0, 3, 1, 2]
    expected = np.zeros((SIDE, SIDE), np.uint8)
    for n, mask in enumerate(answer.answers.numpy(), start=1):
        expected[mask] = n
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected) and len(np.unique(expected)) == 5
    scores = [
        f"object {n}: predicted IoU {score:.3f}" for n, score in enumerate(answer.scores[:, 0].tolist(), start=1)
    ]
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == scores


def test_an_evaluation_sees_small_objects_in_tiles(model, model_folder):
    """Scenes as the model was trained on, nine of them in an image: whole, they are a third as large."""
    iou = {}
    for tile_size in (None, 64, 80):
        traces = simulate_clicks(model, processor_of(model_folder, tile_size), [mosaic(3)], num_clicks=3)
        iou[tile_size] = next(traces).iou.mean(0)
    assert (iou[80] > iou[None] + 0.1).all()
