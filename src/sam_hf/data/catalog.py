"""Open a data set by name or path."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets

from .coco import CocoInstances, find_instances, is_instances
from .cvat import CvatFile
from .damage import refusing_damage
from .folders import open_folder
from .image_metadata import ImageMetadata, has_mask_column
from .label_studio import LabelStudioFile
from .labelme import LabelmeFolder, is_labelme
from .layouts import has_layout
from .listing import glob_visible
from .object_filter import ObjectFilter
from .panoptic import CocoPanoptic
from .parquet import check_parquet
from .reader import ExifFrame
from .sa1b import Sa1bFolder, Sa1bShard, Sa1bTar, is_sa1b, tar_files
from .scenes import SyntheticScenes
from .schema import Records
from .splits import is_in_split, split_aliases, split_of_name, splits_table
from .stream import RecordStream, TableShard, told_by_first_rows
from .supervisely import SuperviselyProject, is_supervisely
from .tables import TableColumns, TableRecords, load_table
from .via import ViaFile
from .yolo import YoloFolder, is_yolo

__all__ = ["FOLDERS", "FORMATS", "Format", "find_format", "open_dataset", "stream_dataset"]

NUM_VALIDATION_SCENES = 200
NUM_PROBED = 8
# Larger JSON files hold more than one image, and are read once only.
MAX_PROBED_BYTES = 1 << 26


def open_dataset(
    source: str | Path | datasets.Dataset | datasets.DatasetDict, split: str | None = "train", **options: Any
) -> Records:
    """Open the procedural scenes, files in one of `FORMATS`, or a data set of the Hub, as records by index.

    "scenes" is `SyntheticScenes`; a folder of that name is "./scenes". A folder without any format of its own may have
    one in a folder with the name of the split. What is no path is a data set of the Hub. The formats are told apart by
    the names of files and folders, then by the content of the first ones. Folders of images and masks, in one of
    `LAYOUTS`, are a `LabelMapFolder` or a `MaskFolder`, by what the values of as many masks as it takes prove; where
    they contradict each other, nothing is guessed.

    What nobody said and was taken for so is in `guesses` of the records, by subject, the reader first.

    Args:
        source: "scenes", a path, the name of a data set on the Hub, or a `datasets.Dataset` or `DatasetDict`.
        split: "train", "validation" or another that the data has; None for all records.
        options: keyword arguments of the class: those of `ObjectFilter`, such as `min_area` or `split_regions`,
            `strict`, `exif`, and what is special to it, such as `masks` ("labels" or "binary": what they mean),
            `images` (their folder), `ignore_label`, `background`, `mask_column`, `num_scenes`.

    Raises:
        ValueError: if the source is in no known format (the message lists what was looked for) or an ambiguous one, or
            its reader does not have an option.
    """
    if isinstance(source, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise ValueError("an IterableDataset has no records by index: give it to stream_dataset, or load it whole")
    if isinstance(source, datasets.Dataset | datasets.DatasetDict):
        return _with_reader("a table", TableRecords(*load_table(source, split), **options))
    if str(source) == "scenes" and not isinstance(source, Path):
        return _with_reader("scenes", _open_scenes(split, **options))
    path = Path(source)
    if not path.exists():
        return _with_reader("the Hub", TableRecords(*load_table(_load_hub(str(source), False), split), **options))
    images = options.get("images")
    found = find_format(path, images)
    if found is not None:
        return _with_reader(found.name, found.open(path, split, **options))
    folder, left = _split_folder(path, split, images) if split else (None, None)
    if folder is not None and (found := find_format(folder, images)) is not None:
        records: Any = _with_reader(found.name, found.open(folder, left, **options))
        told = f"the folder {folder.name}/"
        drawn = f"{told}, as there is none for validation: about one in ten is for validation, by a hash of the ids"
        records.guesses["split"] = drawn if left else told
        return records
    names = sorted(item.name for item in path.iterdir())[:10] if path.is_dir() else "a file"
    known = "".join(f"\n- {item.name}: {item.looks_for}" for item in FORMATS)
    raise ValueError(f"{path} is in no known format, found: {names}. Looked for:{known}")


def stream_dataset(
    source: str | Path | datasets.IterableDataset,
    split: str | None = "train",
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    masks: str | None = None,
    background: int | None = 0,
    ignore_label: int | None = None,
    exif: ExifFrame | None = None,
    **filters: Any,
) -> RecordStream:
    """Open tar files of SA-1B, Parquet files, or a data set of the Hub as a stream: nothing is listed or downloaded.

    A split that the files have no names for is drawn by a hash of the `image_id`.

    Args:
        source: a tar or Parquet file or a folder of them, the name of a data set on the Hub, or an `IterableDataset`
            or `IterableDatasetDict`.
        split: "train", "validation" or another that the data has; None for all records.
        image_column, mask_column, masks, background, ignore_label, exif: of a table; see `TableRecords`. First rows
            tell what masks mean; `exif` None takes them for those of the image as shown where sizes do not tell.
        filters: see `ObjectFilter`.

    Raises:
        ValueError: if the source is none of these.
    """
    try:
        object_filter = ObjectFilter(**filters)
    except TypeError as error:
        raise ValueError(f"a stream does not have this option, as nothing is listed or looked at: {error}") from error
    place = "the table"
    if not isinstance(source, datasets.IterableDataset | datasets.IterableDatasetDict):
        path, place = Path(source), str(source)
        if path.exists() and tar_files(path):
            of_tables = {"image_column": image_column, "mask_column": mask_column, "masks": masks}
            _refuse_of_tables(path, **of_tables, ignore_label=ignore_label, exif=exif)
            if split and path.is_dir() and (table := splits_table(path)):
                raise ValueError(
                    f"{table} is not used with streams, whose images no one has listed: leave streaming "
                    "off, or keep each split in a folder of its own and give that, with split=None"
                )
            chosen = partial(is_in_split, split=split) if split else None
            of_tars = [Sa1bShard(file, object_filter) for file in tar_files(path)]
            return RecordStream(of_tars, chosen, names_every_object=False)
        if path.exists() and not _parquet_files(path):
            raise ValueError(f"{path} cannot be streamed: it holds neither .tar nor .parquet files; see open_dataset")
        source = _load_hub(str(source), True) if not path.exists() else _load_parquet(path, True)
    with refusing_damage(place):
        table, split = load_table(source, split)
        if table.features is None:
            raise ValueError("its columns are unknown: cast it to its features, by IterableDataset.cast")
        columns = TableColumns.find(table.features, image_column, mask_column, background, ignore_label)
        wanted = [name for name in (columns.image, columns.objects, columns.name) if name]
        table = table.select_columns(wanted).decode(False)
        columns = told_by_first_rows(columns, table, masks)
    shards = [
        TableShard(table.shard(table.num_shards, number), number, columns, object_filter, exif, place)
        for number in range(table.num_shards)
    ]
    return RecordStream(shards, partial(is_in_split, split=split) if split else None, guesses=columns.guesses)


def _refuse_of_tables(path: Path, **options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{path}: a stream of tar files has no option {', '.join(given)}: tables have. Leave it out")


@dataclass(frozen=True)
class Format:
    """A way to store a data set: its name, what a person should put where, whether a path fits, and its reader."""

    name: str
    looks_for: str
    fits: Callable[[Path], bool]
    open: Callable[..., Records]


def find_format(path: Path, images: str | Path | None = None) -> Format | None:
    """The row of `FORMATS` that a path is in, images in the folder `images` if there is one; None if it is in none."""
    if images is not None and has_layout(path, images):
        return FOLDERS
    return next((item for item in FORMATS if item.fits(path)), None)


def _split_folder(path: Path, split: str, images: str | Path | None) -> tuple[Path | None, str | None]:
    """The folder with the name of a split, and which split of it to take: None for all, if each has its own."""
    folders = {
        name: next((path / alias for alias in split_aliases(name) if _is_data(path / alias, images)), None)
        for name in (split_aliases(split)[0], "train", "validation")
    }
    wanted = split_aliases(split)[0]
    if wanted in ("train", "validation") and folders["validation"] is None:
        return folders["train"], split
    return folders[wanted], None


def _is_data(path: Path, images: str | Path | None) -> bool:
    return path.is_dir() and find_format(path, images) is not None


def _with_reader(name: str, records: Any) -> Any:
    """Records that say which reader was taken for theirs."""
    records.guesses = {"reader": f"{type(records).__name__}, for {name}", **getattr(records, "guesses", {})}
    return records


def _open_scenes(split: Any, **options: Any) -> Records:
    if split == "validation":
        options.setdefault("num_scenes", NUM_VALIDATION_SCENES)
    try:
        return SyntheticScenes(**options, split=split)
    except TypeError as error:
        raise ValueError(f"scenes do not have this option, as they are painted, not read: {error}") from error


def _load_hub(name: str, streaming: bool) -> Any:
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ValueError(f"{name}: no such folder or file, and no name of a data set on the Hub (owner/name)")
    try:
        return datasets.load_dataset(name, streaming=streaming)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise ValueError(f"{name}: no such folder or file, and not to be had from the Hub: {error}") from error


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """Files by split; a file that does not begin with the name of one, as `validation-00000-of-00001.parquet` does, is
    of "train"."""
    files = [path] if path.suffix == ".parquet" else _glob(path, "*.parquet") or _glob(path / "data", "*.parquet")
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(split_of_name(file.stem), []).append(str(file))
    return splits


def _load_parquet(path: Path, streaming: bool) -> Any:
    files = _parquet_files(path)
    try:
        return datasets.load_dataset("parquet", data_files=files, streaming=streaming)
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        # It does not say which.
        for file in chain.from_iterable(files.values()):
            check_parquet(Path(file))
        raise ValueError(f"{path}: its Parquet files do not go together: {error.__cause__ or error}") from error


def _open_parquet(path: Path, split: str | None, **options: Any) -> Records:
    table = _load_parquet(path, False)
    with refusing_damage(path):
        return TableRecords(*load_table(table, split), **options)


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _open_saved(path: Path, split: str | None, **options: Any) -> Records:
    with refusing_damage(path):
        return TableRecords(*load_table(datasets.load_from_disk(str(path)), split), **options)


def _has_images_and_masks(path: Path) -> bool:
    return (path / "images").is_dir() and (path / "masks").is_dir()


def _has_instances(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".json" and not CocoPanoptic.is_written_in(path)
    files = [*_glob(path, "*.json"), *_glob(path / "annotations", "*.json")]
    files = [file for file in files if file.is_file() and not CocoPanoptic.is_written_in(file)]
    if any(file.name.startswith("instances_") or file.stat().st_size > MAX_PROBED_BYTES for file in files):
        return True
    # Of thousands of files, each belongs to one image.
    return len(files) <= 100 and any(is_instances(_json(file)) for file in files)


def _open_instances(path: Path, split: str | None, **options: Any) -> Records:
    file, split = (path, split) if path.is_file() else find_instances(path, split)
    return CocoInstances(file, split, **options)


def _some_json_is(test: Callable[[Any], bool], *patterns: str) -> Callable[[Path], bool]:
    def fits(path: Path) -> bool:
        # Several, as one may be damaged.
        files = chain.from_iterable(_glob(path, pattern) for pattern in patterns)
        return any(test(_json(file)) for file in islice(files, NUM_PROBED))

    return fits


def _glob(path: Path, pattern: str) -> list[Path]:
    return sorted(glob_visible(path, pattern)) if path.is_dir() else []


def _json(file: Path) -> Any:
    """Content of a small JSON file, or None."""
    try:
        return json.loads(file.read_bytes()) if file.is_file() and file.stat().st_size <= MAX_PROBED_BYTES else None
    except (ValueError, RecursionError):
        return None


FOLDERS = Format(
    "images and masks",
    "folders images/ and masks/; images= (--images) names another folder of images",
    _has_images_and_masks,
    open_folder,
)
FORMATS = (
    FOLDERS,
    Format("Parquet", "*.parquet, in the folder or in data/", lambda path: bool(_parquet_files(path)), _open_parquet),
    Format("datasets", "what Dataset.save_to_disk wrote", _is_saved, _open_saved),
    Format("SA-1B", "<image>.json with `image`", _some_json_is(is_sa1b, "*.json", "*/*.json"), Sa1bFolder),
    Format("SA-1B shards", "*.tar, of images and JSON files", lambda path: bool(tar_files(path)), Sa1bTar),
    Format("labelme", "<image>.json with `shapes`", _some_json_is(is_labelme, "*.json"), LabelmeFolder),
    Format("metadata", "metadata.jsonl or .csv with a column mask_file_name", has_mask_column, ImageMetadata),
    Format("YOLO", "folders images/ and labels/, of *.txt, or folders of these", is_yolo, YoloFolder),
    Format("CVAT", "an .xml file of CVAT for images", CvatFile.fits, CvatFile.open),
    Format("Label Studio", "a .json file of tasks with `result`", LabelStudioFile.fits, LabelStudioFile.open),
    Format("VIA", "a .json file with `shape_attributes`", ViaFile.fits, ViaFile.open),
    Format("Supervisely", "folders ann/ and img/, or folders of these", is_supervisely, SuperviselyProject),
    Format(
        "COCO",
        "a JSON file with `images` and `annotations`, or one in the folder or in annotations/",
        _has_instances,
        _open_instances,
    ),
    Format("COCO panoptic", "a JSON file with `segments_info`", CocoPanoptic.fits, CocoPanoptic.open),
    # After all that has annotations in files of their own, as pictures of them often lie beside.
    Format(
        "other layouts of images and masks",
        "a.png and a_mask.png, imgs/ and labels/, Pascal VOC, Cityscapes, and more of docs/data.md",
        has_layout,
        open_folder,
    ),
)
