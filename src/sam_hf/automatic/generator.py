"""Automatic masks: everything in an image, from a grid of clicks or from the maps of an instance decoder.

The masks of the grid are those of `segment_anything.SamAutomaticMaskGenerator` (SAM paper, appendix B). What differs
is the work: the decoder predicts no masks for clicks whose predicted IoU is too low, masks are resized only where they
can be positive, and no more of them at a time than the memory budget allows. With an instance decoder the clicks are
at the centres of objects, as in APG (arXiv 2603.17845). K counts masks, n clicks.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.image_utils import ImageInput

from ..cpu_inference import MEMORY_BUDGET, objects_within
from ..crops import OVERLAP_RATIO, Crop, click_grid, clicks_in_crop, generate_crops, points_per_layer
from ..image_processing_sam_hf import SamHfImageProcessor, automatic_thresholds, map_thresholds, split_images
from ..instances import find_centers, watershed_instances
from ..layers import height_and_width
from ..masks import decode_rle, encode_rle, mask_boxes, suppress_duplicates, suppress_overlaps
from ..modeling_sam_hf import SamHfModel
from ..pixels import read_image
from ..processing_sam_hf import SamHfProcessor
from ..prompt_encoder import FOREGROUND
from ..tiles import blend_tiles, central_tiles, tile_boxes
from .candidates import Candidates
from .cleanup import remove_small_regions
from .records import OUTPUT_MODES, record
from .tracing import MaskTracer, find_changes, run_lengths

OF_GRID = (
    "points_per_side",
    "point_grids",
    "crop_n_layers",
    "crop_nms_thresh",
    "crop_overlap_ratio",
    "crop_n_points_downscale_factor",
)
OF_CLICKS = (
    "points_per_batch",
    "pred_iou_thresh",
    "stability_score_thresh",
    "stability_score_offset",
    "mask_threshold",
    "box_nms_thresh",
)
Box = tuple[int, int, int, int]
WAYS = ("grid", "instances", "watershed")
# Options that a way has no use for.
UNUSED = {"grid": ("foreground_thresh", "seed_thresh"), "instances": OF_GRID, "watershed": OF_GRID + OF_CLICKS}


class EncodedCrop(NamedTuple):
    """What was made of a part of an image, which has `resized_size` in the model input."""

    embeddings: list[Tensor]
    tracer: MaskTracer
    resized_size: tuple[int, int]

    def clicks_at(self, points: Tensor) -> Tensor:
        """Points float64 [n, 2] in pixels of the image, as float32 in those of the model input."""
        scale = [new / old for new, old in zip(self.resized_size, self.tracer.crop_size, strict=True)]
        return ((points - points.new_tensor(self.tracer.crop_box[:2])) * points.new_tensor(scale[::-1])).float()


@dataclass
class MaskGenerator:
    """Finds all masks of an image: `MaskGenerator(model, processor)(image)`.

    There are three ways, `prompts`. "grid" clicks everywhere and keeps the masks that are good enough. With an
    instance decoder "instances" clicks once into each object of its maps (`instances.find_centers`) and shows the mask
    that the model rates highest; "watershed" takes the masks from the maps (`instances.watershed_instances`, which
    needs scikit-image), quicker, and as coarse as the maps are.

    Images that are larger than the `tile_size` of the processor are seen in tiles. Each has a grid of its own; masks
    that an inner border cuts are dropped, and duplicates of different tiles as those of crops. The maps of all tiles
    are blended into one; a centre is clicked in its most central tile, and if that cuts the mask, in one of twice the
    side, and so on.

    Options are named as in `segment_anything` and have its defaults. Those of the thresholds suit its checkpoints; a
    model of your own has its own in its processor, once `evaluation.fit_thresholds` has found them.

    Args:
        model: in eval mode; used on its device and in its dtype.
        processor: the processor or image processor of the model.
        prompts: the way; None is "instances" for a model with an instance decoder, and else "grid".
        foreground_thresh, seed_thresh: what of the maps is object, and what of an object its inner part, in [0, 1);
            see `instances.find_seeds`. None is the value of the processor, or 0.5 where that has none.
        points_per_side: clicks along each side of an image, or tile.
        points_per_batch: clicks that are decoded together, if `memory_budget` allows them. It changes no mask.
        point_grids: instead of that, float [P, 2] clicks (x, y) in [0, 1] for the image and for each layer of crops.
        pred_iou_thresh: masks whose predicted IoU is not higher go; 0 keeps all. None is the value of the processor,
            or 0.88 where that has none; for "instances" it is 0, because what is clicked on has been chosen already.
        stability_score_thresh: masks that depend more on the threshold go; see `stability_scores`. 0 keeps all. None
            is the value of the processor, or 0.95 where that has none; for "instances" it is 0.
        stability_score_offset: how much the threshold is moved for that.
        mask_threshold: logits above it are mask.
        box_nms_thresh: of masks from one crop whose boxes overlap more, the one with the best predicted IoU stays; for
            "instances" of masks that share more of the smaller one, see `suppress_overlaps`.
        crop_n_layers: layers of crops besides the image, which show small objects larger; see `generate_crops`.
        crop_nms_thresh: of masks from different crops whose boxes overlap more, the one of the smaller crop stays.
        crop_overlap_ratio: overlap of the crops in the first layer, as a share of the shorter side.
        crop_n_points_downscale_factor: clicks along each side are divided by it with each layer.
        min_mask_region_area: holes and islands of fewer pixels are removed.
        output_mode: form of `segmentation`, one of `OUTPUT_MODES`; "coco_rle" needs pycocotools.
        memory_budget: bytes that decoding may take besides the model and the embedding of the image.

    Raises:
        ValueError: for an unknown way or output mode, thresholds or grids that make no sense, maps of a model that has
            none, options that the way has no use for, and crops in tiles.
    """

    model: SamHfModel
    processor: SamHfProcessor | SamHfImageProcessor
    _: KW_ONLY
    prompts: str | None = None
    foreground_thresh: float | None = None
    seed_thresh: float | None = None
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
        self.check_way()
        self.image_processor: Any = getattr(self.processor, "image_processor", self.processor)
        if not hasattr(self.image_processor, "mask_grid_size"):
            raise ValueError(
                f"processor has a {type(self.image_processor).__name__}, expected a SamHfImageProcessor, as that of "
                "SamHfProcessor.from_config(model.config)."
            )
        # None in an image processor of code that is older than the setting.
        self.tile_size: int | None = getattr(self.image_processor, "tile_size", None)
        if self.tile_size is not None and self.crop_n_layers:
            raise ValueError(
                f"crop_n_layers is {self.crop_n_layers}, and the tile_size of the processor {self.tile_size}: "
                "expected crops or tiles, not both."
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

    def check_way(self) -> None:
        """Settle `prompts`.

        Raises:
            ValueError: see the class.
        """
        has_maps = getattr(self.model, "instance_decoder", None) is not None
        self.way = self.prompts or ("instances" if has_maps else "grid")
        if self.way not in WAYS:
            raise ValueError(f"prompts is {self.prompts!r}, expected one of {', '.join(WAYS)}.")
        if self.way != "grid" and not has_maps:
            raise ValueError(
                f"prompts is {self.way!r}, but the model has no instance decoder: train one, by --instances true, or "
                'take prompts="grid".'
            )
        defaults = {field.name: field.default for field in fields(self)}
        for name in UNUSED[self.way]:
            value, default = getattr(self, name), defaults[name]
            if value is not default and (default is None or value != default):
                raise ValueError(f"{name} is given, of which prompts={self.way!r} makes no use: leave it out.")

    @torch.no_grad()
    def __call__(self, images: ImageInput, *, show_progress: bool = False) -> list:
        """Find the masks of one image, or of each of a list.

        Args:
            images: of any kind that the processor takes. Images are processed one after another.
            show_progress: a bar that counts clicks.

        Returns:
            for one image a list of records, for a list of images a list of such lists. Records are sorted by predicted
            IoU; with crops, those of smaller crops come first, and after a clean-up of the grid's masks those that it
            did not change.
            - `segmentation`: bool array [H, W] of the size of the image, or its run lengths as a dict; see
              `output_mode`.
            - `area`: its pixels.
            - `bbox`: `[x, y, width, height]` of the pixels that it holds; as in SA-1B, one less than their count.
            - `predicted_iou`, `stability_score`: what the filters saw. For "instances" predicted IoU times the
              foreground at the centre, divided by the centres that the mask holds; for "watershed" the mean foreground
              of the object, and 1.
            - `point_coords`: `[[x, y]]`, the click in pixels of the image.
            - `crop_box`: `[x, y, width, height]` of the crop or tile.

        Raises:
            ValueError: if the model is in training mode, or for images that the processor does not take.
        """
        if self.model.training:
            raise ValueError("the model is in training mode, in which its masks are random: call model.eval() before.")
        images, is_batch = split_images(images)
        with tqdm(total=0, unit="click", disable=not show_progress) as progress:
            results = [self.find_masks(image, progress) for image in images]
        return results if is_batch else results[0]

    def generate(self, image: Any) -> list[dict[str, Any]]:
        """The records of one image, by the name of this method in `segment_anything`; see `__call__`."""
        return self([image])[0]

    def find_masks(self, image: ImageInput, progress: tqdm) -> list[dict[str, Any]]:
        """Records of one image."""
        pixels = read_image(image, stretch_contrast=bool(self.image_processor.do_stretch_contrast))
        find = {"grid": self.find_in_grid, "instances": self.find_at_centers, "watershed": self.find_in_maps}
        found = find[self.way](pixels, progress)
        masks = [run_lengths(changes, height_and_width(pixels)) for changes in found.changes]
        if self.min_mask_region_area > 0:
            found, masks = self.clean(found, masks)
        return [record(found, index, rle, self.output_mode) for index, rle in enumerate(masks)]

    def find_in_grid(self, image: Tensor, progress: tqdm) -> Candidates:
        """Masks of a grid of clicks in a uint8 image [3, H, W], and in each of its crops or tiles."""
        tiles = tile_boxes(height_and_width(image), self.tile_size)
        crops = [Crop(0, box) for box in tiles]
        if len(tiles) == 1:
            crops = generate_crops(height_and_width(image), self.crop_n_layers, self.crop_overlap_ratio)
        progress.total += sum(len(self.grids[crop.layer]) for crop in crops)
        found = Candidates.concatenate([self.find_in_crop(image, crop, progress) for crop in crops])
        if len(crops) > 1:
            ranks = found.scores if len(tiles) > 1 else 1 / box_areas(found.crop_boxes)
            found = found[suppress_duplicates(found.boxes, ranks, self.crop_nms_thresh)]
        return found

    def find_in_crop(self, image: Tensor, crop: Crop, progress: tqdm) -> Candidates:
        """Masks of one crop, without those that have a better duplicate."""
        x1, y1, _, _ = crop.box
        encoded, grid = self.encode(image, crop.box), self.grids[crop.layer]
        crop_size = encoded.tracer.crop_size
        clicks = clicks_in_crop(grid.float(), crop_size, encoded.resized_size)
        points = grid.double() * torch.tensor(crop_size[::-1]) + torch.tensor([x1, y1])
        thresholds = automatic_thresholds(self.image_processor, self.pred_iou_thresh, self.stability_score_thresh)
        keep = partial(self.keep_good, pred_iou_thresh=thresholds[0])
        found, _ = self.find_at_clicks(encoded, clicks, points, keep, thresholds[1], progress)
        return found[suppress_duplicates(found.boxes, found.scores, self.box_nms_thresh)]

    def find_at_centers(self, image: Tensor, progress: tqdm) -> Candidates:
        """The best mask of each centre of the maps, without those of which a better one holds too much."""
        encoded: dict[Box, EncodedCrop] = {}
        found = find_centers(self.blend_maps(image, encoded), *self.map_thresholds())
        points, certainty = (torch.from_numpy(values).double() for values in found)
        progress.total += len(points)
        parts, tile_size = [Candidates.none()], self.tile_size or 0
        while len(points):
            tiles = tile_boxes(height_and_width(image), tile_size or None)
            tile_of, is_cut = central_tiles(points, tiles), torch.ones(len(points), dtype=torch.bool)
            for tile in tile_of.unique().tolist():
                index = (tile_of == tile).nonzero()[:, 0]
                crop = encoded.pop(tiles[tile], None) or self.encode(image, tiles[tile])
                masks, whole = self.find_best(crop, points[index], certainty[index], progress)
                parts.append(masks)
                is_cut[index[whole]] = False
            # What is left is larger than these tiles. The last of all is the image, which cuts nothing.
            points, certainty, tile_size = points[is_cut], certainty[is_cut], 2 * tile_size
            progress.total += len(points)
        masks = Candidates.concatenate(parts)
        # What is several objects to the maps is worth less, lest it suppress them all.
        masks = replace(masks, scores=masks.scores / centers_held(masks, height_and_width(image)[0]))
        return masks[suppress_overlaps(masks.changes, masks.boxes, masks.scores, self.box_nms_thresh)]

    def find_best(
        self, crop: EncodedCrop, points: Tensor, certainty: Tensor, progress: tqdm
    ) -> tuple[Candidates, Tensor]:
        """The best mask of each click, if it is good enough; and of which the crop does not cut it, int64 [.].

        Args:
            points: float64 [n, 2] in pixels of the image; certainty: float64 [n], a factor of the scores.
        """
        clicks = crop.clicks_at(points)
        found, whole = self.find_at_clicks(crop, clicks, points, self.keep_best, 0.0, progress)
        passes = torch.tensor([len(changes) > 0 for changes in found.changes], dtype=torch.bool)
        if self.pred_iou_thresh:
            passes &= found.scores > self.pred_iou_thresh
        if self.stability_score_thresh:
            passes &= found.stability >= self.stability_score_thresh
        found = replace(found, scores=found.scores * certainty[whole].float())
        return found[passes.nonzero()[:, 0]], whole

    def find_in_maps(self, image: Tensor, progress: tqdm) -> Candidates:
        """The objects of the maps themselves, best first."""
        height, width = height_and_width(image)
        labels, points, scores = watershed_instances(self.blend_maps(image), *self.map_thresholds())
        boxes, changes = [], []
        for index, (rows, columns) in enumerate(object_slices(labels), start=1):
            boxes.append([columns.start, rows.start, columns.stop - 1, rows.stop - 1])
            mask = torch.from_numpy(labels[rows, columns] == index)
            changes += find_changes(mask.T[None], columns.start, rows.start, height)
        found = Candidates(
            scores=torch.from_numpy(scores).float(),
            stability=torch.ones(len(scores)),
            boxes=torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4),
            crop_boxes=torch.tensor([0, 0, width, height]).expand(len(scores), -1),
            points=torch.from_numpy(points).double(),
            changes=changes,
        )
        return found[found.scores.argsort(descending=True, stable=True)]

    def blend_maps(self, image: Tensor, encoded: dict[Box, EncodedCrop] | None = None) -> Tensor:
        """`instances.MAPS` in pixels of the image, float32 [3, H, W]; what is encoded for it goes there."""
        tiles = tile_boxes(height_and_width(image), self.tile_size)

        def maps(box: Box) -> Tensor:
            crop = self.encode(image, box)
            if encoded is not None:
                encoded[box] = crop
            inner = self.model.get_instance_maps(crop.embeddings)
            sizes = [crop.tracer.crop_size], [crop.resized_size]
            return self.image_processor.post_process_masks([inner], *sizes, binarize=False)[0][0]

        return blend_tiles(map(maps, tiles), tiles, height_and_width(image))

    def map_thresholds(self) -> tuple[float, float]:
        return map_thresholds(self.image_processor, self.foreground_thresh, self.seed_thresh)

    def encode(self, image: Tensor, box: Box) -> EncodedCrop:
        x1, y1, x2, y2 = box
        # The contrast of the whole image has been stretched already.
        inputs = self.image_processor(
            image[:, y1:y2, x1:x2], do_stretch_contrast=False, input_data_format="channels_first", return_tensors="pt"
        )
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.model.device))
        height, width = height_and_width(embeddings[-1])
        grid_size, padded_size = (4 * height, 4 * width), height_and_width(inputs["pixel_values"])
        resized_size = tuple(inputs["reshaped_input_sizes"][0].tolist())
        frame = padded_size, resized_size
        if hasattr(self.image_processor, "mask_frame"):  # not one of code that is older
            frame = self.image_processor.mask_frame(grid_size, *frame)
        tracer = MaskTracer(
            box,
            height_and_width(image),
            grid_size,
            *frame,
            mask_threshold=self.mask_threshold,
            stability_score_offset=self.stability_score_offset,
            memory_budget=self.memory_budget,
            device=embeddings[-1].device,
        )
        return EncodedCrop(embeddings, tracer, resized_size)

    def find_at_clicks(
        self,
        crop: EncodedCrop,
        clicks: Tensor,
        points: Tensor,
        keep: Callable[[Tensor], Tensor],
        stability_score_thresh: float,
        progress: tqdm,
    ) -> tuple[Candidates, Tensor]:
        """Masks that pass, and the click of each, int64 [K]; as many at once as the memory allows.

        Args:
            clicks: float32 [n, 2] in pixels of the model input; points: the same in pixels of the image.
            keep: which candidates do, bool [1, n, 1 + M] by their predicted IoU.
        """
        device, crop_box = crop.embeddings[-1].device, torch.tensor(crop.tracer.crop_box)
        at_once = min(self.points_per_batch, objects_within(self.memory_budget, crop.embeddings[-1]))
        parts, passed = [], []
        for index in torch.arange(len(points)).split(at_once):
            labels = torch.full((1, len(index), 1), FOREGROUND, device=device)
            given = clicks[index].to(device)[None, :, None], labels
            logits, scores, _ = self.model.decode(crop.embeddings, *given, keep=keep)
            is_good = keep(scores)[0]  # [n, 1 + M]
            traced = crop.tracer.trace(logits, stability_score_thresh)
            click = index[is_good.nonzero()[:, 0][traced.index].cpu()]
            found = Candidates(
                scores=scores[0][is_good].float()[traced.index].cpu(),
                stability=traced.stability.cpu(),
                boxes=traced.boxes.cpu(),
                crop_boxes=crop_box.expand(len(click), -1),
                points=points[click],
                changes=traced.changes,
            )
            parts.append(found)
            passed.append(click)
            progress.update(len(index))
        return Candidates.concatenate(parts), torch.cat(passed)

    def keep_good(self, iou_scores: Tensor, pred_iou_thresh: float) -> Tensor:
        """Candidates of a click that are good enough."""
        is_good = iou_scores.float() > (pred_iou_thresh if pred_iou_thresh > 0 else -torch.inf)
        return is_good & self.takes_part(iou_scores)

    def keep_best(self, iou_scores: Tensor) -> Tensor:
        """The candidate of a click that a person is shown, as by `best_masks`."""
        scores = iou_scores.float().masked_fill(~self.takes_part(iou_scores), -torch.inf)
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.argmax(-1, keepdim=True), True)

    def takes_part(self, iou_scores: Tensor) -> Tensor:
        """Whether a candidate answers single clicks, bool as `iou_scores`."""
        takes_part = torch.zeros_like(iou_scores, dtype=torch.bool)
        takes_part[..., self.model.mask_decoder.candidates(multimask_output=True)] = True
        return takes_part

    def clean(self, found: Candidates, masks: list[dict]) -> tuple[Candidates, list[dict]]:
        """Remove small regions, and then duplicates of the grid's masks, of which those stay that needed no change."""
        is_same = torch.ones(len(masks))
        masks, boxes = list(masks), found.boxes.clone()
        for index, rle in enumerate(masks):
            cleaned, changed = remove_small_regions(decode_rle(rle).numpy(), self.min_mask_region_area)
            if changed:
                mask = torch.from_numpy(cleaned)
                is_same[index] = 0
                masks[index], boxes[index] = encode_rle(mask[None])[0], mask_boxes(mask)
        if self.way != "grid":
            return replace(found, boxes=boxes), masks
        kept = suppress_duplicates(boxes, is_same, max(self.box_nms_thresh, self.crop_nms_thresh))
        return replace(found, boxes=boxes)[kept], [masks[index] for index in kept.tolist()]


def centers_held(masks: Candidates, height: int) -> Tensor:
    """How many of the clicks lie in each mask, at least 1: int64 [K], of an image of `height` rows."""
    positions = (masks.points[:, 0] * height + masks.points[:, 1]).long()
    # Behind its beginning and before its end.
    held = [int((torch.searchsorted(changes, positions, right=True) % 2).sum()) for changes in masks.changes]
    return torch.tensor(held, dtype=torch.int64).clamp(min=1)


def object_slices(labels: np.ndarray) -> list[tuple[slice, slice]]:
    """Rows and columns around each object of a label map, whose numbers leave none out."""
    from scipy.ndimage import find_objects  # comes with scikit-image, without which there is no such label map

    return find_objects(labels)


def box_areas(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x2 - x1) * (y2 - y1)


__all__ = ["WAYS", "MaskGenerator"]
