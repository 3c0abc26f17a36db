"""An evaluation by clicks, against a loop over the objects with transformers' model and processor."""

from collections.abc import Iterator

import numpy as np
import torch
from measuring import Limits, Row, alternate
from models import SIZES, Setup, our_model, stock_image_processor, stock_model
from torch import Tensor
from transformers import SamModel, SamProcessor

from sam_hf import SamHfProcessor
from sam_hf.clicks import FEEDBACK_LIMIT, sample_center_clicks
from sam_hf.data import SyntheticScenes, decode_masks
from sam_hf.evaluation import PROTOCOLS, SamHfPredictor, trace_image

CLICKS, SCENE = 5, (512, 512)


@torch.no_grad()
def loop_over_objects(model: SamModel, processor: SamProcessor, record: dict) -> float:
    """Mean IoU after the last click, as one writes it for a model of transformers: one object after another."""
    targets = torch.from_numpy(decode_masks(record["objects"]))
    inputs = processor(record["image"], return_tensors="pt").to(model.device)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    embeddings = model.get_image_embeddings(inputs["pixel_values"])
    ious = []
    for target in targets:
        points, labels, feedback, mask = [], [], None, None
        for _ in range(CLICKS):
            point, label = sample_center_clicks(target[None, None], mask)
            points.append(point[0, 0, 0].tolist())
            labels.append(int(label))
            given = processor(record["image"], input_points=[[points]], input_labels=[[labels]], return_tensors="pt")
            output = model(
                image_embeddings=embeddings,
                input_points=given["input_points"].to(model.device, model.dtype),
                input_labels=given["input_labels"].to(model.device),
                input_masks=feedback,
                multimask_output=feedback is None,
            )
            logits: Tensor = output.pred_masks[0, 0, output.iou_scores[0, 0].argmax()][None, None]
            feedback = logits.clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT)
            mask = processor.post_process_masks(feedback[None].float().cpu(), *(size.cpu() for size in sizes))[0]
        ious.append(float((mask & target).sum() / (mask | target).sum()))
    return float(np.mean(ious))


def evaluation_rows(setup: Setup, limits: Limits) -> Iterator[Row]:
    side = SIZES[setup.size]["image_size"]
    record = next(
        scene for scene in map(SyntheticScenes(100, size=SCENE).__getitem__, range(100)) if len(scene["objects"]) >= 6
    )
    ours, stock = our_model(setup, setup.size), stock_model(setup, setup.size)
    predictor = SamHfPredictor(ours, SamHfProcessor.from_config(ours.config))
    processor = SamProcessor(stock_image_processor(side))
    protocol = PROTOCOLS["sam"].shortened(CLICKS)
    functions = {
        "ours": lambda: float(trace_image(predictor, record, protocol)[0].iou[:, -1].mean()),
        "transformers": lambda: loop_over_objects(stock, processor, record),
    }
    times, found = alternate(functions, setup)
    yield Row(
        f"evaluation, {len(record['objects'])} objects, {CLICKS} clicks",
        "loop over transformers",
        times["ours"],
        times["transformers"],
        difference=abs(found["ours"] - found["transformers"]),
    )
