"""Damaged and odd files in every format: records that are right, or a message that names what is wrong.

Never another exception, a hang, or more memory than a bound. A case is a format and a seed; one that fails is run in
the open by `pytest "tests/test_fuzz.py::test_one_case[yolo-17]"`.
"""

import base64
import json
import multiprocessing
import re
import shutil
import signal
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from annotation_writers import (
    save_pictures,
    write_cvat,
    write_label_studio,
    write_metadata,
    write_panoptic,
    write_supervisely,
    write_via,
    write_yolo,
)
from damaged_files import damage, npy, png_text
from data_files import (
    MASKS,
    compressed,
    picture,
    uncompressed,
    write_coco,
    write_labelme,
    write_parquet,
    write_sa1b,
    write_tars,
)
from PIL import Image

from sam_hf.data import check_record, decode_masks, open_dataset, rgb_array, stream_dataset
from sam_hf.data.faults import left_out
from sam_hf.data.parquet import write_parquet as convert
from sam_hf.data.schema import Record, Records

resource = pytest.importorskip("resource", reason="needs limits of a process")

pytestmark = [
    pytest.mark.usefixtures("no_common_cache"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs forked processes with limits"),
]

NUM_IMAGES = 4
MIB = 1 << 20
# Of a case: what a picture of as many pixels as Pillow reads may take is above it, so that no damage makes one.
MAX_MEMORY = 600 * MIB
MAX_ADDRESSES = 1536 * MIB
CPU_SECONDS, WALL_SECONDS = 20, 300
LABELS = MASKS[0] + 2 * (MASKS[1] & ~MASKS[0]).astype(np.uint8)


def write_pairs(root: Path, image: str, *masks: str, labels: np.ndarray = LABELS, lists: str = "") -> None:
    """Images and masks by patterns of their names: label maps, or a binary mask for each of several patterns."""
    for number in range(NUM_IMAGES):
        for k, pattern in enumerate((image, *masks)):
            path = root / pattern.format(f"a{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = labels if len(masks) == 1 else 255 * (labels == k).astype(np.uint8)
            if path.suffix in (".npy", ".npz"):
                {".npy": np.save, ".npz": np.savez_compressed}[path.suffix](path, mask)
            else:
                (Image.fromarray(mask) if k else picture(number)).save(path)
    for name, numbers in {"train": (0, 1, 2), "val": (3,)}.items() if lists else ():
        path = root / lists.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(f"a{number}" for number in numbers))


def write_runs(root: Path) -> None:
    """COCO with run lengths alone, and `splits.csv`."""
    write_coco(root, NUM_IMAGES)
    content = json.loads((root / "labels.json").read_text())
    for item in content["annotations"]:
        item["segmentation"] = (uncompressed if item["id"] % 2 else compressed)(MASKS[item["id"] % 3])
    (root / "labels.json").write_text(json.dumps(content))
    rows = [f"{number},{'val' if number == 2 else 'train'}" for number in range(NUM_IMAGES)]
    (root / "splits.csv").write_text("\n".join(["id,split", *rows]))


def write_everything(root: Path) -> None:
    """What a mask generator returned, beside each image."""
    save_pictures(root, [f"{number}.png" for number in range(NUM_IMAGES)])
    for number in range(NUM_IMAGES):
        records = [{"segmentation": compressed(mask), "predicted_iou": 0.9} for mask in MASKS]
        (root / f"{number}.json").write_text(json.dumps(records))


def write_embedded(root: Path) -> None:
    """labelme with images in the JSON files."""
    write_labelme(root, NUM_IMAGES)
    for number in range(NUM_IMAGES):
        content = json.loads((root / f"{number}.json").read_text())
        content["imageData"] = base64.b64encode((root / f"{number}.png").read_bytes()).decode()
        (root / f"{number}.json").write_text(json.dumps(content))
        (root / f"{number}.png").unlink()


def write_records(root: Path) -> None:
    """What `python -m sam_hf.data convert` writes."""
    records = open_dataset(write_coco(root.with_name("as_coco"), NUM_IMAGES), None)
    convert({"train": (records, range(NUM_IMAGES))}, root)


def pairs(*patterns: str, **options) -> Callable[[Path], object]:
    return lambda root: write_pairs(root, *patterns, **options)


def several(write: Callable[[Path, int], object]) -> Callable[[Path], object]:
    return lambda root: write(root, NUM_IMAGES)


CITY = np.where(LABELS == 1, 26001, np.where(LABELS == 2, 24, 7)).astype(np.uint16)
WRITERS: dict[str, Callable[[Path], object]] = {
    "label_maps_png": pairs("images/{}.jpg", "masks/{}.png"),
    "label_maps_tif": pairs("images/{}.tif", "masks/{}.tif", labels=LABELS.astype(np.uint16)),
    "label_maps_npy": pairs("images/{}.png", "masks/{}.npy"),
    "label_maps_npz": pairs("imgs/{}.png", "labels/{}.npz"),
    "binary_masks": pairs("images/{}.png", "masks/{0}/{0}_1.png", "masks/{0}/{0}_2.png"),
    "masks_beside": pairs("{}.png", "{}_mask.png"),
    "voc": pairs("JPEGImages/{}.jpg", "SegmentationObject/{}.png", lists="ImageSets/Segmentation/{}.txt"),
    "cityscapes": pairs(
        "leftImg8bit/train/b/{}_leftImg8bit.png", "gtFine/train/b/{}_gtFine_instanceIds.png", labels=CITY
    ),
    "dsb2018": pairs("{0}/images/{0}.png", "{}/masks/1.png", "{}/masks/2.png"),
    "coco": several(write_coco),
    "coco_runs": write_runs,
    "panoptic": several(write_panoptic),
    "labelme": several(write_labelme),
    "labelme_embedded": write_embedded,
    "sa1b": several(write_sa1b),
    "sa1b_tar": lambda root: write_tars(root, NUM_IMAGES, 2),
    "sa1b_tar_gz": lambda root: write_tars(root, NUM_IMAGES, 2, "w:gz", ".tar.gz"),
    "parquet": several(write_parquet),
    "parquet_records": write_records,
    "yolo": several(write_yolo),
    "cvat": several(write_cvat),
    "label_studio": several(write_label_studio),
    "via": several(write_via),
    "supervisely": several(write_supervisely),
    "metadata": several(write_metadata),
    "metadata_csv": lambda root: write_metadata(root, NUM_IMAGES, "csv"),
    "everything": write_everything,
}
STREAMED = ("sa1b_tar", "sa1b_tar_gz", "parquet", "parquet_records")
FAILED_ONCE = ["label_maps_npy-214"]

# Kinds of damage that once were another exception, or a message without a name: file, what it holds, and the message.
FOUND: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("coco", "images/1.png", lambda content: png_text(content, b"zTXt"), "1.png cannot be read: Decompressed"),
    ("label_maps_npy", "masks/a1.npy", lambda _: npy("(40, 60"), "a1.npy: the head of the array is damaged"),
    ("label_maps_npz", "labels/a1.npz", lambda content: content[:60] + bytes(30) + content[90:], "a1.npz cannot"),
    ("voc", "ImageSets/Segmentation/val.txt", lambda _: b"\xff", "val.txt: 'utf-8' codec"),
    ("coco_runs", "splits.csv", lambda content: content + b"9" * 140_000, "splits.csv: Error: field larger"),
    ("labelme_embedded", "2.json", lambda content: content.replace(b"==", b"").replace(b"iVBO", b"iVB"), "2"),
    ("parquet", "data.parquet", lambda content: content[:-9], "data.parquet: Parquet magic bytes"),
    ("sa1b_tar_gz", "sa_001.tar.gz", lambda content: content[:200] + bytes(200) + content[400:], "sa_001.tar.gz"),
]


