"""The prediction example, run as a user runs it, on a tiny random model."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model

from sam_hf import MaskGenerator, SamHfConfig, SamHfModel, SamHfProcessor
from sam_hf.data import check_record, decode_masks, open_dataset
from sam_hf.image_processing_sam_hf import SamHfImageProcessor
from sam_hf.masks import decode_rle

SCRIPT = Path(__file__).parents[1] / "examples" / "predict.py"
PROMPTS = "--point 20,30 --point 60.5,10,0 --object --box 5,6,70,40 --object --point 40,25"


@pytest.fixture(scope="module")
def predict():
    spec = importlib.util.spec_from_file_location("predict_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = SamHfConfig(
        vision_config={
            "image_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_dim": 64,
            "output_channels": 32,
            "global_attn_indexes": [1],
            "window_size": 2,
        },
        prompt_encoder_config={"hidden_size": 32},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    )
    folder = tmp_path_factory.mktemp("model")
    SamHfModel(config).save_pretrained(folder)
    SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """A file of 50 x 80 pixels that its EXIF data turns into an image 80 wide and 50 high."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (80, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def expected_masks(model_path: Path, photo: Path, **prompts) -> tuple[np.ndarray, list[float]]:
    """The best mask and its score for each object, object by object: bool [N, H, W]."""
    model, processor = (
        SamHfModel.from_pretrained(model_path).eval(),
        SamHfProcessor.from_pretrained(model_path),
    )
    inputs = processor(images=str(photo), **prompts)
    with torch.no_grad():
        output = model(**inputs)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    masks = processor.post_process_masks(output.pred_masks, *sizes)[0]
    best = [int(np.argmax(scores)) for scores in output.iou_scores[0].tolist()]
    chosen = [masks[n, m].numpy() for n, m in enumerate(best)]
    return np.stack(chosen), [float(output.iou_scores[0, n, m]) for n, m in enumerate(best)]


def test_masks_of_several_objects_in_image_pixels(predict, saved_model, photo, tmp_path, capsys):
    predict.main(["--model", str(saved_model), "--image", str(photo), "--output", str(tmp_path), *PROMPTS.split()])
    masks, scores = expected_masks(
        saved_model,
        photo,
        input_points=[[[20, 30], [60.5, 10]], None, [[40, 25]]],
        input_labels=[[1, 0], None, [1]],
        input_boxes=[None, [5, 6, 70, 40], None],
    )
    label_map = np.asarray(Image.open(tmp_path / "mask.png"))
    expected = np.zeros((50, 80), dtype=np.uint8)
    for index, mask in enumerate(masks, start=1):
        expected[mask] = index
    assert label_map.shape == (50, 80) and (label_map == expected).all()
    assert len(np.unique(label_map)) > 1, "the random model predicts nothing: this test shows nothing"
    overlay = Image.open(tmp_path / "overlay.png")
    assert (overlay.mode, overlay.size) == ("RGB", (80, 50))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"object {n}: predicted IoU {score:.3f}, {mask.sum()} pixels"
        for n, (mask, score) in enumerate(zip(masks, scores, strict=True), start=1)
    ]


def test_the_best_of_three_candidates_is_kept(predict, saved_model, photo, tmp_path, capsys):
    chosen = set()
    model = SamHfModel.from_pretrained(saved_model).eval()
    processor = SamHfProcessor.from_pretrained(saved_model)
    for point in ([20, 30], [70, 10], [3, 45], [40, 25]):
        text = ",".join(map(str, point))
        predict.main(["--model", str(saved_model), "--image", str(photo), "--output", str(tmp_path), "--point", text])
        inputs = processor(images=str(photo), input_points=point, input_labels=1)
        with torch.no_grad():
            scores = model(**inputs).iou_scores
        assert scores.shape == (1, 1, 3)
        chosen.add(int(scores.argmax()))
        masks, _ = expected_masks(saved_model, photo, input_points=point, input_labels=1)
        assert (np.asarray(Image.open(tmp_path / "mask.png")) == masks[0]).all()
        assert f"predicted IoU {scores.max():.3f}" in capsys.readouterr().out
    assert chosen != {0}, "the first candidate is always the best: this test shows nothing"


