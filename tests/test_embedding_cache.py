"""Cached embeddings are those of the encoder, are found again, and are not used where they would be wrong."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from tiny_models import random_pixels, tiny_model
from tiny_runs import arguments

from sam_hf import SamHfModel
from sam_hf.positions import PositionFrame
from sam_hf.training import EmbeddingCache, freeze, open_cache
from sam_hf.training.reporting import read_log

FEATURES = {"high_res_layers": [0, 1]}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the encoder got."""
    calls = []
    encode = SamHfModel.get_vision_features

    def counted(model, pixel_values, *args):
        calls.append(len(pixel_values))
        return encode(model, pixel_values, *args)

    monkeypatch.setattr(SamHfModel, "get_vision_features", counted)
    return calls


def test_an_image_is_encoded_once_and_comes_back_bit_by_bit(tmp_path, encoded):
    pixels, frame = random_pixels(3), PositionFrame(64, 64)
    model = tiny_model(vision=FEATURES)
    expected = model.get_vision_features(pixels, frame)
    first = EmbeddingCache(model, tmp_path)(pixels, frame)
    assert encoded == [3, 3]
    other_process = EmbeddingCache(tiny_model(vision=FEATURES), tmp_path)
    for order in ([0, 1, 2], [2, 0]):
        found = other_process(pixels[order], frame)
        assert len(found) == len(first) == 3
        for part, again, now in zip(expected, found, first, strict=True):
            assert torch.equal(part, now) and torch.equal(part[order], again) and not again.requires_grad
            assert again.is_contiguous()
    assert encoded == [3, 3]
    files = list(tmp_path.iterdir())
    assert len(files) == 3 and all(file.suffix == ".safetensors" for file in files)
    # One new image in a batch: only its file is new.
    other_process(torch.cat([pixels[:1], random_pixels(1, seed=9)]), frame)
    assert encoded == [3, 3, 2] and len(list(tmp_path.iterdir())) == 4


def test_whatever_changes_the_embedding_changes_the_name(tmp_path, encoded):
    pixels = random_pixels(1)
    cache = EmbeddingCache(tiny_model(), tmp_path)
    cache(pixels)
    changed = tiny_model()
    with torch.no_grad():
        changed.vision_encoder.neck.conv1.weight[0, 0, 0, 0] += 1e-6
    for count, (other, *inputs) in enumerate(
        [
            (EmbeddingCache(changed, tmp_path), pixels),
            (EmbeddingCache(tiny_model(vision={"layer_norm_eps": 1e-5}), tmp_path), pixels),
            (cache, pixels + 1e-6),
            (cache, pixels, PositionFrame(128, 128, 8, 0)),
            (cache, pixels.reshape(1, 3, 128, 32)),
        ],
        start=2,
    ):
        other(*inputs)
        assert len(encoded) == len(list(tmp_path.iterdir())) == count
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache(pixels)
    assert len(encoded) == len(list(tmp_path.iterdir())) == 7
    # The decoder does not matter.
    other = tiny_model()
    torch.nn.init.zeros_(other.mask_decoder.iou_token.weight)
    EmbeddingCache(other, tmp_path)(pixels)
    assert len(encoded) == 7


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(features: dict, path: Path, **_) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    cache = EmbeddingCache(tiny_model(), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sam_hf.training.embedding_cache.save_file", interrupted)
        cache(random_pixels(1))
    assert not list(tmp_path.iterdir())
    first, again = cache(random_pixels(1)), cache(random_pixels(1))
    assert torch.equal(first[0], again[0]) and len(list(tmp_path.iterdir())) == 1


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append([*tmp_path.iterdir()]) or sync(file))
    EmbeddingCache(tiny_model(), tmp_path)(random_pixels(1))
    ((partial,),) = flushed
    assert partial.suffix == ".partial" and not partial.exists()


def flip_a_bit(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 4]) + content[-99:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:100],
        lambda whole: b"",
        lambda whole: whole[:-10],
        flip_a_bit,
        lambda whole: save(load(whole)),
    ],
    ids=["truncated", "empty", "nearly whole", "a flipped bit", "of an earlier version"],
)
def test_damaged_files_are_made_anew_and_noted_once(tmp_path, encoded, damage):
    cache, pixels = EmbeddingCache(tiny_model(), tmp_path), random_pixels(2)
    expected = cache(pixels)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for file, whole in files.items():
        file.write_bytes(damage(whole))
        assert file.read_bytes() != whole
    encoded.clear()
    with pytest.warns(UserWarning, match="is damaged and made anew") as noted:
        torch.testing.assert_close(cache(pixels), expected, rtol=0, atol=0)
    assert len(noted) == 1 and encoded == [2]
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files
    torch.testing.assert_close(cache(pixels), expected, rtol=0, atol=0)
    assert encoded == [2]


def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch):
    cache = EmbeddingCache(tiny_model(), tmp_path)

    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sam_hf.training.embedding_cache.save_file", full)
    expected = cache.model.get_vision_features(random_pixels(1))
    with pytest.warns(UserWarning, match="takes no more embeddings: .*No space left"):
        torch.testing.assert_close(cache(random_pixels(1)), expected)
    torch.testing.assert_close(cache(random_pixels(1)), expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("parts", "vision", "is_augmented", "reason"),
    [
        (["decoder"], {}, False, "the image encoder trains.*--freeze encoder"),
        (["encoder"], {}, True, "augmentation makes a new image.*--augment false"),
        (["encoder"], {"attention_dropout": 0.1}, False, "dropout changes embeddings.*attention_dropout"),
    ],
)
def test_where_it_would_be_wrong_it_is_off_and_says_why(tmp_path, parts, vision, is_augmented, reason):
    model = tiny_model(vision=vision)
    freeze(model, parts)
    with pytest.warns(UserWarning, match=f"--embedding_cache is off: {reason}"):
        assert open_cache(model, str(tmp_path / "cache"), is_augmented) is None
    assert not (tmp_path / "cache").exists()
    assert open_cache(model, None, is_augmented) is None


@pytest.mark.usefixtures("on_cpu")
def test_training_is_the_same_bit_by_bit_without_and_with_a_cold_and_a_warm_cache(train, tmp_path, encoded):
    torch.manual_seed(0)
    tiny_model(vision=FEATURES).save_pretrained(tmp_path / "base")
    options = {
        "freeze": "encoder",
        "augment": False,
        "max_steps": 4,
        "batch_size": 2,
        "eval_every": 4,
        "final_eval_images": 1,
        "log_every": 1,
        "dataset": "scenes",
    }
    counts = []
    for name, cache in (("without", {}), ("cold", {"embedding_cache": tmp_path / "cache"})):
        train.main(arguments(tmp_path / "base", tmp_path / name, **options, **cache))
        counts.append(len(encoded))
    train.main(arguments(tmp_path / "base", tmp_path / "warm", **options, embedding_cache=tmp_path / "cache"))
    # Evaluations encode as ever; the 8 batches of training do not any more.
    assert counts[1] == 2 * counts[0] and len(encoded) == 3 * counts[0] - 8
    assert len(list((tmp_path / "cache").iterdir())) == 16
    weights = [(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("without", "cold", "warm")]
    assert weights[0] == weights[1] == weights[2] != (tmp_path / "base" / "model.safetensors").read_bytes()
    losses = [
        [line["train/loss"] for line in read_log(tmp_path / name / "log.jsonl") if "train/loss" in line]
        for name in ("without", "cold", "warm")
    ]
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 4
