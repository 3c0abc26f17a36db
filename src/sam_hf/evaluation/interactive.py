"""Evaluation by a deterministic user who clicks the centre of the largest error (SAM paper, appendix D.1)."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..clicks import FEEDBACK_LIMIT, sample_center_clicks
from ..data.schema import Record, decode_masks, ignored_pixels, rgb_array
from ..layers import height_and_width
from ..losses import mask_iou
from ..masks import best_masks
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor


@dataclass
class ClickTrace:
    """What happened on one image.

    Args:
        image: uint8 [H, W, 3] in its own pixels, contrast as the model sees it; image_id: its name.
        target: bool [N, H, W].
        predictions: bool [clicks, N, H, W], after each click.
        points: float32 [N, clicks, 2] in image pixels; labels: int64 [N, clicks].
        iou: float32 [N, clicks], over all pixels of the image but those of crowd regions that are not the object's;
            1 where object and answer are both empty.
    """

    image_id: str
    image: np.ndarray
    target: np.ndarray
    predictions: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    iou: np.ndarray


def simulate_clicks(
    model: SamHfModel,
    processor: SamHfProcessor,
    records: Iterable[Record],
    *,
    num_clicks: int = 5,
    max_objects: int = 16,
    seed: int = 0,
) -> Iterator[ClickTrace]:
    """Click through objects of every record, one trace per record that has any.

    The first click is the pixel of the object that is farthest from its border, every other one the deepest pixel of
    the largest error, both in image pixels. The first answer is the best candidate by *predicted* IoU; its
    logits go back in with all clicks so far. No test-time augmentation, no zoom. Masks are compared on the device of
    the model.

    Args:
        model: in eval mode, on its device.
        processor: the model's own.
        records: see `data.schema`; crowd regions are ignored: not clicked, and not counted in the IoU.
        max_objects: objects per image, drawn by (seed, image id); bounds the time that crowded images take.
    """
    for record in records:
        objects = [item for item in record["objects"] if not item["iscrowd"]]
        if not objects:
            continue
        # Not by the place of the image, which is another with other images before it.
        rng = np.random.default_rng([seed, zlib.crc32(record["image_id"].encode())])
        chosen = rng.permutation(len(objects))[:max_objects]
        target = torch.from_numpy(decode_masks([objects[i] for i in sorted(chosen)]))
        ignored = ignored_pixels(record["objects"], height_and_width(target))
        valid = torch.ones_like(target) if ignored is None else target | ~torch.from_numpy(ignored)
        # From the record's own values, which 8-bit pixels no longer have.
        image = rgb_array(record["image"], stretch_contrast=bool(processor.image_processor.do_stretch_contrast))
        device = model.device
        yield _trace(model, processor, record["image_id"], image, target.to(device), valid.to(device), num_clicks)


@torch.no_grad()
def _trace(
    model: SamHfModel,
    processor: SamHfProcessor,
    image_id: str,
    image: np.ndarray,
    target: Tensor,
    valid: Tensor,
    num_clicks: int,
) -> ClickTrace:
    inputs = processor(images=image, return_tensors="pt", do_stretch_contrast=False)  # done already
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    # (x, y) scale from image to model pixels, the processor's own.
    scale = (sizes[1][0] / sizes[0][0]).flip(0).to(target.device)
    embeddings = model.get_image_embeddings(inputs["pixel_values"].to(target.device))
    points = torch.empty(1, len(target), 0, 2, device=target.device)
    labels = torch.empty(1, len(target), 0, dtype=torch.long, device=target.device)
    prediction, feedback, predictions, ious = None, None, [], []
    for _ in range(num_clicks):
        click, click_label = sample_center_clicks(target[None], prediction, valid=valid[None])
        points, labels = torch.cat([points, click], dim=2), torch.cat([labels, click_label], dim=2)
        output = model(
            image_embeddings=embeddings,
            input_points=points * scale,
            input_labels=labels,
            input_masks=feedback,
            multimask_output=feedback is None,
        )
        feedback = best_masks(output.pred_masks, output.iou_scores).clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT)
        prediction = processor.post_process_masks(feedback[:, :, None].float(), *sizes)[0][None, :, 0]
        ious.append(mask_iou(prediction[0], target, valid))
        predictions.append(prediction[0].cpu())
    return ClickTrace(
        image_id=image_id,
        image=image,
        target=target.cpu().numpy(),
        predictions=torch.stack(predictions).numpy(),
        points=points[0].cpu().numpy(),
        labels=labels[0].cpu().numpy(),
        iou=torch.stack(ious, dim=1).cpu().numpy(),
    )


__all__ = ["ClickTrace", "simulate_clicks"]
