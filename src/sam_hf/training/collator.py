"""From records to training batches: objects, augmentation and first prompts, sampled in data-loader workers."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..clicks import DRAW_RANGE, INITIAL_DRAWS, sample_initial_prompts
from ..data.augmentation import RandomTile
from ..data.label_map import label_map_from_objects
from ..data.schema import SegmentedObject, decode_masks, ignored_pixels, rgb_array, targets_from_masks
from ..loss_points import IGNORED
from ..positions import PositionFrame
from ..processing_sam_hf import SamHfProcessor
from .instance_targets import instance_targets

# (image, objects, rng, max_objects, with_label_map) -> (uint8 [H, W, 3], targets [N, H, W]) and, if asked for, a label
# map int32 [H, W], such as `RandomCropScaleFlip`.
Augmentation = Callable[..., tuple[np.ndarray, ...]]
NO_CLICK = -1  # among draws of clicks: there is none in this round


class ClickSamplingCollator:
    """Turn records into what the model is trained on.

    All chance of a training step is drawn here and keyed by `(seed, draw number, image id)`: a batch is the same in
    any worker, after a resume, and on any device. Records without a `draw` number, such as those of a plain
    `DataLoader` or `transformers.Trainer`, take one from torch's generator in the process of the loader, which loaders
    seed anew in every epoch: what is drawn then also depends on the number of workers. `click_draws` are the uniform
    numbers that decide the corrective clicks of later rounds.

    Args:
        processor: makes model inputs.
        crop_size: side in pixels of the model input where the augmentation makes crops, smaller than the images that
            the processor makes. Batches then say where the crop lies: each gets the positions of a random place in a
            whole image, so that the model may see small crops in training and whole images in use.
        max_objects: objects sampled per image.
        num_corrections: corrective clicks after the first prompt; 0 leaves `click_draws` out, so that the batch fits
            `SamHfModel.forward` and `transformers.Trainer`.
        repeats: add two rounds without a new click, one before any of the corrections and one in the end (SAM).
        sample_points: also draw where masks are compared with labels (`SamHfConfig.loss_resolution` "points").
        augmentation: such as `data.RandomCropScaleFlip`; None takes whole images as they are, and a random one of the
            tiles of an image that is larger than the `tile_size` of the processor.
        box_probability: chance that an object's first prompt is a noisy box instead of a point.
        box_noise: "uniform" or "gaussian", see `clicks.jitter_boxes`.
        negatives: train the object score with images that are annotated with nothing: each gets one prompt anywhere,
            whose object is empty, and no corrections. Without an object score a model would learn empty masks from
            them: leave it False, where such an image has padding for its object.
        instances: also return what an instance decoder learns, from label maps that name every object.
        seed: not negative.
    """

    def __init__(
        self,
        processor: SamHfProcessor,
        *,
        crop_size: int | None = None,
        max_objects: int = 8,
        num_corrections: int = 0,
        repeats: bool = False,
        sample_points: bool = False,
        augmentation: Augmentation | None = None,
        box_probability: float = 0.5,
        box_noise: str = "uniform",
        negatives: bool = False,
        instances: bool = False,
        seed: int = 0,
    ):
        self.processor = processor
        self.crop_size = crop_size
        self.processor_options = {} if crop_size is None else {"size": {"longest_edge": crop_size}}
        self.max_objects = max_objects
        if repeats and not num_corrections:
            raise ValueError("repeats come between corrections, but num_corrections is 0.")
        self.num_corrections = num_corrections
        self.repeats = repeats
        self.sample_points = sample_points
        self.augmentation = augmentation
        self.box_probability = box_probability
        self.box_noise = box_noise
        self.negatives = negatives
        self.instances = instances
        self.seed = seed

    def __call__(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate records (see `data.schema`); `draw` in a record numbers how often the stream has drawn before it.

        Returns:
            `pixel_values`, `input_points`, `input_labels`, `input_boxes`, `labels` as `SamHfModel.forward` takes them
            (int8, -1 in the padding and in crowd regions), int32 `click_draws` [B, N, num_corrections] as
            `sample_error_clicks` takes them, with two more columns for `repeats` and -1 where there is no new click;
            with `sample_points` float32 `point_draws` [B, N, 2], with `instances` float16 `instance_targets`
            [B, 3, h, w], and with `crop_size` the numbers of a `PositionFrame` as a list `frame`. Where records stand
            for others that could not be used, `faults` lists the messages of these, for `data.FaultLog`.

        Raises:
            ValueError: for records without image, objects or `image_id`, or an image that is not one.
        """
        for record in records:
            check_columns(record)
        generators = [self.generator(record) for record in records]
        samples = [self.sample(record, rng) for record, rng in zip(records, generators, strict=True)]
        is_negative = torch.tensor([self.negatives and not record["objects"] for record in records])
        inputs = self.processor(
            images=[sample[0] for sample in samples],
            segmentation_maps=[sample[1] for sample in samples],
            return_tensors="pt",
            do_stretch_contrast=False,  # done already, where whole images are seen
            **self.processor_options,
        )
        labels = inputs["labels"].nan_to_num_(IGNORED).to(torch.int8)  # a quarter of the memory
        widths = INITIAL_DRAWS, self.num_corrections, int(self.repeats), 2 * self.sample_points
        draws = torch.zeros(*labels.shape[:2], sum(widths), dtype=torch.float64)
        for row, rng, (_, masks, *_) in zip(draws, generators, samples, strict=True):
            row[: len(masks)] = torch.from_numpy(rng.random((len(masks), sum(widths))))
        initial_draws, click_draws, repeat_draws, point_draws = draws.split(widths, dim=-1)
        points, point_labels, boxes = sample_initial_prompts(
            labels == 1,
            valid=labels != IGNORED,
            draws=initial_draws,
            box_probability=self.box_probability,
            noise=self.box_noise,
        )
        # What stood for the object that a prompt asks for is not there.
        labels[is_negative] = labels[is_negative].clamp(max=0)
        click_draws = (click_draws * DRAW_RANGE).int().masked_fill(is_negative[:, None, None], NO_CLICK)
        batch = {
            "pixel_values": inputs["pixel_values"],
            "input_points": points,
            "input_labels": point_labels,
            "input_boxes": boxes,
            "labels": labels,
        }
        if self.num_corrections:
            batch["click_draws"] = insert_repeats(click_draws, repeat_draws) if self.repeats else click_draws
        if self.sample_points:
            batch["point_draws"] = point_draws.float()
        if self.instances:
            batch["instance_targets"] = self.instance_targets([sample[2] for sample in samples], labels)
        if self.crop_size is not None:
            batch["frame"] = list(self.place_crop(generators[0]))  # a tensor would have to be read from the device
        if faults := [fault for record in records for fault in record.get("faults", ())]:
            batch["faults"] = faults
        return batch

    def place_crop(self, rng: np.random.Generator) -> PositionFrame:
        """A random place for the crops of a batch in a whole image, in steps of the patch size."""
        image_processor = self.processor.image_processor
        size, patch = image_processor.size["longest_edge"], round(4 * self.cell_size)
        top, left = rng.integers(0, (size - self.crop_size) // patch + 1, 2) * patch
        return PositionFrame(size, size, int(top), int(left))

    def instance_targets(self, label_maps: Sequence[np.ndarray], labels: torch.Tensor) -> torch.Tensor:
        """Those [B, 3, h, w] of label maps on images that the processor resized and padded as `labels`."""
        height, width = labels.shape[-2:]
        cell = self.cell_size
        grid = round(height / cell), round(width / cell)
        maps = torch.full((len(label_maps), 3, *grid), torch.nan, dtype=torch.float16)
        for padded, label_map in zip(maps, label_maps, strict=True):
            # As the processor does: the longest side fills the input, or each does.
            longest = [max(label_map.shape)] * 2
            filling = longest if self.processor.image_processor.keep_aspect_ratio else label_map.shape
            scales = (max(height, width) / length for length in filling)
            lengths = zip(label_map.shape, scales, strict=True)
            size = tuple(max(1, round(length * scale / cell)) for length, scale in lengths)
            padded[:, : size[0], : size[1]] = torch.from_numpy(instance_targets(label_map, size))
        return maps

    @property
    def cell_size(self) -> float:
        """Pixels of the model input along the side of a cell of the mask grid, such as 3.5 of patches of 14."""
        image_processor = self.processor.image_processor
        return image_processor.size["longest_edge"] / image_processor.mask_size["longest_edge"]

    def generator(self, record: dict[str, Any]) -> np.random.Generator:
        draw = record["draw"] if "draw" in record else int(torch.empty((), dtype=torch.int64).random_())
        key = [self.seed, draw, zlib.crc32(record["image_id"].encode())]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

    def sample(self, record: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """At most `max_objects` objects of one record: uint8 [H, W, 3] and `targets_from_masks` [N, H, W].

        There is at least one: padding, or what stands for the object of a negative. With `instances` also the label
        map [H, W] of all that are in view.
        """
        # As in prediction, contrast is that of the whole image, whatever is cropped and however light is changed.
        stretch_contrast = self.processor.image_processor.do_stretch_contrast
        try:
            image = rgb_array(record["image"], stretch_contrast=bool(stretch_contrast))
        except ValueError as error:
            raise ValueError(f"record {record['image_id']!r}: {error}") from error
        image, masks, *label_map = self.choose_objects(image, record["objects"], rng)
        if self.negatives and not record["objects"]:
            masks = random_rectangle(image, rng)
        return image, masks if len(masks) else ignored_mask(image), *label_map

    def choose_objects(
        self, image: np.ndarray, objects: Sequence[SegmentedObject], rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        augmentation, tile_size = self.augmentation, getattr(self.processor.image_processor, "tile_size", None)
        if augmentation is None and tile_size is not None and max(image.shape[:2]) > tile_size:
            augmentation = RandomTile(tile_size)
        if augmentation is not None:
            label_map = {"with_label_map": True} if self.instances else {}
            return augmentation(image, objects, rng, self.max_objects, **label_map)
        size = image.shape[0], image.shape[1]
        layers = [label_map_from_objects(objects, size)] if self.instances else []
        targets = [item for item in objects if not item["iscrowd"]]
        chosen = sorted(rng.permutation(len(targets))[: self.max_objects])
        if not chosen:
            return image, np.zeros((0, *size), dtype=bool), *layers
        masks = decode_masks([targets[index] for index in chosen])
        return image, targets_from_masks(masks, ignored_pixels(objects, size)), *layers


def check_columns(record: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: if the record is none; it says what `transformers.Trainer` does to them.
    """
    if missing := [name for name in ("image", "objects", "image_id") if name not in record]:
        raise ValueError(
            f"a record lacks {missing}: it has {sorted(record)}, expected image, objects and image_id (see "
            "sam_hf.data.schema). transformers.Trainer takes out what the model's forward does not name: give "
            "TrainingArguments(remove_unused_columns=False)."
        )


def insert_repeats(click_draws: torch.Tensor, repeat_draws: torch.Tensor) -> torch.Tensor:
    """Put -1 before one of the K clicks of every object, and after all: [B, N, K] and [B, N, 1] -> [B, N, K + 2]."""
    num_clicks = click_draws.shape[-1]
    rounds = torch.arange(num_clicks + 2).expand(*click_draws.shape[:2], -1)
    repeat = (repeat_draws * num_clicks).long()
    clicks = click_draws.gather(-1, (rounds - (rounds > repeat).long()).clamp(max=num_clicks - 1))
    return clicks.masked_fill((rounds == repeat) | (rounds == num_clicks + 1), NO_CLICK)


def random_rectangle(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the prompt of a negative is drawn from: bool [1, H, W], each side from a 32nd to half of the image's."""
    mask = np.zeros((1, *image.shape[:2]), dtype=bool)
    spans = []
    for length in image.shape[:2]:
        side = max(1, round(length * np.exp(rng.uniform(np.log(1 / 32), np.log(1 / 2)))))
        start = int(rng.integers(length - side + 1))
        spans.append(slice(start, start + side))
    mask[0, spans[0], spans[1]] = True
    return mask


def ignored_mask(image: np.ndarray) -> np.ndarray:
    """One padded object, float32 [1, H, W]: a batch without any object still makes a step, of zero gradients."""
    return np.full((1, *image.shape[:2]), np.nan, dtype=np.float32)


__all__ = ["Augmentation", "ClickSamplingCollator"]
