"""Images with the shapes that people drew on them in some tool: what the readers of such annotations share."""

import warnings
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .annotation_files import choose_file, locate_images, refusing_damage
from .listing import glob_visible
from .packed_json import PackedJson
from .reader import ImageSource, RecordReader
from .rle import check_pixels, check_segmentation, encode_segmentation
from .schema import SegmentedObject, decode_masks, objects_from_masks, objects_from_rles
from .splits import Problems, select_split, split_aliases

__all__ = ["AnnotatedImages", "AnnotationFile", "Entry", "NoMask", "Shape", "image_ids", "select_named_split"]


@dataclass(frozen=True)
class Entry:
    """What an annotation file tells of one image.

    Args:
        image: path of its file, as written.
        size: (height, width), None if the file does not tell.
        shapes: what was drawn, in the form of the tool.
        split: the name of its split, if the file or a folder tells.
    """

    image: str
    size: tuple[int, int] | None
    shapes: Sequence[Any]
    split: str | None = None


@dataclass(frozen=True)
class Shape:
    """One shape in pixels of its image.

    Args:
        segmentation: polygons or RLE, as in COCO.
        group: shapes of one group are one object; None for one of its own.
        cuts: whether it is a hole in all that was drawn before, and nothing itself.
        ignored: whether it is a region to ignore.
    """

    segmentation: Any
    group: str | None = None
    cuts: bool = False
    ignored: bool = False


class NoMask(Exception):
    """Raised for a shape without area; the message says what such shapes are."""


class AnnotatedImages(RecordReader):
    """Images with shapes; a subclass says how its tool writes a shape.

    Attributes:
        passed_over: shapes that are malformed or have no area, by kind; each costs itself and no other.
    """

    def __init__(
        self,
        root: Path,
        entries: Mapping[str, tuple[Path, Entry]],
        problems: Problems,
        *,
        strict: bool = True,
        **filters: Any,
    ) -> None:
        """
        Args:
            root: what error messages name.
            entries: by id, the file of the image and what was drawn on it.
            problems: files that do not belong together.
            strict: whether `problems` and images that cannot be read are an error; else they are left out.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if no shape has an area.
        """
        passed_over: Problems = defaultdict(list)
        damaged, packed = [], {}
        for name, (image, entry) in entries.items():
            try:
                size = entry.size or ImageSource(self.encoded(image), exif=filters.get("exif")).read_size()
                check_pixels(size)
            except (OSError, ValueError) as error:
                damaged.append(f"{name} ({error})")
            else:
                packed[name] = [entry.size, size, self._objects(entry, size, passed_over)]
        problems = {**problems, "image(s) cannot be read": damaged}
        super().__init__(root, list(packed), problems, strict, **filters)
        self._images = [entries[name][0] for name in self.ids]
        self.passed_over = _report(root, dict(passed_over), sum(len(objects) for *_, objects in packed.values()))
        self._packed = PackedJson(packed.values())
        self.settle_frame((name, self.image_source(index)) for index, name in enumerate(self.ids))

    @abstractmethod
    def shape(self, written: Any, size: tuple[int, int]) -> Shape:
        """Read one of the shapes of an `Entry`.

        Args:
            written: in the form of the tool.
            size: (height, width) of the image.

        Raises:
            NoMask: if it has no area.
            Exception: if it is malformed.
        """

    def encoded(self, image: Path) -> Path | bytes:
        """The image, where `image` holds it."""
        return image

    def image_source(self, index: int) -> ImageSource:
        stated, *_ = self._packed[index]
        return ImageSource(self.encoded(self._images[index]), stated and tuple(stated))

    def places(self) -> list[Path]:
        """The file of the image of each record, or of the annotations that embed it."""
        return [image.resolve() for image in self._images]

    def read_objects(self, index: int) -> list[SegmentedObject]:
        _, size, objects = self._packed[index]
        return objects_from_rles(
            [_drawn(item["strokes"], tuple(size)) for item in objects], [item["ignored"] for item in objects]
        )

    def _objects(self, entry: Entry, size: tuple[int, int], passed_over: Problems) -> list[dict[str, Any]]:
        """Per object its strokes, which add or cut one after the other, and whether it is a region to ignore."""
        objects: dict[int | str, dict[str, Any]] = {}
        for number, written in enumerate(entry.shapes):
            name = f"{entry.image}, shape {number}"
            try:
                shape = self.shape(written, size)
                check_segmentation(shape.segmentation, size)
            except NoMask as reason:
                passed_over[f"shape(s) {reason}"].append(name)
            except Exception as error:
                # Other people's shapes can be wrong in more ways than anyone lists.
                what = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                passed_over["shape(s) are malformed"].append(f"{name}: {what}")
            else:
                key = number if shape.group is None else shape.group
                own = [] if shape.cuts else [objects.setdefault(key, {"strokes": [], "ignored": shape.ignored})]
                for item in objects.values() if shape.cuts else own:
                    item["strokes"].append([shape.cuts, shape.segmentation])
        return list(objects.values())


