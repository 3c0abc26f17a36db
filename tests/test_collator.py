"""Batches of the collator: ragged objects, prompts that belong to their labels, the same draw in any batch."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_models import IMAGE, MASK, tiny_model
from torch.utils.data import DataLoader

from sam_hf import BACKGROUND, FOREGROUND, PADDING, SamHfImageProcessor, SamHfProcessor
from sam_hf.data.augmentation import RandomCropScaleFlip
from sam_hf.data.schema import objects_from_masks
from sam_hf.loss_points import IGNORED
from sam_hf.tiles import tile_boxes
from sam_hf.training import step
from sam_hf.training.batches import collate_named
from sam_hf.training.collator import ClickSamplingCollator
from sam_hf.training.draws import DrawnRecords, DrawSampler
from sam_hf.training.interactive import InteractiveTrainer

ALL_KEYS = {"pixel_values", "input_points", "input_labels", "input_boxes", "labels", "click_draws"}


def record(num_objects: int, name: str, height: int = 40, width: int = 50) -> dict:
    """Disjoint rectangles, each in the colour 10 * number, on black."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    masks = np.zeros((num_objects, height, width), dtype=bool)
    for index in range(num_objects):
        top, left = 2 + 12 * (index // 3), 3 + 15 * (index % 3)
        masks[index, top : top + 9, left : left + 7 + index] = True
        image[masks[index]] = 10 * (index + 1)
    return {"image": image, "objects": objects_from_masks(masks), "image_id": name}


@pytest.fixture(scope="module")
def processor() -> SamHfProcessor:
    return SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE}))


def collator(processor: SamHfProcessor, **options) -> ClickSamplingCollator:
    return ClickSamplingCollator(processor, **{"num_corrections": 2, **options})


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name].nan_to_num(-99), other[name].nan_to_num(-99)), name


def test_without_augmentation_larger_images_give_a_tile_and_others_are_as_without_tiles(processor):
    tiled = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE}, tile_size=50))
    small, large = {**record(3, "a"), "draw": 0}, record(6, "b", 70, 90)
    assert_same(collator(tiled)([small]), collator(processor)([small]))
    boxes, seen = tile_boxes((70, 90), 50), set()
    parts = [processor(large["image"][y1:y2, x1:x2]).pixel_values[0] for x1, y1, x2, y2 in boxes]
    for draw in range(20):
        batch = collator(tiled)([{**large, "draw": draw}])
        (found,) = [n for n, part in enumerate(parts) if torch.equal(batch["pixel_values"][0], part)]
        seen.add(found)
        # Objects of the tile, as large as the processor makes them: about 9 x 9 of 50 pixels.
        areas = (batch["labels"] == 1).sum((2, 3))[0]
        assert (areas > 0).all() and areas.max() > 80
        assert_same(batch, collator(tiled)([{**large, "draw": draw}]))
    assert len(seen) > 1


def test_shapes_and_dtypes(processor):
    batch = collator(processor)([record(3, "a"), record(1, "b"), record(5, "c", 60, 30)])
    assert set(batch) == ALL_KEYS
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "pixel_values": ((3, 3, IMAGE, IMAGE), torch.float32),
        "input_points": ((3, 5, 1, 2), torch.float32),
        "input_labels": ((3, 5, 1), torch.int64),
        "input_boxes": ((3, 5, 4), torch.float32),
        "labels": ((3, 5, IMAGE, IMAGE), torch.int8),
        "click_draws": ((3, 5, 2), torch.int32),
    }


def test_objects_beyond_an_image_own_are_padding(processor):
    batch = collator(processor)([record(3, "a"), record(1, "b")])
    assert (batch["labels"][0] != IGNORED).flatten(1).any(dim=1).all()
    padding = {name: value[1, 1:] for name, value in batch.items() if name != "pixel_values"}
    assert (padding["labels"] == IGNORED).all() and padding["input_boxes"].isnan().all()
    assert (padding["input_labels"] == PADDING).all() and not padding["input_points"].any()


