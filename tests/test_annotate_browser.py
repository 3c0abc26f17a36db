"""A person's way through the page, in Chromium: what is on the disk afterwards is what the model says to it.

Needs playwright and a Chromium, such as Debian's `chromium`; `SAM_HF_CHROMIUM` names another.
"""

import copy
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from annotating import Person
from PIL import Image
from test_annotate_server import model, processor, serving, trained  # noqa: F401

from sam_hf.annotate.folder import AnnotationFolder
from sam_hf.annotate.mask_crops import decode_mask
from sam_hf.annotate.session import Session
from sam_hf.data import SyntheticScenes, open_dataset, rgb_array
from sam_hf.data.mask_files import read_mask_values
from sam_hf.prompted import PromptedImage

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("SAM_HF_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def centers(index: int, count: int) -> list[tuple[int, int]]:
    """In the middle of the largest objects of a scene."""
    found = sorted(SyntheticScenes(3)[index]["objects"], key=lambda item: -item["area"])
    return [(round(x + w / 2), round(y + h / 2)) for x, y, w, h in (item["bbox"] for item in found[:count])]


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for index in range(2):
        Image.fromarray(rgb_array(SyntheticScenes(3)[index]["image"])).save(tmp_path / "images" / f"{index}.png")
    # Turned by EXIF; as it is shown it is the third scene.
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(rgb_array(SyntheticScenes(3)[2]["image"])).rotate(90, expand=True)
    stored.save(tmp_path / "images" / "2.jpg", exif=exif, quality=95)
    return tmp_path


@pytest.fixture
def folder(root):
    return AnnotationFolder(root)


@pytest.fixture
def session(model, processor, folder):  # noqa: F811
    return Session(model, processor, folder.files)


@pytest.fixture
def client(session, folder):
    with serving(session, folder, hint="accelerate launch examples/train.py") as client:
        yield client


@pytest.fixture
def person(chromium, client):
    page = chromium.new_page(viewport={"width": 1100, "height": 700})
    person = Person(page, f"http://127.0.0.1:{client.port}/")
    yield person
    page.close()
    assert not person.problems


def expected(session: Session, index: int, steps: list) -> np.ndarray:
    size = AnnotationFolder(session.files[0].parent).size(index)
    return decode_mask(session.decode(index, steps)["mask"], size)


def near(step: dict, *place: float) -> bool:
    values = step.get("point") or step["box"]
    return len(values) == len(place) and np.allclose(values, place, atol=0.51)


@pytest.mark.parametrize("ratio", [1, 2])
def test_the_walk(chromium, client, session, folder, root, ratio):
    page = chromium.new_page(viewport={"width": 1100, "height": 700}, device_scale_factor=ratio)
    person = Person(page, f"http://127.0.0.1:{client.port}/")
    assert "encoded in" in person.status
    (x1, y1), (x2, y2), (x3, y3) = centers(0, 3)
    person.click(x1, y1)
    assert "predicted IoU" in person.status
    person.press("Enter")
    # Three clicks, one of them beside, zoomed in and moved.
    page.mouse.move(*person.at(x2, y2))
    page.mouse.wheel(0, -400)
    page.keyboard.down("Space")
    page.mouse.down()
    page.mouse.move(*person.at(x2 + 2, y2 + 1), steps=2)
    page.mouse.up()
    page.keyboard.up("Space")
    person.click(x2, y2)
    person.click(x2 + 2, y2 + 2)
    person.click(x2 + 3, y2 - 3, button="right")
    person.press("Enter", "0")
    # A box, then a click.
    person.drag((x3 - 9, y3 - 9), (x3, y3), (x3 + 9, y3 + 8))
    person.click(x3, y3)
    person.press("Enter")
    assert person.rows == ["object"] * 3 and page.inner_text("#count") == "3 objects"
    saved = folder.objects(0)
    assert near(saved[0]["steps"][0], x1, y1) and saved[0]["steps"][0]["label"] == 1
    assert [step["label"] for step in saved[1]["steps"]] == [1, 1, 0] and near(saved[1]["steps"][2], x2 + 3, y2 - 3)
    assert near(saved[2]["steps"][0], x3 - 9, y3 - 9, x3 + 9, y3 + 8) and near(saved[2]["steps"][1], x3, y3)
    labels = np.zeros(folder.size(0), dtype=int)
    for number, item in enumerate(saved, 1):
        mask = expected(session, 0, item["steps"])
        np.testing.assert_array_equal(decode_mask(item["mask"], mask.shape), mask)
        labels[mask] = number
    np.testing.assert_array_equal(read_mask_values(root / "masks" / "0.png"), labels)
    assert not person.problems
    page.close()


def test_a_box_comes_first(person, folder, session):
    (x, y), *_ = centers(0, 1)
    person.drag((x - 12, y - 11), (x + 12, y + 10))
    person.press("Enter")
    (item,) = folder.objects(0)
    assert [*item["steps"][0]] == ["box"]
    mask = expected(session, 0, item["steps"])
    assert mask.any() and (decode_mask(item["mask"], mask.shape) == mask).all()


@pytest.fixture
def asked(monkeypatch) -> list[list[int]]:
    """Labels of the clicks that the model is asked about."""
    asked: list[list[int]] = []
    predict = PromptedImage.predict

    def counted(image, points, labels, *others):
        asked.append(labels[0].tolist())
        return predict(image, points, labels, *others)

    monkeypatch.setattr(PromptedImage, "predict", counted)
    return asked


def test_a_hand_that_rests_has_its_answer_before_it_clicks(person, folder, session, asked):
    (x, y), *_ = centers(0, 1)
    person.click(x, y)
    asked.clear()
    mask = expected(session, 0, [{"point": [x, y], "label": 1}])
    inside = tuple(int(value) for value in np.argwhere(mask)[0][::-1])
    for place, button, label in ((inside, "right", 0), ((1, 1), "left", 1)):
        person.page.mouse.move(*person.at(*place))
        person.page.wait_for_timeout(500)
        assert asked[-1][-1] == label
        count = len(asked)
        person.click(*place, button=button)
        assert len(asked) == count
    person.press("Enter")
    steps = folder.objects(0)[0]["steps"]
    assert [step["label"] for step in steps] == [1, 0, 1]
    again = expected(session, 0, steps)
    assert (decode_mask(folder.objects(0)[0]["mask"], again.shape) == again).all()


def test_no_tile_is_encoded_for_what_is_only_expected(processor, monkeypatch, asked, request):  # noqa: F811
    monkeypatch.setattr(processor.image_processor, "tile_size", 64)
    person = request.getfixturevalue("person")
    person.click(*centers(0, 1)[0])
    asked.clear()
    person.page.mouse.move(*person.at(1, 1))
    person.page.wait_for_timeout(500)
    assert not asked


def test_what_was_done_is_undone_and_done_again(person, folder, session):
    (x1, y1), (x2, y2) = centers(0, 2)
    person.click(x1, y1)
    person.click(2, 2, button="right")
    person.press("z", "Enter")
    one = folder.objects(0)
    assert len(one[0]["steps"]) == 1 and person.rows == ["object"]
    person.press("z")  # it is in hand again
    assert folder.objects(0) == [] and person.rows == []
    person.press("z", "z", "z", "y", "Z")
    assert person.rows == ["object"]
    again = folder.objects(0)
    assert again[0]["mask"] == one[0]["mask"] and again[0]["steps"] == one[0]["steps"]
    person.click(x2, y2)
    person.press("Enter")
    person.click(x2, y2)  # selects it
    person.press("Delete")
    assert len(folder.objects(0)) == 1
    person.press("Control+z")
    assert len(folder.objects(0)) == 2
    person.press("Control+y")
    assert len(folder.objects(0)) == 1
    person.press("Control+Enter", "Control+b")
    assert "on" not in (person.page.get_attribute("[data-tool=brush]", "class") or "")


def test_nothing_is_lost_on_the_way_to_another_image(person, folder, session):
    (x, y), *_ = centers(0, 1)
    person.click(x, y)
    person.press("ArrowRight")
    person.ready()
    assert len(folder.objects(0)) == 1 and person.page.inner_text("#progress-text") == "1 of 3 annotated"
    (x, y), *_ = centers(1, 1)
    person.click(x, y)
    person.page.select_option("#image-list", index=2)
    person.idle()
    person.ready()
    assert len(folder.objects(1)) == 1
    # The third image is turned by EXIF.
    (x, y), *_ = centers(2, 1)
    person.click(x, y)
    person.press("Enter")
    (item,) = folder.objects(2)
    mask = expected(session, 2, item["steps"])
    assert mask[y, x] and (decode_mask(item["mask"], mask.shape) == mask).all()
    person.press("ArrowLeft")
    person.ready()
    assert person.rows == ["object"]
    assert open_dataset(folder.output, None, strict=False).ids == ["0", "1", "2"]


def test_the_next_candidate(person, folder, session):
    (x, y), *_ = centers(0, 1)
    person.click(x, y)
    person.press("Tab", "Enter")
    (item,) = folder.objects(0)
    (step,) = item["steps"]
    answer = session.decode(0, [{"point": step["point"], "label": 1}])
    assert step["candidate"] == (answer["index"] + 1) % len(answer["scores"])
    assert item["mask"] == session.decode(0, [step])["mask"] != answer["mask"]


def test_brush_and_eraser(person, folder):
    person.press("b", "]", "]")
    person.drag((20, 20), (40, 20))
    person.press("e", "[")
    person.drag((30, 10), (30, 30))
    person.press("Enter")
    (item,) = folder.objects(0)
    mask = decode_mask(item["mask"], folder.size(0))
    assert item["steps"] == [] and item["score"] is None
    assert mask[20, 20] and mask[20, 40] and not mask[20, 30] and not mask[40, 20]
    person.press("z", "z")  # the whole stroke
    person.press("Enter")
    (item,) = folder.objects(0)
    assert decode_mask(item["mask"], folder.size(0))[20, 30]


def test_strokes_stay_on_top_of_later_answers(person, folder, session):
    (x, y), *_ = centers(0, 1)
    person.click(x, y)
    person.press("b")
    person.drag((4, 4), (12, 4))
    person.press("v")
    person.click(x + 1, y + 1)
    person.press("Enter")
    (item,) = folder.objects(0)
    mask, answer = decode_mask(item["mask"], folder.size(0)), expected(session, 0, item["steps"])
    assert len(item["steps"]) == 2 and mask[4, 4:13].all()
    assert (mask[14:] == answer[14:]).all()


def test_a_finished_object_is_changed(person, folder, session):
    (x, y), *_ = centers(0, 1)
    person.click(x, y)
    person.press("Enter")
    (before,) = folder.objects(0)
    person.click(x, y)
    assert person.page.locator("#objects li.on").count() == 1
    person.click(2, 2, button="right")
    person.press("Enter")
    (after,) = folder.objects(0)
    assert (after["id"], after["revision"]) == (before["id"], 2) and len(after["steps"]) == 2
    steps = [{"mask": before["mask"], "prompts": before["steps"]}, after["steps"][1]]
    assert after["mask"] == session.decode(0, steps)["mask"]
    # Shift begins another one there.
    person.click(x, y, modifiers=["Shift"])
    person.press("Enter")
    assert len(folder.objects(0)) == 2


def test_names(person, folder):
    (x, y), (x2, y2) = centers(0, 2)
    person.page.fill("#name", "leaf")
    person.page.keyboard.press("Enter")
    person.click(x, y)
    person.press("Enter")
    person.click(x2, y2)
    person.press("n")
    person.page.keyboard.type("stem")  # letters are no keys while one types
    person.page.keyboard.press("Enter")
    person.press("Enter")
    assert [item["name"] for item in folder.objects(0)] == ["leaf", "stem"] and person.rows == ["leaf", "stem"]
    person.click(x, y)
    person.page.fill("#name", "root")
    person.page.keyboard.press("Enter")
    person.idle()
    assert [item["name"] for item in folder.objects(0)] == ["root", "stem"]
    person.press("z")
    assert [item["name"] for item in folder.objects(0)] == ["leaf", "stem"]
    person.page.reload()
    person.ready()
    assert person.page.locator("#names option").count() == 2


def test_proposals_are_accepted_and_rejected(person, folder, monkeypatch):
    ((x, y),) = centers(0, 1)
    person.click(x, y)
    person.press("Enter")
    (first,) = folder.objects(0)
    found = [{"score": 0.9, "mask": first["mask"]}]  # which is there already
    rows, columns = folder.size(0)
    for corner in ((0, 0), (columns - 3, 0), (0, rows - 3)):
        found.append({"score": 0.8, "mask": {"box": [*corner, 3, 3], "runs": [0, 9]}})
    monkeypatch.setattr(Session, "propose", lambda self, index: found)
    person.press("f")
    assert person.status.startswith("3 found") and len(folder.objects(0)) == 1
    person.press("a")
    assert len(folder.objects(0)) == 2
    person.press("Delete")
    assert len(folder.objects(0)) == 2 and person.page.inner_text("#proposals b") == "1 found"
    person.press("A")
    assert len(folder.objects(0)) == 3 and not person.page.is_visible("#proposals")
    person.press("z", "z")
    assert person.page.inner_text("#proposals b") == "2 found" and len(folder.objects(0)) == 2
    masks = [item["mask"] for item in folder.objects(0)]
    assert masks == [first["mask"], found[1]["mask"]]


def test_the_mask_under_the_pointer_is_shown(person, folder):
    (x, y), *_ = centers(0, 1)
    assert person.color("current", x, y)[3] == 0
    person.page.mouse.move(*person.at(x, y))
    deadline = time.monotonic() + 10
    while person.color("current", x, y)[3] == 0 and time.monotonic() < deadline:
        person.page.wait_for_timeout(20)
    assert person.color("current", x, y)[3] > 0
    person.page.mouse.move(5, 300)
    person.page.wait_for_timeout(100)
    assert person.color("current", x, y)[3] == 0 and not (folder.output / "masks").exists()
    person.click(x, y)
    person.press("Enter", "h")
    assert not person.page.is_visible("#finished")
    person.press("h")
    assert person.page.is_visible("#finished") and person.color("finished", x, y)[3] > 0


def test_an_image_without_objects(person, folder):
    person.page.check("#empty input")
    person.idle()
    assert folder.is_annotated(0) and not read_mask_values(folder.masks / "0.png").any()
    person.press("u")
    person.ready()
    assert person.page.evaluate("document.getElementById('image-list').selectedIndex") == 1


def test_two_windows(chromium, client, person, folder):
    (x, y), (x2, y2) = centers(0, 2)
    person.click(x, y)
    person.press("Enter")
    page = chromium.new_page(viewport={"width": 1100, "height": 700})
    other = Person(page, f"http://127.0.0.1:{client.port}/")
    page.select_option("#image-list", index=0)
    other.idle()
    other.ready()
    other.click(x, y)
    other.click(2, 2, button="right")
    person.click(x2, y2)
    person.press("Enter")
    person.click(x, y)
    person.press("Delete")
    assert len(folder.objects(0)) == 1
    other.press("Enter")  # the object is gone: what was in hand is one of its own
    other.ready()
    assert "another window" in other.status and len(folder.objects(0)) == 2 == len(other.rows)
    page.close()
    assert [problem for problem in other.problems if "409" not in problem] == []


def test_a_server_that_is_gone_costs_the_object_in_hand_at_most(chromium, session, folder):
    (x, y), (x2, y2) = centers(0, 2)
    page = chromium.new_page(viewport={"width": 1100, "height": 700})
    with serving(session, folder) as client:
        person = Person(page, f"http://127.0.0.1:{client.port}/")
        person.click(x, y)
        person.press("Enter")
        person.click(x2, y2)
    person.press("Enter")
    assert "does not answer" in person.status and "error" in page.get_attribute("#status", "class")
    assert len(folder.objects(0)) == 1
    page.close(run_before_unload=False)


def test_keys_are_told(person):
    person.press("?")
    text = person.page.inner_text("#keys")
    assert "another mask for the same clicks" in text and "accelerate launch examples/train.py" in text
    person.page.keyboard.press("z")
    person.page.keyboard.press("Escape")
    assert not person.page.is_visible("#keys")


def test_an_image_that_cannot_be_read_is_told_and_the_others_are_there(person, folder):
    folder.files[1].write_bytes(b"no image")
    person.press("ArrowRight")
    assert "1.png" in person.status and "error" in person.page.get_attribute("#status", "class")
    person.press("ArrowRight")
    person.ready()
    assert "encoded in" in person.status
    person.problems = [problem for problem in person.problems if "400" not in problem]


def test_two_hundred_objects_do_not_go_along_with_a_click(person, folder):
    """Nor are they drawn again; the times that it takes are printed."""
    rows, columns = folder.size(0)
    content = folder._read(0)
    content["objects"] = [
        {
            **{"id": k, "revision": 1, "name": "dot", "steps": [], "score": None},
            "mask": {"box": [k % columns, 4 * (k // columns), 1, 1], "runs": [0, 1]},
        }
        for k in range(200)
    ]
    content["next_id"] = 200
    (x, y), *_ = centers(0, 1)

    def fastest() -> float:
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            person.click(x, y)
            times.append(time.perf_counter() - begin)
            person.press("z")
        return min(times)

    alone = fastest()
    folder._write(0, content)
    person.page.reload()
    person.ready()
    person.page.select_option("#image-list", index=0)
    person.idle()
    person.ready()
    assert len(person.rows) == 200
    asked: list[str] = []
    person.page.on("request", lambda request: asked.append(request.post_data or ""))
    other = next(k for k in range(200) if k % columns not in range(x - 30, x + 30))
    person.page.evaluate("() => document.getElementById('finished').getContext('2d').clearRect(0, 0, 999, 999)")
    with_others = fastest()
    assert asked and max(map(len, asked)) < 200
    assert person.color("finished", other % columns, 4 * (other // columns))[3] == 0  # as it was wiped out above
    print(f"click {1000 * alone:.0f} ms, with 200 objects {1000 * with_others:.0f} ms")
    person.press("Escape")
    assert json.loads((folder.masks / "0.json").read_text())["next_id"] == 200


class Taught:
    """A learner that has something to offer."""

    def __init__(self, better):
        self.better, self.noted = better, []

    def note(self, index):
        self.noted.append(index)

    def status(self):
        return {"isOn": True, "text": "learns after 3 more objects", "isBetter": self.better is not None}

    def take(self):
        better, self.better = self.better, None
        return better


def test_a_better_model_is_offered_and_taken(chromium, session, folder, model, processor):  # noqa: F811
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.mask_decoder.mask_tokens.weight.neg_()
    learner = Taught((other, processor))
    (x, y), *_ = centers(0, 1)
    page = chromium.new_page(viewport={"width": 1100, "height": 700})
    with serving(session, folder, learner=learner) as client:
        person = Person(page, f"http://127.0.0.1:{client.port}/")
        page.wait_for_selector("#learning button")
        assert "3 more objects" in page.inner_text("#learning")
        person.click(x, y)
        page.click("#learning button")
        person.idle()
        person.ready()
        # What was in hand is saved, and others answer now.
        (item,) = folder.objects(0)
        assert session.model is other and not page.is_visible("#learning button") and learner.noted == [0]
        assert session.decode(0, item["steps"])["mask"] != item["mask"]
        person.click(x, y)
        person.press("Delete")
        assert learner.noted == [0, 0]
        page.close()
    assert person.problems == []