class AnnotationFile(AnnotatedImages):
    """One annotation file for many images, which are looked for as those of COCO are.

    Names of another computer count by their last part, if that is unique.
    """

    kind: ClassVar[str]
    pattern: ClassVar[str]

    def __init__(
        self,
        annotations: str | Path,
        split: str | None = None,
        *,
        images: str | Path | None = None,
        strict: bool = True,
        **filters: Any,
    ) -> None:
        """
        Args:
            annotations: the file.
            split: None for all images; else by what the file says of each, or see `select_split`, with `splits.csv`
                beside the file.
            images: folder of the images, if it is elsewhere.
            strict: whether images without a file, or listed twice, are an error; else they are left out and listed in
                `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if the file is damaged, images are not found, or the split is unknown or empty.
        """
        file = Path(annotations)
        with refusing_damage(file):
            listed = list(self.entries(file))
        counts = Counter(entry.image for entry in listed)
        written = {entry.image: entry for entry in reversed(listed) if Path(entry.image).name}
        self.images, found = locate_images(file, Path(images) if images else None, list(written))
        entries = dict(zip(image_ids(written), written.values(), strict=True))
        usable = {name for name, entry in entries.items() if entry.image in found}
        problems: Problems = {
            "image(s) are listed more than once": [name for name, count in counts.items() if count > 1],
            "image(s) have no name": [str(entry)[:60] for entry in listed if entry.image not in written],
        }
        splits = {name: entries[name].split for name in sorted(entries)}
        ids, how = select_named_split(file.parent, splits, split, problems, usable)
        problems[f"image(s) have no file in {self.images}"] = [
            entries[name].image for name in ids if name not in usable
        ]
        chosen = {name: entries[name] for name in ids if name in usable}
        places = {name: (self.images / found[entry.image], entry) for name, entry in chosen.items()}
        super().__init__(file, places, problems, strict=strict, **filters)
        self.guesses |= {"format": self.kind, "images": str(self.images), "split": how}

    @classmethod
    @abstractmethod
    def is_written_in(cls, file: Path) -> bool:
        """Whether a file looks like one of this tool; it is not parsed."""

    @abstractmethod
    def entries(self, file: Path) -> Iterable[Entry]:
        """Parse the file; whatever is raised becomes a ValueError that names it."""

    @classmethod
    def fits(cls, path: Path) -> bool:
        """Whether a file, or one in a folder or its `annotations/`, is of this tool."""
        return bool(cls._files(path))

    @classmethod
    def open(cls, path: Path, split: str | None, **options: Any) -> "AnnotationFile":
        """Open a file, or in a folder that of the split."""
        file, split = (path, split) if path.is_file() else choose_file(path, cls._files(path), split, cls.kind)
        return cls(file, split, **options)

    @classmethod
    def _files(cls, path: Path) -> list[Path]:
        if path.is_file():
            return [path] if path.match(cls.pattern) and cls.is_written_in(path) else []
        folders = [folder for folder in (path, path / "annotations") if folder.is_dir()]
        files = [file for folder in folders for file in sorted(glob_visible(folder, cls.pattern))]
        # Of thousands of files, each belongs to one image.
        return [file for file in files if cls.is_written_in(file)] if len(files) <= 100 else []


def image_ids(names: Collection[str]) -> list[str]:
    """Ids of images: names without their suffix, or with it where `a.jpg` stands beside `a.png`."""
    stems = [str(Path(name).with_suffix("")) for name in names]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]


def select_named_split(
    root: Path,
    splits: Mapping[str, str | None],
    split: str | None,
    problems: Problems,
    usable: Container[str],
) -> tuple[list[str], str]:
    """The ids of a split where folders or files name the split of images, and how it was told.

    Where no image is named as validation, those of train, or else those without a split, are drawn by `select_split`;
    so are all where a `splits.csv` lies beside them, or no split is named.

    Args:
        splits: by id, the name of its split or None.

    Raises:
        ValueError: if the split is unknown or empty.
    """
    known = {name: split_aliases(word)[0] if word else None for name, word in splits.items()}
    words = set(known.values()) - {None}
    is_listed = (root / "splits.csv").is_file()
    drawn = "by splits.csv" if is_listed else "one image in ten is for validation, by a hash of its name"
    if split is None:
        return list(known), "all"
    if not words or is_listed:
        return select_split(root, list(known), split, problems, usable=usable), drawn
    wanted = split_aliases(split)[0]
    parts = {word: [name for name in known if known[name] == word] for word in words}
    if "train" not in words and (rest := [name for name in known if known[name] is None]):
        parts["train"] = rest
    if wanted in ("train", "validation") and "validation" not in words and "train" in parts:
        return select_split(root, parts["train"], split, problems, usable=usable), f"{drawn}, of those for training"
    if not parts.get(wanted):
        raise ValueError(
            f"{root}: split {split!r} has no image; there are {', '.join(sorted(parts))}. Give one of these, or write "
            "splits.csv (columns id and split)"
        )
    return parts[wanted], f"as named: {', '.join(sorted(parts))}"


def _drawn(strokes: list[Any], size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of strokes, each whether it cuts and its segmentation."""
    rles = [encode_segmentation(segmentation, size) for _, segmentation in strokes]
    if len(rles) == 1:
        return rles[0]
    mask = np.zeros(size, dtype=bool)
    for (cuts, _), rle in zip(strokes, rles, strict=True):
        mask[decode_masks(objects_from_rles([rle]))[0]] = not cuts
    return objects_from_masks(mask[None])[0]["segmentation"]


def _report(root: Path, passed_over: Problems, num_objects: int) -> Problems:
    """Say once what is not used; an error if nothing else is there."""
    if not passed_over:
        return passed_over
    told = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in passed_over.items())
    if not num_objects:
        raise ValueError(f"{root}: no shape has a mask: {told}. Draw polygons or masks, or make masks of the boxes")
    warnings.warn(f"{root}: passed over beside {num_objects} object(s): {told}", stacklevel=4)
    return passed_over