@pytest.mark.parametrize("box_probability", [0.0, 0.5, 1.0])
def test_prompts_belong_to_their_object(processor, box_probability):
    records = [record(6, str(index)) for index in range(6)]
    batch = collator(processor, box_probability=box_probability)(records)
    labels, boxes = batch["input_labels"][..., 0], batch["input_boxes"]
    is_box = boxes.isfinite().all(dim=-1)
    assert is_box.float().mean().item() == pytest.approx(box_probability, abs=0.25)
    assert torch.equal(is_box, labels == PADDING) and (labels[~is_box] == FOREGROUND).all()
    for b, n in (~is_box).nonzero().tolist():
        x, y = batch["input_points"][b, n, 0].long().tolist()
        assert batch["labels"][b, n, y, x] == 1
    for b, n in is_box.nonzero().tolist():
        y, x = (batch["labels"][b, n] == 1).nonzero().float().unbind(dim=1)
        tight = torch.stack([x.min(), y.min(), x.max(), y.max()])
        side = (tight[2:] - tight[:2]).repeat(2)
        assert ((boxes[b, n] - tight).abs() <= 0.1 * side + 1e-4).all()  # noise of a tenth of the side


def test_labels_are_on_the_pixels_of_their_object(processor):
    batch = collator(processor, max_objects=8)([record(4, "a")])
    grey = batch["pixel_values"][0, 0]
    values = {round(grey[batch["labels"][0, n] == 1].median().item(), 4) for n in range(4)}
    assert len(values) == 4  # four objects, four colours
    assert (batch["labels"][0, :, 51 + 1 :] == IGNORED).all()  # 40 x 50 becomes 51 x 64
    assert (batch["labels"][0, :, :51] != IGNORED).all()


def test_at_most_max_objects_and_never_a_crowd(processor):
    crowded = record(6, "a")
    for item in crowded["objects"][:4]:
        item["iscrowd"] = 1
    assert collator(processor)([crowded])["labels"].shape[1] == 2
    chosen = set()
    for draw in range(20):
        batch = collator(processor, max_objects=2)([record(6, "a") | {"draw": draw}])
        assert batch["labels"].shape[1] == 2
        chosen |= {tuple((mask == 1).nonzero()[0].tolist()) for mask in batch["labels"][0]}
    assert len(chosen) == 6  # any of the objects may be


@pytest.mark.parametrize("augmentation", [None, RandomCropScaleFlip(IMAGE, (1.0, 1.0), hflip=False)])
def test_crowds_are_pixels_to_ignore_but_for_the_object_itself(processor, augmentation):
    masks = np.zeros((2, IMAGE, IMAGE), dtype=bool)
    masks[0, 10:30, 10:30] = masks[1, 20:40, 20:50] = True
    item = {"image": np.zeros((IMAGE, IMAGE, 3), np.uint8), "objects": objects_from_masks(masks), "image_id": "a"}
    item["objects"][1]["iscrowd"] = 1
    batch = collator(processor, augmentation=augmentation)([item])
    expected = np.where(masks[1] & ~masks[0], IGNORED, masks[0])
    np.testing.assert_array_equal(batch["labels"][0, 0].numpy(), expected)
    assert batch["labels"].shape[1] == 1
    # A crowd everywhere else.
    item["objects"][1] |= objects_from_masks(~masks[:1])[0] | {"iscrowd": 1}
    labels = collator(processor, augmentation=augmentation)([item])["labels"]
    assert (labels == IGNORED).sum() == IMAGE**2 - 400


@pytest.mark.parametrize("augmentation", [None, RandomCropScaleFlip(IMAGE)])
def test_a_draw_is_the_same_in_any_batch(processor, augmentation):
    make = collator(processor, augmentation=augmentation)
    one, other = record(3, "a") | {"draw": 7}, record(3, "b") | {"draw": 8}
    torch.manual_seed(0)
    np.random.seed(0)
    alone = make([one])
    torch.manual_seed(1)
    np.random.seed(1)
    count = alone["labels"].shape[1]
    together = make([other, one])
    assert_same(
        alone, {name: value[1:, :count] if name != "pixel_values" else value[1:] for name, value in together.items()}
    )


def test_draws_differ_by_number_seed_and_image(processor):
    def points(make: ClickSamplingCollator, name: str, draw: int) -> torch.Tensor:
        return make([record(6, name) | {"draw": draw}])["input_points"]

    make = collator(processor, box_probability=0.0)
    reference = points(make, "a", 0)
    assert torch.equal(points(make, "a", 0), reference)
    assert not torch.equal(points(make, "a", 1), reference)
    assert not torch.equal(points(make, "b", 0), reference)
    assert not torch.equal(points(collator(processor, box_probability=0.0, seed=1), "a", 0), reference)


