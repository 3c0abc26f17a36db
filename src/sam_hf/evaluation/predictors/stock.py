"""transformers' own models that are clicked on: SAM, HQ-SAM, SAM 2, EdgeTAM and the tracker of SAM 3."""

import os
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from ...clicks import FEEDBACK_LIMIT
from ...masks import best_masks
from .predictor import Prediction, Prompts

OBJECTS_PER_CALL = 16


class StockFamily(NamedTuple):
    """Names of classes of transformers: the model of a family, and what makes its input of images."""

    model: str
    image_processor: str


SAM2 = StockFamily("Sam2Model", "Sam2ImageProcessor")
EDGETAM = StockFamily("EdgeTamModel", "Sam2ImageProcessor")
SAM3 = StockFamily("Sam3TrackerModel", "Sam3ImageProcessor")
# By the `model_type` of the config. Checkpoints for video hold the model for images as well.
STOCK_FAMILIES = {
    "sam": StockFamily("SamModel", "SamImageProcessor"),
    "sam_hq": StockFamily("SamHQModel", "SamImageProcessor"),
    "sam2": SAM2,
    "sam2_video": SAM2,
    "edgetam": EDGETAM,
    "edgetam_video": EDGETAM,
    "sam3_tracker": SAM3,
    "sam3_tracker_video": SAM3,
    "sam3_video": SAM3,
}


class StockPredictor:
    """A model of transformers, prompted as its authors do.

    The first click is answered by all candidates; boxes and later clicks, which go in with the logits of the best
    candidate before, by a single one (SAM paper, section 3 and appendix A; `predict` of `SamPredictor` and of
    `SAM2ImagePredictor`). Candidates of HQ-SAM share its high-quality mask.

    These models take mask prompts of one object per image. So each object is an image here, of embeddings that all
    share. A place without a click is left out, since all families would attend to its token, whatever its label.

    Args:
        model: in eval mode, on its device.
        image_processor: its own.
        objects_per_call: objects that are decoded together, which bounds memory. It changes no answer.
    """

    stretch_contrast = False

    def __init__(self, model: Any, image_processor: Any, objects_per_call: int = OBJECTS_PER_CALL):
        self.model, self.image_processor, self.objects_per_call = model, image_processor, objects_per_call

    @torch.no_grad()
    def set_image(self, image: np.ndarray) -> None:
        inputs = self.image_processor(images=image, input_data_format="channels_last", return_tensors="pt")
        # Those of SAM, which pads, have the size of the image in the model input, too.
        names = ("original_sizes", "reshaped_input_sizes")
        self.sizes = {name: inputs[name].tolist() for name in names if name in inputs}
        height, width = self.sizes["original_sizes"][0]
        pixel_values = inputs["pixel_values"]
        model_height, model_width = self.sizes.get("reshaped_input_sizes", [pixel_values.shape[-2:]])[0]
        # (x, y) scale from image to model pixels, that of the processors.
        self.scale = torch.tensor([model_width / width, model_height / height], device=self.model.device)
        embeddings = self.model.get_image_embeddings(pixel_values.to(self.model.device, self.model.dtype))
        # HQ-SAM gives those of its layers, too; SAM 2 and its heirs a list of feature maps.
        names = ("image_embeddings", "intermediate_embeddings")
        self.embeddings = dict(
            zip(names, embeddings if isinstance(embeddings, tuple) else (embeddings,), strict=False)
        )

    @torch.no_grad()
    def predict(self, prompts: Prompts) -> Prediction:
        calls = list(self._calls(prompts.labels))
        parts = [self._answer(prompts[index], index, prompts.state) for index in calls]
        order = torch.cat(calls).argsort()
        scores = [part.object_scores for part in parts if part.object_scores is not None]
        return Prediction(
            masks=torch.cat([part.masks for part in parts])[order],
            scores=torch.cat([part.scores for part in parts])[order],
            state=torch.cat([part.state for part in parts])[order],
            object_scores=torch.cat(scores)[order] if scores else None,
        )

    def _calls(self, labels: Tensor) -> Iterator[Tensor]:
        """Indices of the objects of each call: those with as many clicks, for all objects of a call have the same."""
        num_clicks = (labels >= 0).sum(dim=1)
        for count in num_clicks.unique():
            yield from (num_clicks == count).nonzero()[:, 0].split(self.objects_per_call)

    def _answer(self, prompts: Prompts, index: Tensor, feedback: Tensor | None) -> Prediction:
        """Of objects with equally many clicks, `index` [n] of all N, to which the feedback [N, 1, h, w] belongs."""
        device, num_objects = self.model.device, len(index)
        given = prompts.labels >= 0
        points = prompts.points[given].to(device).view(num_objects, 1, -1, 2) * self.scale
        labels = prompts.labels[given].to(device).view(num_objects, 1, -1)
        has_points, boxes = bool(labels.numel()), prompts.boxes
        output = self.model(
            **{name: _repeat(value, num_objects) for name, value in self.embeddings.items()},
            input_points=points if has_points else None,
            input_labels=labels if has_points else None,
            input_boxes=None if boxes is None else boxes.to(device)[:, None] * self.scale.repeat(2),
            input_masks=None if feedback is None else feedback[index.to(device)],
            multimask_output=feedback is None and boxes is None,
        )
        logits = output.pred_masks.clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT)
        object_scores = getattr(output, "object_score_logits", None)
        return Prediction(
            # One object at a time, for memory.
            masks=torch.cat(
                [self.image_processor.post_process_masks(part[None].float(), **self.sizes)[0] for part in logits]
            ),
            scores=output.iou_scores[:, 0].float(),
            state=best_masks(logits, output.iou_scores),
            object_scores=None if object_scores is None else object_scores[:, 0, 0].float(),
        )

    def find_all(self, image: np.ndarray) -> list[dict[str, Any]]:
        """All masks of an image, uint8 [H, W, 3], by transformers' pipeline "mask-generation" and its defaults.

        Returns:
            records with `segmentation`, bool [H, W], and `predicted_iou`.
        """
        pipeline: Any = transformers.pipeline  # its overloads know the tasks of one release only
        finder = pipeline(
            "mask-generation", model=self.model, image_processor=self.image_processor, device=self.model.device
        )
        found = finder(Image.fromarray(image))
        return [
            {"segmentation": np.asarray(mask, dtype=bool), "predicted_iou": float(score)}
            for mask, score in zip(found["masks"], found["scores"], strict=True)
        ]


