"""Look at every record of a data set: counts, sizes, what is wrong, and pictures of some."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from ..visualization import draw_masks, object_colors
from .object_filter import ObjectFilter
from .reader import RecordReader
from .schema import Record, Records, check_record, decode_masks, rgb_array

__all__ = ["DatasetReport", "check_dataset", "sample_sheet"]

LONGEST_SIDE, SHORTEST_SIDE = 10_000, 16
NUM_NAMED = 20
CELL, COLUMNS, CAPTION = 320, 4, 14
# An object is hard to outline below so many cells of the mask grid along a side, and worth a word if so many are.
FEW_CELLS, MANY = 4, 0.1
CROWD_COLOR = (128, 128, 128)
# What a record cannot be used with, beside what readers find when they open their files; the rest is worth knowing.
UNREADABLE, MALFORMED = "file(s) cannot be read", "record(s) are malformed"


@dataclass
class DatasetReport:
    """What `check_dataset` found.

    Args:
        sizes: (height, width) of every sound image.
        areas: of every object that is no crowd region, in pixels.
        counts: number of these objects in every sound image.
        num_crowds: number of crowd regions.
        num_dropped: objects that `ObjectFilter()` would drop.
        errors: by kind, names (and details) of what training cannot use.
        warnings: by kind, the same for what it can use, but which may be a mistake.
        sound: indices of the sound records that have objects.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    num_crowds: int = 0
    num_dropped: int = 0
    errors: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    sound: list[int] = field(default_factory=list)

    @property
    def shares(self) -> np.ndarray:
        """Of every object the side of a square of its area, as a share of the longest side of its image: float64."""
        longest = np.array([max(size) for size in self.sizes])
        return np.sqrt(np.array(self.areas)) / np.repeat(longest, self.counts)

    def text(self, image_size: int = 1024) -> str:
        """For people: counts, quantiles, first names of every kind of problem, objects too small for `image_size`."""
        heights, widths = zip(*self.sizes, strict=True) if self.sizes else ((), ())
        lines = [
            f"images   {len(self.sizes)} sound, {_range(heights)} high, {_range(widths)} wide",
            f"objects  {len(self.areas)}, {_range(self.counts)} per image, {_range(self.areas)} pixels each",
            f"         {self.num_dropped} would be dropped by the default filter, {self.num_crowds} regions to ignore",
        ]
        for title, problems in (("ERROR", self.errors), ("warning", self.warnings)):
            for kind, names in problems.items():
                lines.append(f"{title}: {len(names)} {kind}")
                lines += [f"    {name}" for name in names[:NUM_NAMED]]
                lines += [f"    ... and {len(names) - NUM_NAMED} more"] if len(names) > NUM_NAMED else []
        return "\n".join([*lines, *self.small_objects(image_size)])

    def small_objects(self, image_size: int) -> list[str]:
        """A warning, if whole images of `image_size` pixels show many objects too small, and what would not."""
        num_cells = image_size / 4  # of the mask grid, along the longest side
        is_small = self.shares[self.shares > 0] * num_cells < FEW_CELLS
        if not len(is_small) or is_small.mean() < MANY:
            return []
        # Where all but so many of the smallest are large enough.
        sides = np.sqrt([area for area in self.areas if area])
        tile_size = int(np.quantile(sides, MANY, method="lower") * num_cells / FEW_CELLS)
        return [
            f"warning: {is_small.sum()} of {len(is_small)} objects would be less than {FEW_CELLS} cells of the mask",
            f"    grid wide, when whole images are resized to {image_size} pixels: train with --tile_size {tile_size}",
        ]


def check_dataset(dataset: Records, indices: Iterable[int]) -> DatasetReport:
    """Read records and note everything about them; nothing that is wrong with one stops it.

    Args:
        dataset: opened with `strict=False` and without limits on objects, so that nothing is hidden.
        indices: records to read.
    """
    report = DatasetReport(
        errors=dict(getattr(dataset, "problems", {})), warnings=dict(getattr(dataset, "passed_over", {}))
    )
    for index in indices:
        try:
            record = dataset[index]
            check_record(record)
        except OSError as error:
            report.errors.setdefault(UNREADABLE, []).append(str(error))
        except ValueError as error:
            report.errors.setdefault(MALFORMED, []).append(str(error))
        else:
            _note(report, dataset, index, record)
    return report


