"""A machine learning backend for Label Studio: smart keypoints and rectangles to masks of a brush. See docs/deploy.md.

    python examples/label_studio.py --model runs/scenes/best --port 9090

The labels of a project need a brush, and smart keypoints or rectangles, or both, of the same image:

    <View>
      <Image name="image" value="$image"/>
      <BrushLabels name="mask" toName="image"><Label value="cell"/></BrushLabels>
      <KeyPointLabels name="click" toName="image" smart="true"><Label value="cell" smart="true"/></KeyPointLabels>
      <RectangleLabels name="box" toName="image" smart="true"><Label value="cell" smart="true"/></RectangleLabels>
    </View>

Where the server of the package makes the app itself, the model is named by SAM_HF_MODEL. Images that Label Studio
stores are fetched from LABEL_STUDIO_URL with LABEL_STUDIO_API_KEY.
"""

import argparse
import inspect
import os
import uuid
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from sam_hf.convert import load_checkpoint
from sam_hf.data.label_studio import encode_brush
from sam_hf.prompted import PromptedImage, answer_in_turn, open_image

try:
    from label_studio_ml.model import LabelStudioMLBase
except ImportError:  # for the functions below, which do without
    LabelStudioMLBase = object

NUM_IMAGES = 4  # that are kept encoded


class SamHfBackend(LabelStudioMLBase):
    """Answers what is drawn, one object for each call; nothing is answered before something is drawn."""

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        drawn = (context or {}).get("result")
        if not drawn:
            return []
        name, brush = find_brush(self.parsed_label_config)
        where = {"url": tasks[0]["data"][brush["inputs"][0]["value"]]}
        if "task_id" in inspect.signature(self.get_local_path).parameters:  # of version 2, for images in a cloud
            where["task_id"] = tasks[0].get("id")
        image = encoded(self.get_local_path(**where))
        mask, score = answer_in_turn(image, **to_prompts(drawn, image.size))
        return [{"result": [to_region(mask, score, name, brush, drawn)], "score": score}]


@lru_cache(1)
def load() -> tuple[Any, Any]:
    model, processor, _ = load_checkpoint(os.environ["SAM_HF_MODEL"])
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), processor


@lru_cache(NUM_IMAGES)
def encoded(path: str) -> PromptedImage:
    return open_image(*load(), path)


def find_brush(controls: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The first brush with labels among the controls of a project, and its name.

    Raises:
        ValueError: if there is none.
    """
    for name, control in controls.items():
        if control["type"] == "BrushLabels":
            return name, control
    raise ValueError(f"the labels of the project have {sorted(controls)}, expected <BrushLabels> among them, too.")


def to_prompts(drawn: list[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of `answer_in_turn` for keypoints and rectangles; of several rectangles the last one counts.

    They are in percent of the sides of the image, from the edge of the first pixel.

    Args:
        size: (height, width) of the image.

    Raises:
        ValueError: for what is drawn on a turned image.
    """
    prompts: dict[str, Any] = {"points": [], "labels": [], "box": None}
    down, across = (side / 100 for side in size)
    for region in drawn:
        if region.get("image_rotation"):
            raise ValueError(f"the image is turned by {region['image_rotation']} degrees, expected 0: turn it back.")
        value = region["value"]
        x, y = value["x"] * across - 0.5, value["y"] * down - 0.5
        if "height" in value:
            prompts["box"] = [x, y, x + value["width"] * across, y + value["height"] * down]
        else:
            prompts["points"].append([x, y])
            prompts["labels"].append(int(region.get("is_positive", True)))
    return prompts


def to_region(
    mask: np.ndarray, score: float, name: str, brush: dict[str, Any], drawn: list[dict[str, Any]]
) -> dict[str, Any]:
    """A mask, bool [H, W], as what the brush draws, with the labels that were chosen to draw the prompts."""
    labels = drawn[-1]["value"].get(drawn[-1]["type"]) or brush.get("labels", [])[:1]
    return {
        "id": uuid.uuid4().hex[:10],
        "type": "brushlabels",
        "from_name": name,
        "to_name": brush["to_name"][0],
        "original_height": mask.shape[0],
        "original_width": mask.shape[1],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": labels},
        "score": score,
    }


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id, or a .pth file of Meta's")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for a Label Studio on another machine")
    parser.add_argument("--port", type=int, default=9090)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    os.environ["SAM_HF_MODEL"] = args.model
    load()
    from label_studio_ml.api import init_app

    init_app(SamHfBackend).run(host=args.host, port=args.port)


if __name__ == "__main__":
    main()
