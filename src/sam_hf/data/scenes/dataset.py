"""Procedural scenes with exact masks: data for tests, demonstrations and a first training, no download."""

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..schema import Record, objects_from_label_map
from .painter import paint_scene

__all__ = ["SyntheticScenes"]

SPLITS = ("train", "validation")


class SyntheticScenes(Dataset):
    """Scenes of 3 to about 9 textured objects before a textured background, as records.

    Objects overlap by depth, throw shadows, carry marks, repeat and touch; light, focus, noise and contrast
    vary. Masks are the visible parts: they are disjoint and exact. An object that is hidden for more than 65
    %, or shows fewer than 64 pixels, stays in the picture without a mask. Objects and
    backgrounds share patterns and hues; objects are lighter.

    The scene of an index depends on (seed, split, index, size) only: not on the process, the order of access
    or `num_scenes`.
    """

    def __init__(
        self,
        num_scenes: int = 10_000,
        split: str = "train",
        seed: int = 0,
        size: tuple[int, int] = (256, 256),
    ) -> None:
        """
        Args:
            num_scenes: number of scenes.
            split: "train" or "validation"; their scenes differ for every seed.
            seed: not negative; other seeds give other scenes.
            size: (height, width) in pixels, at least 64 each.

        Raises:
            ValueError: if an argument is out of its range.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        if num_scenes < 1 or seed < 0:
            raise ValueError(f"num_scenes must be positive and seed not negative, got {num_scenes} and {seed}")
        if len(size) != 2 or min(size) < 64:
            raise ValueError(f"size must be (height, width) with at least 64 pixels each, got {tuple(size)}")
        self.num_scenes = num_scenes
        self.split = split
        self.seed = seed
        self.size = (int(size[0]), int(size[1]))

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"scene {index} of {self.num_scenes}")
        key = np.random.SeedSequence([self.seed, SPLITS.index(self.split), index])
        image, labels = paint_scene(np.random.Generator(np.random.Philox(key)), self.size)
        return {
            "image": Image.fromarray(image),
            "objects": objects_from_label_map(labels),
            "image_id": f"scene-{self.seed}-{self.split}-{index}",
        }
