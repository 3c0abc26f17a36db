"""SA-1B: `<name>.jpg` and `<name>.json` side by side, in folders or in tar files as they are distributed."""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .annotation_files import stated_size
from .coco import objects_from_annotations
from .listing import glob_visible, is_visible, normalized
from .object_filter import ObjectFilter
from .reader import IMAGE_SUFFIXES, ImageSource, RecordReader, read_record
from .schema import Record, SegmentedObject
from .splits import select_split

__all__ = ["Sa1bFolder", "Sa1bShard", "Sa1bTar", "is_sa1b", "parse_sa1b", "tar_files"]

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Files of a shard whose partner has not come yet are in memory; in SA-1B the next one is the partner.
MAX_WAITING = 1000


class Sa1bFolder(RecordReader):
    """A folder of SA-1B, or of folders of it (`sa_000000/`, ...); a JSON file is read when its image is.

    A JSON file may also hold the bare list that SAM's mask generators return, with masks as run lengths.
    Areas and boxes are those of the masks: the boxes in the files are one pixel narrower and lower.
    """

    names_every_object = False

    def __init__(self, root: str | Path, split: str | None = None, *, strict: bool = True, **filters: Any) -> None:
        """
        Args:
            root: the folder.
            split: None for all images; else see `select_split`.
            strict: whether a JSON file without image or an image without JSON file is an error; else they are left out
                and listed in `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if there is no such file, files have no partner, or the split is unknown or empty.
        """
        root = Path(root)
        files = [path for pattern in ("*", "*/*") for path in glob_visible(root, pattern)]
        images = {_name(path, root): path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
        ids = {normalized(name): name for name in images}
        names = {path: _name(path, root) for path in files if path.suffix.lower() == ".json"}
        records = {ids.get(normalized(name), name): path for path, name in names.items()}
        problems = {
            "JSON file(s) have no image": sorted(set(records) - set(images)),
            "image(s) have no JSON file": sorted(set(images) - set(records)),
        }
        if not records:
            raise ValueError(f"{root} holds no .json file; SA-1B has one beside every image")
        chosen = select_split(root, sorted(set(images) & set(records)), split, problems)
        super().__init__(root, chosen, problems, strict, **filters)
        self._files = [(images[name], records[name]) for name in chosen]

    def image_source(self, index: int) -> ImageSource:
        image, record = self._files[index]
        return ImageSource(image, parse_sa1b(record.read_bytes())[0])

    def places(self) -> list[Path]:
        """The file of the image of each record."""
        return [image.resolve() for image, _ in self._files]

    def read_objects(self, index: int) -> list[SegmentedObject]:
        return read_sa1b(self._files[index][1].read_bytes())


class Sa1bTar(RecordReader):
    """Tar files of SA-1B, read where they are: opening lists their members, and nothing is unpacked.

    Listing takes a second of computing for 15,000 images; what is compressed, or too large for that, can be
    streamed as `Sa1bShard`.
    """

    names_every_object = False

    def __init__(self, root: str | Path, split: str | None = None, *, strict: bool = True, **filters: Any) -> None:
        """
        Args:
            root: a tar file, or a folder of them.
            split: None for all images; else see `select_split`.
            strict: whether a member without its partner or a damaged tar file is an error; else they are left out and
                listed in `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if there is no such file, or members have no partner, or the split is unknown or empty.
        """
        root = Path(root)
        self._tars = tar_files(root)
        places: dict[str, dict[str, tuple[int, int, int]]] = {}
        damaged = []
        for number, tar in enumerate(self._tars):
            try:
                with tarfile.open(tar, "r:") as archive:
                    for name, kind, member in _members(archive):
                        places.setdefault(name, {})[kind] = number, member.offset_data, member.size
            except (OSError, tarfile.TarError) as error:
                damaged.append(f"{tar.name} ({error})")
        whole = sorted(name for name, kinds in places.items() if len(kinds) == 2)
        problems = {
            "tar file(s) are damaged or compressed": damaged,
            "member(s) have no partner": sorted(set(places) - set(whole)),
        }
        folder = root if root.is_dir() else root.parent
        super().__init__(root, select_split(folder, whole, split, problems), problems, strict, **filters)
        self._places = np.array([[places[name]["image"], places[name]["json"]] for name in self.ids], dtype=np.int64)

    def image_source(self, index: int) -> ImageSource:
        image, record = map(self._read, self._places[index])
        return ImageSource(image, parse_sa1b(record)[0])

    def places(self) -> list[tuple[Path, int]]:
        """The tar file and offset of the image of each record."""
        tars = [tar.resolve() for tar in self._tars]
        return [(tars[number], offset) for number, offset, _ in self._places[:, 0].tolist()]

    def read_objects(self, index: int) -> list[SegmentedObject]:
        return read_sa1b(self._read(self._places[index][1]))

    def _read(self, place: np.ndarray) -> bytes:
        number, offset, size = place.tolist()
        with self._tars[number].open("rb") as file:
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True)
class Sa1bShard:
    """One tar file of SA-1B, compressed or not, read once from its beginning to its end.

    Args:
        file: the tar file.
        object_filter: which objects are used.
    """

    file: Path
    object_filter: ObjectFilter

    def __str__(self) -> str:
        return str(self.file)

    def __iter__(self) -> Iterator[tuple[str, Callable[[], Record]]]:
        """Names, and functions that decode a record, for all members; that of a lone member raises an OSError."""
        waiting: dict[str, dict[str, bytes]] = {}
        with tarfile.open(self.file, "r|*") as archive:
            for name, kind, member in _members(archive):
                parts = waiting.setdefault(name, {})
                content = archive.extractfile(member)
                parts[kind] = content.read() if content else b""
                if len(parts) == 2:
                    yield name, partial(self._decode, name, **waiting.pop(name))
                if len(waiting) > MAX_WAITING:
                    raise ValueError(f"{self.file}: an image and its JSON file must be near each other in a tar file")
        for name, parts in waiting.items():
            yield name, partial(self._decode, name, **parts)

    def _decode(self, name: str, image: bytes = b"", json: bytes = b"") -> Record:
        if not image or not json:
            raise OSError(f"record {name!r}: {self.file.name} holds no {'JSON file' if image else 'image'} of it")
        return read_record(
            name,
            lambda: self.object_filter.or_fault(read_sa1b(json)),
            lambda _: ImageSource(image, parse_sa1b(json)[0]),
        )


