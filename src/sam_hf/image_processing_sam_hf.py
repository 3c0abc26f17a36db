"""Images of any kind to normalised, padded model input, and predicted masks back to image pixels.

Sizes are (height, width). H, W is the padded model input; h, w the mask grid, by default a quarter of it.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SamImageProcessor
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput
from transformers.processing_utils import ImagesKwargs, Unpack

from .configuration_sam_hf import SamHfConfig
from .crops import (
    OVERLAP_RATIO,
    click_grid,
    clicks_in_crop,
    generate_crops,
    paste_masks,
    points_per_layer,
)
from .hub_code import CarriesCode
from .instances import FOREGROUND_THRESH, SEED_THRESH
from .masks import decode_rle, encode_rle, filter_masks, suppress_duplicates
from .pixels import read_image
from .regions import clean_logits
from .tiles import check_tile_size

__all__ = [
    "MASK_PROMPT_LOGIT",
    "PRED_IOU_THRESH",
    "STABILITY_SCORE_THRESH",
    "SamHfImageProcessor",
    "SamHfImageProcessorKwargs",
    "automatic_thresholds",
    "fill_labels",
    "is_stock",
    "map_thresholds",
    "mask_grid",
    "mask_to_logits",
    "own_settings",
    "split_images",
]

MASK_PROMPT_LOGIT = 10.0
# SAM's for automatic masks (its paper, appendix B), which suit its checkpoints.
PRED_IOU_THRESH, STABILITY_SCORE_THRESH = 0.88, 0.95
SAM2_PROCESSOR = "Sam2ImageProcessor"
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")


class SamHfImageProcessorKwargs(ImagesKwargs, total=False):
    """
    mask_size (`dict[str, int]`, *optional*):
        `{"longest_edge": int}` of the mask grid; a quarter of `size` when not given.
    do_stretch_contrast (`bool`, *optional*, defaults to `False`):
        Stretch each image's 0.1 to 99.9 percentile to the full range before resizing.
    rescale_factor (`int` or `float`, *optional*):
        Stock refuses the integer 1.
    pred_iou_thresh, stability_score_thresh (`float`, *optional*):
        The model's own thresholds of automatic masks; SAM's, 0.88 and 0.95, when not given. They change no input of
        the model.
    foreground_thresh, seed_thresh (`float`, *optional*):
        The same of the maps of an instance decoder; 0.5 when not given.
    tile_size (`int`, *optional*):
        Side, in pixels of the image, of the tiles that larger images are cut into by what predicts and trains; a call
        resizes whole images, as all do where it is not given.
    keep_aspect_ratio (`bool`, *optional*, defaults to `True`):
        Pad the shorter side (SAM), instead of stretching images to squares (SAM 2); a call does as is configured.
    """

    mask_size: int | dict[str, int] | None
    do_stretch_contrast: bool | None
    rescale_factor: int | float | None
    pred_iou_thresh: int | float | None
    stability_score_thresh: int | float | None
    foreground_thresh: int | float | None
    seed_thresh: int | float | None
    tile_size: int | None
    keep_aspect_ratio: bool | None


def is_stock(settings: dict[str, Any]) -> bool:
    """Whether a saved configuration is one of transformers' `SamImageProcessor` or `Sam2ImageProcessor`."""
    return str(settings.get("image_processor_type")).startswith(("SamImageProcessor", SAM2_PROCESSOR))