@pytest.mark.parametrize("threshold", ["0", "9"])
def test_everything(predict, saved_model, photo, tmp_path, capsys, threshold):
    options = ["--everything", "--points-per-side", "3", "--stability-score-thresh", "0"]
    arguments = ["--model", str(saved_model), "--image", str(photo), "--output", str(tmp_path), *options]
    predict.main([*arguments, "--pred-iou-thresh", threshold])
    records = json.loads((tmp_path / "masks.json").read_text())
    assert f"{len(records)} masks" in capsys.readouterr().out
    assert bool(records) == (threshold == "0")
    overlay = np.asarray(Image.open(tmp_path / "overlay.png"))
    original = np.rot90(np.asarray(Image.open(photo)), -1)
    covered = np.zeros((50, 80), dtype=bool)
    for record in records:
        covered |= decode_rle(record["segmentation"]).numpy()
    assert overlay.shape == original.shape and (covered.any() or not records)
    assert ((overlay != original).any(-1) <= covered).all()
    assert ((overlay != original).any(-1) == covered).mean() > 0.99
    (saved,) = open_dataset(tmp_path / "records", None, min_area=0)
    check_record(saved)
    assert saved["image_id"] == "photo" and np.array_equal(saved["image"], original)
    masks = [decode_rle(record["segmentation"]).numpy() for record in records]
    assert np.array_equal(decode_masks(saved["objects"]), np.reshape(masks, (-1, 50, 80) if masks else (0, 0, 0)))


def test_everything_takes_the_thresholds_of_the_model(predict, saved_model, photo, tmp_path, capsys):
    copied = tmp_path / "model"
    shutil.copytree(saved_model, copied)
    options = f"--model {copied} --image {photo} --output {tmp_path} --everything --points-per-side 3".split()
    predict.main(options)
    assert "0 masks" in capsys.readouterr().out
    own = SamHfImageProcessor(size={"longest_edge": 64}, pred_iou_thresh=0, stability_score_thresh=0)
    SamHfProcessor(own).save_pretrained(copied)
    predict.main(options)
    assert len(json.loads((tmp_path / "masks.json").read_text())) > 0
    predict.main([*options, "--pred-iou-thresh", "9"])
    assert json.loads((tmp_path / "masks.json").read_text()) == []


@pytest.mark.parametrize("way", [None, "instances", "watershed", "grid"])
def test_everything_of_a_model_with_an_instance_decoder(predict, photo, tmp_path, way):
    model = tiny_model(instance_decoder_config={"hidden_size": 8})
    model.save_pretrained(tmp_path / "model")
    own = {"seed_thresh": 0.0, "foreground_thresh": 0.0, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    processor = SamHfProcessor.from_config(model.config, **own)
    processor.save_pretrained(tmp_path / "model")
    options = ["--prompts", way] if way else []
    options += ["--points-per-side", "3"] if way == "grid" else []
    model_and_image = ["--model", str(tmp_path / "model"), "--image", str(photo), "--output", str(tmp_path)]
    predict.main([*model_and_image, "--everything", *options])
    of_grid = {"points_per_side": 3} if way == "grid" else {}
    expected = MaskGenerator(model, processor, prompts=way, output_mode="uncompressed_rle", **of_grid)(str(photo))
    assert expected and json.loads((tmp_path / "masks.json").read_text()) == json.loads(json.dumps(expected))


def test_prompts_are_grouped_by_their_order(predict):
    args = predict.parse_arguments(["--model", "m", "--image", "i", *PROMPTS.split()])
    assert args.objects == [
        {"point": [[20, 30, 1], [60.5, 10, 0]], "box": []},
        {"point": [], "box": [[5, 6, 70, 40]]},
        {"point": [[40, 25, 1]], "box": []},
    ]
    leading = predict.parse_arguments(["--model", "m", "--image", "i", "--object", *PROMPTS.split()])
    assert leading.objects == args.objects


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["--point", "120"], "--point: expected X,Y or X,Y,LABEL with label 1 or 0, got '120'"),
        (["--point", "1,2,3"], "label 1 or 0, got '1,2,3'"),
        (["--point", "1,2,0,4"], "got '1,2,0,4'"),
        (["--point", "a,b"], "--point: expected X,Y or X,Y,LABEL, got 'a,b'"),
        (["--box", "1,2,3"], "--box: expected X1,Y1,X2,Y2, got '1,2,3'"),
        (["--box", "1 2 3 4"], "--box: expected X1,Y1,X2,Y2, got '1 2 3 4'"),
        (["--box", "1,2,3,4", "--box", "5,6,7,8"], "several boxes: put --object between them"),
        (["--object"], "at least one --point or --box, or --everything"),
        ([], "at least one --point or --box, or --everything"),
        (["--point", "1,2", "--everything"], "at least one --point or --box, or --everything"),
    ],
)
def test_malformed_prompts_are_explained(predict, capsys, prompts, message):
    with pytest.raises(SystemExit) as stop:
        predict.main(["--model", "m", "--image", "i", *prompts])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
