"""Tiny data sets in the formats of annotation tools, all with the boxes of `data_files` as polygons or masks.

Every writer takes a folder and a number of images, and gives the file or folder to open and the file to damage.
"""

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
from data_files import BOXES, HEIGHT, MASKS, WIDTH, picture
from PIL import Image


def corners(box: tuple[int, int, int, int]) -> list[list[int]]:
    left, top, right, bottom = box
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def save_pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        picture(number).save(folder / name)


def yolo_row(box: tuple[int, int, int, int]) -> str:
    return " ".join(["0", *(f"{x / WIDTH} {y / HEIGHT}" for x, y in corners(box))])


def write_yolo(root: Path, count: int = 2) -> tuple[Path, Path]:
    names = [f"{number}.png" for number in range(count)]
    save_pictures(root / "images", names)
    (root / "labels").mkdir()
    for name in names:
        (root / "labels" / name).with_suffix(".txt").write_text("\n".join(map(yolo_row, BOXES)))
    return root, root / "labels" / "0.txt"


def cvat_runs(mask: np.ndarray) -> str:
    """Along the rows, background first."""
    flat = np.concatenate(([False], mask.ravel(), [False]))
    bounds = [0, *np.flatnonzero(flat[1:] != flat[:-1]).tolist(), mask.size]
    return ", ".join(map(str, np.diff(bounds)))


def cvat_shapes() -> str:
    points = ";".join(f"{x}.00,{y}.00" for x, y in corners(BOXES[0]))
    left, top = 18, 17
    part = MASKS[1][top:, left:]
    return f"""
    <polygon label="a" source="manual" occluded="0" points="{points}" z_order="0"></polygon>
    <mask label="a" rle="{cvat_runs(part)}" left="{left}" top="{top}" width="{part.shape[1]}" height="{part.shape[0]}"
      z_order="0"></mask>
    <polygon label="b" group_id="4" points="0,0;30,0;30,3;0,3"><attribute name="c">d</attribute></polygon>
    <polygon label="b" group_id="4" points="30,0;60,0;60,3;30,3"></polygon>"""


def write_cvat(root: Path, count: int = 2, shapes: str | None = None) -> tuple[Path, Path]:
    names = [f"{number}.png" for number in range(count)]
    save_pictures(root / "images", names)
    images = "".join(
        f'<image id="{number}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{shapes or cvat_shapes()}</image>\n'
        for number, name in enumerate(names)
    )
    file = root / "annotations.xml"
    file.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{images}</annotations>'
    )
    return root, file


