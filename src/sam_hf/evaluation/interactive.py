"""The loop of an evaluation: a simulated user prompts a model for objects of an image, and looks at its answers."""

import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.schema import Record, decode_masks, decode_rles, ignored_pixels, objects_from_masks, rgb_array
from ..layers import height_and_width
from ..losses import mask_iou
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from .predictors import Prediction, Predictor, Prompts, SamHfPredictor
from .protocols import PROTOCOLS, Protocol, SimulatedUser

MAX_OBJECTS = 16


@dataclass
class ClickTrace:
    """What one user did on one image, and what came of it; P counts prompts, masks are COCO's compressed run lengths.

    Args:
        image_id: name of the image; draw: which user, of protocols with several.
        image: uint8 [H, W, 3] in its own pixels, contrast as the model sees it; None where it was not kept.
        objects: N masks, the ground truth.
        ignored: mask of crowd regions, which count for nothing unless they are the object's; None without.
        answers: P lists of N masks, what was shown after each prompt.
        points: float32 [N, C, 2], clicks (x, y) in pixels of the image; labels: int64 [N, C]. C is P, or one less
            where the first prompt was a box.
        boxes: float32 [N, 4], or None.
        iou: float32 [N, P], over all pixels of the image that are not ignored; 1 where object and answer are empty.
        predicted_iou: float32 [N, P], what the model thought of its answers; NaN where it does not say.
        oracle_iou: float32 [N], of the best candidate after the first prompt.
        object_scores: float32 [N], logits after the first prompt; NaN where the model has none.
        encode_seconds: for the image; decode_seconds: for each prompt of all N objects. Without reading.
        index: of the image in its data set; None where it came alone.
    """

    image_id: str
    draw: int
    image: np.ndarray | None
    objects: list[dict[str, Any]]
    ignored: dict[str, Any] | None
    answers: list[list[dict[str, Any]]]
    points: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None
    iou: np.ndarray
    predicted_iou: np.ndarray
    oracle_iou: np.ndarray
    object_scores: np.ndarray
    encode_seconds: float
    decode_seconds: list[float]
    index: int | None = None

    @property
    def target(self) -> np.ndarray:
        """bool [N, H, W]."""
        return decode_rles(self.objects)

    @property
    def valid(self) -> np.ndarray:
        """bool [N, H, W], the pixels that count."""
        target = self.target
        return np.ones_like(target) if self.ignored is None else target | ~decode_rles([self.ignored])

    @property
    def predictions(self) -> np.ndarray:
        """bool [P, N, H, W], the answers."""
        return np.stack([decode_rles(masks) for masks in self.answers])


def _encode(masks: Tensor) -> list[dict[str, Any]]:
    return [item["segmentation"] for item in objects_from_masks(masks.cpu().numpy())]


def simulate_clicks(
    model: SamHfModel,
    processor: SamHfProcessor,
    records: Iterable[Record],
    *,
    num_clicks: int = 5,
    max_objects: int = MAX_OBJECTS,
    seed: int = 0,
) -> Iterator[ClickTrace]:
    """Click through objects of every record by the protocol "sam", one trace per record that has any.

    Args:
        model: in eval mode, on its device.
        processor: the model's own.
        records, max_objects, seed: as for `trace_image`.
    """
    predictor, protocol = SamHfPredictor(model, processor), PROTOCOLS["sam"].shortened(num_clicks)
    for record in records:
        yield from trace_image(predictor, record, protocol, max_objects=max_objects, seed=seed)


