"""The two graphs and the yaml file that X-AnyLabeling loads as its `segment_anything_2`.

Source: its `services/auto_labeling/__base__/sam2.py` of version 4.2. Inputs are given, and outputs taken, by their
order. It makes each image a square of the side of the encoder's input, with the mean and deviation of ImageNet, gives
points in pixels of that, labels of 2 and 3 for corners of boxes and -1 for padding, and never a mask.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.export import Dim

from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from ..prompt_encoder import BACKGROUND, FOREGROUND, PADDING
from .exporting import new_folder, ready_model, write_graphs
from .graphs import Decoder, Graph, of_decoder, proposes
from .parity import Differences

ENCODER, DECODER = "encoder", "decoder"
FIRST_CORNER, LAST_CORNER = 2, 3
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEATURES = ["high_res_feats_0", "high_res_feats_1", "image_embed"]
# Numbers of objects, and of points of each.
CASES = [(1, 1), (1, 2), (1, 5), (3, 1), (4, 3)]


class SquareEncoder(nn.Module):
    """An image, float32 [1, 3, S, S], normalised as X-AnyLabeling does, to three features.

    What masks are proposed from has the size of the finest and lies behind its channels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: SamHfModel, processor: SamHfProcessor):
        super().__init__()
        self.model = model
        settings = processor.image_processor
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
        their_mean, their_deviation = (torch.tensor(values)[:, None, None] for values in IMAGENET)
        self.register_buffer("scale", their_deviation / deviation)
        self.register_buffer("shift", (their_mean - mean) / deviation)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = of_decoder(self.model, self.model.get_image_embeddings(image * self.scale + self.shift))
        *proposing, finest, middle, embedding = features
        return torch.cat([finest, *proposing], dim=1), middle, embedding


class SquareDecoder(nn.Module):
    """Those features, points float32 [N, P, 2] and labels float32 [N, P] to masks [N, M, h, w] and their IoU [N, M].

    Of several boxes of an object all corners count as those of one around them.
    """

    def __init__(self, model: SamHfModel):
        super().__init__()
        self.decoder = Decoder(model)
        self.finest_width = model.config.vision_config.feature_widths[0]

    def forward(
        self, image_embed: Tensor, finest: Tensor, middle: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        features = [finest[:, : self.finest_width], middle, image_embed]
        if proposes(self.decoder.model):
            features.insert(0, finest[:, self.finest_width :])
        is_first, is_last = (point_labels[..., None] == corner for corner in (FIRST_CORNER, LAST_CORNER))
        first = point_coords.where(is_first, torch.inf).amin(dim=1)
        last = point_coords.where(is_last, -torch.inf).amax(dim=1)
        boxes = torch.cat([first, last], dim=-1)
        is_click = (point_labels == FOREGROUND) | (point_labels == BACKGROUND)
        labels = point_labels.where(is_click, PADDING).long()
        boxes = boxes.where(boxes.isfinite(), torch.nan)
        scores, masks, *_ = self.decoder(features, point_coords[None], labels[None], boxes[None])
        return masks[0], scores[0]


@torch.no_grad()
def square_graphs(model: SamHfModel, processor: SamHfProcessor) -> dict[str, Graph]:
    """The graphs by the names of their files.

    Raises:
        ValueError: for a model without high-resolution features.
    """
    if len(model.config.vision_config.feature_widths) != len(FEATURES):
        raise ValueError(
            "the model has no high-resolution features, which X-AnyLabeling's segment_anything_2 takes: train one "
            "that has `high_res_layers`, or start from SAM 2."
        )
    encoder, size = SquareEncoder(model, processor).eval(), model.config.image_size
    image = torch.zeros(1, 3, size, size)
    finest, middle, embedding = encoder(image)
    axes = {0: Dim("objects"), 1: Dim("points")}
    # Sides of 0 and 1, or equal ones, would be taken for the only possible.
    prompts = torch.ones(3, 4, 2), torch.ones(3, 4)
    return {
        ENCODER: Graph(encoder, (image,), ["image"], FEATURES, (None,)),
        DECODER: Graph(
            SquareDecoder(model),
            (embedding, finest, middle, *prompts),
            [FEATURES[2], *FEATURES[:2], "point_coords", "point_labels"],
            ["masks", "iou_predictions"],
            (None, None, None, axes, axes),
        ),
    }


def export_x_anylabeling(
    model: SamHfModel,
    processor: SamHfProcessor,
    folder: str | os.PathLike,
    report: Callable[[str], Any] = print,
) -> dict[str, float]:
    """Write `model` for X-AnyLabeling, which loads the yaml file of the name of the folder as a custom model.

    Arguments but for `file_limit`, returns and errors are as of `export_onnx`, and:

    Raises:
        ValueError: for a model without high-resolution features.
    """
    folder = Path(folder)
    graphs = square_graphs(ready_model(model, processor), processor)
    image_processor = processor.image_processor
    if getattr(image_processor, "keep_aspect_ratio", True):  # without it in code that is older
        report("X-AnyLabeling makes squares of images, this model does not: only for squares are masks the same.")
    if image_processor.do_stretch_contrast:
        report("X-AnyLabeling does not stretch contrast, as this model wants it: give it images that are.")
    name = re.sub(r"[^\w.-]", "-", folder.name, flags=re.ASCII)
    with new_folder(folder) as partial:
        write_graphs(graphs, partial, report)
        settings = {"type": "segment_anything_2", "name": name, "display_name": folder.name, "provider": "sam_hf"}
        settings |= {f"{graph}_model_path": f"{graph}.onnx" for graph in graphs}
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in settings.items()]
        (partial / f"{name}.yaml").write_text("".join(lines))
        return compare_squares(graphs, partial)


@torch.no_grad()
def compare_squares(graphs: dict[str, Graph], folder: Path) -> dict[str, float]:
    """The largest absolute difference of each output between a graph and its module.

    Raises:
        ValueError: see `Differences.compare`.
    """
    import onnxruntime

    differences, generator = Differences(), Generator().manual_seed(0)
    image = torch.randn(graphs[ENCODER].arguments[0].shape, generator=generator)
    finest, middle, embedding = graphs[ENCODER].module(image)
    calls: list[tuple[str, tuple[Tensor, ...]]] = [(ENCODER, (image,))]
    for count, num_points in CASES:
        points = image.shape[-1] * torch.rand(count, num_points, 2, generator=generator)
        labels = torch.randint(-1, 4, (count, num_points), generator=generator).float()
        labels[:, 0] = FOREGROUND
        if num_points == 2:
            labels[:] = torch.tensor([FIRST_CORNER, LAST_CORNER])
        calls.append((DECODER, (embedding, finest, middle, points, labels)))
    sessions = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in graphs}
    for name, inputs in calls:
        given = {key: value.numpy() for key, value in zip(graphs[name].inputs, inputs, strict=True)}
        answers = sessions[name].run(graphs[name].outputs, given)
        for output, answer, expected in zip(graphs[name].outputs, answers, graphs[name].module(*inputs), strict=True):
            differences.compare(output, torch.from_numpy(np.asarray(answer)), expected)
    return dict(differences)


__all__ = ["export_x_anylabeling", "square_graphs"]
