"""Names of files and folders: which are data at all, and which are the same."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePath

__all__ = ["glob_visible", "is_visible", "normalized", "visible_folders"]

# What systems and archives leave in folders of images.
JUNK = ("$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "thumbs.db")


def is_visible(path: PurePath) -> bool:
    """Whether a path, relative to the root of the data, is data: no part of it is hidden or left by a system."""
    return not any(part.lower() in JUNK or (part[0] == "." and part not in (".", "..")) for part in path.parts)


def glob_visible(root: Path, pattern: str) -> Iterator[Path]:
    """The visible paths below `root` that match; that `root` itself may lie in a hidden folder is of no matter."""
    return (path for path in root.glob(pattern) if is_visible(path.relative_to(root)))


def visible_folders(root: Path) -> list[Path]:
    """The visible folders in `root`, by name."""
    return sorted(path for path in glob_visible(root, "*") if path.is_dir())


def normalized(name: str) -> str:
    """A name as it is compared: macOS stores é as e and an accent (NFD), most else writes one character (NFC)."""
    return unicodedata.normalize("NFC", name)