def trace_image(
    predictor: Predictor,
    record: Record,
    protocol: Protocol,
    *,
    max_objects: int = MAX_OBJECTS,
    seed: int = 0,
    stretch_contrast: bool | None = None,
) -> list[ClickTrace]:
    """Prompt a model for objects of one image, all at the same time.

    With all prompts so far the model gets back the state of its answer, which is the candidate of the highest
    *predicted* IoU. No test-time augmentation, no zoom.

    Args:
        record: see `data.schema`; crowd regions are ignored: not clicked, and not counted in the IoU.
        protocol: what the user does.
        max_objects: objects per image, drawn by (seed, image id); bounds the time that crowded images take.
        seed: of all chance.
        stretch_contrast: whether the model sees the image so; as it wants when None.

    Returns:
        one for each user; none if there is no object.
    """
    objects = [item for item in record["objects"] if not item["iscrowd"]]
    if not objects:
        return []
    # Not by the place of the image, which is another with other images before it.
    rng = np.random.default_rng([seed, zlib.crc32(record["image_id"].encode())])
    kept = sorted(rng.permutation(len(objects))[:max_objects].tolist())
    target = torch.from_numpy(decode_masks([objects[i] for i in kept]))
    ignored = ignored_pixels(record["objects"], height_and_width(target))
    valid = torch.ones_like(target) if ignored is None else target | ~torch.from_numpy(ignored)
    # From the record's own values, which 8-bit pixels no longer have.
    stretch = predictor.stretch_contrast if stretch_contrast is None else stretch_contrast
    image = rgb_array(record["image"], stretch_contrast=stretch)
    begin = _now()
    predictor.set_image(image)
    encode_seconds = _now() - begin
    about: dict[str, Any] = {
        "image_id": record["image_id"],
        "image": image,
        "objects": [objects[i]["segmentation"] for i in kept],
        "ignored": None if ignored is None else _encode(torch.from_numpy(ignored[None]))[0],
        "encode_seconds": encode_seconds,
    }
    traces = []
    for draw in range(protocol.num_draws):
        key: Any = {"image_id": record["image_id"], "draw": draw, "seed": seed, "kept": kept}
        user = SimulatedUser(protocol, target, valid, **key)
        traces.append(ClickTrace(draw=draw, **about, **_go_through(predictor, user)))
    return traces


def _go_through(predictor: Predictor, user: SimulatedUser) -> dict[str, Any]:
    """All prompts of a user, and what came of them."""
    answer: Tensor | None = None
    state: Any = None
    kept: dict[str, list[Any]] = {"answers": [], "iou": [], "predicted_iou": [], "decode_seconds": []}
    for _ in range(user.protocol.num_prompts):
        user.act(answer)
        begin = _now()
        prediction = predictor.predict(Prompts(user.points, user.labels, user.boxes, state))
        answer, state = prediction.answers, prediction.state
        kept["decode_seconds"].append(_now() - begin)
        target, valid = user.target.to(answer.device), user.valid.to(answer.device)
        if not kept["iou"]:
            check_size(predictor, prediction, target)
            # One object at a time, for memory.
            of_objects = zip(prediction.masks, target[:, None], valid[:, None], strict=True)
            oracle = torch.stack([mask_iou(*masks).max() for masks in of_objects]).cpu().numpy()
            scores = prediction.object_scores
            object_scores = np.full(len(target), np.nan, np.float32) if scores is None else scores.cpu().numpy()
        kept["answers"].append(_encode(answer))
        kept["iou"].append(mask_iou(answer, target, valid).cpu().numpy())
        kept["predicted_iou"].append(prediction.scores.max(dim=1).values.float().cpu().numpy())
    return {
        **kept,
        "iou": np.stack(kept["iou"], axis=1),
        "predicted_iou": np.stack(kept["predicted_iou"], axis=1),
        "oracle_iou": oracle,
        "object_scores": object_scores,
        "points": user.points.numpy(),
        "labels": user.labels.numpy(),
        "boxes": None if user.boxes is None else user.boxes.numpy(),
    }


def check_size(predictor: Predictor, prediction: Prediction, target: Tensor) -> None:
    """
    Raises:
        ValueError: if the masks are not those of the objects of the image.
    """
    found, expected = [len(prediction.masks), *prediction.masks.shape[2:]], list(target.shape)
    if found != expected:
        raise ValueError(
            f"{type(predictor).__name__} gave masks {list(prediction.masks.shape)}, expected [{expected[0]}, M, "
            f"{expected[1]}, {expected[2]}]: M candidates of each object, in pixels of the image."
        )


def _now() -> float:
    """Seconds of a clock, when all that was asked of an accelerator is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


__all__ = ["MAX_OBJECTS", "ClickTrace", "simulate_clicks", "trace_image"]
