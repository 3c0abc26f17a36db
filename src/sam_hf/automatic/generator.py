"""Automatic masks: everything in an image, from a grid of clicks (SAM paper, appendix B).

The masks are those of `segment_anything.SamAutomaticMaskGenerator`. What differs is the work: the decoder predicts no
masks for clicks whose predicted IoU is too low, masks are resized only where they can be positive, and no more of them
at a time than the memory budget allows. K counts masks, n clicks.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.image_utils import ImageInput

from ..cpu_inference import MEMORY_BUDGET, objects_within
from ..crops import OVERLAP_RATIO, Crop, click_grid, clicks_in_crop, generate_crops, points_per_layer
from ..image_processing_sam_hf import SamHfImageProcessor, automatic_thresholds, split_images
from ..layers import height_and_width
from ..masks import decode_rle, encode_rle, mask_boxes, suppress_duplicates
from ..modeling_sam_hf import SamHfModel
from ..pixels import read_image
from ..processing_sam_hf import SamHfProcessor
from ..prompt_encoder import FOREGROUND
from .cleanup import remove_small_regions
from .tracing import MaskTracer, run_lengths

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


@dataclass
class Candidates:
    """K masks of an image before duplicates are removed.

    Args:
        scores, stability: float32 [K].
        boxes, crop_boxes: int64 [K, 4], (x1, y1, x2, y2) in pixels of the image.
        points: float64 [K, 2], the click (x, y) in pixels of the image.
        changes: K masks, as in `TracedMasks`.
    """

    scores: Tensor
    stability: Tensor
    boxes: Tensor
    crop_boxes: Tensor
    points: Tensor
    changes: list[Tensor]

    def __getitem__(self, index: Tensor) -> "Candidates":
        return Candidates(
            scores=self.scores[index],
            stability=self.stability[index],
            boxes=self.boxes[index],
            crop_boxes=self.crop_boxes[index],
            points=self.points[index],
            changes=[self.changes[i] for i in index.tolist()],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Candidates"]) -> "Candidates":
        return cls(
            scores=torch.cat([part.scores for part in parts]),
            stability=torch.cat([part.stability for part in parts]),
            boxes=torch.cat([part.boxes for part in parts]),
            crop_boxes=torch.cat([part.crop_boxes for part in parts]),
            points=torch.cat([part.points for part in parts]),
            changes=[changes for part in parts for changes in part.changes],
        )


@dataclass
class MaskGenerator:
    """Finds all masks of an image: `MaskGenerator(model, processor)(image)`.

    Options are named as in `segment_anything` and have its defaults. Those of the two thresholds suit its checkpoints;
    a model of your own has its own in its processor, once `evaluation.fit_thresholds` has found them.

    Args:
        model: in eval mode; used on its device and in its dtype.
        processor: the processor or image processor of the model.
        points_per_side: clicks along each side of an image.
        points_per_batch: clicks that are decoded together, if `memory_budget` allows them. It changes no mask.
        point_grids: instead of that, float [P, 2] clicks (x, y) in [0, 1] for the image and for each layer of crops.
        pred_iou_thresh: masks whose predicted IoU is not higher go; 0 keeps all. None is the value of the processor,
            or 0.88 where that has none.
        stability_score_thresh: masks that depend more on the threshold go; see `stability_scores`. 0 keeps all. None
            is the value of the processor, or 0.95 where that has none.
        stability_score_offset: how much the threshold is moved for that.
        mask_threshold: logits above it are mask.
        box_nms_thresh: of masks from one crop whose boxes overlap more, the one with the best predicted IoU stays.
        crop_n_layers: layers of crops besides the image, which show small objects larger; see `generate_crops`.
        crop_nms_thresh: of masks from different crops whose boxes overlap more, the one of the smaller crop stays.
        crop_overlap_ratio: overlap of the crops in the first layer, as a share of the shorter side.
        crop_n_points_downscale_factor: clicks along each side are divided by it with each layer.
        min_mask_region_area: holes and islands of fewer pixels are removed.
        output_mode: form of `segmentation`, one of `OUTPUT_MODES`; "coco_rle" needs pycocotools.
        memory_budget: bytes that decoding may take besides the model and the embedding of the image.

    Raises:
        ValueError: for an unknown output mode, thresholds or grids that make no sense.
    """

    model: SamHfModel
    processor: SamHfProcessor | SamHfImageProcessor
    _: KW_ONLY
    points_per_side: int = 32
    points_per_batch: int = 128
    point_grids: Sequence[Any] | None = None
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    stability_score_offset: float = 1.0
    mask_threshold: float = 0.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = OVERLAP_RATIO
    crop_n_points_downscale_factor: float = 1
    min_mask_region_area: int = 0
    output_mode: str = "binary_mask"
    memory_budget: int = MEMORY_BUDGET

    def __post_init__(self) -> None:
        if self.output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode is {self.output_mode!r}, expected one of {', '.join(OUTPUT_MODES)}.")
        if self.stability_score_offset < 0:
            raise ValueError(f"stability_score_offset is {self.stability_score_offset}, expected 0 or more.")
        if self.memory_budget <= 0:
            raise ValueError(f"memory_budget is {self.memory_budget}, expected a positive number of bytes.")
        if self.points_per_batch < 1:
            raise ValueError(f"points_per_batch is {self.points_per_batch}, expected 1 or more clicks.")
        generate_crops((1, 1), self.crop_n_layers, self.crop_overlap_ratio)  # checks them
        self.image_processor: Any = getattr(self.processor, "image_processor", self.processor)
        if not hasattr(self.image_processor, "mask_grid_size"):
            raise ValueError(
                f"processor has a {type(self.image_processor).__name__}, expected a SamHfImageProcessor, as that of "
                "SamHfProcessor.from_config(model.config)."
            )
        if self.point_grids is None:
            sides = points_per_layer(self.points_per_side, self.crop_n_layers, self.crop_n_points_downscale_factor)
            self.grids = [click_grid(side) for side in sides]
        else:
            self.grids = [torch.as_tensor(grid) for grid in self.point_grids]
            shapes = [list(grid.shape) for grid in self.grids]
            if len(shapes) <= self.crop_n_layers or any(len(shape) != 2 or shape[1] != 2 for shape in shapes):
                raise ValueError(
                    "point_grids should be [P, 2] for the image and for each layer of crops, "
                    f"{self.crop_n_layers + 1} in all, but came as {shapes}."
                )

    @torch.no_grad()
    def __call__(self, images: ImageInput, *, show_progress: bool = False) -> list:
        """Find the masks of one image, or of each of a list.

        Args:
            images: of any kind that the processor takes. Images are processed one after another.
            show_progress: a bar that counts clicks.

        Returns:
            for one image a list of records, for a list of images a list of such lists. Records are sorted by predicted
            IoU; with crops, those of smaller crops come first, and after a clean-up those that it did not change.
            - `segmentation`: bool array [H, W] of the size of the image, or its run lengths as a dict; see
              `output_mode`.
            - `area`: its pixels.
            - `bbox`: `[x, y, width, height]` of the pixels that it holds; as in SA-1B, one less than their count.
            - `predicted_iou`, `stability_score`: what the filters saw.
            - `point_coords`: `[[x, y]]`, the click in pixels of the image.
            - `crop_box`: `[x, y, width, height]` of the crop.

        Raises:
            ValueError: if the model is in training mode, or for images that the processor does not take.
        """
        if self.model.training:
            raise ValueError("the model is in training mode, in which its masks are random: call model.eval() before.")
        images, is_batch = split_images(images)
        clicks_per_image = sum(4**layer * len(self.grids[layer]) for layer in range(self.crop_n_layers + 1))
        with tqdm(total=len(images) * clicks_per_image, unit="click", disable=not show_progress) as progress:
            results = [self.find_masks(image, progress) for image in images]
        return results if is_batch else results[0]

    def generate(self, image: Any) -> list[dict[str, Any]]:
        """The records of one image, by the name of this method in `segment_anything`; see `__call__`."""
        return self([image])[0]

    def find_masks(self, image: ImageInput, progress: tqdm) -> list[dict[str, Any]]:
        """Records of one image."""
        pixels = read_image(image, stretch_contrast=bool(self.image_processor.do_stretch_contrast))
        image_size = height_and_width(pixels)
        crops = generate_crops(image_size, self.crop_n_layers, self.crop_overlap_ratio)
        found = Candidates.concatenate([self.find_in_crop(pixels, crop, progress) for crop in crops])
        if len(crops) > 1:
            found = found[suppress_duplicates(found.boxes, 1 / box_areas(found.crop_boxes), self.crop_nms_thresh)]
        masks = [run_lengths(changes, image_size) for changes in found.changes]
        if self.min_mask_region_area > 0:
            found, masks = self.clean(found, masks)
        return [self.record(found, index, rle) for index, rle in enumerate(masks)]

    def find_in_crop(self, image: Tensor, crop: Crop, progress: tqdm) -> Candidates:
        """Masks of one crop of a uint8 image [3, H, W], without those that have a better duplicate."""
        x1, y1, x2, y2 = crop.box
        # The contrast of the whole image has been stretched already.
        inputs = self.image_processor(
            image[:, y1:y2, x1:x2], do_stretch_contrast=False, input_data_format="channels_first", return_tensors="pt"
        )
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.model.device))
        crop_size, resized_size = (y2 - y1, x2 - x1), tuple(inputs["reshaped_input_sizes"][0].tolist())
        height, width = height_and_width(embeddings[-1])
        tracer = MaskTracer(
            crop.box,
            height_and_width(image),
            (4 * height, 4 * width),
            height_and_width(inputs["pixel_values"]),
            resized_size,
            mask_threshold=self.mask_threshold,
            stability_score_offset=self.stability_score_offset,
            memory_budget=self.memory_budget,
            device=embeddings[-1].device,
        )
        grid = self.grids[crop.layer]
        clicks = clicks_in_crop(grid.float(), crop_size, resized_size).to(embeddings[-1].device)
        points = grid.double() * torch.tensor(crop_size[::-1]) + torch.tensor([x1, y1])
        at_once, parts = min(self.points_per_batch, objects_within(self.memory_budget, embeddings[-1])), []
        for index in torch.arange(len(grid)).split(at_once):
            parts.append(self.find_at_clicks(embeddings, clicks[index], points[index], tracer))
            progress.update(len(index))
        found = Candidates.concatenate(parts)
        return found[suppress_duplicates(found.boxes, found.scores, self.box_nms_thresh)]

    def find_at_clicks(
        self, embeddings: list[Tensor], clicks: Tensor, points: Tensor, tracer: MaskTracer
    ) -> Candidates:
        """Masks that pass the filters; `clicks` [n, 2] in pixels of the model input are `points` in the image."""
        pred_iou_thresh, stability_score_thresh = automatic_thresholds(
            self.image_processor, self.pred_iou_thresh, self.stability_score_thresh
        )

        def keep(iou_scores: Tensor) -> Tensor:
            """The candidates of a click, as far as they are good enough."""
            is_good = iou_scores.float() > (pred_iou_thresh if pred_iou_thresh > 0 else -torch.inf)
            takes_part = torch.zeros_like(is_good)
            takes_part[..., self.model.mask_decoder.candidates(multimask_output=True)] = True
            return is_good & takes_part

        labels = torch.full((1, len(clicks), 1), FOREGROUND, device=clicks.device)
        logits, scores, _ = self.model.decode(embeddings, clicks[None, :, None], labels, keep=keep)
        is_good = keep(scores)[0]  # [n, 1 + M]
        traced = tracer.trace(logits, stability_score_thresh)
        click = is_good.nonzero()[:, 0][traced.index].cpu()
        crop_box = torch.tensor(tracer.crop_box)
        return Candidates(
            scores=scores[0][is_good].float()[traced.index].cpu(),
            stability=traced.stability.cpu(),
            boxes=traced.boxes.cpu(),
            crop_boxes=crop_box.expand(len(click), -1),
            points=points[click],
            changes=traced.changes,
        )

    def clean(self, found: Candidates, masks: list[dict]) -> tuple[Candidates, list[dict]]:
        """Remove small regions, and then duplicates, of which those stay that needed no change."""
        is_same = torch.ones(len(masks))
        masks, boxes = list(masks), found.boxes.clone()
        for index, rle in enumerate(masks):
            cleaned, changed = remove_small_regions(decode_rle(rle).numpy(), self.min_mask_region_area)
            if changed:
                mask = torch.from_numpy(cleaned)
                is_same[index] = 0
                masks[index], boxes[index] = encode_rle(mask[None])[0], mask_boxes(mask)
        kept = suppress_duplicates(boxes, is_same, max(self.box_nms_thresh, self.crop_nms_thresh))
        return replace(found, boxes=boxes)[kept], [masks[index] for index in kept.tolist()]

    def record(self, found: Candidates, index: int, rle: dict) -> dict[str, Any]:
        return {
            "segmentation": segmentation(rle, self.output_mode),
            "area": sum(rle["counts"][1::2]),
            "bbox": corner_and_size(found.boxes[index]),
            "predicted_iou": found.scores[index].item(),
            "point_coords": [found.points[index].tolist()],
            "stability_score": found.stability[index].item(),
            "crop_box": corner_and_size(found.crop_boxes[index]),
        }


def segmentation(rle: dict, output_mode: str) -> np.ndarray | dict:
    """A mask in one of `OUTPUT_MODES`."""
    if output_mode == "binary_mask":
        return decode_rle(rle).numpy()
    if output_mode == "uncompressed_rle":
        return rle
    from pycocotools import mask as coco  # only the "train" extra brings pycocotools

    compressed = coco.frPyObjects(rle, *rle["size"])
    return {"size": rle["size"], "counts": compressed["counts"].decode()}  # bytes would not become JSON


def box_areas(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x2 - x1) * (y2 - y1)


def corner_and_size(box: Tensor) -> list[int]:
    """(x1, y1, x2, y2) as [x1, y1, x2 - x1, y2 - y1]."""
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


__all__ = ["MaskGenerator"]
