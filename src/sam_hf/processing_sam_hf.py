"""Images, and prompts in image pixels, to the tensors of `SamHfModel`.

Axes: B images, N objects per image, P points per object, H, W padded model input, h, w mask grid.
"""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, SamImageProcessor
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

from .configuration_sam_hf import SamHfConfig
from .hub_code import CarriesCode
from .image_processing_sam_hf import (
    SamHfImageProcessor,
    SamHfImageProcessorKwargs,
    fill_labels,
    is_stock,
    mask_grid,
    mask_to_logits,
    own_settings,
    split_images,
)
from .layers import height_and_width
from .prompt_encoder import BACKGROUND, FOREGROUND, NOT_A_POINT, PADDING
from .prompt_nesting import Nested, describe, nest_all

__all__ = ["SamHfBatch", "SamHfProcessor", "SamHfProcessorKwargs"]

logger = logging.get_logger(__name__)


class SamHfProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: SamHfImageProcessorKwargs  # type: ignore[misc]  # narrower, as in every processor
    _defaults = {}  # type: ignore[misc]  # required by transformers 5.17, and not inherited by a TypedDict


class SamHfBatch(BatchFeature):
    """What the processor returns."""

    def to(self, *args: Any, **kwargs: Any) -> "SamHfBatch":
        """Move everything to a device, and cast the pixels alone: in bfloat16 a click at 901.3 would be one at 900."""
        pixels = BatchFeature({key: value for key, value in self.items() if key == "pixel_values"}).to(*args, **kwargs)
        others = BatchFeature({key: value for key, value in self.items() if key != "pixel_values"})
        device = kwargs.get("device", None if not args or isinstance(args[0], torch.dtype) else args[0])
        if device is not None:
            others = others.to(device=device, non_blocking=kwargs.get("non_blocking", False))
        self.data = {key: (pixels if key in pixels else others)[key] for key in self}
        return self