def tar_files(root: Path) -> list[Path]:
    """A tar file itself, or those in a folder."""
    files = [root] if root.is_file() else sorted(glob_visible(root, "*"))
    return [file for file in files if file.name.endswith(TAR_SUFFIXES)]


def read_sa1b(text: bytes) -> list[SegmentedObject]:
    """The objects in the JSON file of one image."""
    size, annotations = parse_sa1b(text)
    return objects_from_annotations(annotations, size) if size else []


def parse_sa1b(text: bytes) -> tuple[tuple[int, int] | None, list[dict[str, Any]]]:
    """(height, width), if it is told, and annotations of the JSON file of one image.

    Raises:
        ValueError: if it is no JSON or has another form.
    """
    content = json.loads(text)
    if not is_sa1b(content) and content != []:
        raise ValueError(
            "an SA-1B file must hold `image` with height and width, and the list `annotations`, or be a list of masks "
            "with `segmentation`"
        )
    if isinstance(content, list):
        height, width = content[0]["segmentation"]["size"] if content else (None, None)
        return stated_size(height, width), content
    return (int(content["image"]["height"]), int(content["image"]["width"])), content["annotations"]


def is_sa1b(content: Any) -> bool:
    """Whether parsed JSON has the form of SA-1B, or is what a mask generator returned."""
    if isinstance(content, list):
        # COCO's results have the same form with many images in one list.
        return bool(content) and all(
            isinstance(item, dict) and isinstance(item.get("segmentation"), dict) and "image_id" not in item
            for item in content
        )
    return (
        isinstance(content, dict)
        and isinstance(content.get("image"), dict)
        and {"height", "width"} <= set(content["image"])
        and isinstance(content.get("annotations"), list)
    )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Name of the record, "image" or "json", and the member."""
    for member in archive:
        path = Path(member.name)
        kind = {".json": "json"}.get(path.suffix.lower(), "image" if path.suffix.lower() in IMAGE_SUFFIXES else None)
        if kind and member.isfile() and is_visible(path):
            yield path.with_suffix("").as_posix(), kind, member
