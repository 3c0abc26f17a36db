"""Whether ONNX Runtime answers with the exported files as torch does with the model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ..layers import height_and_width
from ..modeling_sam_hf import SamHfModel
from ..prompt_encoder import PADDING
from .graphs import DECODER, ENCODER, MAPS, MASK_PROMPT, feature_names, proposes

# Of the largest value of an output, or of 1. Rounding makes 1e-5 of it.
TOLERANCE = 1e-3
# B, N, P, and number of boxes; the last of several objects has a single point, and padding.
CASES = [(1, 1, 1, 0), (1, 5, 2, 0), (1, 1, 2, 1), (3, 2, 4, 2), (2, 1, 0, 3), (1, 1, 0, 1), (2, 3, 1, 1)]


class OnnxModel:
    """The three files in `folder`, each opened by ONNX Runtime."""

    def __init__(self, folder: Path):
        import onnxruntime

        self.sessions = {
            name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in (ENCODER, DECODER, MASK_PROMPT)
        }

    def run(self, graph: str, **inputs: Tensor) -> dict[str, Tensor]:
        session = self.sessions[graph]
        answers = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        outputs = [output.name for output in session.get_outputs()]
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(outputs, answers, strict=True)}


class Differences(dict[str, float]):
    """The largest ones so far."""

    def compare(self, name: str, answer: Tensor, expected: Tensor) -> None:
        """
        Raises:
            ValueError: if the two differ, in shape, or by more than `TOLERANCE`.
        """
        expected = expected.float()
        difference = float("inf")
        if answer.shape == expected.shape:
            difference = (answer - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):  # NaN, too
            raise ValueError(
                f"{name} of ONNX Runtime differ from those of the model by {difference:.2g}, expected {TOLERANCE} of "
                f"{expected.abs().max().item():.3g} at most; {list(answer.shape)} and {list(expected.shape)}. Another "
                "version of torch or onnxscript may export it right."
            )
        self[name] = max(self.get(name, 0.0), difference)


@torch.no_grad()
def compare_answers(model: SamHfModel, folder: Path) -> dict[str, float]:
    """The largest absolute difference of each output, over random images and prompts of all kinds.

    Raises:
        ValueError: see `Differences.compare`.
    """
    onnx, differences, generator = OnnxModel(folder), Differences(), Generator().manual_seed(0)
    names, size = feature_names(model), model.config.image_size
    pixels = torch.randn(2, 3, size, size, generator=generator)
    # One alone, too; and no more than these, which take a minute each for a large model.
    for images in (pixels[:1], pixels):
        features = model.get_image_embeddings(images)
        answer = onnx.run(ENCODER, pixel_values=images)
        for name, expected in zip(names, features[-len(names) :], strict=True):
            differences.compare(name, answer[name], expected)
        if model.instance_decoder is not None:
            differences.compare(MAPS, answer[MAPS], model.get_instance_maps(features))
    for batch, num_pointed, num_points, num_boxes in CASES:
        chosen = [feature[torch.arange(batch) % 2] for feature in features]
        points = size * torch.rand(batch, num_pointed, num_points, 2, generator=generator)
        labels = torch.randint(0, 2, points.shape[:3], generator=generator)
        if num_pointed > 1:
            labels[:, -1, 1:] = PADDING
        boxes = size * torch.rand(batch, num_boxes, 4, generator=generator)
        for has_mask in (False, True):
            grid = [4 * side for side in height_and_width(features[-1])]
            mask = 10 * torch.randn(batch, 1, *grid, generator=generator) if has_mask else None
            compare_prompts(model, onnx, differences, chosen, points, labels, boxes, mask)
    return dict(differences)


def compare_prompts(
    model: SamHfModel,
    onnx: OnnxModel,
    differences: Differences,
    features: list[Tensor],
    points: Tensor,
    labels: Tensor,
    boxes: Tensor,
    mask: Tensor | None,
) -> None:
    """Compare all objects in one call of ONNX Runtime with one call for each of the model, without any padding."""
    names = feature_names(model)
    inputs = dict(zip(names, features[-len(names) :], strict=True))
    if mask is not None:
        inputs[names[-1]] = onnx.run(MASK_PROMPT, **{names[-1]: features[-1]}, input_masks=mask)["embedding_with_mask"]
        if proposes(model):
            inputs[names[0]] = torch.zeros_like(features[0])
    answer = onnx.run(DECODER, **inputs, input_points=points, input_labels=labels, input_boxes=boxes)
    for index in range(max(points.shape[1], boxes.shape[1])):
        prompts: dict[str, Any] = {}
        if index < points.shape[1] and points.shape[2]:
            kept = labels[0, index] != PADDING
            prompts |= {
                "input_points": points[:, index, None, kept],
                "input_labels": labels[:, index, None, kept],
            }
        if index < boxes.shape[1]:
            prompts["input_boxes"] = boxes[:, index, None]
        # The graph does not see the mask, see `MaskPrompt`.
        is_ambiguous = "input_boxes" not in prompts and prompts["input_labels"].shape[2] == 1
        expected = model(image_embeddings=features, **prompts, input_masks=mask, multimask_output=is_ambiguous)
        for name in ("iou_scores", "pred_masks", "object_score_logits"):
            if name in expected:
                own = answer[name][:, index, None]
                # One mask stands for all candidates.
                reference = expected[name].expand_as(own)
                differences.compare(name if mask is None else f"{name} with a mask prompt", own, reference)


__all__ = ["Differences", "compare_answers"]
