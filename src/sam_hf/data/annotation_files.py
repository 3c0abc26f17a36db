"""Annotation files that tell of many images: which one is of a split, what it holds, and where its images are."""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .listing import normalized, visible_folders
from .splits import split_aliases, split_in_name

__all__ = ["choose_file", "load_json", "locate_images", "refusing_damage", "stated_size", "written_name"]

NUM_PROBED_IMAGES = 20
# Label Studio puts eight digits before the name of a file that is uploaded.
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


@contextmanager
def refusing_damage(file: Path) -> Iterator[None]:
    """Make a ValueError that names the file of whatever parsing raises.

    Other people's files can be wrong in more ways than anyone lists, such as a list where an object should be.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(what if what.startswith(str(file)) else f"{file}: {what}") from error


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


def written_name(text: str) -> str:
    """The path of an image as written on any computer, or the path in a URL."""
    name = text.replace("\\", "/").removeprefix("./")
    if "?d=" in name:  # Label Studio's files of its own computer
        return unquote(name.split("?d=", 1)[1])
    if "://" in name:
        return unquote(name.split("://", 1)[1].split("?", 1)[0])
    return name


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


def locate_images(file: Path, images: Path | None, names: list[str]) -> tuple[Path, dict[str, str]]:
    """The folder of the images, and for each written name that is there the path of its file in that folder.

    Raises:
        ValueError: if no image is found, or two folders fit equally well.
    """
    last_parts = {name: name.rsplit("/", 1)[-1] for name in names}
    own_names = {name: UPLOAD_PREFIX.sub("", last) for name, last in last_parts.items()}
    for way in ({name: name for name in names}, last_parts, own_names):
        if len(set(way.values())) < len(names):
            continue
        folder = images or _find_images(file, list(way.values()))
        found = _present(folder, way) if folder else {}
        if folder and found:
            return folder, found
    if images is not None:
        return images, {}
    looked = names[0] if names else "images"
    raise ValueError(
        f"{file}: no image found: looked for {looked} in {file.parent}, its parent, and the folders of both. "
        "Name the folder by images= in Python, or --images of python -m sam_hf.data; or put the images in images/ "
        "beside the file"
    )


def _present(images: Path, names: dict[str, str]) -> dict[str, str]:
    """The files that exist: one look-up for each would take long on a network."""
    folders = {(images / name).parent for name in names.values()}
    listed = {
        (folder, normalized(path.name)): path.name
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
    }
    found = {}
    for written, name in names.items():
        path = images / name
        stored = listed.get((path.parent, normalized(path.name)))
        if stored is not None:
            found[written] = str(Path(name).with_name(stored))
    return found


def _find_images(file: Path, names: list[str]) -> Path | None:
    """The folder in which most of the first images are: one beside the file, else one level up, else deeper.

    Raises:
        ValueError: if two fit equally well.
    """
    near, above = file.parent, file.absolute().parent.parent
    own, upper = visible_folders(near), visible_folders(above)
    probed = names[:NUM_PROBED_IMAGES]
    for folders in (
        [near, *own],
        [above, *upper],
        [deep for folder in dict.fromkeys([*own, *upper]) for deep in visible_folders(folder)],
    ):
        found = {folder: sum(_exists(folder / name) for name in probed) for folder in folders}
        most = max(found.values(), default=0)
        if most:
            return _best(file, folders[0], [folder for folder in folders if found[folder] == most])
    return None


def _exists(path: Path) -> bool:
    return any(path.with_name(unicodedata.normalize(form, path.name)).is_file() for form in ("NFC", "NFD"))


def _best(file: Path, first: Path, folders: list[Path]) -> Path:
    """Of folders that hold equally many: that of the file itself, of its split, or called `images`."""
    split = split_in_name(file.stem)
    tests = (
        lambda folder: folder == first,
        lambda folder: split is not None and split_in_name(folder.name) == split,
        lambda folder: folder.name.lower() == "images" or folder.parent.name.lower() == "images",
    )
    for test in tests:
        fitting = [folder for folder in folders if test(folder)]
        if len(fitting) == 1:
            return fitting[0]
    if len(folders) == 1:
        return folders[0]
    raise ValueError(
        f"{file}: the images could be those in {' or '.join(map(str, folders[:5]))}, which hold files of the same "
        "names. Name the folder by images= in Python, or --images of python -m sam_hf.data; or call it images/"
    )
