"""A model that answers prompts for the images of a folder, as in evaluation: as good as it was measured.

An object is prompted by *steps*, one after the other: `{"point": [x, y], "label": 1}`, `{"box": [x1, y1, x2, y2]}`,
and as the first one `{"mask": crop, "prompts": [...]}` of an object that is there already. Coordinates are indices of
pixels. The answer to a step gets back that of the step before, the candidate that its `candidate` tells, or else the
one of the highest predicted IoU. All steps come with each request, and answers are kept: nothing is lost with them.
"""

import io
import json
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..data.schema import decode_rles
from ..evaluation.predictors import SamHfPredictor
from ..image_processing_sam_hf import mask_to_logits
from ..modeling_sam_hf import SamHfModel
from ..pixels import read_image
from ..processing_sam_hf import SamHfProcessor
from ..prompt_encoder import BACKGROUND, FOREGROUND
from ..prompted import Answers, PromptedImage, open_image
from .mask_crops import MaskCrop, decode_mask, encode_crop

# Images that are kept encoded, and answers of each.
NUM_IMAGES, NUM_ANSWERS = 4, 100
MAX_STEPS = 500
# Predicted IoU and stability of proposals where nobody has found thresholds of the model: lower than SAM's, as a
# person looks at each mask.
REVIEWED = 0.6, 0.8
Step = dict[str, Any]


@dataclass
class OpenImage:
    """An image, encoded, and what was answered for each beginning of a list of steps."""

    prompted: PromptedImage
    answers: OrderedDict[str, Answers] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Session:
    """Encodes images when they are opened, the next one ahead, and answers. It may be used by several threads.

    Args:
        model: in eval mode, on its device.
        processor: its own.
        files: the images.
    """

    def __init__(self, model: SamHfModel, processor: SamHfProcessor, files: list[Path]):
        self.files = files
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._lock = threading.Lock()
        self.use(model, processor)

    def use(self, model: SamHfModel, processor: SamHfProcessor) -> None:
        """Answer by another model from now on."""
        with self._lock:
            self.model, self.processor = model, processor
            self._images: OrderedDict[int, Future[OpenImage]] = OrderedDict()

    def picture(self, index: int) -> bytes:
        """The image as the model sees it, as PNG: whatever the format of its file, upright, of 8 bits.

        Raises:
            ValueError, OSError: if the file is damaged, or no image.
        """
        file: Any = str(self.files[index])
        pixels = read_image(file, stretch_contrast=bool(self.processor.image_processor.do_stretch_contrast))
        buffer = io.BytesIO()
        to_pil_image(pixels).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()

    def encode(self, index: int) -> bool:
        """Wait until an image can be prompted; the one after it is next.

        Returns:
            Whether it has tiles, which are encoded when a prompt needs them.

        Raises:
            ValueError, OSError: as `picture`.
        """
        image = self._open(index).result()
        if index + 1 < len(self.files):
            self._open(index + 1)
        return len(image.prompted.views) > 1

    def decode(self, index: int, steps: list[Step]) -> dict[str, Any]:
        """Answer the last of the steps of an object.

        Returns:
            `scores`, predicted IoU of all candidates; the `index` of the one that is shown, and its `mask`.

        Raises:
            ValueError: for steps that are none.
        """
        image = self._open(index).result()
        check_steps(steps, image.prompted.size)
        with image.lock, torch.inference_mode():
            answers = _answer(image, steps)
            chosen = _chosen(answers, steps[-1])
            mask = image.prompted.to_pixels(answers.logits[:, :, chosen, None], answers.views)[0, 0]
        scores = answers.iou_scores[0, 0].float().cpu()
        return {"scores": scores.tolist(), "index": chosen, "mask": encode_crop(mask.cpu().numpy())}

    def propose(self, index: int) -> list[dict[str, Any]]:
        """Masks of all that the model finds without prompts, the surest first: `score` and `mask` of each."""
        image = self._open(index).result()
        prompted = image.prompted
        generator = SamHfPredictor(prompted.model, prompted.processor).mask_generator()
        if generator.way == "grid" and prompted.processor.image_processor.pred_iou_thresh is None:
            generator = replace(generator, pred_iou_thresh=REVIEWED[0], stability_score_thresh=REVIEWED[1])
        records = sorted(generator(prompted.image), key=lambda record: -record["predicted_iou"])
        # One whole mask at a time, for memory.
        masks = (decode_rles([record["segmentation"]])[0] for record in records)
        scores = [float(record["predicted_iou"]) for record in records]
        return [{"score": score, "mask": encode_crop(mask)} for score, mask in zip(scores, masks, strict=True)]

    def _open(self, index: int) -> Future[OpenImage]:
        with self._lock:
            known = self._images.get(index)
            # What failed may have been mended.
            if known is None or (known.done() and known.exception() is not None):
                self._images[index] = self._worker.submit(self._encode, index, self.model, self.processor)
                for other in [*self._images][:-NUM_IMAGES]:
                    self._images.pop(other).cancel()
            self._images.move_to_end(index)
            return self._images[index]

    def _encode(self, index: int, model: SamHfModel, processor: SamHfProcessor) -> OpenImage:
        file: Any = str(self.files[index])
        with torch.inference_mode():
            return OpenImage(open_image(model, processor, file))


