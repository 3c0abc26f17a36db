"""Tiny data sets in every format, all with the same three masks."""

import base64
import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from pycocotools import mask as coco

HEIGHT, WIDTH = 40, 60
# (left, top, right, bottom), the last two excluded.
BOXES = [(5, 4, 25, 30), (20, 20, 50, 38), (0, 0, 60, 3)]


def mask_of(box: tuple[int, int, int, int], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


MASKS = np.stack([mask_of(box) for box in BOXES])


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8))


def polygon(box: tuple[int, int, int, int]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def uncompressed(mask: np.ndarray) -> dict:
    flat = np.concatenate(([False], mask.ravel(order="F"), [False]))
    bounds = [0, *np.flatnonzero(flat[1:] != flat[:-1]).tolist(), mask.size]
    return {"size": list(mask.shape), "counts": np.diff(bounds).tolist()}


def compressed(mask: np.ndarray) -> dict:
    rle = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def coco_content(names: list[str], **changes) -> dict:
    images = [{"id": 7 + k, "file_name": name, "height": HEIGHT, "width": WIDTH} for k, name in enumerate(names)]
    forms = [[polygon(BOXES[0])], uncompressed(MASKS[1]), compressed(MASKS[2])]
    annotations = [
        {"id": 100 * image["id"] + k, "image_id": image["id"], "segmentation": form, "iscrowd": int(k == 1), "area": 1}
        for image in images
        for k, form in enumerate(forms)
    ]
    return {"images": images, "annotations": annotations, "categories": []} | changes


def write_coco(root: Path, count: int = 2) -> Path:
    names = [f"{k}.png" for k in range(count)]
    (root / "images").mkdir(parents=True)
    for k, name in enumerate(names):
        picture(k).save(root / "images" / name)
    (root / "labels.json").write_text(json.dumps(coco_content(names)))
    return root


def write_sa1b(root: Path, count: int = 2) -> Path:
    root.mkdir(parents=True)
    for k in range(count):
        picture(k).save(root / f"sa_{k}.png")
        annotations = [{"id": n, "segmentation": compressed(mask), "bbox": [0] * 4} for n, mask in enumerate(MASKS)]
        image = {"image_id": k, "height": HEIGHT, "width": WIDTH, "file_name": f"sa_{k}.png"}
        (root / f"sa_{k}.json").write_text(json.dumps({"image": image, "annotations": annotations}))
    return root


def shape(kind: str, points: list, label: str = "thing", **more) -> dict:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def write_labelme(root: Path, count: int = 2, shapes: list[dict] | None = None, **changes) -> Path:
    root.mkdir(parents=True)
    cropped = base64.b64encode(png(mask_of((0, 0, 60, 3), 3).astype(np.uint8))).decode()
    shapes = shapes or [
        shape("polygon", np.reshape(polygon(BOXES[0]), (4, 2)).tolist()),
        shape("rectangle", [[50, 38], [20, 20]], "__ignore__"),
        shape("mask", [[0, 0], [59, 2]], mask=cropped),
        shape("point", [[3, 3]]),
    ]
    for k in range(count):
        picture(k).save(root / f"{k}.png")
        content = {"version": "5", "shapes": shapes, "imagePath": f"{k}.png", "imageData": None}
        content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH} | changes
        (root / f"{k}.json").write_text(json.dumps(content))
    return root


def mask_table(count: int = 2, **columns) -> datasets.Dataset:
    masks = [[Image.fromarray(mask) for mask in MASKS] for _ in range(count)]
    return datasets.Dataset.from_dict(
        {"image": [picture(k) for k in range(count)], "masks": masks} | columns,
        features=datasets.Features({"image": datasets.Image(), "masks": datasets.List(datasets.Image())}),
    )


def write_saved(root: Path, count: int = 2) -> Path:
    mask_table(count).save_to_disk(root)
    return root


def write_parquet(root: Path, count: int = 2) -> Path:
    root.mkdir(parents=True)
    mask_table(count).to_parquet(root / "data.parquet")
    return root


def write_tars(root: Path, count: int = 2, per_tar: int = 1, mode: str = "w", suffix: str = ".tar") -> Path:
    """SA-1B as it is distributed: files of a folder in tar files."""
    files = sorted(write_sa1b(root / "unpacked", count).iterdir(), key=lambda path: (len(path.stem), path.stem))
    for number in range(0, count, per_tar):
        with tarfile.open(root / f"sa_{number // per_tar:03d}{suffix}", mode) as archive:
            for path in files[2 * number : 2 * (number + per_tar)]:
                archive.add(path, f"./{path.name}")
    for path in files:
        path.unlink()
    (root / "unpacked").rmdir()
    return root


def write_masks(root: Path, count: int = 2) -> Path:
    """`images/` and `masks/` with label maps; the masks do not overlap here, and the second is whole."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    label_map = MASKS[0] + 2 * (MASKS[1] & ~MASKS[0]).astype(np.uint8)
    for k in range(count):
        picture(k).save(root / "images" / f"{k:03d}.jpg")
        Image.fromarray(label_map).save(root / "masks" / f"{k:03d}.png")
    return root
