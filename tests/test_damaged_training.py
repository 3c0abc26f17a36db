"""Training on data of which a tenth is damaged, against training on the same data undamaged."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from sam_hf import SamHfConfig
from sam_hf.data import SyntheticScenes, decode_masks

NUM_IMAGES, NUM_STEPS = 40, 60
SEEDS, DAMAGED_SEEDS = (0, 1, 2), (0, 1)
DAMAGE = {
    "images/003.jpg": lambda content: content[: len(content) // 2],
    "images/013.jpg": lambda content: b"",
    "images/023.jpg": lambda content: b"<html>404</html>",
    "masks/033.png": lambda content: content[: len(content) // 2],
}


def write_scenes(root: Path, damaged: bool) -> Path:
    """Label maps of scenes; beside those for training there are two for validation."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    splits = ["id,split"]
    for number, record in enumerate(SyntheticScenes(NUM_IMAGES + 2, size=(64, 64))):
        splits.append(f"{number:03d},{'train' if number < NUM_IMAGES else 'validation'}")
        masks = decode_masks(record["objects"])
        labels = (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(axis=0).astype(np.uint8)
        record["image"].save(root / "images" / f"{number:03d}.jpg")
        Image.fromarray(labels).save(root / "masks" / f"{number:03d}.png")
    (root / "splits.csv").write_text("\n".join(splits))
    for name, spoil in DAMAGE.items() if damaged else ():
        (root / name).write_bytes(spoil((root / name).read_bytes()))
    return root


def write_model(folder: Path) -> Path:
    """The preset for training from random weights, in small."""
    config = SamHfConfig.from_preset("small", 64).to_dict()
    layers = {"num_hidden_layers": 2, "global_attn_indexes": [1], "high_res_layers": [0, 1]}
    config["vision_config"].update(hidden_size=64, output_channels=64, **layers)
    config["prompt_encoder_config"].update(hidden_size=64)
    config["mask_decoder_config"].update(hidden_size=64, mlp_dim=128, iou_head_hidden_dim=64)
    SamHfConfig(**config).save_pretrained(folder)
    return folder


def run(train, tmp_path: Path, data: Path, seed: int, patch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Names of the images in the order in which they were trained on; loss and IoU, each at the start and the end.

    All prompts are boxes, from which even so small a model learns something in a few steps. It has no instance
    decoder, beside which its second answers are not better than its first ones by then.
    """
    names, shared_batches, folder = [], train.shared_batches, tmp_path / f"{data.name}{seed}"

    def noted(accelerator, trainer, window, **options):
        names.extend(name for batch in window for name in batch["image_ids"])
        return shared_batches(accelerator, trainer, window, **options)

    options = {"dataset": data, "model": tmp_path / "model", "output_dir": folder, "seed": seed}
    options |= {"max_steps": NUM_STEPS, "warmup_steps": 5, "optimizer": "muon", "learning_rate": 3e-3}
    options |= {"num_corrections": 1, "max_objects": 4, "min_area": 40, "box_probability": 1, "crop_share": 1}
    options |= {"instances": "false", "num_workers": 0}
    options |= {"eval_every": NUM_STEPS, "final_eval_images": 1, "log_every": 1}
    with patch.context() as inner:
        inner.setattr(train, "shared_batches", noted)
        train.main([f"--{name}={value}" for name, value in options.items()])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    values = [[line["train/loss"], line["train/iou_click_2"]] for line in lines if "train/loss" in line]
    assert len(values) == NUM_STEPS
    return SimpleNamespace(names=names, start=np.mean(values[:5], axis=0), end=np.mean(values[-20:], axis=0))


@pytest.mark.slow
def test_a_tenth_of_damaged_files_is_named_and_replaced_and_costs_nothing(
    train, on_cpu, tmp_path, monkeypatch, caplog
):
    """Noise is what other seeds make of the undamaged files; what damage makes is compared seed by seed."""
    write_model(tmp_path / "model")
    data = [write_scenes(tmp_path / name, damaged) for name, damaged in (("clean", False), ("damaged", True))]
    clean = [run(train, tmp_path, data[0], seed, monkeypatch) for seed in SEEDS]
    assert not [record for record in caplog.records if "left out" in record.getMessage()]
    spoilt = {Path(name).stem for name in DAMAGE}
    damaged = []
    for seed, expected in zip(DAMAGED_SEEDS, clean, strict=False):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            damaged.append(run(train, tmp_path, data[1], seed, monkeypatch))
        messages = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
        assert len(messages) == len(DAMAGE)
        assert all(sum(Path(name).name in message for message in messages) == 1 for name in DAMAGE)
        names = damaged[-1].names
        assert len(names) == len(expected.names) == 4 * NUM_STEPS and spoilt < {*expected.names}
        assert not spoilt & {*names}
        assert all(name == other for name, other in zip(names, expected.names, strict=True) if other not in spoilt)
    ends, others = (np.stack([result.end for result in results]) for results in (clean, damaged))
    difference = np.abs(others.mean(axis=0) - ends[: len(others)].mean(axis=0))
    noise = np.ptp(ends, axis=0)
    print(f"(loss, IoU): clean {ends.tolist()}, damaged {others.tolist()}, {difference=}, {noise=}")
    assert (difference <= noise).all()
    for result in clean + damaged:  # models that predict nothing would be alike, too
        assert result.end[0] < result.start[0] and result.end[1] > 0.15
