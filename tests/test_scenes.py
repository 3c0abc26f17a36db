"""Procedural scenes: exact, deterministic, distinct."""

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
from torch.utils.data import DataLoader

from sam_hf.data import SyntheticScenes, check_record, decode_masks, open_dataset, rgb_array


def fingerprint(record) -> str:
    masks = "".join(item["segmentation"]["counts"] for item in record["objects"])
    return hashlib.sha256(rgb_array(record["image"]).tobytes() + masks.encode()).hexdigest()


def test_masks_are_disjoint_visible_and_of_sensible_number_and_size():
    counts, shares = [], []
    for record in SyntheticScenes(40):
        check_record(record)
        masks = decode_masks(record["objects"])
        assert masks.shape[1:] == (256, 256)
        assert masks.sum(0).max() == 1
        areas = masks.sum((1, 2))
        assert areas.min() >= 64
        counts.append(len(masks))
        shares.extend(areas / masks[0].size)
    assert min(counts) >= 3
    assert max(counts) <= 12
    assert max(shares) < 0.35
    assert 0.01 < np.median(shares) < 0.1


def test_objects_differ_from_what_surrounds_them():
    """Just inside and just outside of most borders the picture changes, so masks belong to what is seen."""
    steps, steps_elsewhere = [], []
    for record in SyntheticScenes(30):
        image = rgb_array(record["image"]).astype(float)
        labels = np.zeros((256, 256), dtype=int)
        for number, mask in enumerate(decode_masks(record["objects"]), start=1):
            labels[mask] = number
        # Two pixels apart, since half of the scenes are blurred.
        step = np.abs(image[:, 4:] - image[:, :-4]).max(-1)
        border = labels[:, 4:] != labels[:, :-4]
        steps.append(step[border].mean())
        steps_elsewhere.append(step[~border].mean())
    assert np.median(np.array(steps) / np.array(steps_elsewhere)) > 1.8


def test_a_scene_depends_on_seed_split_index_and_size_only():
    scenes = SyntheticScenes(20)
    first = [fingerprint(scenes[index]) for index in range(6)]
    np.random.seed(0)
    assert [fingerprint(SyntheticScenes(7)[index]) for index in reversed(range(6))] == first[::-1]
    others = [
        SyntheticScenes(20, seed=1),
        SyntheticScenes(20, split="validation"),
        SyntheticScenes(20, size=(256, 260)),
    ]
    prints = first + [fingerprint(other[index]) for other in others for index in range(6)]
    assert len(set(prints)) == len(prints)


def test_scenes_are_the_same_in_other_processes():
    scenes = SyntheticScenes(6, size=(96, 128))
    expected = [fingerprint(record) for record in scenes]
    loader = DataLoader(scenes, batch_size=2, num_workers=2, collate_fn=list)
    assert [fingerprint(record) for batch in loader for record in batch] == expected
    code = (
        "from sam_hf.data import SyntheticScenes, rgb_array; import hashlib\n"
        "r = SyntheticScenes(6, size=(96, 128))[5]\n"
        "m = ''.join(o['segmentation']['counts'] for o in r['objects'])\n"
        "print(hashlib.sha256(rgb_array(r['image']).tobytes() + m.encode()).hexdigest())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == expected[5]


def test_looks_are_distinct():
    """Colour histograms of scenes are as far from each other as different pictures are."""
    histograms = []
    for record in SyntheticScenes(120, size=(128, 128)):
        codes = (rgb_array(record["image"]) // 64) @ np.array([16, 4, 1])
        histograms.append(np.bincount(codes.ravel(), minlength=64) / codes.size)
    histograms = np.array(histograms)
    overlap = np.minimum(histograms[:, None], histograms[None]).sum(-1)[np.triu_indices(120, 1)]
    assert np.median(overlap) < 0.4
    assert overlap.max() < 0.999


@pytest.mark.parametrize("size", [(64, 64), (200, 120), (320, 480)])
def test_other_sizes(size):
    for record in SyntheticScenes(12, size=size):
        assert rgb_array(record["image"]).shape == (*size, 3)
        check_record(record)
        assert len(record["objects"]) >= 3
        assert min(item["area"] for item in record["objects"]) >= 64


def test_a_scene_is_quick_to_draw():
    scenes = SyntheticScenes(20)
    scenes[0]
    start = time.process_time()
    for record in scenes:
        assert record
    # 13 ms each on one core; room for slow machines.
    assert (time.process_time() - start) / 20 < 0.1


def test_open_dataset_gives_scenes():
    assert len(open_dataset("scenes")) == 10_000
    assert len(open_dataset("scenes", "validation")) == 200
    assert len(open_dataset("scenes", "train", num_scenes=3)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "'test'"),
        ({"num_scenes": 0}, "got 0"),
        ({"seed": -1}, "-1"),
        ({"size": (256, 32)}, r"\(256, 32\)"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticScenes(**options)
    with pytest.raises(IndexError):
        SyntheticScenes(3)[3]
