"""Images that are in two splits at once, which makes an evaluation worthless."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import datasets

__all__ = ["encoded_cells", "picture_keys", "refuse_shared", "shared_images"]

# Head and tail of a picture are enough to tell nearly all apart; only what is left is read as a whole.
GLANCE = 256
CELLS_AT_ONCE = 1000


def shared_images(train: Any, validation: Any) -> list[str]:
    """The `image_id` of every image of `validation` that is in `train` too, by what their readers say of places.

    A set of one image serves as both, and a reader that has no `places` is not looked at: nothing is found then.
    """
    if not (hasattr(train, "places") and hasattr(validation, "places")) or len(train) == len(validation) == 1:
        return []
    known = set(train.places())
    return [name for name, place in zip(validation.ids, validation.places(), strict=True) if place in known]


def refuse_shared(train: Any, validation: Any) -> None:
    """
    Raises:
        ValueError: if images are in both.
    """
    shared = shared_images(train, validation)
    if shared:
        more = " ..." if len(shared) > 5 else ""
        raise ValueError(
            f"{len(shared)} validation image(s) of {len(validation)} are training images too: "
            f"{', '.join(shared[:5])}{more}. Each may be in one split only: take them out of the files of one, or "
            "give all images as one split, of which train and validation are drawn"
        )


def picture_keys(cells: datasets.Dataset) -> list[Hashable]:
    """What tells the encoded pictures of a table's only column apart: equal for equal files.

    Args:
        cells: a table with one column of pictures, in the format "arrow".
    """
    glances = [_key(cell, GLANCE) for cell in encoded_cells(cells)]
    counts = Counter(glances)
    if len(counts) == len(glances):
        return glances
    cells_again = zip(glances, encoded_cells(cells), strict=True)
    return [_key(cell, None) if counts[glance] > 1 else glance for glance, cell in cells_again]


def encoded_cells(table: datasets.Dataset) -> Iterator[tuple[Any, Any]]:
    """Content and path of every picture of a table's only column, as scalars of Arrow: nothing is copied."""
    for batch in table.iter(CELLS_AT_ONCE):
        column = batch.column(0)
        yield from zip(*(column.combine_chunks().field(name) for name in ("bytes", "path")), strict=True)


def _key(cell: Sequence[Any], glance: int | None) -> Hashable:
    content, path = cell
    if not content.is_valid:
        return path.as_py()
    view = memoryview(content.as_buffer())
    parts = (view,) if glance is None or len(view) <= 2 * glance else (view[:glance], view[-glance:])
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return len(view), digest.digest()
