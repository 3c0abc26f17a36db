"""One way from file to pixels: training, evaluation and use see the same 8-bit RGB of every file."""

import base64
import functools
import http.server
import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin
from tiny_models import IMAGE, tiny_model

from sam_hf import SamHfImageProcessor, SamHfProcessor
from sam_hf.data import MaskFolder, open_dataset
from sam_hf.data.check import check_dataset
from sam_hf.data.parquet import write_parquet
from sam_hf.data.reader import ImageSource
from sam_hf.data.schema import check_record, decode_masks, objects_from_masks, rgb_array
from sam_hf.evaluation import simulate_clicks
from sam_hf.image_files import TURN_BACK, decode_image
from sam_hf.pixels import read_image
from sam_hf.training.collator import ClickSamplingCollator

HEIGHT, WIDTH = 8, 12
RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
HOT = (200 + 1800 * RAMP).astype(np.uint16)
HOT[0, 0] = 65535
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)
RGB = (255 * COLOURS).astype(np.uint8)
DEEP = (100 + 3995 * COLOURS).astype(np.uint16)  # a 12-bit camera
ALPHA = np.where(RAMP > 0.5, 65535, 0).astype(np.uint16)[..., None]
PALETTE = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)


def encode(picture, kind, orientation=1, **options) -> bytes:
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if kind == "TIFF":
        options["tiffinfo"] = {274: orientation}
    elif orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][274] = orientation
    picture.save(file, kind, **options)
    return file.getvalue()


def wide_png(values: np.ndarray) -> bytes:
    """uint16 [H, W, C] as PNG, of grey and alpha (2), RGB (3) or RGBA (4)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wide_tiff(values: np.ndarray, order: str = "<", orientation: int = 1, deflate: bool = False, planes: int = 1):
    """uint16 [H, W, 3] as TIFF; `planes` 2 only says that the channels lie in separate ones."""
    height, width, _ = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflate else data
    tags = {256: width, 257: height, 258: 0, 259: 8 if deflate else 1, 262: 2, 273: 0, 274: orientation, 277: 3}
    tags |= {278: height, 279: len(data), 284: planes}
    bits_at = 8 + 2 + 12 * len(tags) + 4
    tags[273] = bits_at + 6
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 3, 3, bits_at)
        if tag == 258
        else struct.pack(f"{order}HHII", tag, 4, 1, value)
        for tag, value in tags.items()
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}IHHH", 0, 16, 16, 16) + data


FILES = {
    "grey.png": encode(RGB[..., 0], "PNG"),
    "grey.jpg": encode(RGB[..., 0], "JPEG"),
    "grey.tif": encode(RGB[..., 0], "TIFF"),
    "rgb.png": encode(RGB, "PNG"),
    "rgb.jpg": encode(RGB, "JPEG"),
    "rgb.bmp": encode(RGB, "BMP"),
    "rgb.webp": encode(RGB, "WEBP", lossless=True),
    "rgb.tif": encode(RGB, "TIFF", compression="tiff_lzw"),
    "cmyk.jpg": encode(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "binary.png": encode(Image.fromarray(RGB).convert("1"), "PNG"),
    "palette.png": encode(PALETTE, "PNG"),
    "palette_clear.png": encode(PALETTE, "PNG", transparency=3),
    "grey_clear.png": encode(RGB[..., 0], "PNG", transparency=0),
    "rgb_clear.png": encode(RGB, "PNG", transparency=tuple(RGB[0, 0].tolist())),
    "rgba.png": encode(np.dstack([RGB, ALPHA // 257]).astype(np.uint8), "PNG"),
    "grey_alpha.png": encode(Image.fromarray(np.dstack([RGB, ALPHA // 257]).astype(np.uint8)).convert("LA"), "PNG"),
    "offset.png": encode((10000 + 2000 * RAMP).astype(np.uint16), "PNG"),
    "hot.png": encode(HOT, "PNG"),
    "hot.tif": encode(HOT, "TIFF"),
    "eight_in_sixteen.png": encode((200 * RAMP).astype(np.uint16), "PNG"),
    "hounsfield.tif": encode((-1000 + 700 * RAMP).astype(np.int32), "TIFF"),
    "float.tif": encode(RAMP.astype(np.float32), "TIFF"),
    "deep.png": wide_png(DEEP),
    "deep_alpha.png": wide_png(np.concatenate([DEEP, ALPHA], axis=2)),
    "deep_grey_alpha.png": wide_png(np.concatenate([DEEP[..., :1], ALPHA], axis=2)),
    "deep_little.tif": wide_tiff(DEEP, "<"),
    "deep_big.tif": wide_tiff(DEEP, ">"),
    "deep_deflate.tif": wide_tiff(DEEP, "<", deflate=True),
    "deep_big_deflate.tif": wide_tiff(DEEP, ">", deflate=True),
    "deep_turned.tif": wide_tiff(DEEP, "<", orientation=6),
}
ORIENTED = {
    "JPEG": functools.partial(encode, RGB, "JPEG"),
    "PNG": functools.partial(encode, RGB, "PNG"),
    "WEBP": functools.partial(encode, RGB, "WEBP", lossless=True),
    **{
        f"TIFF {name} {compression}": functools.partial(encode, values, "TIFF", compression=compression)
        for name, values in {"grey": RGB[..., 0], "rgb": RGB, "grey 16": HOT, "float": RAMP.astype(np.float32)}.items()
        for compression in ("raw", "tiff_lzw")
    },
}


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, C] as stored -> as shown, in words of NumPy."""
    pixels = np.swapaxes(pixels, 0, 1) if orientation >= 5 else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def processor(stretch: bool) -> SamHfProcessor:
    return SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE}, do_stretch_contrast=stretch))


