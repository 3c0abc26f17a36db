"""The record every reader of this package returns, and its conversions to and from masks.

A record is `{"image": PIL image or array, "objects": [...], "image_id": str}`, its image with all values of the file,
in its own mode (`rgb_array` makes RGB of it); an object is
`{"segmentation": {"size": [height, width], "counts": str}, "area": int, "bbox": [x, y, w, h], "iscrowd": 0 or
1}`. The segmentation is COCO's compressed run-length encoding (RLE), small enough to keep every object of a
data set in memory; masks are decoded only for the objects that a training step uses. Objects of one image may
overlap.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
from datasets import Features, Image, List, Value
from PIL import Image as PILImage
from pycocotools import mask as coco

from ..pixels import read_image
from .rle import rle_fault

__all__ = [
    "FEATURES",
    "DrawnRecord",
    "Record",
    "Records",
    "SegmentedObject",
    "check_record",
    "decode_masks",
    "decode_rles",
    "ignored_pixels",
    "image_shape",
    "objects_from_label_map",
    "objects_from_masks",
    "objects_from_rles",
    "rgb_array",
    "targets_from_masks",
]


class SegmentedObject(TypedDict):
    """One mask of an image; `bbox` follows `pycocotools.mask.toBbox`: w and h count pixels."""

    segmentation: dict[str, Any]
    area: int
    bbox: list[float]
    iscrowd: int


class Record(TypedDict):
    """One image with its objects."""

    image: PILImage.Image | np.ndarray
    objects: list[SegmentedObject]
    image_id: str


class DrawnRecord(Record, total=False):
    """A record of training: `faults` are of others that it stands for, and `draw` is its place in a stream."""

    faults: list[str]
    draw: int


class Records(Protocol):
    """A data set: records by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


FEATURES = Features(
    {
        "image": Image(),
        "objects": List(
            {
                "segmentation": {"size": List(Value("int32"), length=2), "counts": Value("string")},
                "area": Value("int64"),
                "bbox": List(Value("float32"), length=4),
                "iscrowd": Value("int8"),
            }
        ),
        "image_id": Value("string"),
    }
)


def objects_from_label_map(label_map: np.ndarray, background: int | None = 0) -> list[SegmentedObject]:
    """Encode every label of a label map as one object, in the order of the labels.

    The map is read once as runs of equal labels down its columns, so the cost does not grow with labels x
    pixels. A label in several pieces is one object.

    Args:
        label_map: integer or bool [H, W].
        background: the label that is no object; None when every label is one.

    Raises:
        ValueError: if the map is not two-dimensional, not empty and of integers.
    """
    label_map = np.asarray(label_map)
    if label_map.ndim != 2 or label_map.size == 0 or label_map.dtype.kind not in "iub":
        raise ValueError(
            f"label_map must be a non-empty integer array [H, W], got {label_map.dtype} "
            f"{list(label_map.shape)}; a colour picture of labels has to become one number per pixel first"
        )
    height, width = label_map.shape
    flat = label_map.ravel(order="F")
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], flat.size)
    labels = flat[starts]
    if background is not None:
        kept = labels != background
        starts, ends, labels = starts[kept], ends[kept], labels[kept]
    order = np.argsort(labels, kind="stable")
    starts, ends, labels = starts[order], ends[order], labels[order]
    if not labels.size:
        return []
    first = np.flatnonzero(np.append(True, labels[1:] != labels[:-1]))
    rles = []
    for begin, stop in zip(first, np.append(first[1:], labels.size), strict=True):
        # Every pixel at which this object starts or ends; their differences are COCO's alternating run
        # lengths.
        bounds = np.stack((starts[begin:stop], ends[begin:stop]), axis=1).ravel()
        if bounds[-1] != flat.size:
            bounds = np.append(bounds, flat.size)
        rles.append({"size": [height, width], "counts": np.diff(bounds, prepend=0).tolist()})
    return objects_from_rles(coco.frPyObjects(rles, height, width))