class Outcome(NamedTuple):
    """What became of a case.

    Args:
        seed: of the case.
        failure: what should not be; empty if all is well.
        num_records: that could be read, in all ways together.
        num_messages: about what could not be.
        memory: that the process took since it began, in bytes.
    """

    seed: int
    failure: str
    num_records: int
    num_messages: int
    memory: int


def told(error: Exception | str, root: Path, damaged: list[str]) -> str:
    """The message, which has to name a damaged file, or else its record or the folder."""
    names = {part for name in damaged for part in (name, f"'{Path(name).stem}'")}
    if not any(name in str(error) for name in (*names, str(root), "record '")):
        raise AssertionError(f"none of {damaged} is named") from (error if isinstance(error, Exception) else None)
    return str(error)


def check(record: Record) -> None:
    """Check all that training and evaluation take from a record."""
    check_record(record)
    pixels = rgb_array(record["image"], stretch_contrast=True)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3
    assert all(item["area"] > 0 or item["iscrowd"] for item in record["objects"])
    if record["objects"]:
        assert decode_masks(record["objects"]).shape[1:] == pixels.shape[:2]


def read_all(open_records: Callable[[], Records], root: Path, damaged: list[str]) -> tuple[int, list[str]]:
    """The number of sound records, and messages about all else."""
    try:
        records = open_records()
    except (OSError, ValueError) as error:
        return 0, [told(error, root, damaged)]
    messages = [told(f"{root}: {fault}", root, damaged) for fault in left_out(records)]
    num_sound = 0
    for index in range(len(records)):
        try:
            check(records[index])
            num_sound += 1
        except (OSError, ValueError) as error:
            messages.append(told(error, root, damaged))
    return num_sound, messages