def record_of(path: Path):
    image = ImageSource(path).open()
    height, width = rgb_array(image, stretch_contrast=True).shape[:2]
    mask = np.zeros((1, height, width), dtype=bool)
    mask[:, 1:5, 1:5] = True
    return {"image": image, "objects": objects_from_masks(mask), "image_id": path.stem}


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_training_sees_what_use_sees(name, stretch, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    used = read_image(path, stretch_contrast=stretch)
    record = record_of(path)
    check_record(record)
    trained = torch.from_numpy(rgb_array(record["image"], stretch_contrast=stretch).copy()).permute(2, 0, 1)
    assert used.dtype == torch.uint8 and torch.equal(trained, used)
    # As they go in: by path, opened by PIL, and as a record through the collator.
    expected = processor(stretch)(images=str(path), return_tensors="pt")["pixel_values"]
    for given in (Image.open(path), record["image"]):
        assert torch.equal(processor(stretch)(images=given, return_tensors="pt")["pixel_values"], expected)
    assert torch.equal(ClickSamplingCollator(processor(stretch))([record])["pixel_values"], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ORIENTED)
def test_every_orientation_is_upright_on_every_path(name, orientation, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(ORIENTED[name](orientation=1))
    plain = read_image(path).permute(1, 2, 0).numpy()
    path.write_bytes(ORIENTED[name](orientation=orientation))
    upright = turned(plain, orientation)
    for pixels in (
        read_image(path).permute(1, 2, 0).numpy(),
        read_image(Image.open(path)).permute(1, 2, 0).numpy(),
        rgb_array(ImageSource(path, upright.shape[:2]).open()),
        rgb_array(ImageSource(path, exif="shown").open()),
        rgb_array(ImageSource(path.read_bytes()).open()),
    ):
        assert np.array_equal(pixels, upright)
    assert ImageSource(path).read_size() == upright.shape[:2]
    stored = ImageSource(path, exif="stored")
    assert np.array_equal(rgb_array(stored.open()), plain) and stored.read_size() == plain.shape[:2]
    if orientation >= 5:  # the size alone tells
        assert np.array_equal(rgb_array(ImageSource(path, plain.shape[:2]).open()), plain)
    frames = ImageSource(path, upright.shape[:2]).possible_frames()
    assert frames == ([] if orientation == 1 else ["shown"] if orientation >= 5 else ["shown", "stored"])


def test_plain_files_are_what_pillow_gives(tmp_path):
    for name in ("rgb.png", "rgb.jpg", "rgb.bmp", "rgb.webp", "rgb.tif", "grey.png", "grey.jpg", "grey.tif"):
        (tmp_path / name).write_bytes(FILES[name])
        expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert np.array_equal(rgb_array(ImageSource(tmp_path / name).open()), expected)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("deep")])