def pack_brush(mask: np.ndarray, length_bits: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """Label Studio's run lengths of an RGBA image; rows of one to three values stand as they are."""
    values = np.repeat(mask.astype(np.uint8)[..., None] * 255, 4, axis=2).ravel()
    bits = [f"{len(values):032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in length_bits)]
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        while start < end:
            number = next((k for k, size in enumerate(length_bits) if end - start <= 1 << size), len(length_bits) - 1)
            length = int(min(end - start, 1 << length_bits[number]))
            is_run = length > 3
            bits += [str(int(is_run)), f"{number:02b}", f"{length - 1:0{length_bits[number]}b}"]
            bits += [f"{value:08b}" for value in values[start : start + (1 if is_run else length)]]
            start += length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def studio_region(value: dict, **more) -> dict:
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {
        "id": str(value)[:60],
        "from_name": "a",
        "to_name": "image",
        "type": "brush",
        "value": value,
        **size,
    } | more


def percent(box: tuple[int, int, int, int]) -> list[list[float]]:
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners(box)]


def studio_regions() -> list[dict]:
    return [
        studio_region({"points": percent(BOXES[0]), "closed": True, "polygonlabels": ["a"]}),
        studio_region({"format": "rle", "rle": pack_brush(MASKS[1])}, id="twice"),
        studio_region({"format": "rle", "rle": pack_brush(MASKS[1]), "labels": ["a"]}, id="twice", type="labels"),
        studio_region({"points": percent(BOXES[2]), "polygonlabels": ["b"]}),
        {"id": "c", "type": "choices", "value": {"choices": ["good"]}},
    ]


def write_label_studio(root: Path, count: int = 2, regions: list[dict] | None = None) -> tuple[Path, Path]:
    save_pictures(root / "images", [f"{number}.png" for number in range(count)])
    tasks = [
        {
            "id": number,
            "data": {"text": "a text", "image": f"/data/upload/1/{number:08x}-{number}.png"},
            "annotations": [
                {"result": studio_regions() if regions is None else regions, "was_cancelled": False},
                {"result": studio_regions(), "was_cancelled": True},
            ],
        }
        for number in range(count)
    ]
    (root / "export.json").write_text(json.dumps(tasks))
    return root, root / "export.json"


def via_polygon(box: tuple[int, int, int, int]) -> dict:
    across, down = zip(*corners(box), strict=True)
    return {"name": "polygon", "all_points_x": across, "all_points_y": down}


def write_via(root: Path, count: int = 2, shapes: list[dict] | None = None) -> tuple[Path, Path]:
    names = [f"{number}.png" for number in range(count)]
    save_pictures(root, names)
    shapes = shapes or [via_polygon(box) for box in BOXES]
    regions = [{"shape_attributes": item, "region_attributes": {}} for item in shapes]
    images = {f"{name}123": {"filename": name, "size": 123, "regions": regions} for name in names}
    (root / "via.json").write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": images}))
    return root, root / "via.json"


def supervisely_bitmap(mask: np.ndarray, left: int, top: int) -> dict:
    content = io.BytesIO()
    pixels = np.zeros((*mask.shape, 4), dtype=np.uint8)
    pixels[mask] = 255
    Image.fromarray(pixels).save(content, "PNG")
    data = base64.b64encode(zlib.compress(content.getvalue())).decode()
    return {"geometryType": "bitmap", "bitmap": {"data": data, "origin": [left, top]}}


def supervisely_polygon(box: tuple[int, int, int, int], *holes: tuple[int, int, int, int]) -> dict:
    points = {"exterior": corners(box), "interior": [corners(hole) for hole in holes]}
    return {"geometryType": "polygon", "points": points}


def write_supervisely(root: Path, count: int = 2, figures: list[dict] | None = None) -> tuple[Path, Path]:
    names = [f"{number}.png" for number in range(count)]
    save_pictures(root / "ds" / "img", names)
    (root / "ds" / "ann").mkdir()
    figures = figures or [
        supervisely_polygon(BOXES[0]),
        supervisely_bitmap(MASKS[1][17:, 18:], 18, 17),
        supervisely_polygon(BOXES[2]),
    ]
    for name in names:
        content = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": figures}
        (root / "ds" / "ann" / f"{name}.json").write_text(json.dumps(content))
    (root / "meta.json").write_text(json.dumps({"classes": []}))
    return root, root / "ds" / "ann" / "0.png.json"


# Segments do not overlap.
SEGMENTS = np.where(MASKS[2], 70_000, np.where(MASKS[0], 5, np.where(MASKS[1], 300, 0)))


def write_panoptic(root: Path, count: int = 2, segments: np.ndarray = SEGMENTS, **category) -> tuple[Path, Path]:
    names = [f"{number}.png" for number in range(count)]
    save_pictures(root / "images", names)
    (root / "panoptic").mkdir()
    colours = np.stack([segments >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    infos = [
        {"id": 5, "category_id": 1},
        {"id": 300, "category_id": 2},
        {"id": 70_000, "category_id": 1, "iscrowd": 1},
    ]
    for name in names:
        Image.fromarray(colours).save(root / "panoptic" / name)
    content = {
        "images": [
            {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH} for number, name in enumerate(names)
        ],
        "annotations": [
            {"image_id": number, "file_name": name, "segments_info": infos} for number, name in enumerate(names)
        ],
        "categories": [{"id": 1, **category}, {"id": 2, **dict.fromkeys(category, 0)}],
    }
    (root / "panoptic.json").write_text(json.dumps(content))
    return root, root / "panoptic.json"


def write_metadata(root: Path, count: int = 2, form: str = "jsonl") -> tuple[Path, Path]:
    """One column with a list of binary masks; for `csv` one with label maps."""
    save_pictures(root, [f"{number}.png" for number in range(count)])
    (root / "masks").mkdir()
    label_map = (SEGMENTS % 256).astype(np.uint8)
    rows = []
    for number in range(count):
        names = [f"masks/{number}_{k}.png" for k in range(len(MASKS))]
        for name, mask in zip(names, MASKS, strict=True):
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / name)
        Image.fromarray(label_map).save(root / "masks" / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "mask_file_names": names, "caption": "a mask"})
    if form == "csv":
        lines = [f"{number}.png,masks/{number}.png" for number in range(count)]
        (root / "metadata.csv").write_text("\n".join(["file_name,mask_file_name", *lines]))
    else:
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root, root / f"metadata.{form}"
