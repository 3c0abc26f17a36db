"""Damage to the files of a data set, drawn at random: what disks, tools and strangers do to them."""

import io
import json
import re
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["damage", "npy", "png_text"]

Chance = np.random.Generator
SUFFIXES = (".JPG", ".jpg", ".json", ".npy", ".npz", ".parquet", ".png", ".tar", ".tif", ".txt", ".xml")
BOMB_SIDE = 4_000
HOSTILE_SIDE = 60_000
# What JSON may hold, in places where nobody expects it.
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    1,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    10**18,
    10**30,
    "",
    "x",
    "\0",
    "../../..",
    [],
    {},
    [[]],
    [[None]],
    [10**12],
    [-5, 2405],
    [0, 10**12, -(10**12), 2400],
    [[1e30, 0.0, 5.0, float("nan"), 7.0, 8.0]],
    [[-1e9, 0.0, 1e9, 0.0, 1e9, 1e9]],
    "P" * 5_000,
    "~~~~~~~~~~~~~~~~~~~~0",
    {"size": [40, 60], "counts": [10**12]},
    {"size": [HOSTILE_SIDE, HOSTILE_SIDE], "counts": [HOSTILE_SIDE**2]},
    {"size": [40, 60], "counts": "0"},
)


def damage(root: Path, rng: Chance) -> list[str]:
    """Damage one or two files below a folder, and give the names that they have or had."""
    names: list[str] = []
    for _ in range(rng.integers(1, 3)):
        files = sorted(path for path in root.rglob("*") if path.is_file())
        if files:
            names += _damage_file(_pick(rng, files), files, rng)
    return names


def _damage_file(path: Path, files: list[Path], rng: Chance) -> list[str]:
    """By what the kind of file is prone to as often as by what any file is."""
    special = CONTENTS.get(path.suffix.lower(), ())
    if special and rng.random() < 0.6:
        path.write_bytes(_pick(rng, special)(path.read_bytes(), rng))
        return [path.name]
    if path.suffix == ".tar" and tarfile.is_tarfile(path) and rng.random() < 0.7:
        return [path.name, *_damage_member(path, rng)]
    if rng.random() < 0.5:
        path.write_bytes(_pick(rng, ANY_CONTENT)(path.read_bytes(), rng))
        return [path.name]
    return _pick(rng, PLACES)(path, files, rng)


