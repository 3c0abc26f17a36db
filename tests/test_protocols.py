"""Users of an evaluation: where people click, what their boxes are, and whom the table of protocols promises."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sam_hf import BACKGROUND, FOREGROUND, PADDING
from sam_hf.clicks import boxes_from_masks, sample_center_clicks, sample_people_clicks
from sam_hf.evaluation import PROTOCOLS, Protocol
from sam_hf.evaluation.protocols import SimulatedUser

DOCUMENT = Path(__file__).parents[1] / "docs" / "evaluation.md"
SIDE = 12


def rectangle(top: int, left: int, bottom: int, right: int, height: int = SIDE, width: int = SIDE) -> Tensor:
    """bool [1, 1, height, width]."""
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    mask[..., top:bottom, left:right] = True
    return mask


def random_masks(count: int, seed: int) -> Tensor:
    """bool [1, count, SIDE, SIDE], half of each."""
    return torch.rand(1, count, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) < 0.5


def depth_of(region: np.ndarray) -> np.ndarray:
    """Distance to the nearest pixel outside, those around the image included, by looking at all pairs."""
    padded = np.pad(region, 1)
    outside = np.argwhere(~padded)
    depth = np.zeros(padded.shape)
    for pixel in np.argwhere(padded):
        depth[tuple(pixel)] = np.sqrt(((outside - pixel) ** 2).sum(axis=1).min())
    return depth[1:-1, 1:-1]


def draw(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def people(target: Tensor, prediction: Tensor | None = None, **given: Any) -> tuple[list[float], int]:
    """The click on one object: (x, y) and label."""
    points, labels = sample_people_clicks(target, prediction, **{"draws": draw(0.5), **given})
    return points.flatten().tolist(), labels.item()


def test_people_click_with_a_chance_in_proportion_to_depth():
    region = rectangle(1, 2, 6, 9) | rectangle(4, 0, 8, 4)  # the border of the image is one of the region, too
    chances = depth_of(region[0, 0].numpy())
    count = 6000
    draws = torch.from_numpy(np.random.default_rng(0).random((1, count)))
    points, labels = sample_people_clicks(region.expand(1, count, -1, -1), draws=draws)
    assert points.shape == (1, count, 1, 2) and points.dtype == torch.float32
    assert labels.shape == (1, count, 1) and (labels == FOREGROUND).all()
    x, y = points[0, :, 0].long().T.numpy()
    found = np.bincount(SIDE * y + x, minlength=SIDE**2)
    inside = chances.ravel() > 0
    assert not found[~inside].any() and found[inside].all()
    expected = count * chances.ravel()[inside] / chances.sum()
    assert stats.chisquare(found[inside], expected).pvalue > 0.01
    assert stats.chisquare(found[inside]).pvalue < 1e-6, "a uniform user would pass"


def test_draws_are_the_share_of_the_depth_before_a_click():
    region = rectangle(3, 4, 8, 10)
    before = np.cumsum(depth_of(region[0, 0].numpy()).ravel())
    shares = torch.linspace(0, 1, 101, dtype=torch.float64)[None, :-1]
    points, _ = sample_people_clicks(region.expand(1, 100, -1, -1), draws=shares)
    for (x, y), share in zip(points[0, :, 0].int().tolist(), shares[0].tolist(), strict=True):
        index = SIDE * y + x
        assert before[index - 1] <= share * before[-1] + 1e-9 and share * before[-1] < before[index] + 1e-9


def test_people_click_on_the_same_error_as_the_user_who_clicks_centres():
    target, prediction = random_masks(60, 0), random_masks(60, 1)
    for index in range(12):  # and errors of very different sizes
        target[0, index] = rectangle(2, 2, 9, 9)[0, 0]
        prediction[0, index] = rectangle(2, 2 + index % 4, 9, 9 + index % 3)[0, 0]
    valid = random_masks(60, 2) | (torch.arange(60)[:, None, None] % 2 == 0)
    draws = torch.from_numpy(np.random.default_rng(0).random((1, 60)))
    _, expected = sample_center_clicks(target, prediction, valid=valid)
    points, labels = sample_people_clicks(target, prediction, valid=valid, draws=draws)
    assert torch.equal(labels, expected) and set(labels.unique().tolist()) == {FOREGROUND, BACKGROUND}
    x, y = points[0, :, 0].long().T
    index = torch.arange(60)
    assert torch.equal(target[0, index, y, x], labels[0, :, 0] == FOREGROUND)
    wrong = (target ^ prediction)[0, index, y, x]
    all_right = ~((target ^ prediction) & valid)[0].flatten(1).any(dim=1)
    assert (wrong | all_right).all() and valid[0, index, y, x].all()


def test_a_tie_of_missed_and_false_is_clicked_on_the_background():
    target, prediction = rectangle(1, 1, 6, 4), rectangle(1, 7, 6, 10)
    assert people(target, prediction)[1] == sample_center_clicks(target, prediction)[1].item() == BACKGROUND
    assert people(rectangle(1, 1, 6, 6), prediction)[1] == FOREGROUND


def test_what_is_right_is_clicked_beside_and_without_a_background_there_is_no_click():
    target = rectangle(2, 2, 8, 8)
    for share in (0.0, 0.3, 0.99):
        (x, y), label = people(target, target, draws=draw(share))
        assert label == BACKGROUND and not target[0, 0, int(y), int(x)]
    (x, y), label = people(target & False, draws=draw(0.7))
    assert label == BACKGROUND
    everything = rectangle(0, 0, SIDE, SIDE)
    assert people(everything, everything) == ([0.0, 0.0], PADDING)
    assert people(target, target, valid=target) == ([0.0, 0.0], PADDING)


def test_ignored_pixels_are_outside_of_every_error():
    target, valid = rectangle(0, 0, SIDE, SIDE), rectangle(0, 0, SIDE, 2)
    chances = depth_of(valid[0, 0].numpy())
    shares = np.random.default_rng(0).random((1, 200))
    given = {"valid": valid, "draws": torch.from_numpy(shares)}
    points, labels = sample_people_clicks(target.expand(1, 200, -1, -1), **given)
    assert (labels == FOREGROUND).all() and points[..., 0].max() <= 1
    assert {chances[int(y), int(x)] for x, y in points[0, :, 0].tolist()} == {1.0}  # two columns are that deep


def test_the_same_draws_are_the_same_clicks_alone_or_among_others():
    target, prediction = random_masks(20, 3), random_masks(20, 4)
    draws = torch.from_numpy(np.random.default_rng(1).random((1, 20)))
    points, labels = sample_people_clicks(target, prediction, draws=draws)
    again, _ = sample_people_clicks(target, prediction, draws=draws)
    assert torch.equal(points, again)
    for place in range(20):
        alone = sample_people_clicks(target[:, [place]], prediction[:, [place]], draws=draws[:, [place]])
        assert torch.equal(alone[0], points[:, [place]]) and torch.equal(alone[1], labels[:, [place]])
    halves = [part.unflatten(1, (10, 2))[0] for part in (target, prediction, draws)]  # as ten images
    batched, _ = sample_people_clicks(*halves[:2], draws=halves[2])
    assert torch.equal(batched.flatten(0, 1), points[0])
    assert not torch.equal(sample_people_clicks(target, prediction, draws=1 - draws - 1e-9)[0], points)


def test_the_lowest_and_the_highest_draw_are_the_first_and_the_last_pixel():
    highest = np.nextafter(1.0, 0.0)
    for seed in range(30):
        region = random_masks(1, seed)
        y, x = np.nonzero(region[0, 0].numpy())
        assert people(region, draws=draw(0.0)) == ([x[0], y[0]], FOREGROUND)
        assert people(region, draws=draw(highest)) == ([x[-1], y[-1]], FOREGROUND)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draws": torch.zeros(1, 1)}, r"draws must be float64 \[1, 1\], got torch.float32"),
        ({"draws": torch.zeros(1, 2, dtype=torch.float64)}, r"draws must be float64 \[1, 1\], got .* \[1, 2\]"),
        ({"target": torch.zeros(1, 1, 4, 4)}, "bool"),
        ({"prediction": rectangle(0, 0, 1, 1, 5, 5)}, "prediction"),
    ],
)
def test_masks_and_draws_that_do_not_fit_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        sample_people_clicks(**{"target": rectangle(1, 1, 3, 3), "draws": draw(0.5), **given})


def test_a_protocol_is_shortened():
    assert PROTOCOLS["sam"].shortened() == PROTOCOLS["sam"]
    short = PROTOCOLS["sam"].shortened(5)
    assert (short.num_prompts, short.reported, short.num_draws) == (5, (1, 2, 3, 5), 1)
    assert PROTOCOLS["ritm"].shortened(2).reported == (1, 2), "the last prompt is told"
    assert PROTOCOLS["people"].shortened(num_draws=2).num_draws == 2
    assert PROTOCOLS["noisy_box"].shortened(1, 1) == Protocol("noisy_box", 1, (1,), first="noisy_box")
    late = Protocol("late", 9, (5, 9))
    assert late.shortened(3).reported == (3,), "a table needs a column"


def test_a_protocol_knows_its_reported_numbers_from_a_list_as_from_a_tuple():
    assert Protocol("sam", 9, [1, 2, 3, 5, 9]) == PROTOCOLS["sam"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sam", (0,), "sam with 0 prompts and 1 users, expected 1 or more"),
        ("people", (None, 0), "people with 9 prompts and 0 users"),
        ("people", (-1, None), "people with -1 prompts"),
        ("sam", (None, 2), "sam leaves nothing to chance: 2 users would do the same"),
        ("box", (None, 3), "box leaves nothing to chance"),
        ("ritm", (4, 2), "ritm leaves nothing to chance"),
    ],
)
def test_protocols_that_make_no_sense_are_refused(name: str, given: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        PROTOCOLS[name].shortened(*given)


def test_the_table_of_protocols_in_the_documentation_is_that_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", DOCUMENT.read_text(), re.MULTILINE)
    told = {name: cells for name, *cells in rows if name != "everything"}
    assert [*told] == [*PROTOCOLS] and all(protocol.name == name for name, protocol in PROTOCOLS.items())
    for name, (first, then, prompts, users) in told.items():
        protocol = PROTOCOLS[name]
        assert (protocol.num_prompts, protocol.num_draws) == (int(prompts), int(users)), name
        kind = "noisy_box" if "each side moved" in first else "box" if "tight box" in first else "click"
        assert (protocol.first, protocol.clicks == "people") == (kind, "in proportion" in first), name
        assert protocol.avoid_clicked == ("no pixel twice" in then), name
        assert protocol.reported[0] == 1 and protocol.reported[-1] == protocol.num_prompts


def user_of(protocol: str | Protocol, target: Tensor, **given: Any) -> SimulatedUser:
    protocol = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    key = {"image_id": "a", "draw": 0, "seed": 0, "kept": [*range(len(target))], **given}
    return SimulatedUser(protocol, target, torch.ones_like(target), **key)


def clicks_of(user: SimulatedUser, answer: Tensor | None, count: int) -> list[tuple[int, int]]:
    """Of the first object, when it always gets the same answer."""
    user.act(None)
    for _ in range(count - 1):
        user.act(answer)
    assert user.points.shape == (len(user.target), count, 2) and user.labels.shape == (len(user.target), count)
    return [(int(x), int(y)) for x, y in user.points[0].tolist()]


def test_ritm_clicks_no_pixel_twice():
    target = rectangle(2, 2, 9, 9)[0]
    stubborn = torch.zeros_like(target)
    assert len(set(clicks_of(user_of("sam", target), stubborn, 20))) == 1
    clicks = clicks_of(user_of("ritm", target), stubborn, 20)
    assert len(set(clicks)) == 20 and clicks[0] == (5, 5) and all(2 <= c < 9 for click in clicks for c in click)


def test_users_see_what_was_missed_and_what_was_too_much():
    target = torch.cat([rectangle(2, 2, 8, 8), rectangle(2, 2, 8, 4)], dim=1)[0]
    for name in ("sam", "ritm", "people"):
        user = user_of(name, target)
        user.act(None)
        user.act(torch.cat([rectangle(2, 2, 8, 4), rectangle(2, 2, 8, 10)], dim=1)[0])
        assert user.labels.tolist() == [[FOREGROUND, FOREGROUND], [FOREGROUND, BACKGROUND]]
        assert user.points[0, 1, 0] >= 4 and user.points[1, 1, 0] >= 4


def test_a_box_is_tight_and_clicks_follow():
    target = torch.cat([rectangle(2, 3, 8, 11), rectangle(0, 0, 0, 0)], dim=1)[0]
    user = user_of("box", target)
    user.act(None)
    assert user.boxes is not None and user.boxes.tolist() == [[3, 2, 10, 7], [0, 0, 0, 0]]
    assert user.points.shape == (2, 0, 2) and user.labels.shape == (2, 0)
    user.act(torch.zeros_like(target))
    expected, _ = sample_center_clicks(target[None], torch.zeros_like(target)[None])
    assert torch.equal(user.points, expected[0])
    assert user.boxes.tolist() == [[3, 2, 10, 7], [0, 0, 0, 0]]


@pytest.mark.parametrize(("side", "limit"), [(100, 9.9), (700, 20.0)])
def test_noisy_boxes_are_within_a_tenth_of_a_side_and_twenty_pixels(side: int, limit: float):
    size = side + 100
    target = rectangle(50, 50, 50 + side, 50 + side, size, size)[0]
    tight = boxes_from_masks(target[None])[0]
    boxes = []
    for draw_number in range(20):
        user = user_of("noisy_box", target, draw=draw_number)
        user.act(None)
        boxes.append(user.boxes)
    noise = (torch.stack(boxes) - tight)[:, 0]
    assert noise.abs().max() <= limit + 1e-4 and noise.abs().max() > 0.8 * limit
    assert len(noise.unique(dim=0)) == 20 and (noise > 0).any(dim=0).all() and (noise < 0).any(dim=0).all()


def prompts_of(name: str, target: Tensor, **given: Any) -> list[list[float]]:
    """Box and three clicks of each object, whose answer is always nothing."""
    user = user_of(name, target, **given)
    for answer in (None, *[torch.zeros_like(target)] * 3):
        user.act(answer)
    boxes = torch.zeros(len(target), 0) if user.boxes is None else user.boxes
    return torch.cat([boxes, user.points.flatten(1)], dim=1).tolist()


@pytest.mark.parametrize("name", ["noisy_box", "people"])
def test_an_object_has_the_same_user_among_other_objects(name: str):
    target = torch.cat([rectangle(1, 1, 10, 10), rectangle(0, 2, 11, 9), rectangle(3, 3, 9, 12)], dim=1)[0]
    everything = prompts_of(name, target)
    assert prompts_of(name, target) == everything
    assert prompts_of(name, target[[2]], kept=[2]) == everything[2:]
    assert prompts_of(name, target[[0, 2]], kept=[0, 2]) == [everything[0], everything[2]]
    same = prompts_of(name, target[[0, 0]], kept=[0, 1])
    assert same[0] != same[1], "objects share their chance"


@pytest.mark.parametrize("name", ["noisy_box", "people"])
@pytest.mark.parametrize("other", [{"seed": 1}, {"draw": 1}, {"image_id": "b"}])
def test_seed_user_and_image_decide_what_is_left_to_chance(name: str, other: dict[str, Any]):
    target = rectangle(0, 0, 60, 60, 64, 64)[0]
    one, two = prompts_of(name, target)[0], prompts_of(name, target, **other)[0]
    assert one != two


def test_people_click_anew_each_time():
    clicks = clicks_of(user_of("people", rectangle(0, 0, 60, 60, 64, 64)[0]), torch.zeros(1, 64, 64).bool(), 9)
    assert len(set(clicks)) >= 8
