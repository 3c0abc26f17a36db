"""Where the images are that an annotation file names, as it was perhaps written on another computer."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Container
from pathlib import Path
from urllib.parse import unquote

from .listing import normalized, visible_folders
from .splits import split_in_name

__all__ = ["image_ids", "locate_images", "written_name"]

NUM_PROBED_IMAGES = 20
# Label Studio puts eight digits before the name of a file that is uploaded.
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


def written_name(text: str) -> str:
    """The path of an image as written on any computer, or the path in a URL."""
    name = text.replace("\\", "/").removeprefix("./")
    if "?d=" in name:  # Label Studio's files of its own computer
        return unquote(name.split("?d=", 1)[1])
    if "://" in name:
        return unquote(name.split("://", 1)[1].split("?", 1)[0])
    return name


def image_ids(names: Collection[str]) -> list[str]:
    """Ids of images: names without their suffix, or with it where `a.jpg` stands beside `a.png`."""
    stems = [str(Path(name).with_suffix("")) for name in names]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]


def locate_images(
    file: Path, images: Path | None, names: list[str], others: Container[Path] = ()
) -> tuple[Path, dict[str, str]]:
    """The folder of the images, and for each written name that is there the path of its file in that folder.

    Args:
        file: of the annotations.
        images: the folder, if it is told.
        names: as written.
        others: folders of other files with these names, such as masks.

    Raises:
        ValueError: if no image is found, or two folders fit equally well.
    """
    last_parts = {name: name.rsplit("/", 1)[-1] for name in names}
    own_names = {name: UPLOAD_PREFIX.sub("", last) for name, last in last_parts.items()}
    for way in ({name: name for name in names}, last_parts, own_names):
        if len(set(way.values())) < len(names):
            continue
        folder = images or _find_images(file, list(way.values()), others)
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


def _find_images(file: Path, names: list[str], others: Container[Path]) -> Path | None:
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
        found = {folder: sum(_exists(folder / name) for name in probed) for folder in folders if folder not in others}
        most = max(found.values(), default=0)
        if most:
            return _best(file, folders[0], [folder for folder in found if found[folder] == most])
    return None


def _exists(path: Path) -> bool:
    # Path.is_file raises for names that are too long.
    return any(os.path.isfile(path.with_name(unicodedata.normalize(form, path.name))) for form in ("NFC", "NFD"))


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