def ways_to_open(name: str, root: Path) -> list[Callable[[], Records]]:
    ways: list[Callable[[], Records]] = [
        partial(open_dataset, root, "train"),
        partial(open_dataset, root, None, strict=False),
    ]
    return [*ways, lambda: stream_dataset(root, None).first(2 * NUM_IMAGES)] if name in STREAMED else ways


def run_case(name: str, seed: int, valid: Path) -> tuple[int, int]:
    """Damage a copy of a data set and read it in every way: numbers of records and messages."""
    root = valid.parent / f"{name}-{seed}"
    shutil.copytree(valid, root)
    damaged = damage(root, np.random.default_rng([seed, zlib.crc32(name.encode())]))
    try:
        found = [read_all(way, root, damaged) for way in ways_to_open(name, root)]
    finally:
        shutil.rmtree(root)
    return sum(number for number, _ in found), sum(len(messages) for _, messages in found)


def peak_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_in_child(name: str, seeds: list[int], valid: Path, outcomes: Connection) -> None:
    """Cases in a process that ends where one takes too long or too much."""
    warnings.simplefilter("ignore")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MAX_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    begin = peak_memory()
    for seed in seeds:
        # By signals that nothing handles, which end loops in C, too; of wall time much, as a machine may be busy.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.alarm(WALL_SECONDS)
        failure, counts = "", (0, 0)
        try:
            counts = run_case(name, seed, valid)
        except BaseException:
            failure = traceback.format_exc()
        taken = peak_memory() - begin
        if taken > MAX_MEMORY:
            failure += f"took {taken // MIB} MiB"
        outcomes.send(Outcome(seed, failure, *counts, taken))
        if failure:
            return  # the next one begins anew


def run_cases(name: str, seeds: list[int], valid: Path) -> Iterator[Outcome]:
    """Outcomes of all seeds, in their order."""
    context = multiprocessing.get_context("fork")
    while seeds:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_in_child, args=(name, seeds, valid, sender))
        process.start()
        sender.close()
        done: list[Outcome] = []
        with suppress(EOFError):
            while True:
                done.append(receiver.recv())
        process.join()
        if process.exitcode:  # of a signal that is not handled
            done.append(Outcome(seeds[len(done)], f"the process ended with {process.exitcode}", 0, 0, 0))
        yield from done
        seeds = seeds[len(done) :]


def written(name: str, folder: Path) -> Path:
    """A data set without damage, of which every record can be read."""
    WRITERS[name](folder / "valid")
    assert read_all(ways_to_open(name, folder / "valid")[-1], folder, []) == (NUM_IMAGES, [])
    return folder / "valid"


@pytest.mark.parametrize("count", [3, pytest.param(77, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_give_records_or_messages(tmp_path, name, count):
    outcomes = list(run_cases(name, list(range(count)), written(name, tmp_path)))
    assert [item.seed for item in outcomes] == list(range(count))
    failed = [f"test_one_case[{name}-{item.seed}]: {item.failure}" for item in outcomes if item.failure]
    assert not failed, "\n".join([f"{len(failed)} of {count}:", *failed])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Any case can be named; without a name it is those that failed once."""
    if "case" in metafunc.fixturenames:
        asked = re.findall(r"test_one_case\[(\w+-\d+)\]", " ".join(metafunc.config.args))
        metafunc.parametrize("case", asked or FAILED_ONCE)


def test_one_case(tmp_path, case):
    name, seed = case.split("-")
    run_case(name, int(seed), written(name, tmp_path))


@pytest.mark.parametrize(("name", "file", "change", "message"), FOUND, ids=[f"{row[0]}-{row[1]}" for row in FOUND])
def test_damage_that_was_found_is_named(tmp_path, name, file, change, message):
    root = written(name, tmp_path)
    (root / file).write_bytes(change((root / file).read_bytes()))
    messages = [text for way in ways_to_open(name, root) for text in read_all(way, root, [Path(file).name])[1]]
    assert any(message in text for text in messages), messages