def objects_from_masks(masks: np.ndarray) -> list[SegmentedObject]:
    """Encode masks, bool [N, H, W], as N objects in the same order; an empty mask gives an object of area 0.

    Raises:
        ValueError: if the array is not three-dimensional and of dtype bool.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != bool:
        raise ValueError(f"masks must be bool [N, H, W], got {masks.dtype} {list(masks.shape)}; threshold them first")
    if not len(masks):
        return []
    return objects_from_rles(coco.encode(np.asfortranarray(masks.view(np.uint8).transpose(1, 2, 0))))


def objects_from_rles(rles: Sequence[dict[str, Any]], iscrowd: Sequence[bool] | None = None) -> list[SegmentedObject]:
    """Objects of compressed RLEs `{"size": [height, width], "counts": str or bytes}` of one image.

    Args:
        rles: N masks.
        iscrowd: for each, whether it is a region to ignore; None for none of them.
    """
    if not rles:
        return []
    return [
        {
            "segmentation": {"size": [int(side) for side in rle["size"]], "counts": _text(rle["counts"])},
            # One at a time: area of pycocotools 2.0.11 fails for a list of more than 255.
            "area": int(coco.area(rle)),
            "bbox": box,
            "iscrowd": int(crowd),
        }
        for rle, box, crowd in zip(rles, coco.toBbox(rles).tolist(), iscrowd or [False] * len(rles), strict=True)
    ]


def _text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode("ascii")


def decode_masks(objects: Sequence[SegmentedObject]) -> np.ndarray:
    """Decode the masks of the given objects of one image.

    Returns:
        bool [N, H, W], one mask per object; [0, 0, 0] for no objects, whose size nothing tells. The memory
        order is that of COCO (columns first).

    Raises:
        ValueError: if the objects differ in image size, or an RLE does not fill it.
    """
    return decode_rles([item["segmentation"] for item in objects])


def decode_rles(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    """The same of compressed run lengths alone."""
    if not rles:
        return np.zeros((0, 0, 0), dtype=bool)
    # pycocotools takes the size of the first one for all and would write out of bounds.
    sizes = {tuple(rle["size"]) for rle in rles}
    if len(sizes) > 1:
        raise ValueError(f"objects must belong to one image, got the sizes (height, width) {sorted(sizes)}")
    # What too short an RLE leaves out would be whatever the memory held.
    fault = next(filter(None, (rle_fault(rle, rle["size"]) for rle in rles)), None)
    if fault:
        raise ValueError(f"objects cannot be decoded: {fault}")
    return coco.decode(rles).view(bool).transpose(2, 0, 1)


def ignored_pixels(objects: Sequence[SegmentedObject], size: tuple[int, int]) -> np.ndarray | None:
    """The pixels of all crowd regions, bool [H, W], or None if there is no crowd region.

    Args:
        objects: all objects of an image of (height, width) `size`.
    """
    crowds = [item for item in objects if item["iscrowd"]]
    if not crowds:
        return None
    ignored = np.zeros(size, dtype=bool)
    for item in crowds:  # one at a time, for memory
        ignored |= decode_masks([item])[0]
    return ignored


def targets_from_masks(masks: np.ndarray, ignored: np.ndarray | None) -> np.ndarray:
    """Ground truth of objects where some pixels are ignored, because nobody labelled what is there.

    Args:
        masks: bool [N, H, W].
        ignored: bool [H, W], or None for no such pixels.

    Returns:
        `masks` themselves without ignored pixels; else float32 [N, H, W] of 0, 1 and NaN, which is what an object's
        own mask does not claim of the ignored pixels.
    """
    if ignored is None or not ignored.any():
        return masks
    targets = masks.astype(np.float32)
    targets[ignored & ~masks] = np.nan
    return targets


def rgb_array(image: PILImage.Image | np.ndarray, *, stretch_contrast: bool = False) -> np.ndarray:
    """Bring the image of a record to uint8 [H, W, 3], as the processor does.

    `read_image` says how. Readers and records keep all values of a file, so that training and evaluation see what the
    processor makes of the file itself, contrast stretch included.

    Args:
        image: of any PIL mode, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of any dtype.
        stretch_contrast: as the processor's `do_stretch_contrast`.

    Raises:
        ValueError: if it has another shape, or floats that are not finite, or outside 0 to 1 without the stretch.
    """
    image_shape(image)
    pixels = read_image(image, "channels_last", stretch_contrast=stretch_contrast)
    return pixels.permute(1, 2, 0).numpy()


def image_shape(image: PILImage.Image | np.ndarray) -> tuple[int, int]:
    """(height, width) of the image of a record.

    Raises:
        ValueError: if it is nothing that `rgb_array` takes, whatever the stretch.
    """
    if isinstance(image, PILImage.Image):
        floats, size = (np.asarray(image) if image.mode == "F" else None), (image.height, image.width)
    elif isinstance(image, np.ndarray) and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
        floats, size = (image if image.dtype.kind == "f" else None), (image.shape[0], image.shape[1])
    else:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image must be a PIL image or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {got}")
    if floats is not None and not np.isfinite(floats).all():
        raise ValueError(
            "image holds NaN or infinite values: replace them in the file, such as by np.nan_to_num, and save it again"
        )
    return size


def check_record(record: Record) -> None:
    """Check that a record is what the rest of the package may rely on.

    Raises:
        ValueError: naming the `image_id` and the first fault: a missing key, a mask of another size than the
            image, a malformed RLE, an area or box that does not belong to the mask.
    """
    missing = [key for key in ("image", "objects", "image_id") if key not in record]
    if missing:
        raise ValueError(f"record {record.get('image_id', '?')!r} lacks {missing}; it has {sorted(record)}")
    name = f"record {record['image_id']!r}"
    if not isinstance(record["image_id"], str):
        raise ValueError(f"{name}: image_id must be a string, got {type(record['image_id']).__name__}")
    try:
        size = list(image_shape(record["image"]))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    for index, item in enumerate(record["objects"]):
        fault = _object_fault(item, size)
        if fault:
            raise ValueError(f"{name}, object {index}: {fault}")


def _object_fault(item: SegmentedObject, size: list[int]) -> str | None:
    missing = [key for key in ("segmentation", "area", "bbox", "iscrowd") if key not in item]
    if missing:
        return f"lacks {missing}; it has {sorted(item)}"
    rle = item["segmentation"]
    fault = rle_fault(rle, size)
    if fault:
        return fault
    area, box = int(coco.area(rle)), coco.toBbox(rle).tolist()
    if item["area"] != area:
        return f"area is {item['area']}, the mask has {area} pixels"
    # Not by NumPy, which takes longer for four numbers than all the rest.
    if len(item["bbox"]) != 4 or not all(abs(a - b) <= 1e-3 for a, b in zip(item["bbox"], box, strict=True)):
        return f"bbox is {list(item['bbox'])}, pycocotools.mask.toBbox gives {box}"
    if item["iscrowd"] not in (0, 1):
        return f"iscrowd must be 0 or 1, got {item['iscrowd']!r}"
    return None