def own_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The configuration of `SamHfImageProcessor` for that of a stock one.

    Stock saves its default `mask_size`, that of inputs of 1024 pixels, with every other size, too. Images of SAM 2 are
    stretched to squares.

    Raises:
        ValueError: for a size of SAM 2 that is no square.
    """
    if str(settings.get("image_processor_type")).startswith(SAM2_PROCESSOR):
        size = settings["size"]
        if size["height"] != size["width"]:
            raise ValueError(f"size is {size}, but only squares are supported: make height and width equal.")
        settings = settings | {"size": {"longest_edge": size["height"]}, "mask_size": None, "do_pad": True}
        return settings | {"keep_aspect_ratio": False, "image_processor_type": "SamHfImageProcessor"}
    settings = {"size": SamImageProcessor.size} | settings
    is_default = settings.get("mask_size") in (None, SamImageProcessor.mask_size)
    return settings | ({"mask_size": None} if is_default else {}) | {"image_processor_type": "SamHfImageProcessor"}


def automatic_thresholds(
    image_processor: Any, pred_iou_thresh: float | None = None, stability_score_thresh: float | None = None
) -> tuple[float, float]:
    """Predicted IoU and stability that automatic masks need: each as given, else as configured, else SAM's.

    Args:
        image_processor: may be of code that is older than these settings.
    """
    return (
        _threshold(image_processor, "pred_iou_thresh", pred_iou_thresh, PRED_IOU_THRESH),
        _threshold(image_processor, "stability_score_thresh", stability_score_thresh, STABILITY_SCORE_THRESH),
    )


def map_thresholds(
    image_processor: Any, foreground_thresh: float | None = None, seed_thresh: float | None = None
) -> tuple[float, float]:
    """Thresholds of `instances.find_centers`, in the same way."""
    return (
        _threshold(image_processor, "foreground_thresh", foreground_thresh, FOREGROUND_THRESH),
        _threshold(image_processor, "seed_thresh", seed_thresh, SEED_THRESH),
    )


def _threshold(image_processor: Any, name: str, given: float | None, default: float) -> float:
    value = getattr(image_processor, name, None) if given is None else given  # 0 is a value
    return default if value is None else value


def _pairs(sizes: Any) -> list[tuple[int, int]]:
    sizes = sizes.tolist() if hasattr(sizes, "tolist") else sizes
    return [(int(height), int(width)) for height, width in sizes]


def _is_float(image: Any) -> bool:
    if isinstance(image, Tensor):
        return image.is_floating_point()
    return getattr(image, "mode", "") == "F" or getattr(getattr(image, "dtype", None), "kind", "") == "f"


def _scale(image: Any, do_rescale: bool, rescale_factor: float) -> dict[str, Any]:
    """How to rescale what `read_image` makes of an image, which is 0 to 255 for floats from 0 to 1, too."""
    if not _is_float(image):
        return {"do_rescale": do_rescale, "rescale_factor": rescale_factor}
    if do_rescale and not any(math.isclose(rescale_factor, factor, rel_tol=1e-3) for factor in (1, 1 / 255)):
        raise ValueError(
            f"rescale_factor is {rescale_factor:g}, but images holds floats, which are from 0 to 1: expected 1 or "
            "1 / 255, which both take them as they are; for another factor pass 8-bit integers."
        )
    return {"do_rescale": True, "rescale_factor": 1 / 255}


def mask_grid(size: Any, stride: int) -> dict[str, int]:
    """`mask_size` for images of `size`: four cells for the side of one of the image embedding."""
    return {"longest_edge": 4 * _longest_edge(size, "size")["longest_edge"] // stride}


class SamHfImageProcessor(CarriesCode, SamImageProcessor):
    """Resize the longest side, normalise, and pad bottom and right with zeros; stock SAM's arithmetic.

    With `keep_aspect_ratio=False` images fill squares of that side, which nothing is padded to; stock SAM 2's.

    Images may be PIL, numpy, torch, paths or URLs, alone or in a list; `read_image` says how each kind
    becomes 8-bit RGB. `pad_size` and `mask_size` follow from `size` unless given: the mask grid is then a quarter of
    it, which is right for patches of 16 pixels (`SamHfProcessor.from_config` knows those of a model). Images of floats
    from 0 to 1 may come with `do_rescale=False` or `rescale_factor=1`, as stock wants it, and reach the model as they
    do without it; integers and files are then normalised as 0 to 255.

    Returns (with `return_tensors="pt"`): `pixel_values` float32 [B, 3, H, W], `original_sizes` int64 [B, 2]
    and `reshaped_input_sizes` int64 [B, 2].
    `generate_crop_boxes`, `filter_masks` and `post_process_for_mask_generation` are what
    `pipeline("mask-generation")` calls; `crops` and `masks` have their parts. `pred_iou_thresh`,
    `stability_score_thresh`, `foreground_thresh` and `seed_thresh` are saved with the model that they were found for
    (`evaluation.thresholds`), and `tile_size` with the one that was trained on such tiles (`tiles`).

    Raises:
        ValueError: an image without pixels, of unknown layout, or with float values outside 0 to 1; floats with a
            `rescale_factor` of integers other than 1 / 255; a `size` without `longest_edge`; a `tile_size` that is
            not a positive integer; an image that does not fit `pad_size`; `segmentation_maps`, which are the
            processor's.
    """

    auto_classes = ("AutoImageProcessor",)
    valid_kwargs: Any = SamHfImageProcessorKwargs  # no subtype of stock's: `mask_size` may be a number
    model_input_names = ["pixel_values", "original_sizes", "reshaped_input_sizes"]
    do_stretch_contrast = False
    pad_size: Any = None  # these are None in the class alone, see `_standardize_kwargs`
    mask_size: Any = None
    mask_pad_size: Any = None
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    foreground_thresh: float | None = None
    seed_thresh: float | None = None
    tile_size: int | None = None
    keep_aspect_ratio = True

    def __init__(self, **kwargs: Unpack[SamHfImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)
        check_tile_size(self.tile_size)

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the method of the base class; for stock SAM with the mask grid of the model beside it."""
        settings, unused = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if is_stock(settings):
            settings = own_settings(settings)
            try:
                where = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
                config = SamHfConfig.from_pretrained(pretrained_model_name_or_path, **where)
            except (OSError, ValueError):  # there is no model beside it
                return settings, unused
            settings["mask_size"] = mask_grid(settings["size"], config.vision_config.stride)
        return settings, unused

    def mask_grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the mask grid of a padded input of `height` x `width`."""
        edge, mask_edge = self.size["longest_edge"], self.mask_size["longest_edge"]
        return height * mask_edge // edge, width * mask_edge // edge

    def resized_sizes(
        self,
        original_sizes: Sequence[tuple[int, int]],
        size: Any = None,
        pad_size: Any = None,
        do_resize: bool | None = None,
        do_pad: bool | None = None,
        **kwargs: Any,
    ) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """What `preprocess` with the same options makes of images of these sizes: theirs, and the padded (H, W)."""
        if size is not None and pad_size is None:
            pad_size = dict.fromkeys(("height", "width"), _longest_edge(size, "size")["longest_edge"])
        edge = _longest_edge(self.size if size is None else size, "size")["longest_edge"]
        resized = list(original_sizes)
        if self.do_resize if do_resize is None else do_resize:
            resized = [self._get_preprocess_shape(shape, edge) for shape in resized]
        height, width = (max(side) for side in zip(*resized, strict=True))
        if self.do_pad if do_pad is None else do_pad:
            pad_size = self.pad_size if pad_size is None else pad_size
            height, width = pad_size["height"], pad_size["width"]
        return resized, (height, width)

    def preprocess(
        self, images: ImageInput, segmentation_maps: None = None, **kwargs: Unpack[SamHfImageProcessorKwargs]
    ) -> BatchFeature:
        if segmentation_maps is not None:
            raise ValueError(
                "SamHfImageProcessor takes no segmentation_maps, which have an axis of objects: call "
                "SamHfProcessor(image_processor)(images, segmentation_maps=...)."
            )
        if kwargs.get("size") is not None:
            # A size for one call must not keep the configured padding.
            kwargs = {"pad_size": None, "mask_size": None} | kwargs
        return super().preprocess(images, **kwargs)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        do_stretch_contrast: bool | None = False,
        **kwargs: Any,
    ) -> Tensor:
        """One image as uint8 [3, H, W]; RGB whatever `do_convert_rgb` says."""
        pixels = read_image(image, input_data_format, stretch_contrast=bool(do_stretch_contrast))
        return pixels if device is None else pixels.to(device)

    def _standardize_kwargs(  # type: ignore[override]  # called with keywords; those of stock's bases differ, too
        self, size: Any = None, pad_size: Any = None, mask_size: Any = None, **kwargs: Any
    ) -> dict:
        size = _longest_edge(size, "size")
        edge = size["longest_edge"]
        pad_size = {"height": edge, "width": edge} if pad_size is None else pad_size
        mask_size = _longest_edge(edge // 4 if mask_size is None else mask_size, "mask_size")
        return super()._standardize_kwargs(size=size, pad_size=pad_size, mask_size=mask_size, **kwargs)

    def _get_preprocess_shape(self, old_shape: tuple[int, int], longest_edge: int) -> tuple[int, int]:
        if not self.keep_aspect_ratio:
            return longest_edge, longest_edge
        height, width = super()._get_preprocess_shape(old_shape, longest_edge)
        return max(height, 1), max(width, 1)  # a 1 x 5000 strip keeps one row

    def _preprocess_image_like_inputs(self, images: ImageInput, *args: Any, **kwargs: Any) -> BatchFeature:
        return_tensors = kwargs.pop("return_tensors", None)
        reading = {key: kwargs.pop(key, None) for key in ("input_data_format", "do_stretch_contrast", "device")}
        pixels = [self.process_image(image, **reading) for image in split_images(images)[0]]
        scales = [_scale(image, kwargs["do_rescale"], kwargs["rescale_factor"]) for image in split_images(images)[0]]
        if all(scale == scales[0] for scale in scales):
            pixel_values, reshaped_sizes = self._preprocess(pixels, **kwargs | scales[0])
        else:
            single = [self._preprocess([image], **kwargs | scale) for image, scale in zip(pixels, scales, strict=True)]
            pixel_values, reshaped_sizes = [image for (image,), _ in single], [size for _, (size,) in single]
        data = {
            "pixel_values": pixel_values,
            "original_sizes": [tuple(image.shape[-2:]) for image in pixels],
            "reshaped_input_sizes": [tuple(size) for size in reshaped_sizes],
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def post_process_masks(
        self,
        masks: Any,
        original_sizes: Any,
        reshaped_input_sizes: Any = None,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        pad_size: Any = None,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
    ) -> list[Tensor]:
        """Masks in image pixels; see `SamHfProcessor.post_process_masks`."""
        if max_hole_area > 0 or max_sprinkle_area > 0:
            masks = [clean_logits(mask, mask_threshold, max_hole_area, max_sprinkle_area) for mask in masks]
        grids = [(mask.shape[-2], mask.shape[-1]) for mask in masks]
        originals = _pairs(original_sizes)
        if reshaped_input_sizes is None:
            resized = [self._resized_size(*sizes, pad_size) for sizes in zip(originals, grids, strict=True)]
        else:
            resized = _pairs(reshaped_input_sizes)
        restored = []
        for mask, grid, original, inner in zip(masks, grids, originals, resized, strict=True):
            padded = self._padded_size(grid, inner) if pad_size is None else pad_size
            padded, inner = self.mask_frame(grid, (padded["height"], padded["width"]), inner)
            padded = {"height": padded[0], "width": padded[1]}
            restored += super().post_process_masks([mask], [original], [inner], mask_threshold, binarize, padded)
        return restored

    def mask_frame(
        self, grid: tuple[int, int], padded: tuple[int, int], resized: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Sizes that masks of a grid are resized to, and cropped to, before they are to that of the image.

        Those of the padded input and of the image in it (SAM). Squares are resized once, from the grid (SAM 2).
        """
        return (padded, resized) if self.keep_aspect_ratio or padded != resized else (grid, grid)

    def _padded_size(self, grid: tuple[int, int], resized: tuple[int, int]) -> dict[str, int]:
        """Size of the padded input of masks [..., *grid], whose image was resized to `resized`.

        The configured one, unless the call that made the input had sizes of its own: masks are on the mask grid, or
        upscaled to the input.
        """
        configured = (self.pad_size["height"], self.pad_size["width"])
        candidates = [grid, self._input_of(grid)]
        if configured in candidates and (not self.do_resize or max(resized) == self.size["longest_edge"]):
            candidates = []
        fitting = [size for size in candidates if size[0] >= resized[0] and size[1] >= resized[1]]
        height, width = next(iter(fitting), configured)
        return {"height": height, "width": width}

    def _resized_size(self, original: tuple[int, int], grid: tuple[int, int], pad_size: Any) -> tuple[int, int]:
        """Size of an image in the input of masks [..., *grid], where only that of the image is known."""
        if not self.do_resize:
            return original
        padded = self._input_of(grid) if pad_size is None else (pad_size["height"], pad_size["width"])
        configured = (self.pad_size["height"], self.pad_size["width"])
        edge = self.size["longest_edge"] if configured in (grid, padded) else max(padded)
        return self._get_preprocess_shape(original, edge)

    def _input_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        edge, mask_edge = self.size["longest_edge"], self.mask_size["longest_edge"]
        return grid[0] * edge // mask_edge, grid[1] * edge // mask_edge

    def generate_crop_boxes(  # type: ignore[override]  # stock says that numbers may be None, and a factor a list
        self,
        image: ImageInput,
        target_size: int,
        crop_n_layers: int = 0,
        overlap_ratio: float = OVERLAP_RATIO,
        points_per_crop: int = 32,
        crop_n_points_downscale_factor: float = 1,
        device: "str | torch.device | None" = None,
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """C overlapping crops of one image, and a grid of P clicks in each; see `generate_crops`, `points_per_layer`.

        Returns:
            crop_boxes: float32 [C, 4] in pixels of the image.
            input_points: float32 [1, P, C, 2] in pixels of the resized crop. Smaller grids repeat their points up to
                the largest P, because the pipeline takes one tensor; non-maximum suppression removes the repetitions.
            crops: C uint8 images [3, H_crop, W_crop].
            input_labels: int64 [1, P, C], all foreground.
        """
        pixels = self.process_image(image, do_stretch_contrast=self.do_stretch_contrast)
        sides = points_per_layer(points_per_crop, crop_n_layers, crop_n_points_downscale_factor)
        height, width = pixels.shape[-2:]
        crops = generate_crops((height, width), crop_n_layers, overlap_ratio)
        images = [pixels[:, y1:y2, x1:x2] for _, (x1, y1, x2, y2) in crops]
        points = []
        for crop in crops:
            x1, y1, x2, y2 = crop.box
            size = (y2 - y1, x2 - x1)
            grid = click_grid(sides[crop.layer])
            grid = grid[torch.arange(max(sides) ** 2) % len(grid)]
            points.append(clicks_in_crop(grid, size, self._get_preprocess_shape(size, target_size)))
        crop_boxes = torch.tensor([crop.box for crop in crops], dtype=torch.float32, device=device)
        input_points = torch.stack(points, dim=1)[None].to(device)
        return crop_boxes, input_points, images, torch.ones_like(input_points[..., 0], dtype=torch.long)

    def filter_masks(
        self,
        masks: Tensor,
        iou_scores: Tensor,
        original_size: tuple[int, int],
        cropped_box_image: Tensor,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        mask_threshold: float = 0.0,
        stability_score_offset: float = 1.0,
    ) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
        """Keep the good ones of the masks [N, M, H, W] of one crop; `masks.filter_masks` says which.

        Args:
            pred_iou_thresh, stability_score_thresh: see `automatic_thresholds`. SAM's own, 0.88 and 0.95, are taken
                for values that were not given: the pipeline passes these where it is called without. To have them of a
                processor with others, set them there, or pass ones next to them.

        Returns:
            K run-length encoded masks of the whole image, their scores [K], and boxes int64 [K, 4].
        """
        if masks.shape[:2] != iou_scores.shape:
            raise ValueError(
                f"iou_scores should be {list(masks.shape[:2])}, one per mask, but got {list(iou_scores.shape)}."
            )
        x1, y1, x2, y2 = (int(edge) for edge in cropped_box_image)
        height, width = (int(side) for side in original_size)
        crop_box, image_size = (x1, y1, x2, y2), (height, width)
        pred_iou_thresh, stability_score_thresh = automatic_thresholds(
            self,
            None if pred_iou_thresh == PRED_IOU_THRESH else pred_iou_thresh,
            None if stability_score_thresh == STABILITY_SCORE_THRESH else stability_score_thresh,
        )
        kept, scores, boxes = filter_masks(
            masks.flatten(0, 1),
            iou_scores.flatten().to(masks.device),
            crop_box,
            image_size,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            mask_threshold=mask_threshold,
            stability_score_offset=stability_score_offset,
        )
        return encode_rle(paste_masks(kept, crop_box, image_size)), scores, boxes

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.5,
        target_sizes: Any = None,
    ) -> list[dict[str, Any]]:
        """Objects that do not overlap, from the output of `SamHfForInstanceSegmentation`.

        The better of two has the pixels that both claim.

        Args:
            outputs: `SamHfInstanceOutput`.
            threshold: objects whose score is not higher are dropped; `pipeline("image-segmentation")` has .9 unless
                another one is given.
            mask_threshold: probability above which a pixel is mask.
            overlap_mask_area_threshold: objects that better ones leave no larger share of are dropped.
            target_sizes: (height, width) of each image; the mask grid, with its padding, when None.

        Returns:
            for each image `segmentation`, int32 [H, W], 0 is none, and `segments_info`, a list of `id`, `label_id`,
            which is 0, and `score`, best first.
        """
        sizes = [None] * len(outputs.scores) if target_sizes is None else _pairs(target_sizes)
        level = math.log(mask_threshold / (1 - mask_threshold))
        results = []
        for logits, scores, size in zip(outputs.pred_masks, outputs.scores, sizes, strict=True):
            canvas = torch.zeros(size or logits.shape[-2:], dtype=torch.int32)
            segments: list[dict[str, Any]] = []
            for index in scores.argsort(descending=True, stable=True).tolist():
                if scores[index] <= threshold:
                    break
                mask = logits[index].float() > level
                if size is not None:
                    (mask,) = self.post_process_masks([logits[None, index, None].float()], [size], None, level)[0][0]
                free = mask.cpu() & (canvas == 0)
                if free.sum() > overlap_mask_area_threshold * mask.sum():
                    segments.append({"id": len(segments) + 1, "label_id": 0, "score": scores[index].item()})
                    canvas[free] = len(segments)
            results.append({"segmentation": canvas, "segments_info": segments})
        return results

    def post_process_for_mask_generation(
        self, all_masks: list[dict[str, Any]], all_scores: Tensor, all_boxes: Tensor, crops_nms_thresh: float = 0.7
    ) -> tuple[list[Tensor], Tensor, list[dict[str, Any]], Tensor]:
        """Of masks whose boxes overlap by more than `crops_nms_thresh`, keep the one with the highest score.

        Returns:
            K masks bool [H_image, W_image], scores [K], the masks run-length encoded, and boxes [K, 4]; best first.
        """
        kept = suppress_duplicates(all_boxes, all_scores, crops_nms_thresh)
        rle_masks = [all_masks[index] for index in kept.tolist()]
        return [decode_rle(rle) for rle in rle_masks], all_scores[kept], rle_masks, all_boxes[kept]