def _repeat(value: Any, times: int) -> Any:
    """Tensors [1, ...], or a list of them, as [times, ...] without a copy."""
    if isinstance(value, Tensor):
        return value.expand(times, *value.shape[1:])
    return [_repeat(item, times) for item in value]


def open_stock(
    source: str | os.PathLike, model_type: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> StockPredictor:
    """A folder or Hub id of transformers.

    Args:
        model_type: of its config, one of `STOCK_FAMILIES`.

    Raises:
        ValueError: if the installed transformers does not have the family, a library is missing that the family needs,
            or the weights are not all there.
    """
    family = STOCK_FAMILIES[model_type]
    model_class: Any = getattr(transformers, family.model, None)
    if model_class is None:
        raise ValueError(
            f"{source} needs {family.model}, which transformers {transformers.__version__} does not have: "
            "pip install -U 'transformers>=5.17'."
        )
    try:
        model, info = model_class.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except ImportError as error:  # EdgeTAM needs timm
        raise ValueError(f"{source}: {error}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"{source} holds {model_type}, and {family.model} finds {len(missing)} of its weights missing, such as "
            f"{', '.join(missing[:3])}."
        )
    model = model.eval().to(device)
    return StockPredictor(model, load_image_processor(source, family, model.config.prompt_encoder_config.image_size))


def load_image_processor(source: str | os.PathLike, family: StockFamily, image_size: int) -> Any:
    """That of the folder, or the default of the family for a model input of that size, in pixels of its side."""
    processor_class = getattr(transformers, family.image_processor)
    try:
        return processor_class.from_pretrained(source)
    except OSError as error:  # not every folder has one, but a download may fail, too
        warnings.warn(f"{source} has no image processor ({error}): the default of its family", stacklevel=2)
    size = {"height": image_size, "width": image_size}
    if family.image_processor == "SamImageProcessor":
        return processor_class(size={"longest_edge": image_size}, pad_size=size)
    return processor_class(size=size)


__all__ = ["STOCK_FAMILIES", "StockFamily", "StockPredictor", "load_image_processor", "open_stock"]
