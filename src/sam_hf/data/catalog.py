"""Open a data set by name or path."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from sam_hf.data.folders import LabelMapFolder, MaskFolder, list_images, list_masks
from sam_hf.data.scenes import SyntheticScenes

__all__ = ["open_dataset"]

NUM_VALIDATION_SCENES = 200
NUM_PROBED_MASKS = 8


def open_dataset(path_or_name: str | Path, split: str | None = "train", **options: Any) -> Dataset:
    """Open the procedural scenes or a folder of images with masks, as records by index.

    "scenes" is `SyntheticScenes`. Anything else is a folder with `images/` and `masks/` (see
    `sam_hf.data.folders`). Which kind it is shows in `masks/`:

    - it has sub-folders, or a sample of its files holds nothing but 0 and 255: `MaskFolder`;
    - its files hold one integer per pixel: `LabelMapFolder`;
    - there are other values beside 0 and 255, but 255 covers more than half of what is not 0: it could be
      soft masks or labels, and nothing is guessed.

    Args:
        path_or_name: "scenes" or a folder; a folder of that name is "./scenes".
        split: "train", "validation" or what the folder's `splits.csv` names; None for all images of a folder.
        options: keyword arguments of the class, such as `num_scenes`, `min_area`, `max_share`, `background`.

    Raises:
        ValueError: if the folder is in neither layout or in an ambiguous one.
    """
    if path_or_name == "scenes":
        if split == "validation":
            options.setdefault("num_scenes", NUM_VALIDATION_SCENES)
        return SyntheticScenes(split=split, **options)
    root = Path(path_or_name)
    list_images(root)
    reader = MaskFolder if _holds_binary_masks(root) else LabelMapFolder
    return reader(root, split, **options)


def _holds_binary_masks(root: Path) -> bool:
    files = list_masks(root)
    if any(path.parent != root / "masks" for path in files):
        return True
    counts = np.zeros(257, dtype=np.int64)
    for path in files[:: max(1, len(files) // NUM_PROBED_MASKS)]:
        with Image.open(path) as image:
            coloured = image.mode == "1" or len(image.getbands()) > 1
            values = np.asarray(image.convert("L") if coloured else image)
        counts += np.bincount(values.ravel().astype(np.int64).clip(0, 256), minlength=257)
    others = counts[1:255].sum() + counts[256]
    if others and counts[255] > others:
        raise ValueError(
            f"{root / 'masks'} holds mostly 0 and 255, but also other values: soft masks or label maps? "
            "Say which: MaskFolder(root) or LabelMapFolder(root)"
        )
    return others == 0
