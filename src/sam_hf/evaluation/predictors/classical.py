"""What clicks and boxes give without a model: GrabCut and the random walker. Baselines that learn nothing."""

import importlib
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...regions import label_regions
from .predictor import Prediction, Prompts

UNKNOWN, FOREGROUND, BACKGROUND = 0, 1, 2
# A click stands for a disc, of this share of the diagonal of the image.
CLICK_RADIUS = 0.005
# But not fewer pixels, so that a disc has colours to learn from.
MIN_CLICK_RADIUS = 2.0
# How far around a first click GrabCut begins to look, as a share of the diagonal.
REACH = 0.1
# Boxes may be too small by a tenth of their sides, as noisy ones are (`clicks.jitter_boxes`).
BOX_MARGIN = 0.1


class SeededPredictor:
    """A method that grows an object from seeds: pixels that are known to be on it, or beside it.

    Seeds are the discs of clicks, of which the latest hides those before, and beside the object all that is outside a
    box with its margin, or without a box the outermost pixels of the image. Those stay when there are clicks beside
    the object, since their discs alone would leave all other pixels to it. Objects are taken one after another, in an
    image that is scaled down to `max_side` pixels where it is larger: these methods take seconds.

    Of an answer those connected regions stay that have a click on the object in them. Without such a click all of
    what is found in a box stays, and without a box there is no answer.
    """

    # What is dark to a camera is not to whoever clicks.
    stretch_contrast = True
    begins_with_answer = True
    max_side: int

    def set_image(self, image: np.ndarray) -> None:
        self.height, self.width = image.shape[:2]
        scale = min(1.0, self.max_side / max(self.height, self.width))
        small = (max(1, round(self.width * scale)), max(1, round(self.height * scale)))
        self.image = np.asarray(Image.fromarray(image).resize(small, Image.Resampling.BOX))
        self.scale = np.array(small, dtype=np.float32) / (self.width, self.height)

    def predict(self, prompts: Prompts) -> Prediction:
        """Masks of one candidate; no scores."""
        points = (prompts.points.cpu().numpy() + 0.5) * self.scale - 0.5
        boxes = None if prompts.boxes is None else (prompts.boxes.cpu().numpy() + 0.5) * np.tile(self.scale, 2) - 0.5
        found = []
        for i, labels in enumerate(prompts.labels.cpu().numpy()):
            before = prompts.state[i] if self.begins_with_answer and prompts.state is not None else None
            found.append(self._answer(points[i], labels, None if boxes is None else boxes[i], before))
        masks = torch.stack([self._full_size(answer) for answer in found])[:, None]
        return Prediction(
            masks=masks, scores=torch.full((len(found), 1), torch.nan), state=[answer > 0.5 for answer in found]
        )

    def _answer(
        self, points: np.ndarray, labels: np.ndarray, box: np.ndarray | None, before: np.ndarray | None
    ) -> np.ndarray:
        """float32 [h, w], above 0.5 on the object, in the scaled image as are points [P, 2] and box [4]."""
        on = points[labels == 1]
        seeds = draw_seeds(self.image.shape[:2], points, labels, box)
        guess = before if before is not None and before.any() else self.first_guess(seeds.shape, on, box)
        may_be = (seeds == FOREGROUND) | (guess & (seeds == UNKNOWN))
        # An image of one colour says nothing: the walker would divide by zero, and the cut takes very long.
        if not (seeds == BACKGROUND).any() or not may_be.any() or np.ptp(self.image) == 0:
            return (seeds == FOREGROUND).astype(np.float32)
        answer = self.segment(seeds, guess)
        if len(on):
            regions, areas = label_regions(answer > 0.5)
            kept = np.zeros(len(areas), dtype=bool)
            kept[regions[seeds == FOREGROUND]] = True
            kept[0] = False
            answer = answer * kept[regions]
        return answer

    def _full_size(self, answer: np.ndarray) -> Tensor:
        """bool [H, W]."""
        scaled = Image.fromarray(answer).resize((self.width, self.height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(scaled) > 0.5)

    def first_guess(self, size: tuple[int, ...], on: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """bool [h, w], where the object may be: the box, or what is in reach of clicks [n, 2] on it."""
        if box is not None:
            return in_box(size, box)
        return in_discs(size, on, REACH * math.hypot(*size))

    def segment(self, seeds: np.ndarray, guess: np.ndarray) -> np.ndarray:
        """Of one object.

        Args:
            seeds: uint8 [h, w], `FOREGROUND`, `BACKGROUND` or `UNKNOWN`.
            guess: bool [h, w], the answer before, or at first where the object may be.

        Returns:
            float32 [h, w], above 0.5 on the object.
        """
        raise NotImplementedError


class GrabCutPredictor(SeededPredictor):
    """GrabCut (Rother et al. 2004): mixtures of Gaussians for the colours of object and background, and graph cuts.

    By OpenCV's `grabCut`, with the five components of the paper and the five iterations of OpenCV's tutorial. What is
    no seed is probably object where the answer before was; at first in the box, or within `REACH` of clicks on the
    object.

    Raises:
        ValueError: without OpenCV.
    """

    def __init__(self, max_side: int = 512, iterations: int = 5):
        self.cv2 = import_optional("cv2", "opencv-python-headless")
        self.max_side, self.iterations = max_side, iterations

    def segment(self, seeds: np.ndarray, guess: np.ndarray) -> np.ndarray:
        mask = np.where(guess, self.cv2.GC_PR_FGD, self.cv2.GC_PR_BGD).astype(np.uint8)
        mask[seeds == FOREGROUND] = self.cv2.GC_FGD
        mask[seeds == BACKGROUND] = self.cv2.GC_BGD
        self.cv2.setRNGSeed(0)  # its k-means begins at random
        self.cv2.grabCut(self.image, mask, None, None, None, self.iterations, self.cv2.GC_INIT_WITH_MASK)
        return np.isin(mask, (self.cv2.GC_FGD, self.cv2.GC_PR_FGD)).astype(np.float32)


class RandomWalkerPredictor(SeededPredictor):
    """The random walker (Grady 2006): a pixel is of the object if a walk that avoids edges meets its seeds first.

    By scikit-image's `random_walker` and its `beta`. It knows no answer before: all clicks say it anew. In a box
    without a click on the object, the middle of the box, half as wide and high, is that.

    Raises:
        ValueError: without scikit-image.
    """

    begins_with_answer = False

    def __init__(self, max_side: int = 320, beta: float = 130.0):
        self.random_walker = import_optional("skimage.segmentation", "scikit-image").random_walker
        self.max_side, self.beta = max_side, beta

    def first_guess(self, size: tuple[int, ...], on: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        if box is None or len(on):
            return np.zeros(size, dtype=bool)
        return in_box(size, (box + np.tile(box.reshape(2, 2).mean(axis=0), 2)) / 2)

    def segment(self, seeds: np.ndarray, guess: np.ndarray) -> np.ndarray:
        markers = seeds.astype(np.int64)
        if not (seeds == FOREGROUND).any():
            markers[guess & (seeds == UNKNOWN)] = FOREGROUND
        probabilities = self.random_walker(
            self.image / 255.0, markers, beta=self.beta, channel_axis=-1, return_full_prob=True, prob_tol=1.0
        )
        return probabilities[0].astype(np.float32)


def draw_seeds(size: tuple[int, ...], points: np.ndarray, labels: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """uint8 [h, w] of `FOREGROUND`, `BACKGROUND` and `UNKNOWN`; see `SeededPredictor`.

    Args:
        points: float [P, 2], (x, y) indices of pixels; labels: int [P], 1 on the object, 0 beside it, others nothing.
        box: float [4], (x1, y1, x2, y2) indices of the first and last pixels.
    """
    radius = max(MIN_CLICK_RADIUS, CLICK_RADIUS * math.hypot(*size))
    seeds = np.full(size, UNKNOWN, dtype=np.uint8)
    if box is not None:
        width, height = box[2:] - box[:2] + 1
        seeds[~in_box(size, box + BOX_MARGIN * np.array([-width, -height, width, height]))] = BACKGROUND
    if not (seeds == BACKGROUND).any():
        seeds[[0, -1]] = seeds[:, [0, -1]] = BACKGROUND
    for point, label in zip(points, labels, strict=True):
        if label in (0, 1):
            seeds[in_discs(size, point[None], radius)] = FOREGROUND if label == 1 else BACKGROUND
    return seeds


def in_discs(size: tuple[int, ...], centers: np.ndarray, radius: float) -> np.ndarray:
    """bool [h, w], within the radius of any of the centers [n, 2]."""
    y, x = np.ogrid[: size[0], : size[1]]
    inside = np.zeros(size, dtype=bool)
    for center_x, center_y in centers:
        inside |= (x - center_x) ** 2 + (y - center_y) ** 2 <= radius**2
    return inside


def in_box(size: tuple[int, ...], box: np.ndarray) -> np.ndarray:
    """bool [h, w], pixels whose centre is in a box [4] or on its border."""
    y, x = np.ogrid[: size[0], : size[1]]
    return (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])


def import_optional(module: str, package: str) -> Any:
    """A library that no extra of this package needs.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{module} is not installed: pip install {package}") from error


# By the name that `open_predictor` knows them by.
CLASSICAL_METHODS = {"grabcut": GrabCutPredictor, "random_walker": RandomWalkerPredictor}

__all__ = ["CLASSICAL_METHODS", "GrabCutPredictor", "RandomWalkerPredictor", "SeededPredictor"]
