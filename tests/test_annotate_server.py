"""The server answers as an evaluation would, keeps what it is given, and refuses what is not for it."""

import copy
import http.client
import json
import socket
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from sam_hf import SamHfModel, SamHfProcessor
from sam_hf.annotate.command import listen, main
from sam_hf.annotate.folder import AnnotationFolder
from sam_hf.annotate.mask_crops import decode_mask, encode_crop
from sam_hf.annotate.server import MAX_BODY, build_app
from sam_hf.annotate.session import Session
from sam_hf.data import SyntheticScenes, open_dataset, rgb_array
from sam_hf.evaluation.predictors import Prompts, SamHfPredictor
from sam_hf.pixels import read_image
from sam_hf.prompted import PromptedImage, open_image

TRAINED = Path(__file__).with_name("trained_on_scenes.zip")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    zipfile.ZipFile(TRAINED).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def model(trained):
    return SamHfModel.from_pretrained(trained).eval()


@pytest.fixture(scope="module")
def processor(trained):
    return SamHfProcessor.from_pretrained(trained)


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.fromarray(rgb_array(SyntheticScenes(3)[index]["image"])).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


class Client:
    """Asks as the page does; headers can be changed, and None leaves one out."""

    def __init__(self, port: int):
        self.port = port

    def __call__(self, path: str, content=None, method: str | None = None, **headers):
        method = method or ("GET" if content is None else "POST")
        body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name: value for name, value in sent.items() if value is not None})
        response = connection.getresponse()
        data = response.read()
        self.headers = response.headers
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(data) if is_json else data