def test_workers_do_not_matter(processor):
    dataset = DrawnRecords([record(1 + index % 4, str(index)) for index in range(5)])

    def batches(num_workers: int) -> list[dict[str, torch.Tensor]]:
        loader = DataLoader(
            dataset,
            batch_size=2,
            sampler=DrawSampler(len(dataset), stop=8, start=2, seed=3),
            collate_fn=collator(processor),
            num_workers=num_workers,
        )
        return list(loader)

    for one, other in zip(batches(0), batches(2), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_numbers_every_epoch_draws_anew_and_the_same_seed_the_same(processor, num_workers):
    dataset = [record(4, str(index)) for index in range(3)]
    make = collator(processor, augmentation=RandomCropScaleFlip(IMAGE))

    def epochs(seed: int) -> list[dict[str, torch.Tensor]]:
        torch.manual_seed(seed)
        loader = DataLoader(dataset, collate_fn=make, num_workers=num_workers)
        return [batch for _ in range(5) for batch in loader]

    samples = epochs(seed=0)
    for name in ("labels", "input_points", "click_draws"):
        assert len({batch[name].numpy().tobytes() for batch in samples}) == 15, name
    for one, other in zip(samples, epochs(seed=0), strict=True):
        assert_same(one, other)
    assert not torch.equal(samples[0]["pixel_values"], epochs(seed=1)[0]["pixel_values"])


def test_a_record_without_its_parts_says_what_trainer_takes_out(processor):
    with pytest.raises(
        ValueError, match=r"lacks \['image', 'image_id'\]: it has \['objects'\].*remove_unused_columns=F"
    ):
        collator(processor)([{"objects": []}])


@pytest.mark.parametrize("augmentation", [None, RandomCropScaleFlip(IMAGE)])
@pytest.mark.parametrize("counts", [(3, 0), (0, 0)])
def test_images_without_objects(processor, counts, augmentation):
    records = [record(count, str(index)) for index, count in enumerate(counts)]
    batch = collator(processor, augmentation=augmentation)(records)
    assert batch["labels"].shape[1] >= 1
    assert (batch["labels"][1] == IGNORED).all() and (batch["input_labels"][1] == PADDING).all()
    assert batch["input_boxes"][1].isnan().all()
    output = InteractiveTrainer(tiny_model())(**batch)
    output.loss.backward()
    assert output.loss.isfinite() and (output.loss > 0) == (counts[0] > 0)


def test_without_corrections_a_batch_fits_the_model(processor):
    model = tiny_model(decoder={"use_object_score": True})
    batch = collator(processor, num_corrections=0)([record(3, "a"), record(2, "b")])
    assert set(batch) == ALL_KEYS - {"click_draws"}
    output = model(**batch)
    assert output.loss.isfinite() and output.pred_masks.shape == (2, 3, 1, MASK, MASK)
    only_clicks = collator(processor, num_corrections=0, box_probability=0.0)([record(3, "a")])
    assert model(**only_clicks).pred_masks.shape == (1, 3, 3, MASK, MASK)


def test_another_image_size_than_the_processor_has():
    full_size = SamHfProcessor(SamHfImageProcessor())
    batch = ClickSamplingCollator(full_size, crop_size=IMAGE)([record(2, "a")])
    assert batch["pixel_values"].shape[-2:] == batch["labels"].shape[-2:] == (IMAGE, IMAGE)


def test_an_object_that_shrinks_to_nothing_gets_a_background_click(processor):
    masks = np.zeros((1, 640, 640), dtype=bool)
    masks[0, 3, 3] = True
    tiny = {"image": np.zeros((640, 640, 3), np.uint8), "objects": objects_from_masks(masks), "image_id": "a"}
    batch = collator(processor)([tiny])
    assert not batch["labels"].any()
    assert batch["input_labels"].item() == BACKGROUND and math.isnan(batch["input_boxes"][0, 0, 0])


def test_objects_are_counted_with_the_batch_and_not_in_the_step(processor, monkeypatch):
    batch = collate_named(collator(processor), [record(3, "a"), record(0, "b"), record(5, "c")])
    assert batch["num_objects"] == 8 and batch["image_ids"] == ["a", "b", "c"]
    monkeypatch.setattr(step, "count_objects", None)
    accelerator = Accelerator(cpu=True)
    (shared,) = step.shared_batches(accelerator, InteractiveTrainer(tiny_model()), [batch], seed=0, first_draw=0)
    assert shared["normalizer"].item() == 8 and set(shared) == {*ALL_KEYS, "normalizer"}
