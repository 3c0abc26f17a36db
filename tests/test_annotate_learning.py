"""What is learned while somebody annotates: by which weights, from which images, and when it is offered."""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from starlette.testclient import TestClient
from tiny_models import unpack_trained_model
from transformers import AutoModel

from sam_hf.annotate import learning, learning_round
from sam_hf.annotate.folder import AnnotationFolder
from sam_hf.annotate.learning import NUM_IMAGES, NUM_OBJECTS, Learner
from sam_hf.annotate.learning_round import NUM_TELLING, RECIPE, Outcome, Round, ids_of, learn, learned_from, share_out
from sam_hf.annotate.mask_crops import encode_crop
from sam_hf.annotate.server import build_app
from sam_hf.annotate.session import Session
from sam_hf.convert import load_checkpoint
from sam_hf.data import SyntheticScenes
from sam_hf.data.schema import decode_rles
from sam_hf.data.splits import is_in_split
from sam_hf.training import draw_windows, load_model, process

pytestmark = pytest.mark.usefixtures("on_cpu")
NUM_SCENES = 12
SCENES = [SyntheticScenes(NUM_SCENES, size=(64, 64))[index] for index in range(NUM_SCENES)]
HELD_BACK = {"07", "10"}  # by their hashes
SHORT = {**RECIPE, "max_steps": 8, "batch_size": 2, "max_objects": 4, "num_corrections": 1, "learning_rate": 1e-3}


def annotate(folder: AnnotationFolder, index: int) -> None:
    for item in SCENES[index]["objects"]:
        mask = encode_crop(decode_rles([item["segmentation"]])[0])
        folder.save(index, {"name": "object", "steps": [], "score": None, "mask": mask})
        # The order of annotation is that of times.
        os.utime(folder._path(index, ".png"), ns=(index * 10**9, index * 10**9))