def _note(report: DatasetReport, dataset: Records, index: int, record: Record) -> None:
    (height, width), mode = _size_and_mode(record["image"])
    is_untold = False
    if isinstance(dataset, RecordReader):
        source = dataset.framed_source(index)
        mode, is_untold = source.read_mode(), len(source.possible_frames()) > 1
    objects = [item for item in record["objects"] if not item["iscrowd"]]
    masks = [item["segmentation"]["counts"] for item in objects]
    report.sizes.append((height, width))
    report.areas += [item["area"] for item in objects]
    report.counts.append(len(objects))
    report.num_crowds += len(record["objects"]) - len(objects)
    report.num_dropped += len(objects) - len(ObjectFilter()(objects))
    if objects:
        report.sound.append(index)
    empty = sum(item["area"] == 0 for item in objects)
    for kind, found in {
        "image(s) have no object": not objects,
        "image(s) have empty masks": empty,
        "image(s) have identical masks": len(masks) - len(set(masks)),
        "image(s) are CMYK, whose colours are converted without a profile": mode == "CMYK",
        "image(s) are turned by EXIF, but not their masks: if these look wrong, --exif stored turns none": is_untold,
        "image(s) have values outside 0 to 1, which need do_stretch_contrast": _is_unbounded(record["image"]),
        f"image(s) have a side above {LONGEST_SIDE} or below {SHORTEST_SIDE} pixels": (
            max(height, width) > LONGEST_SIDE or min(height, width) < SHORTEST_SIDE
        ),
    }.items():
        if found:
            detail = f": {found}" if kind.endswith("masks") else ""
            report.warnings.setdefault(kind, []).append(f"{record['image_id']} ({width} x {height}){detail}")


def _size_and_mode(image: Image.Image | np.ndarray) -> tuple[tuple[int, int], str]:
    """(height, width), and PIL's mode; an array has values as of an RGB file."""
    if isinstance(image, Image.Image):
        return (image.height, image.width), image.mode
    return (image.shape[0], image.shape[1]), "RGB"


def _is_unbounded(image: Image.Image | np.ndarray) -> bool:
    """Whether the image has floats that only the contrast stretch makes pixels of."""
    pixels = np.asarray(image) if not isinstance(image, Image.Image) or image.mode == "F" else np.zeros(1, np.uint8)
    return pixels.dtype.kind == "f" and bool(pixels.min() < 0 or pixels.max() > 1)


def sample_sheet(records: Sequence[Record]) -> Image.Image:
    """A sheet of images with their objects in colours and crowd regions in grey, each with its `image_id` below."""
    columns = min(COLUMNS, len(records))
    rows = -(-len(records) // columns)
    sheet = Image.new("RGB", (columns * (CELL + 4), rows * (CELL + CAPTION + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, record in enumerate(records):
        left, top = number % columns * (CELL + 4), number // columns * (CELL + CAPTION + 4)
        picture = _picture(record)
        sheet.paste(picture, (left, top))
        caption = f"{record['image_id']}: {len(record['objects'])} objects"
        draw.text((left, top + picture.height), caption[-CELL // 7 :], fill="black")
    return sheet


def _picture(record: Record) -> Image.Image:
    stretch_contrast = _is_unbounded(record["image"])
    image = Image.fromarray(rgb_array(record["image"], stretch_contrast=stretch_contrast))
    scale = CELL / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    vivid = iter(object_colors(len(record["objects"])))
    colors = [CROWD_COLOR if item["iscrowd"] else next(vivid) for item in record["objects"]]
    # One at a time, for memory; large ones first, so that small ones are seen.
    shown = image.resize((width, height), Image.Resampling.BILINEAR)
    order = sorted(range(len(colors)), key=lambda number: -record["objects"][number]["area"])
    masks = np.zeros((len(order), height, width), dtype=bool)
    for place, number in enumerate(order):
        mask = Image.fromarray(decode_masks([record["objects"][number]])[0])
        masks[place] = np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))
    return draw_masks(shown, masks, [colors[number] for number in order], alpha=0.4)


def _range(values: Sequence[float]) -> str:
    """Smallest, median and largest."""
    if not values:
        return "-"
    return f"{min(values)} to {max(values)} (median {np.median(values):.0f})"
