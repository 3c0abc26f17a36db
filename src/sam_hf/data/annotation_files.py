"""Annotation files that tell of many images: one class for all tools, and which file is of a split."""

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, ClassVar

from .annotated import AnnotatedImages, Entry
from .damage import refusing_damage
from .image_places import image_ids, locate_images
from .listing import glob_visible
from .named_splits import select_named_split
from .splits import Problems, split_aliases, split_in_name

__all__ = ["AnnotationFile", "choose_file", "load_json", "mentions", "stated_size"]


class AnnotationFile(AnnotatedImages):
    """One annotation file for many images, which are looked for as those of COCO are.

    Names of another computer count by their last part, if that is unique.
    """

    kind: ClassVar[str]
    pattern: ClassVar[str]
    # Files there may have the names of images; `entries` tells.
    mask_folders: tuple[Path, ...] = ()

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
        self.images, found = locate_images(file, Path(images) if images else None, list(written), self.mask_folders)
        ids = image_ids([found.get(name, name) for name in written])
        entries = dict(zip(ids, written.values(), strict=True))
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
        self.guesses |= {"images": str(self.images), "split": how}

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
        return [file for file in files if file.is_file() and cls.is_written_in(file)] if len(files) <= 100 else []


def load_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if it is none, or nested so deeply that it is none to be read.
    """
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) if both are positive numbers, or text of such; else None, and the image tells."""
    try:
        size = int(float(height or 0)), int(float(width or 0))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def choose_file(root: Path, files: Sequence[Path], split: str | None, kind: str) -> tuple[Path, str | None]:
    """The annotation file of a split, of those in a folder, and which split of that file to take.

    Files named like `instances_train2017.json` are told apart by the words of their names. A single file, whatever it
    is called, holds train and validation, except that one for validation alone is never trained on.

    Args:
        kind: of files, for the message.

    Raises:
        ValueError: if there is none, or there are several and no single one has the split in its name.
    """
    wanted = None if split is None else split_aliases(split)[0]
    named = {path: split_in_name(path.stem) for path in files}
    chosen = [path for path in files if wanted is not None and _has_split(path, named[path], wanted)]
    if len(files) == 1 and (not chosen or wanted == "train"):
        if wanted != "train" or named[files[0]] != "validation":
            return files[0], split
    elif len(chosen) == 1:
        return chosen[0], None
    elif wanted in ("train", "validation") and not {"train", "validation"} & set(named.values()):
        # One file of both, beside those of other splits, such as `trainval.json` and `test.json`.
        files = [path for path in files if named[path] is None] or files
        if len(files) == 1:
            return files[0], split
    raise ValueError(
        f"{root} has {len(files)} {kind} annotation files, {len(chosen)} of them for split {split!r}: "
        f"{', '.join(path.name for path in files[:5])}. Give the file instead of the folder, of which train and "
        "validation are drawn then, or name a file for each split"
    )


def _has_split(path: Path, named: str | None, wanted: str) -> bool:
    # A split of another name, such as one of five folds, may be any part of the file's.
    return named == wanted if (wanted,) != split_aliases(wanted) else wanted in path.stem.lower()


def mentions(file: Path, *words: bytes) -> bool:
    """Whether all of these are in a file, which is quicker to know than what it holds."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
        return all(content.find(word) >= 0 for word in words)