@contextmanager
def serving(session: Session, folder: AnnotationFolder, **options):
    listener = listen(0)
    server = uvicorn.Server(uvicorn.Config(build_app(session, folder, **options), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def folder(root):
    return AnnotationFolder(root)


@pytest.fixture
def session(model, processor, folder):
    return Session(model, processor, folder.files)


@pytest.fixture
def client(session, folder):
    with serving(session, folder, hint="train by this") as client:
        yield client


def predicted(predictor: SamHfPredictor, points: list, labels: list, box: list | None, state) -> tuple:
    prompts = Prompts(
        torch.tensor(points, dtype=torch.float32).reshape(1, -1, 2),
        torch.tensor(labels, dtype=torch.long).reshape(1, -1),
        None if box is None else torch.tensor([box], dtype=torch.float32),
        state,
    )
    prediction = predictor.predict(prompts)
    return prediction, prediction.state


def test_answers_are_those_of_an_evaluation(client, folder, model, processor):
    """Clicks, then a box and one more click, each with the answer before."""
    predictor = SamHfPredictor(model, processor)
    image = read_image(str(folder.files[1]))
    predictor.set_image(image.permute(1, 2, 0).numpy())
    size = tuple(image.shape[1:])
    steps = [
        {"point": [40.0, 30.5], "label": 1},
        {"point": [3.0, 3.0], "label": 0},
        {"box": [20.0, 10.0, 60.0, 50.0]},
        {"point": [44.0, 31.0], "label": 1},
    ]
    state, masks = None, []
    for count in range(1, len(steps) + 1):
        points = [step["point"] for step in steps[:count] if "point" in step]
        labels = [step["label"] for step in steps[:count] if "point" in step]
        box = next((step["box"] for step in steps[:count] if "box" in step), None)
        prediction, state = predicted(predictor, points, labels, box, state)
        status, answer = client("/api/images/1/decode", {"steps": steps[:count]})
        assert status == 200
        np.testing.assert_allclose(answer["scores"], prediction.scores[0], atol=1e-5)
        expected = prediction.answers[0].numpy()
        np.testing.assert_array_equal(decode_mask(answer["mask"], size), expected)
        masks.append(expected)
    assert all(mask.any() for mask in masks) and not (masks[0] == masks[2]).all()


def test_what_was_answered_is_kept_and_found_again(client, session, monkeypatch):
    steps = [{"point": [40, 30], "label": 1}, {"point": [3, 3], "label": 0}]
    calls = []
    predict = PromptedImage.predict
    monkeypatch.setattr(PromptedImage, "predict", lambda *given: calls.append(1) or predict(*given))
    _, first = client("/api/images/0/decode", {"steps": steps})
    assert len(calls) == 2
    _, other = client("/api/images/0/decode", {"steps": [*steps[:1], {**steps[1], "candidate": 2}]})
    assert len(calls) == 2 and other["index"] == 2 % len(other["scores"]) and other["scores"] == first["scores"]
    # The candidate of a step before is what is fed back.
    _, chosen = client("/api/images/0/decode", {"steps": [{**steps[0], "candidate": 3}, steps[1]]})
    assert len(calls) == 3 and chosen["scores"] != first["scores"]
    # A server that has forgotten, as after a start, says the same.
    session.use(session.model, session.processor)
    assert client("/api/images/0/decode", {"steps": steps})[1] == first and len(calls) == 5


def test_an_object_that_is_there_is_corrected(client, folder, model, processor):
    """Its mask is a mask prompt, as the processor makes it, and its prompts are given again."""
    image = read_image(str(folder.files[2]))
    mask = np.zeros(image.shape[1:], dtype=bool)
    mask[10:40, 20:70] = True
    old = {"point": [30.0, 20.0], "label": 1}
    steps = [{"mask": encode_crop(mask), "prompts": [old]}, {"point": [60.0, 30.0], "label": 0}]
    _, answer = client("/api/images/2/decode", {"steps": steps})
    inputs = processor(
        images=image.permute(1, 2, 0).numpy(),
        input_points=[[[30.0, 20.0], [60.0, 30.0]]],
        input_labels=[[1, 0]],
        input_masks=torch.from_numpy(mask)[None],
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(
            pixel_values=inputs["pixel_values"],
            **{name: inputs[name] for name in ("input_points", "input_labels", "input_masks")},
        )
    best = output.iou_scores[0, 0].argmax()
    np.testing.assert_allclose(answer["scores"], output.iou_scores[0, 0], atol=1e-5)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    expected = processor.post_process_masks(output.pred_masks[:, :, best, None], *sizes)[0][0, 0].numpy()
    assert (decode_mask(answer["mask"], mask.shape) == expected).mean() > 0.999 and expected.any()


def test_proposals_are_masks_of_the_image(client, session, folder, processor):
    chosen = SamHfProcessor(copy.deepcopy(processor.image_processor))
    chosen.image_processor.pred_iou_thresh = chosen.image_processor.stability_score_thresh = 0.5
    session.use(session.model, chosen)
    status, found = client("/api/images/0/propose", {})
    size = folder.size(0)
    assert status == 200 and len(found) > 1
    assert [item["score"] for item in found] == sorted((item["score"] for item in found), reverse=True)
    assert all(decode_mask(item["mask"], size).any() for item in found)


def test_the_folder_and_its_images(client, folder):
    _, about = client("/api/folder")
    names = [{"name": f"{index}.png", "isAnnotated": False} for index in range(3)]
    assert about == {"title": folder.output.name, "images": names, "classes": [], "hint": "train by this"}
    _, image = client("/api/images/0")
    assert (
        image["objects"] == [] and image["isEmpty"] is False and [image["height"], image["width"]] == [*folder.size(0)]
    )
    _, picture = client("/api/images/0/picture")
    assert client.headers["Content-Type"] == "image/png"
    (folder.output / "shown.png").write_bytes(picture)
    assert torch.equal(read_image(str(folder.output / "shown.png")), read_image(str(folder.files[0])))


def test_what_is_saved_trains_and_comes_back(client, folder):
    mask = np.zeros(folder.size(0), dtype=bool)
    mask[5:20, 5:30] = True
    item = {"name": "cell", "steps": [], "score": 0.5, "mask": encode_crop(mask)}
    assert client("/api/images/0/objects", item) == (200, {"id": 1, "revision": 1})
    assert client("/api/images/0/objects", {**item, "id": 1, "revision": 1, "name": "b"})[1] == {
        "id": 1,
        "revision": 2,
    }
    status, answer = client("/api/images/0/objects", {**item, "id": 1, "revision": 1})
    assert status == 409 and "another window" in answer["error"]
    _, image = client("/api/images/0")
    assert image["objects"] == [{**item, "id": 1, "revision": 2, "name": "b"}]
    assert open_dataset(folder.output, None, strict=False).ids == ["0"]
    assert client("/api/images/1/empty", {"isEmpty": True})[0] == 200 and client("/api/images/1")[1]["isEmpty"]
    _, about = client("/api/folder")
    assert [image["isAnnotated"] for image in about["images"]] == [True, True, False] and about["classes"] == ["b"]
    _, coco = client("/api/coco")
    assert [image["file_name"] for image in coco["images"]] == ["0.png", "1.png"] and len(coco["annotations"]) == 1
    assert client("/api/images/0/objects", {"id": 1, "revision": 1}, "DELETE")[0] == 409
    assert client("/api/images/0/objects", {"id": 1, "revision": 2}, "DELETE")[0] == 200
    assert not folder.is_annotated(0)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (None, "list of 1 to"),
        ([], "list of 1 to"),
        ([{"point": [1, 1]}], "label None"),
        ([{"point": [1, 999], "label": 1}], "expected pixels"),
        ([{"point": [1, float("nan")], "label": 1}], "expected pixels"),
        ([{"box": [1, 1, 2]}], "expected pixels"),
        ([{"point": [1, 1], "label": 1, "candidate": "x"}], "candidate 'x'"),
        ([{"point": [1, 1], "label": 1}, {"mask": {"box": [0, 0, 1, 1], "runs": [0, 1]}}], "as the first one a mask"),
        ([{"mask": {"box": [0, 0, 1, 1], "runs": [5]}}], "runs of 5 pixels"),
        ([{"mask": {"box": [0, 0, 1, 1], "runs": [0, 1]}, "prompts": [{}]}], "expected a point"),
        ([{"mask": {"box": [0, 0, 1, 1], "runs": [0, 1]}}], "a mask alone"),
    ],
)
def test_steps_that_are_none_are_refused(client, steps, message):
    status, answer = client("/api/images/0/decode", {"steps": steps})
    assert status == 400 and message in answer["error"]


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/api/folder", {"Host": "evil.example"}, 400),
        ("/api/folder", {"Host": "127.0.0.1.evil.example"}, 400),
        ("/api/images/0/picture", {"Host": "evil.example:7860"}, 400),
        ("/api/folder", {"Origin": "http://evil.example"}, 403),
        ("/api/folder", {"Origin": "null"}, 403),
        ("/api/folder", {"Origin": "http://127.0.0.1:1"}, 403),  # another program of this machine
        ("/api/folder", {"Sec_Fetch_Site": "cross-site"}, 403),
        ("/api/folder", {"Sec_Fetch_Site": "same-origin"}, 200),
        ("/api/images/99", {}, 404),
        ("/api/images/-1", {}, 404),
        ("/api/images/..%2f..%2fetc%2fpasswd", {}, 404),
        ("/../folder.py", {}, 404),
        ("/%2e%2e/folder.py", {}, 404),
        ("/", {}, 200),
        ("/masks.js", {}, 200),
    ],
)
def test_only_the_page_is_answered(client, path, given, status):
    assert client(path, **given)[0] == status


