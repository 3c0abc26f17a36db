"""An interactor of CVAT: clicks, and a box if there is one, to a mask. See docs/deploy.md."""

import base64
import io
import json
import os
from functools import lru_cache
from typing import Any

import torch
from PIL import Image

from sam_hf.convert import load_checkpoint
from sam_hf.prompted import PromptedImage, answer_in_turn, open_image

NUM_IMAGES = 4  # that are kept encoded


def init_context(context: Any) -> None:
    model, processor, _ = load_checkpoint(os.environ.get("MODEL", "/opt/nuclio/model"))
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    @lru_cache(NUM_IMAGES)
    def encoded(image: str) -> PromptedImage:
        return open_image(model, processor, Image.open(io.BytesIO(base64.b64decode(image))))

    context.user_data.encoded = encoded


def handler(context: Any, event: Any) -> Any:
    image = context.user_data.encoded(event.body["image"])
    mask, _ = answer_in_turn(image, **to_prompts(event.body))
    body = json.dumps({"mask": mask.astype(int).tolist()})
    return context.Response(body=body, headers={}, content_type="application/json", status_code=200)


def to_prompts(body: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `answer_in_turn`. CVAT has 0 at the edge of the first pixel, not in its middle."""
    positive, negative, corners = (
        [[float(x) - 0.5, float(y) - 0.5] for x, y in body.get(name) or []]
        for name in ("pos_points", "neg_points", "obj_bbox")
    )
    return {
        "points": positive + negative,
        "labels": [1] * len(positive) + [0] * len(negative),
        "box": [*map(min, *corners), *map(max, *corners)] if corners else None,
    }