class SamHfProcessor(CarriesCode, ProcessorMixin):
    """Prepare images, clicks, boxes, mask prompts and ground truth for `SamHfModel`.

    Coordinates come in pixels of the original (upright) image and leave in pixels of the resized one. Only
    what was given is returned. See `__call__`; `prompt_nesting.py` states how arguments are nested.
    """

    auto_classes = ("AutoProcessor",)
    valid_processor_kwargs: Any = SamHfProcessorKwargs

    def __init__(self, image_processor) -> None:
        if not hasattr(image_processor, "mask_grid_size"):
            settings = image_processor.to_dict()
            if not is_stock(settings):
                raise ValueError(
                    f"image_processor is a {type(image_processor).__name__}, expected a SamHfImageProcessor; for a "
                    "model call SamHfProcessor.from_config(model.config)."
                )
            image_processor = SamHfImageProcessor.from_dict(own_settings(settings))
        super().__init__(image_processor)

    @classmethod
    def from_config(cls, config: SamHfConfig, image_size: int | None = None, **kwargs: Any) -> "SamHfProcessor":
        """The processor for a model of this configuration, with its mask grid.

        Args:
            config: of the model.
            image_size: longest side in pixels that images are resized to; the model's own when None.
            **kwargs: other options of `SamHfImageProcessor`.

        Raises:
            ValueError: if cells of the image embedding do not fill that size.
        """
        vision = config.vision_config
        edge = vision.image_size if image_size is None else image_size
        if edge % vision.size_multiple or edge <= 0:
            raise ValueError(f"image_size={edge} should be a multiple of {vision.size_multiple} for this model.")
        size = {"longest_edge": edge}
        # No configuration of a model says how images are resized; who ends prompts as SAM 2 does has its squares, too.
        kwargs.setdefault("keep_aspect_ratio", not config.prompt_encoder_config.end_every_prompt)
        return cls(SamHfImageProcessor(size=size, mask_size=mask_grid(size, vision.stride), **kwargs))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """As the method of the base class; the folder may also be one of a stock `SamProcessor`."""
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if is_stock(saved_settings(pretrained_model_name_or_path, **kwargs)):
            # The base class has looked at the file of the processor alone, and not at the model beside it.
            return cls(SamHfImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs))
        return processor

    def parts_with_code(self) -> list:
        return [self.image_processor, self]

    def __call__(
        self,
        images: ImageInput | None = None,
        input_points: Any | None = None,
        input_labels: Any | None = None,
        input_boxes: Any | None = None,
        input_masks: Any | None = None,
        segmentation_maps: Any | None = None,
        original_sizes: Any | None = None,
        **kwargs: Unpack[SamHfProcessorKwargs],
    ) -> BatchFeature:
        """Prepare one image, or a list of images, with prompts; or prompts alone, for embeddings of these images.

        Every argument may be a list, array or tensor, ragged at any axis. A list of images makes the first axis of all
        others the image axis. A single image may leave that axis out. None stands for an object without the prompt.

        Args:
            images: PIL, numpy, torch, path or URL, or a list of them; see `read_image`.
            input_points: (x, y) clicks, [N][P][2] per image. [P][2] is P clicks on *one* object, [x, y] one click.
                They may lie up to one pixel outside the image.
            input_labels: 1 foreground, 0 background, -1 not a point, -10 padding; nested as the points. All foreground
                when None.
            input_boxes: (x1, y1, x2, y2), [N][4] per image or [4]. A row of NaN is no box. Boxes may overhang the
                border as detectors' do, but their centre must lie in the image.
            input_masks: [N][H_image][W_image] bool, 0/1 or 0/255 masks, or float logits [N][h][w] of a previous
                prediction, which pass unchanged.
            segmentation_maps: ground truth. A label map [H_image][W_image] of integers (0 background, each other value
                one object in ascending order), or masks [N][H_image][W_image] of bool, 0/1 or 0/255; NaN in a float
                mask marks pixels to ignore.
            original_sizes: (height, width), or [B, 2], of images that are encoded already, in place of `images`; as
                `__call__` returns them.
            **kwargs: options of the image processor, and `return_tensors` ("pt" unless "np").

        Returns:
            SamHfBatch, a BatchFeature whose `to` casts the pixels alone; N and P are the largest of the batch.
            - `pixel_values` float32 [B, 3, H, W], if there are images;
            - `original_sizes`, `reshaped_input_sizes` int64 [B, 2];
            - `input_points` float32 [B, N, P, 2], `input_labels` int64 [B, N, P]; padding is (0, 0) with label -10;
            - `input_boxes` float32 [B, N, 4]; NaN rows are no box or padding;
            - `input_masks` float32 [B, N, h, w] logits, -10 to 10 for masks, 0 where there is none, and
              `has_input_masks` bool [B, N];
            - `labels` float32 [B, N, H, W], 0 and 1, NaN in the padding, in padded objects and in ignored pixels.

        Raises:
            ValueError: neither or both of `images` and `original_sizes`; wrong nesting; labels without points; unknown
                labels; coordinates that are not finite or outside the image; boxes with x2 < x1 or y2 < y1; masks of
                another size than their image (logits: than the mask grid) or with other values; numbers of objects
                that disagree.
        """
        merged = self._merge_kwargs(self.valid_processor_kwargs, tokenizer_init_kwargs={}, **kwargs)
        options = merged["images_kwargs"]
        return_tensors = options.pop("return_tensors", None) or "pt"
        given = {
            "input_points": input_points,
            "input_labels": input_labels,
            "input_boxes": input_boxes,
            "input_masks": input_masks,
            "segmentation_maps": segmentation_maps,
        }
        batch = self._prepare(images, original_sizes, given, options)
        return batch if return_tensors == "pt" else batch.convert_to_tensors(return_tensors)

    def _prepare(self, images: Any, original_sizes: Any, given: dict[str, Any], options: dict[str, Any]) -> SamHfBatch:
        """`__call__` with tensors; prompts are nested, and so checked, before any image is processed."""
        if original_sizes is None:
            images, is_batch = split_images(images)
            prompts = nest_all(given, len(images), is_batch)
            num_objects = max(_count_objects(prompts), default=0)
            batch = SamHfBatch(self.image_processor(images, return_tensors="pt", **options))
            padded_size = height_and_width(batch["pixel_values"])
        else:
            sizes = _image_sizes(original_sizes, images)
            prompts = nest_all(given, len(sizes), is_batch=len(sizes) > 1)
            num_objects = max(_count_objects(prompts), default=0)
            resized, padded_size = self.image_processor.resized_sizes(sizes, **options)
            batch = SamHfBatch({"original_sizes": sizes, "reshaped_input_sizes": resized}, "pt")
        self._add_prompts(batch, prompts, num_objects, padded_size)
        return batch

    def _add_prompts(
        self, batch: SamHfBatch, prompts: dict[str, Nested], num_objects: int, padded_size: tuple[int, int]
    ) -> None:
        """Add nested prompts as tensors of `num_objects` in each image."""
        if "input_points" in prompts:
            points, labels = prompts["input_points"], prompts["input_labels"]
            batch["input_points"], batch["input_labels"] = _pad_points(points, labels, num_objects, batch)
        if "input_boxes" in prompts:
            batch["input_boxes"] = _pad_boxes(prompts["input_boxes"], num_objects, batch)
        if "input_masks" in prompts:
            logits, has_masks = self._pad_masks(prompts["input_masks"], num_objects, batch, padded_size)
            batch["input_masks"], batch["has_input_masks"] = logits, has_masks
        if "segmentation_maps" in prompts:
            batch["labels"] = _pad_labels(prompts["segmentation_maps"], num_objects, batch, padded_size)

    def post_process_masks(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Masks in image pixels from low-resolution logits: undo the mask grid, the padding and the resize.

        Args:
            masks: float [B, N, M, h, w], or a list of [N, M, h, w]: on the mask grid, or upscaled to the model input.
            original_sizes: [B, 2], as `__call__` returns them.
            reshaped_input_sizes: likewise; computed from the original sizes when None.
            mask_threshold: logits above it are mask; 0.0.
            binarize: False returns logits.
            pad_size: {"height": H, "width": W}; that which masks of this size come from unless given.
            max_hole_area, max_sprinkle_area: before all that, fill holes and remove islands of up to so many cells of
                `masks` (not pixels of the image), as SAM 2 does; 0 leaves them.

        Returns:
            B tensors [N, M, H_image, W_image], bool or float.
        """
        return self.image_processor.post_process_masks(*args, **kwargs)

    def _pad_masks(
        self, masks: Nested, num_objects: int, batch: BatchFeature, padded_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        grid_size = self.image_processor.mask_grid_size(*padded_size)
        logits = torch.zeros(len(masks), num_objects, *grid_size)
        has_masks = torch.zeros(len(masks), num_objects, dtype=torch.bool)
        for b, n, mask in _items(masks):
            if mask.is_floating_point():
                _check_mask_size("input_masks", mask, grid_size, b, n, "the mask grid; for image pixels pass bool")
                if not mask.isfinite().all():
                    raise ValueError(f"input_masks of image {b}, object {n} holds NaN or infinite logits.")
                logits[b, n] = mask
            else:
                _check_mask_size("input_masks", mask, batch["original_sizes"][b], b, n, "its image")
                logits[b, n] = mask_to_logits(mask, batch["reshaped_input_sizes"][b].tolist(), padded_size, grid_size)
            has_masks[b, n] = True
        return logits, has_masks


def saved_settings(source: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
    """The saved configuration of an image processor, as it is in its file."""
    return SamImageProcessor.get_image_processor_dict(source, **kwargs)[0]


def _image_sizes(sizes: Any, images: Any) -> list[tuple[int, int]]:
    """`original_sizes` as B pairs (height, width); one pair may stand for a list of one."""
    if images is not None:
        raise ValueError(
            "original_sizes is for prompts of images that are encoded already: pass it or images, not both."
        )
    array = np.array(sizes.tolist() if hasattr(sizes, "tolist") else sizes)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != 2 or not len(array) or array.dtype.kind not in "iu" or array.min() < 1:
        raise ValueError(
            f"original_sizes is {sizes}, expected (height, width) in pixels, or one such pair for each image."
        )
    return [(height, width) for height, width in array.tolist()]


def _items(nested: Nested) -> list[tuple[int, int, Any]]:
    """(image, object, value) of everything that is there."""
    return [(b, n, v) for b, objects in enumerate(nested) for n, v in enumerate(objects or ()) if v is not None]


def _count_objects(prompts: dict[str, Nested]) -> list[int]:
    """Objects of each image that says how many it has.

    Raises:
        ValueError: arguments that disagree.
    """
    totals: list[int] = []
    for b, entries in enumerate(zip(*prompts.values(), strict=True)):
        counts = {name: len(entry) for name, entry in zip(prompts, entries, strict=True) if entry is not None}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise ValueError(
                f"image {b}: {listed} object(s), and all must have the same number. [P][2] points are P "
                "points of one object; one point for each of N objects is [N][1][2]. Use None for an object "
                "without a prompt."
            )
        totals += counts.values()
    return totals


def _array(value: Any, shape: tuple[int | None, ...], name: str, b: int, n: int) -> np.ndarray:
    """Numbers as float64 of a shape, where None is any length."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = None
    if array is not None and array.size == 0 and shape[0] is None:
        array = array.reshape([0 if length is None else length for length in shape])
    if (
        array is None
        or array.ndim != len(shape)
        or any(s not in (None, length) for s, length in zip(shape, array.shape, strict=True))
    ):
        expected = "".join("[P]" if length is None else f"[{length}]" for length in shape)
        raise ValueError(f"{name} of image {b}, object {n} came as {describe(value)}, expected {expected}.")
    return array


def _pad_points(points: Nested, labels: Nested, num_objects: int, batch: BatchFeature) -> tuple[Tensor, Tensor]:
    coordinates = {(b, n): _array(v, (None, 2), "input_points", b, n) for b, n, v in _items(points)}
    values = {(b, n): _array(v, (None,), "input_labels", b, n) for b, n, v in _items(labels)}
    # A batch of boxes only still carries one padding point, so that no axis is empty.
    num_points = max([1, *(len(v) for v in coordinates.values())])
    padded_points = np.zeros((len(points), num_objects, num_points, 2))
    padded_labels = np.full((len(points), num_objects, num_points), float(PADDING))
    for b, n in sorted(coordinates.keys() | values.keys()):
        xy, label = coordinates.get((b, n), np.zeros((0, 2))), values.get((b, n), np.zeros(0))
        if len(xy) != len(label):
            raise ValueError(
                f"image {b}, object {n} has {len(xy)} point(s) in input_points but {len(label)} label(s) in "
                "input_labels: labels nest like points without the coordinate axis."
            )
        padded_points[b, n, : len(xy)], padded_labels[b, n, : len(label)] = xy, label
    unknown = ~np.isin(padded_labels, (FOREGROUND, BACKGROUND, NOT_A_POINT, PADDING))
    if unknown.any():
        raise ValueError(
            f"input_labels holds {padded_labels[unknown][0]:g}: expected {FOREGROUND} (foreground), "
            f"{BACKGROUND} (background), {NOT_A_POINT} (not a point) or {PADDING} (padding)."
        )
    padded_points[padded_labels == PADDING] = 0
    is_click = np.isin(padded_labels, (FOREGROUND, BACKGROUND))
    _check_finite(padded_points, "input_points")
    # Centres of border pixels, and clicks a hair outside, are common; beyond a pixel it is another frame.
    _check_inside(padded_points, is_click, 1.0, "input_points", "a point lies", batch)
    _warn_if_normalised(padded_points[is_click], "input_points")
    scaled = padded_points * _scales(batch)[:, None, None]
    return torch.from_numpy(scaled.astype(np.float32)), torch.from_numpy(padded_labels.astype(np.int64))


def _pad_boxes(boxes: Nested, num_objects: int, batch: BatchFeature) -> Tensor:
    padded = np.full((len(boxes), num_objects, 4), np.nan)
    for b, n, box in _items(boxes):
        padded[b, n] = _array(box, (4,), "input_boxes", b, n)
    is_box = ~np.isnan(padded).all(-1)
    _check_finite(np.where(is_box[..., None], padded, 0), "input_boxes")
    corners = padded.reshape(*padded.shape[:-1], 2, 2)
    inverted = (corners[..., 1, :] < corners[..., 0, :]).any(-1)
    if inverted.any():
        b, n = np.argwhere(inverted)[0]
        raise ValueError(
            f"input_boxes of image {b}, object {n} is {padded[b, n].tolist()}: expected (x1, y1, x2, y2) "
            "with x1 <= x2 and y1 <= y2, not (x, y, width, height)."
        )
    _check_inside(corners.mean(-2), is_box, 0.0, "input_boxes", "the centre of a box lies", batch)
    _warn_if_normalised(padded[is_box], "input_boxes")
    scaled = corners * _scales(batch)[:, None, None]
    return torch.from_numpy(scaled.reshape(padded.shape).astype(np.float32))


def _pad_labels(maps: Nested, num_objects: int, batch: BatchFeature, padded_size: tuple[int, int]) -> Tensor:
    labels = torch.full((len(maps), num_objects, *padded_size), float("nan"))
    for b, n, mask in _items(maps):
        _check_mask_size("segmentation_maps", mask, batch["original_sizes"][b], b, n, "its image")
    for objects, label, size in zip(maps, labels, batch["reshaped_input_sizes"].tolist(), strict=True):
        fill_labels(label, objects or [], size)
    return labels


def _scales(batch: BatchFeature) -> np.ndarray:
    """Model pixels per image pixel, (x, y) of each image: float64 [B, 2].

    Each axis has its own, because the resized height and width are rounded (as in stock SAM).
    """
    return (batch["reshaped_input_sizes"].numpy() / batch["original_sizes"].numpy())[:, ::-1]


def _check_mask_size(name: str, mask: Tensor, expected: Any, b: int, n: int, of: str) -> None:
    expected = tuple(int(length) for length in expected)
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"{name} of image {b}, object {n} is (height, width) {tuple(mask.shape)}, expected {expected}, "
            f"the size of {of}."
        )