def check_steps(steps: Any, size: tuple[int, int]) -> None:
    """
    Raises:
        ValueError: unless they are steps of an object in an image of (height, width) `size`; see the top of the file.
    """
    if not isinstance(steps, list) or not 0 < len(steps) <= MAX_STEPS:
        raise ValueError(f"steps are {str(steps)[:80]}, expected a list of 1 to {MAX_STEPS}")
    for place, step in enumerate(steps):
        kinds = [kind for kind in ("point", "box", "mask") if isinstance(step, dict) and kind in step]
        if len(kinds) != 1 or (kinds == ["mask"] and place > 0):
            raise ValueError(f"step {place} is {str(step)[:80]}, expected a point, a box, or as the first one a mask")
        if kinds == ["mask"]:
            decode_mask(step["mask"], size)
            prompts = step.get("prompts", [])
            if prompts:
                check_steps(prompts, size)
                if any("mask" in prompt for prompt in prompts):
                    raise ValueError("prompts of a mask are points and boxes")
        elif not _is_place(step[kinds[0]], 2 if kinds == ["point"] else 4, size):
            raise ValueError(f"step {place} is {str(step)[:80]}, expected pixels of an image of {size[1]} x {size[0]}")
        elif kinds == ["point"] and step.get("label") not in (FOREGROUND, BACKGROUND):
            raise ValueError(f"step {place} has the label {step.get('label')!r}, expected 1 or 0")
        if not isinstance(step.get("candidate", 0), int):
            raise ValueError(f"step {place} has the candidate {step['candidate']!r}, expected its number")
    if not any(kind in step for step in [*steps[0].get("prompts", []), *steps] for kind in ("point", "box")):
        raise ValueError("a mask alone asks for nothing: expected a point or a box, too")


def _is_place(values: Any, count: int, size: tuple[int, int]) -> bool:
    is_numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    return (
        is_numbers
        and len(values) == count
        and all(-1 <= value <= size[1 - axis % 2] for axis, value in enumerate(values))
    )


def _answer(image: OpenImage, steps: list[Step]) -> Answers:
    """What the model says to the last step; what it said to those before is looked up."""
    # The candidate of the last step changes what is shown, but not the answer.
    told = [*steps[:-1], {name: value for name, value in steps[-1].items() if name != "candidate"}]
    key = json.dumps(told, sort_keys=True)
    if key not in image.answers:
        image.answers[key] = image.prompted.predict(*_prompts(image, steps))
        if len(image.answers) > NUM_ANSWERS:
            image.answers.popitem(last=False)
    image.answers.move_to_end(key)
    return image.answers[key]


def _prompts(
    image: OpenImage, steps: list[Step]
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """Arguments of `PromptedImage.predict`."""
    state = None
    if "mask" in steps[0]:
        state = _mask_state(image.prompted, steps[0]["mask"])
    if len(steps) > 1 and "mask" not in steps[-2]:
        before = _answer(image, steps[:-1])
        state = before.logits[:, :, _chosen(before, steps[-2])], before.views
    given = [*steps[0].get("prompts", []), *steps]
    points = [step for step in given if "point" in step]
    boxes = [step["box"] for step in given if "box" in step]
    return (
        torch.tensor([step["point"] for step in points], dtype=torch.float32).reshape(1, -1, 2),
        torch.tensor([step["label"] for step in points], dtype=torch.long).reshape(1, -1),
        torch.tensor(boxes[-1:], dtype=torch.float32) if boxes else None,
        state,
    )


def _mask_state(prompted: PromptedImage, crop: MaskCrop) -> tuple[Tensor, Tensor]:
    """A mask of the image as if it had been answered, in the view of the whole image."""
    whole = len(prompted.views) - 1
    encoded = prompted.encode(whole)
    mask = torch.from_numpy(decode_mask(crop, prompted.size)).float()
    reshaped = encoded.sizes[1][0].tolist()
    grid = prompted.processor.image_processor.mask_grid_size(*encoded.padded_size)
    logits = mask_to_logits(mask, (reshaped[0], reshaped[1]), encoded.padded_size, grid)
    return logits[None, None].to(prompted.model.device), torch.tensor([whole])


def _chosen(answers: Answers, step: Step) -> int:
    scores = answers.iou_scores[0, 0]
    return min(step["candidate"], len(scores) - 1) if "candidate" in step else int(scores.argmax())


__all__ = ["Session", "check_steps"]