def split_images(images: Any) -> tuple[list, bool]:
    """Split `images` into single images, and say whether they came as a batch (a list, or 4 axes)."""
    if images is None:
        raise ValueError("images is None: pass a PIL image, an array, a tensor, a path, or a list of them.")
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
        images = list(images)
        if not images:
            raise ValueError("images is an empty list: pass at least one image.")
        return images, True
    return [images], False


def fill_labels(labels: Tensor, masks: Sequence[Tensor | None], size: tuple[int, int]) -> None:
    """Write one image's masks into its padded labels, in place; what is not written stays as it is.

    Args:
        labels: float32 [N, H, W].
        masks: at most N of [H_image, W_image], or None.
        size: (height, width) of the resized image inside the padding. Masks are resized to it by nearest
            pixel.
    """
    for label, mask in zip(labels, masks, strict=False):
        if mask is not None:
            label[: size[0], : size[1]] = _resize_nearest(mask, size)


def mask_to_logits(
    mask: Tensor, size: tuple[int, int], padded_size: tuple[int, int], grid_size: tuple[int, int]
) -> Tensor:
    """A mask of 0 and 1 in image pixels [H_image, W_image] as a mask prompt: float32 logits [h, w].

    A cell's logit runs linearly from -10 (none of its pixels is in the mask) to 10 (all are). Padding is
    outside.
    """
    canvas = torch.zeros(1, 1, *padded_size)
    fill_labels(canvas[0], [mask], size)
    coverage = F.interpolate(canvas, grid_size, mode="area")[0, 0]
    return (2 * coverage - 1) * MASK_PROMPT_LOGIT


def _resize_nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) == tuple(size):
        return mask
    # "nearest-exact" takes pixel centres; plain "nearest" would shift the mask by up to half a pixel.
    return F.interpolate(mask[None, None], tuple(size), mode="nearest-exact")[0, 0]


def _longest_edge(size: Any, name: str) -> dict[str, int]:
    edges = {"longest_edge": size} if isinstance(size, int) else size
    if not hasattr(edges, "get") or set(dict(edges)) != {"longest_edge"}:
        raise ValueError(
            f"{name} is {size}: give the longest side only, such as {name}={{'longest_edge': 1024}}, "
            "because images keep their aspect ratio. The padded size is `pad_size`."
        )
    return dict(edges)