def test_sixteen_bit_colours_keep_all_bits(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    image = ImageSource(tmp_path / name).open()
    assert image.dtype == np.uint16
    expected = np.repeat(DEEP[..., :1], 3, axis=2) if "grey" in name else DEEP
    assert np.array_equal(image[..., :3], turned(expected, 6 if "turned" in name else 1))
    assert image.shape[2] == 3 or np.array_equal(image[..., 3:], ALPHA)


def test_what_cannot_be_read_names_the_file(tmp_path):
    nan, stack, planes, text = (tmp_path / name for name in ("nan.tif", "stack.tif", "planes.tif", "text.png"))
    values = RAMP.astype(np.float32)
    values[0, 0] = np.nan
    nan.write_bytes(encode(values, "TIFF"))
    pages = [Image.fromarray(RGB[..., channel]) for channel in range(3)]
    pages[0].save(stack, save_all=True, append_images=pages[1:])
    planes.write_bytes(wide_tiff(DEEP, planes=2))
    for path, what in {nan: "NaN", stack: "3 pages", planes: "separate planes"}.items():
        for read in (read_image, lambda path: ImageSource(path).open()):
            with pytest.raises(ValueError, match=what) as error:
                read(path)
            assert str(path) in str(error.value)
    text.write_text("no image")
    with pytest.raises(ValueError, match="text.png is no image"):
        read_image(text)
    with pytest.raises(ValueError, match="'missing.png' is no image source: neither a file"):
        read_image("missing.png")


def test_pages_that_only_go_with_another_are_none(tmp_path):
    path, page = tmp_path / "pyramid.tif", Image.fromarray(RGB)
    small = page.resize((6, 4))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    page.save(path, save_all=True, append_images=[small])
    written = Image.open(path)
    assert written.n_frames == 2
    written.seek(1)
    if written.tag_v2.get(254) != 1:
        pytest.skip("this Pillow does not write what a page is")
    assert np.array_equal(rgb_array(ImageSource(path).open()), RGB)


def test_page_that_the_caller_chose_is_read(tmp_path):
    pages = [encode(RGB[..., channel], "TIFF", 6, compression="raw") for channel in range(2)]
    images = [Image.open(io.BytesIO(page)) for page in pages]
    stored = [Image.fromarray(RGB[..., channel]) for channel in range(2)]
    stored[0].save(tmp_path / "stack.tif", save_all=True, append_images=stored[1:], tiffinfo={274: 6})
    for number, image in enumerate(images):
        stack = Image.open(tmp_path / "stack.tif")
        stack.seek(number)
        if stack.getexif().get(274) == 6:
            assert torch.equal(read_image(stack), read_image(image))


def test_text_and_url_give_the_pixels_of_the_file(tmp_path):
    (tmp_path / "hot.png").write_bytes(FILES["hot.png"])
    expected = read_image(tmp_path / "hot.png", stretch_contrast=True)
    text = base64.b64encode(FILES["hot.png"]).decode()
    for source in (text, f"data:image/png;base64,{text}"):
        assert torch.equal(read_image(source, stretch_contrast=True), expected)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/hot.png"
        assert torch.equal(read_image(url, stretch_contrast=True), expected)
        server.shutdown()


def exif_behind_pixels(content: bytes) -> bytes:
    """A PNG file whose EXIF stands behind its pixels, as exiftool writes it."""
    start = content.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", content[start : start + 4])[0]
    tail = content.index(b"IEND") - 4
    return content[:start] + content[end:tail] + content[start:end] + content[tail:]


def test_orientation_behind_the_pixels_of_a_png_counts():
    content = exif_behind_pixels(encode(RGB, "PNG", 6))
    assert content.index(b"IDAT") < content.index(b"eXIf")
    assert ImageSource(content).read_size() == (WIDTH, HEIGHT)
    assert np.array_equal(np.asarray(decode_image(content)), turned(RGB, 6))


def test_the_head_of_a_png_is_read_without_its_pixels(monkeypatch):
    def load(image):
        raise AssertionError("decoded")

    contents = [encode(RGB, "PNG"), encode(RGB, "PNG", 6)]
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    assert [ImageSource(content).read_size() for content in contents] == [(HEIGHT, WIDTH), (WIDTH, HEIGHT)]


def test_turning_back_undoes_every_orientation():
    for orientation, method in TURN_BACK.items():
        image = Image.fromarray(RGB)
        image.getexif()[274] = orientation
        assert np.array_equal(ImageOps.exif_transpose(image).transpose(method), RGB)


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_folder_takes_upright_masks_of_turned_tiff(compression, orientation, tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1:5, 2:9] = 1
    content = encode(mask * 255, "TIFF", orientation, compression=compression)
    (tmp_path / "images" / "a.tif").write_bytes(content)
    upright = np.ascontiguousarray(turned(mask[..., None], orientation)[..., 0])
    Image.fromarray(upright).save(tmp_path / "masks" / "a.png")
    record = open_dataset(tmp_path, None)[0]
    assert np.array_equal(rgb_array(record["image"])[..., 0] > 0, upright > 0)
    assert record["objects"][0]["segmentation"]["size"] == [WIDTH, HEIGHT]


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_masks_of_the_stored_frame(orientation, tmp_path, capsys):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1:5, 2:9] = 255
    (tmp_path / "images" / "a.png").write_bytes(encode(mask, "PNG", orientation))
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    for exif, aligned in ((None, False), ("shown", False), ("stored", True)):
        data = MaskFolder(tmp_path, exif=exif)
        record = data[0]
        inside = rgb_array(record["image"])[..., 0][decode_masks(record["objects"])[0]]
        assert (inside == 255).all() == aligned
        warnings = check_dataset(data, [0]).warnings
        assert any("turned by EXIF" in kind for kind in warnings) == (exif is None)
    with pytest.raises(ValueError, match='exif is 6: expected "shown"'):
        MaskFolder(tmp_path, exif=6)


def test_evaluation_sees_what_use_sees(tmp_path):
    (tmp_path / "hot.png").write_bytes(FILES["hot.png"])
    model = tiny_model().eval()
    for stretch in (False, True):
        trace = next(simulate_clicks(model, processor(stretch), [record_of(tmp_path / "hot.png")], num_clicks=1))
        used = read_image(tmp_path / "hot.png", stretch_contrast=stretch)
        assert np.array_equal(trace.image, used.permute(1, 2, 0))


def test_parquet_keeps_the_values_of_records(tmp_path):
    images = [Image.fromarray(HOT), Image.fromarray(RAMP.astype(np.float32)), HOT, Image.fromarray(RGB), RGB[..., 0]]
    mask = np.ones((1, HEIGHT, WIDTH), dtype=bool)
    records = [
        {"image": image, "objects": objects_from_masks(mask), "image_id": str(number)}
        for number, image in enumerate(images)
    ]
    write_parquet({"train": (records, range(len(records)))}, tmp_path / "out")
    for record in open_dataset(tmp_path / "out", None):
        expected = rgb_array(images[int(record["image_id"])], stretch_contrast=True)
        assert np.array_equal(rgb_array(record["image"], stretch_contrast=True), expected)