@pytest.mark.parametrize(
    ("content", "given", "status"),
    [
        ({"isEmpty": True}, {"Origin": "http://evil.example"}, 403),
        ({"isEmpty": True}, {"Content_Type": "text/plain"}, 415),
        ({"isEmpty": True}, {"Content_Type": None}, 415),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"x", {"Content_Length": str(MAX_BODY + 1)}, 413),
    ],
)
def test_what_would_write_is_looked_at(client, folder, content, given, status):
    assert client("/api/images/0/empty", content, **given)[0] == status
    assert not folder.is_annotated(0)


def test_a_body_without_a_length_is_refused(client, folder):
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/api/images/0/empty", iter([b'{"isEmpty": true}']), headers, encode_chunked=True)
    assert connection.getresponse().status == 411 and not folder.is_annotated(0)


def test_own_origin_is_answered_and_nothing_else_may_look_in(client):
    own = f"http://127.0.0.1:{client.port}"
    assert client("/api/folder", Origin=own)[0] == 200
    assert client("/", Host=f"localhost:{client.port}")[0] == 200
    assert "default-src 'self'" in client.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in client.headers["Content-Security-Policy"]
    assert client.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_it_listens_on_this_machine_alone():
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        listener.listen()
        assert listener.proto == socket.IPPROTO_TCP
        with pytest.raises(ValueError, match="--port, or 0"):
            listen(listener.getsockname()[1])