def _pick(rng: Chance, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _damage_member(path: Path, rng: Chance) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(path) as archive, suppress(tarfile.TarError):  # it may be damaged already
            archive.extractall(folder, filter="data")
        names = damage(folder, rng)
        with tarfile.open(path, "w") as archive:
            for member in sorted(folder.iterdir()):
                archive.add(member, member.name)
    return names


# Where a file lies, or what lies there.


def _swap(path: Path, files: list[Path], rng: Chance) -> list[str]:
    other = _pick(rng, files)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return [path.name, other.name]


def _rename(path: Path, files: list[Path], rng: Chance) -> list[str]:
    renamed = path.with_suffix(_pick(rng, SUFFIXES))
    path.rename(renamed)
    return [path.name, renamed.name]


def _copy(path: Path, files: list[Path], rng: Chance) -> list[str]:
    copied = path.with_suffix(_pick(rng, SUFFIXES))
    if copied != path:
        shutil.copy(path, copied)
    return [path.name, copied.name]


def _remove(path: Path, files: list[Path], rng: Chance) -> list[str]:
    path.unlink()
    return [path.name]


def _to_folder(path: Path, files: list[Path], rng: Chance) -> list[str]:
    path.unlink()
    path.mkdir()
    return [path.name]


def _to_loop(path: Path, files: list[Path], rng: Chance) -> list[str]:
    path.unlink()
    path.symlink_to(path.name)
    return [path.name]


def _to_folder_loop(path: Path, files: list[Path], rng: Chance) -> list[str]:
    path.unlink()
    path.symlink_to(path.parent, target_is_directory=True)
    return [path.name]


PLACES: tuple[Callable[[Path, list[Path], Chance], list[str]], ...] = (
    *[_swap] * 3,
    *[_rename] * 3,
    _copy,
    _remove,
    _to_folder,
    _to_loop,
    _to_folder_loop,
)


# What any file may hold.


def _truncate(content: bytes, rng: Chance) -> bytes:
    return content[: int(rng.integers(len(content) + 1))]


def _flip(content: bytes, rng: Chance) -> bytes:
    """Up to 20 other bytes, of the head alone half of the time."""
    changed = np.frombuffer(content, dtype=np.uint8).copy()
    end = min(len(content), 100) if rng.random() < 0.5 else len(content)
    if end:
        places = rng.integers(end, size=rng.integers(1, 21))
        changed[places] = rng.integers(256, size=len(places))
    return changed.tobytes()


def _empty(content: bytes, rng: Chance) -> bytes:
    return b""


def _append(content: bytes, rng: Chance) -> bytes:
    return content + rng.bytes(1000)


def _zeros(content: bytes, rng: Chance) -> bytes:
    """As after a crash of the file system."""
    return bytes(len(content))


def _as_utf16(content: bytes, rng: Chance) -> bytes:
    return content.decode("latin-1").encode("utf-16")


def _many_zeros(content: bytes, rng: Chance) -> bytes:
    return content + bytes(5_000_000)


ANY_CONTENT = (_truncate, _truncate, _flip, _flip, _flip, _empty, _append, _zeros, _as_utf16, _many_zeros)


# JSON, as a whole or in lines.


def _json_changed(change: Callable[[Any, Chance], Any]) -> Callable[[bytes, Chance], bytes]:
    def changed(content: bytes, rng: Chance) -> bytes:
        try:
            return json.dumps(change(json.loads(content), rng)).encode()
        except ValueError:  # damaged before
            return content

    return changed


def _place_in(tree: Any, rng: Chance) -> tuple[Any, Any]:
    """A container and a key in it, of any depth."""
    parent, key = None, None
    while isinstance(tree, dict | list) and tree and (parent is None or rng.random() < 0.85):
        parent, key = tree, _pick(rng, [*tree] if isinstance(tree, dict) else range(len(tree)))
        tree = parent[key]
    return parent, key


def _odd_value(tree: Any, rng: Chance) -> Any:
    parent, key = _place_in(tree, rng)
    if parent is None:
        return _pick(rng, ODD_VALUES)
    parent[key] = _pick(rng, ODD_VALUES)
    return tree


def _delete(tree: Any, rng: Chance) -> Any:
    parent, key = _place_in(tree, rng)
    if parent is not None:
        del parent[key]
    return tree


def _duplicate(tree: Any, rng: Chance) -> Any:
    parent, key = _place_in(tree, rng)
    if isinstance(parent, list):
        parent.append(parent[key])
    elif parent is not None:
        parent[f"{key}_"] = parent[key]
    return tree


def _wrap(tree: Any, rng: Chance) -> Any:
    return [tree]


def _deep(content: bytes, rng: Chance) -> bytes:
    """Valid JSON 10,000 deep, in place of any number."""
    nested = b"[" * 10_000 + b"]" * 10_000
    numbers = [*re.finditer(rb"\d+", content)] or [re.match(b"", content)]
    found = _pick(rng, numbers)
    return content[: found.start()] + nested + content[found.end() :]


def _bad_utf8(content: bytes, rng: Chance) -> bytes:
    place = int(rng.integers(len(content) + 1))
    return content[:place] + b"\xc3\x28\xed\xa0\x80" + content[place:]


def _mark(content: bytes, rng: Chance) -> bytes:
    return b"\xef\xbb\xbf" + content


def _long_number(content: bytes, rng: Chance) -> bytes:
    """Python refuses numbers of more than 4,300 digits."""
    return re.sub(rb"\d+", b"1" * 5_000, content, count=int(rng.integers(1, 5)))


def _in_a_line(change: Callable[[bytes, Chance], bytes]) -> Callable[[bytes, Chance], bytes]:
    def changed(content: bytes, rng: Chance) -> bytes:
        lines = content.split(b"\n")
        place = int(rng.integers(len(lines)))
        lines[place] = change(lines[place], rng)
        return b"\n".join(lines)

    return changed


OF_JSON = (
    *[_json_changed(_odd_value)] * 8,
    *[_json_changed(_delete)] * 2,
    _json_changed(_duplicate),
    _json_changed(_wrap),
    _deep,
    _bad_utf8,
    _mark,
    _long_number,
)


# XML and other text.


def _doctype(content: bytes, rng: Chance) -> bytes:
    entities = b"".join(b'<!ENTITY e%d "%s">' % (k, b"&e%d;" % (k - 1) * 10) for k in range(1, 12))
    return content.replace(b"<annotations", b'<!DOCTYPE a [<!ENTITY e0 "e">%s]><annotations' % entities, 1).replace(
        b"1.1", b"&e11;", 1
    )


def _attribute(content: bytes, rng: Chance) -> bytes:
    """Another value of an attribute, or none, or no attribute."""
    found = [*re.finditer(rb'\s[\w]+="([^"]*)"', content)]
    if not found:
        return content
    attribute = _pick(rng, found)
    value = _pick(rng, [b"", b"-1", b"nan", b"1e308", b"9" * 30, b"x", b"60000", None])
    start, end = attribute.span(0 if value is None else 1)
    return content[:start] + (value or b"") + content[end:]


def _many_tags(content: bytes, rng: Chance) -> bytes:
    return content.replace(b"<image ", b"<image>" * 10_000 + b"<image ", 1)


def _odd_word(content: bytes, rng: Chance) -> bytes:
    """Another word in a table or a label."""
    words = re.split(rb"([\s,]+)", content)
    words[int(rng.integers(len(words)))] = _pick(
        rng, [b"", b"nan", b"-1", b"1e308", b"inf", b'"', b"\0", b"x\ny", b"9" * 5_000, b",,,,", b"../../..", b"\xff"]
    )
    return b"".join(words)


OF_XML = (_doctype, *[_attribute] * 5, _many_tags, _bad_utf8, _mark, _odd_word)
OF_TEXT = (*[_odd_word] * 5, _bad_utf8, _mark)


# Pictures and arrays.


@cache
def _zeros_packed(count: int) -> bytes:
    return zlib.compress(bytes(count))


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_bomb(content: bytes, rng: Chance) -> bytes:
    """Some 16 KB that are 16 megabytes, and three times as many in colour."""
    head = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 8, 0, 0, 0, 0)
    rows = _zeros_packed((BOMB_SIDE + 1) * BOMB_SIDE)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", head) + _png_chunk(b"IDAT", rows) + _png_chunk(b"IEND", b"")