@pytest.fixture
def folder(tmp_path: Path) -> AnnotationFolder:
    """Scenes, all of which are annotated but for the last one."""
    (tmp_path / "images").mkdir()
    for index, scene in enumerate(SCENES):
        scene["image"].save(tmp_path / "images" / f"{index:02d}.png")
    folder = AnnotationFolder(tmp_path / "images")
    for index in range(NUM_SCENES - 1):
        annotate(folder, index)
    return folder


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that was good, and has noise in the weights of its mask decoder; and an instance decoder."""
    source = unpack_trained_model(tmp_path_factory.mktemp("good"))
    model, processor = load_model(source, instances=True), load_checkpoint(source).processor
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.mask_decoder.parameters():
            weight += 0.5 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    target = tmp_path_factory.mktemp("spoilt")
    model.save_pretrained(target)
    processor.save_pretrained(target)
    return str(target)


@pytest.fixture
def given(folder: AnnotationFolder, spoilt: str, tmp_path: Path) -> Round:
    return Round(
        data=folder.output,
        images=None,
        model=spoilt,
        image_size=None,
        target=tmp_path / "models" / "001",
        cache=tmp_path / "models" / "embeddings",
        recipe=SHORT,
    )


def weights(model: str | Path) -> dict[str, torch.Tensor]:
    return AutoModel.from_pretrained(model).state_dict()


def content(folder: AnnotationFolder) -> dict[str, str]:
    files = [path for path in folder.masks.rglob("*") if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_round_mends_the_decoder_and_leaves_the_rest(folder, given, tmp_path):
    before = content(folder)
    outcome = learn(given)
    assert outcome.is_better and outcome.gain > 0.02, outcome
    assert content(folder) == before, "a round changes what was annotated"
    start, found = weights(given.model), weights(given.target)
    assert learned_from(given.target) == {f"{index:02d}" for index in range(NUM_SCENES - 1)} - HELD_BACK
    assert any(name.startswith("instance_decoder.") for name in start)
    changed = {name.split(".")[0] for name in start if not torch.equal(start[name], found[name])}
    assert changed == {"mask_decoder", "prompt_encoder"}
    assert len(list(given.cache.glob("*.safetensors"))) == outcome.num_images
    # The same again, from embeddings that are there already.
    again = replace(given, target=tmp_path / "again")
    assert learn(again) == outcome
    assert all(torch.equal(found[name], value) for name, value in weights(again.target).items())
    other = replace(given, target=tmp_path / "other", seed=1)
    assert learn(other) != outcome


def test_a_round_goes_half_of_the_way(given, monkeypatch):
    """What it compares is what it writes."""
    name, compared = "mask_decoder.mask_tokens.weight", []

    def trained(model, *_):
        dict(model.named_parameters())[name].data.add_(2.0)

    monkeypatch.setattr(learning_round, "train", trained)
    monkeypatch.setattr(learning_round, "clicked", lambda model, *_: compared.append(model.state_dict()[name].clone()))
    monkeypatch.setattr(learning_round, "compare", lambda *_: Outcome(3, NUM_TELLING, [0.5], [0.6], 0.1, 0.05))
    learn(given)
    start, found = weights(given.model), weights(given.target)
    torch.testing.assert_close(found[name], start[name] + 1)
    assert torch.equal(compared[1], found[name])
    assert all(torch.equal(start[other], found[other]) for other in start if other != name)


def test_no_round_trains_on_what_is_compared(folder, given, monkeypatch):
    drawn: set[str] = set()

    def recorded(*arguments):
        for window in draw_windows(*arguments):
            drawn.update(name for batch in window for name in batch["image_ids"])
            yield window

    monkeypatch.setattr(learning_round, "draw_windows", recorded)
    told = []
    monkeypatch.setattr(learning_round, "clicked", lambda model, processor, records, _: told.append(records))
    monkeypatch.setattr(learning_round, "compare", lambda *_: Outcome(0, 0, [], [], 0.0, 0.0))
    learn(replace(given, recipe={**SHORT, "max_steps": 20}))
    telling, same = map(ids_of, told)
    assert telling == same == HELD_BACK
    assert drawn == {f"{index:02d}" for index in range(NUM_SCENES - 1)} - telling
    assert not any(is_in_split(name, "validation") for name in drawn)


def test_the_newest_images_tell_where_too_few_are_held_back(folder, given, monkeypatch):
    everything = {f"{index:02d}" for index in range(NUM_SCENES - 1)}

    def told(known=()):
        parts = share_out(given.options, known)
        training, telling = map(ids_of, parts)
        assert training == everything - telling
        return telling, sum(len(parts[1][place]["objects"]) for place in range(len(telling)))

    telling, num_objects = told()
    assert telling == HELD_BACK
    monkeypatch.setattr(learning_round, "NUM_TELLING", num_objects + 1)
    assert told()[0] == HELD_BACK | {"09"}
    assert told({"09", "05"})[0] == HELD_BACK | {"08"}
    # What was annotated last is the newest.
    os.utime(folder.masks / "03.png")
    assert told()[0] == HELD_BACK | {"03"}
    with pytest.raises(ValueError, match="^0 objects in images to compare models on"):
        told(everything)
    # A table of splits is obeyed.
    rows = [f"{name},{'validation' if name < '06' else 'train'}" for name in sorted(everything)]
    (folder.output / "splits.csv").write_text("\n".join(["id,split", *rows]))
    assert told()[0] == {name for name in everything if name < "06"}


def test_what_is_not_better_is_not_written(given):
    assert not learn(replace(given, recipe={**SHORT, "learning_rate": 0.0})).is_better
    worse = learn(replace(given, recipe={**SHORT, "learning_rate": 1.0}))
    assert worse.gain < 0 and not worse.is_better and not given.target.exists()
    sure = Outcome(3, NUM_TELLING, [0.5], [0.6], 0.1, 0.05)
    assert sure.is_better
    assert not replace(sure, gain=0.004).is_better and not replace(sure, num_telling=NUM_TELLING - 1).is_better


def test_time_ends_a_round(given):
    steps = []
    learn(replace(given, seconds=1e-9), steps.append)
    assert steps == ["0%", "comparing"] or steps == ["comparing"]


def until(learner: Learner, is_reached: Callable[[dict], bool]) -> dict:
    for _ in range(600):
        status = learner.status()
        if is_reached(status):
            return status
        time.sleep(0.1)
    raise AssertionError(f"nothing comes of it: {status}")


def ended(status: dict) -> bool:
    return "learning from" not in status["text"]


def test_a_better_model_is_offered_and_taken(folder, given):
    for index in range(NUM_SCENES - 1):
        for item in folder.objects(index):
            folder.remove(index, item["id"], item["revision"])
    learner = Learner(folder, given.model, num_threads=1, recipe=SHORT)
    assert learner.status() == {
        "isOn": True,
        "isBetter": False,
        "text": f"learns after {NUM_OBJECTS} more objects in {NUM_IMAGES} more images",
    }
    with pytest.raises(ValueError, match="no better model"):
        learner.take()
    for index in range(NUM_SCENES - 1):
        assert learner._process is None
        annotate(folder, index)
        learner.note(index)
        if sum(learner._counts.values()) >= NUM_OBJECTS and index + 1 >= NUM_IMAGES:
            break
    before = content(folder)
    assert "learning from" in learner.status()["text"]
    status = until(learner, ended)
    assert status["isBetter"] and "is better: IoU" in status["text"], status
    model, processor, _ = load_checkpoint(given.model)
    session = Session(model, processor, folder.files)
    with TestClient(build_app(session, folder, learner=learner), base_url="http://127.0.0.1") as client:
        assert client.get("/api/learning").json() == status
        answer = client.post("/api/learning", json={})
    assert answer.status_code == 200 and not answer.json()["isBetter"]
    written = weights(folder.output / "models" / "001")
    assert not session.model.training
    assert all(torch.equal(value, written[name]) for name, value in session.model.state_dict().items())
    assert learned_from(folder.output / "models" / "001") <= {f"{number:02d}" for number in range(index + 1)}
    assert content(folder) == before
    # The next round begins with it.
    assert learner.model == str(folder.output / "models" / "001")
    assert f"learns after {NUM_OBJECTS} more objects" in learner.status()["text"]


def test_the_last_two_models_of_a_session_are_kept(folder, given):
    learner = Learner(folder, given.model)
    (learner.models / "001").mkdir(parents=True)  # of another session
    for number, is_better in ((2, True), (3, True), (4, False), (5, True), (6, True)):
        learner._target = learner.models / f"{number:03d}"
        if is_better:
            learner._target.mkdir()
        learner._process = SimpleNamespace(join=lambda: None)
        learner._end(Outcome(3, NUM_TELLING, [0.5], [0.6] if is_better else [0.4], 0.1 if is_better else -0.1, 0.05))
    assert sorted(path.name for path in learner.models.iterdir()) == ["001", "005", "006"]
    assert learner.model == str(learner.models / "006")


def test_what_ends_a_round_is_told_and_annotation_goes_on(folder, given):
    learner = Learner(folder, given.model, num_threads=1, recipe=SHORT)
    learner.note(0)
    round_process = learner._process
    os.kill(round_process.pid, signal.SIGKILL)
    status = until(learner, ended)
    assert f"learning failed: its process ended with {-signal.SIGKILL}" in status["text"], status
    assert not status["isBetter"]
    with pytest.raises(ProcessLookupError):
        os.kill(round_process.pid, 0)
    # There is another attempt, when there is more to learn from.
    annotate(folder, NUM_SCENES - 1)
    learner.note(NUM_SCENES - 1)
    assert learner._process is None
    assert f"in {NUM_IMAGES - 1} more images" in learner.status()["text"]


def test_an_error_in_the_process_comes_back(given, monkeypatch):
    called = {}
    for owner, name in ((os, "nice"), (signal, "signal"), (process, "end_with_parent")):
        monkeypatch.setattr(owner, name, lambda *given, name=name: called.update({name: given}))
    receiver, sender = Pipe()
    learning._work(replace(given, recipe={**RECIPE, "max_steps": 0}), sender, 1)
    assert called == {"nice": (10,), "signal": (signal.SIGINT, signal.SIG_IGN), "end_with_parent": ()}
    error = receiver.recv()
    assert isinstance(error, RuntimeError) and str(error).startswith("ValueError: ") and "max_steps" in str(error)