def test_images_that_cannot_be_read_are_told(client, folder):
    folder.files[1].write_bytes(b"no image")
    for path, content in (("", None), ("/picture", None), ("/encode", {}), ("/decode", {"steps": []})):
        status, answer = client(f"/api/images/1{path}", content)
        assert status == 400 and "1.png" in answer["error"], path
    assert client("/api/images/0/encode", {})[0] == 200
    # As soon as it is mended it is read again.
    Image.new("RGB", (60, 50)).save(folder.files[1])
    assert client("/api/images/1/encode", {})[0] == 200


@pytest.mark.parametrize("kind", ["I;16", "tiff", "exif", "palette"])
def test_whatever_the_file_the_page_gets_what_the_model_sees(root, model, processor, kind):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 60_000, (40, 70), dtype=np.uint16)
    file = root / "images" / ("z.tif" if kind == "tiff" else "z.png")
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        file = root / "images" / "z.jpg"
        Image.fromarray((values >> 8).astype(np.uint8)).save(file, exif=exif)
    elif kind == "palette":
        Image.fromarray((values >> 8).astype(np.uint8)).convert("P").save(file)
    else:
        Image.fromarray(values).save(file)
    folder = AnnotationFolder(root)
    session = Session(model, processor, folder.files)
    index = folder.names.index(file.name)
    (root / "shown.png").write_bytes(session.picture(index))
    shown = read_image(str(root / "shown.png"))
    assert torch.equal(shown, read_image(str(file)))
    assert folder.size(index) == tuple(shown.shape[1:]) == ((70, 40) if kind == "exif" else (40, 70))


def test_requests_at_once_are_answered_alike(client):
    steps = [{"point": [40, 30], "label": 1}, {"point": [3, 3], "label": 0}]
    answers, threads = [], []
    for index in (0, 1, 2, 0, 1, 2, 0, 0):

        def ask(index=index):
            answers.append((index, Client(client.port)(f"/api/images/{index}/decode", {"steps": steps})))

        threads.append(threading.Thread(target=ask))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert all(status == 200 for _, (status, _) in answers) and len(answers) == 8
    for index in range(3):
        assert len({json.dumps(answer) for other, (_, answer) in answers if other == index}) == 1


@pytest.mark.parametrize("side", [None, 32])
def test_the_page_is_told_of_tiles(client, session, monkeypatch, side):
    monkeypatch.setattr(session.processor.image_processor, "tile_size", side)
    assert client("/api/images/0/encode", {}) == (200, {"isTiled": side is not None})


def test_few_images_are_kept(client, session, monkeypatch):
    encoded = []
    monkeypatch.setattr("sam_hf.annotate.session.open_image", lambda *given: encoded.append(1) or open_image(*given))
    monkeypatch.setattr("sam_hf.annotate.session.NUM_IMAGES", 2)
    client("/api/images/0/encode", {})
    deadline = time.monotonic() + 20
    while len(encoded) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(encoded) == 2  # the next one, too
    client("/api/images/1/encode", {})
    time.sleep(0.1)
    assert len(session._images) == 2
    client("/api/images/0/encode", {})
    assert len(encoded) >= 4


def test_a_thousand_images_are_opened(root, model, processor):
    """In how many seconds is printed."""
    content = (root / "images" / "0.png").read_bytes()
    for index in range(1000):
        (root / "images" / f"more_{index}.png").write_bytes(content)
    begin = time.process_time()
    folder = AnnotationFolder(root)
    with serving(Session(model, processor, folder.files), folder) as client:
        _, about = client("/api/folder")
    assert len(about["images"]) == 1003
    print(f"{time.process_time() - begin:.2f} s")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing/at/all", "--images", "{}"], "there is nothing at nothing/at/all"),
        (["--model", "{}", "--images", "nowhere"], "nowhere holds no image"),
        (["--model", "x"], "give either --images"),
        (["--model", "x", "--images", "a", "--static", "b"], "give either --images"),
        (["--model", "x", "--images", "a", "--runtime", "b"], "--runtime is of no use with --images"),
        (["--model", "x", "--static", "a", "--no-browser"], "--no-browser is of no use with --static"),
    ],
)
def test_the_command_says_what_is_wrong(root, arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main([argument.format(root / "images") for argument in arguments])
    assert message in str(error.value) + capsys.readouterr().err