def _png_size(content: bytes, rng: Chance) -> bytes:
    """A head that claims more pixels than anyone has memory for, or none."""
    side = _pick(rng, [HOSTILE_SIDE, HOSTILE_SIDE, 2**31 - 1, 0])
    return content[:8] + _png_chunk(b"IHDR", struct.pack(">II", side, side) + content[24:29]) + content[33:]


def png_text(content: bytes, kind: bytes) -> bytes:
    """A compressed remark, or a colour profile, of 100 megabytes."""
    return content[:33] + _png_chunk(kind, b"a\0\0" + _zeros_packed(100_000_000)) + content[33:]


def _png_text(content: bytes, rng: Chance) -> bytes:
    return png_text(content, _pick(rng, [b"zTXt", b"iCCP"]))


def _jpeg_size(content: bytes, rng: Chance) -> bytes:
    place = content.find(b"\xff\xc0")
    sides = struct.pack(">HH", HOSTILE_SIDE, HOSTILE_SIDE)
    return content if place < 0 else content[: place + 5] + sides + content[place + 9 :]


def _tiff_tag(content: bytes, rng: Chance) -> bytes:
    """Another value of one of the tags, such as of width, length, bits, or how it is compressed."""
    if content[:4] != b"II*\0" or len(content) < 8:
        return _flip(content, rng)
    (start,) = struct.unpack_from("<I", content, 4)
    changed = bytearray(content)
    if start + 2 > len(content):
        return content
    (count,) = struct.unpack_from("<H", content, start)
    place = start + 2 + 12 * int(rng.integers(max(count, 1)))
    if place + 12 <= len(content):
        value = _pick(rng, [0, 1, HOSTILE_SIDE, 2**31 - 1, 2**32 - 1, int(rng.integers(2**16))])
        struct.pack_into("<I", changed, place + _pick(rng, [4, 8, 8, 8]), value)
    return bytes(changed)


def npy(shape: str, kind: str = "|u1", data: bytes = b"") -> bytes:
    head = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def _npy_head(content: bytes, rng: Chance) -> bytes:
    shapes = ["(1000000, 1000000)", "(-1, 60)", "()", "(40,)", "(40, 60", "(1.5, 2)", f"({'9' * 30}, 1)", "None"]
    return npy(_pick(rng, [*shapes, "(40, 60)"]), _pick(rng, ["|u1", "<f8", "|O", "<U9", "V7", "<c16", "?"]))


def _npz_bomb(content: bytes, rng: Chance) -> bytes:
    """A gigabyte of zeros as a mask, or after one."""
    shape = _pick(rng, ["(40000, 25000)", "(40, 60)"])
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("mask.npy", "w") as member,
    ):
        member.write(npy(shape))
        for _ in range(100):
            member.write(bytes(1_000_000))
    return file.getvalue()


OF_PNG = (_png_bomb, _png_size, _png_size, _png_text, _flip)
OF_NPY = (_npy_head, _npy_head, _npz_bomb)


# Tables.


def _parquet_cell(content: bytes, rng: Chance) -> bytes:
    """A column that is empty in a row, or of another type, or gone, or twice there."""
    table = pq.read_table(io.BytesIO(content))
    column = int(rng.integers(table.num_columns))
    name, values = table.column_names[column], table.column(column).to_pylist()
    kind = int(rng.integers(5))
    if kind == 0:
        values[int(rng.integers(len(values)))] = None
        table = table.set_column(column, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    elif kind == 1:
        table = table.set_column(column, name, pa.array([int(rng.integers(9))] * len(values)))
    elif kind == 2:
        table = table.drop_columns([name])
    elif kind == 3:
        table = table.slice(0, 0)
    else:
        table = table.replace_schema_metadata({b"huggingface": rng.bytes(40)})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _parquet_changed(content: bytes, rng: Chance) -> bytes:
    try:
        return _parquet_cell(content, rng)
    except (OSError, ValueError):  # damaged before
        return content


CONTENTS: dict[str, tuple[Callable[[bytes, Chance], bytes], ...]] = {
    ".csv": OF_TEXT,
    ".jpg": (_jpeg_size, _flip),
    ".json": OF_JSON,
    ".jsonl": tuple(map(_in_a_line, OF_JSON)),
    ".npy": OF_NPY,
    ".npz": OF_NPY,
    ".parquet": (_parquet_changed,),
    ".png": OF_PNG,
    ".tif": (_tiff_tag,),
    ".txt": OF_TEXT,
    ".xml": OF_XML,
}