def _check_finite(coordinates: np.ndarray, name: str) -> None:
    bad = np.argwhere(~np.isfinite(coordinates))
    if len(bad):
        b, n = bad[0][:2]
        raise ValueError(
            f"{name} of image {b}, object {n} holds NaN or infinite coordinates: "
            f"{coordinates[b, n].tolist()}. Use None for an object without the prompt."
        )


def _check_inside(xy: np.ndarray, valid: np.ndarray, slack: float, name: str, what: str, batch: BatchFeature) -> None:
    """xy: [B, N, 2] or [B, N, P, 2]; `valid` says which of them count; `slack` in pixels below zero."""
    sizes = batch["original_sizes"].numpy()[:, ::-1]
    limits = sizes.reshape(len(sizes), *[1] * (xy.ndim - 2), 2)
    outside = ((xy < -slack) | (xy > limits)).any(-1) & valid
    if outside.any():
        index = tuple(np.argwhere(outside)[0])
        b, n = index[:2]
        x, y = xy[index].tolist()
        width, height = sizes[b]
        raise ValueError(
            f"{name} of image {b}, object {n}: {what} at (x, y) = ({x:g}, {y:g}), outside the image of width "
            f"{width} and height {height}. Coordinates are (x, y), not (y, x), in pixels of the original "
            "image, not of the resized one and not normalised."
        )


def _warn_if_normalised(coordinates: np.ndarray, name: str) -> None:
    is_unit = coordinates.size > 0 and (np.abs(coordinates) <= 1).all()
    if is_unit and (coordinates % 1 != 0).any():
        logger.warning_once(
            f"All coordinates in {name} are fractions between -1 and 1. They are read as pixels of the "
            "original image: multiply normalised coordinates by its width and height."
        )
