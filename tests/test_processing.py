"""Images and prompts to tensors: parity with stock SAM, every nesting, image kind and error."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor, SamImageProcessor, SamProcessor, ViTImageProcessor
from transformers import SamConfig as StockConfig

import sam_hf  # noqa: F401  registers the classes with Auto*
from sam_hf.configuration_sam_hf import SamHfConfig
from sam_hf.image_processing_sam_hf import SamHfImageProcessor
from sam_hf.pixels import read_image
from sam_hf.processing_sam_hf import SamHfProcessor
from sam_hf.prompt_encoder import PADDING

HEIGHT, WIDTH = 30, 50  # resized to 38 x 64: the two axes have different scales


@pytest.fixture(scope="module")
def processor() -> SamHfProcessor:
    return SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64}))


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:15, 10:30] = True
    return mask


def ones_like_points(points: list) -> list:
    is_point = isinstance(points[0], (int, float))
    return 1 if is_point else [ones_like_points(p) for p in points]


@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (1024, 1024), (1500, 700), (7, 900)])
def test_pixels_and_sizes_equal_stock(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = SamHfImageProcessor()(image, return_tensors="pt")
    stock = SamImageProcessor()(image, return_tensors="pt")
    assert ours.pixel_values.shape == (1, 3, 1024, 1024) and ours.pixel_values.dtype == torch.float32
    for key in stock:
        assert torch.equal(ours[key], stock[key]), key


def test_points_and_boxes_equal_stock():
    image = PIL.Image.new("RGB", (481, 321))
    points, labels, boxes = (
        [[[[10, 20], [480, 320]]]],
        [[[1, 0]]],
        [[[3.5, 4.25, 100, 200], [0, 0, 480, 320]]],
    )
    stock = SamProcessor(SamImageProcessor())(
        image, input_points=points, input_labels=labels, input_boxes=boxes, return_tensors="pt"
    )
    processor = SamHfProcessor(SamHfImageProcessor())
    ours = processor(image, input_points=points, input_labels=labels)
    assert ours.input_points.dtype == torch.float32
    assert torch.equal(ours.input_points, stock.input_points.float())
    assert torch.equal(ours.input_labels, stock.input_labels)
    assert torch.equal(processor(image, input_boxes=boxes).input_boxes, stock.input_boxes.float())


@pytest.mark.parametrize("binarize", [True, False])
@pytest.mark.parametrize("pad_size", [None, {"height": 768, "width": 1024}])
def test_post_process_masks_equals_stock(pad_size, binarize):
    grid = (256, 256) if pad_size is None else (192, 256)
    logits = torch.randn(2, 2, 3, *grid, generator=torch.Generator().manual_seed(0))
    originals, reshaped = torch.tensor([[30, 50], [75, 100]]), torch.tensor([[614, 1024], [768, 1024]])
    options = {"binarize": binarize, "pad_size": pad_size}
    ours = SamHfProcessor(SamHfImageProcessor()).post_process_masks(logits, originals, reshaped, **options)
    stock = SamImageProcessor().post_process_masks(logits, originals, reshaped, **options)
    for a, b, size in zip(ours, stock, originals.tolist(), strict=True):
        assert a.shape == (2, 3, *size)
        assert torch.equal(a, b)


def test_mask_survives_the_round_trip_of_a_non_square_image(processor, rgb, square):
    batch = processor(rgb, input_masks=square)
    (back,) = processor.post_process_masks(
        batch.input_masks[:, :, None], batch.original_sizes, batch.reshaped_input_sizes
    )
    overlap = (back[0, 0].numpy() & square).sum() / (back[0, 0].numpy() | square).sum()
    assert back.shape == (1, 1, HEIGHT, WIDTH)
    assert overlap > 0.9


def test_labels_points_and_boxes_share_one_frame(processor, rgb, square):
    batch = processor(
        rgb,
        input_points=[[10, 5], [29, 14], [9, 5], [10, 4]],
        input_labels=[1, 1, 0, 0],
        input_boxes=[10, 5, 30, 15],
        segmentation_maps=square.astype(np.uint8),
    )
    # A click is a pixel index; its centre decides which model pixel it falls on.
    scale = batch.reshaped_input_sizes[0] / batch.original_sizes[0]
    x, y = ((batch.input_points[0, 0] + 0.5 * scale.flip(0)).long()).unbind(-1)
    assert batch.labels[0, 0, y, x].tolist() == [1, 1, 0, 0]
    rows, columns = torch.where(batch.labels[0, 0] == 1)
    edges = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert (batch.input_boxes[0, 0] - edges).abs().max() <= 0.5


def test_other_sizes_follow_from_size():
    processor = SamHfImageProcessor(size={"longest_edge": 256})
    assert processor.pad_size == {"height": 256, "width": 256}
    assert processor.mask_size == {"longest_edge": 64}
    assert processor.mask_grid_size(256, 192) == (64, 48)
    given = SamHfImageProcessor(size=256, pad_size={"height": 192, "width": 256}, mask_size={"longest_edge": 128})
    assert given.pad_size == {"height": 192, "width": 256}
    assert given.mask_grid_size(192, 256) == (96, 128)


def test_size_of_one_call_brings_its_padding(processor, rgb, square):
    batch = processor(rgb, input_points=[10, 20], input_labels=1, input_masks=square, size={"longest_edge": 32})
    assert batch.pixel_values.shape[-2:] == (32, 32)
    assert batch.input_masks.shape[-2:] == (8, 8)
    assert batch.input_points[0, 0, 0].tolist() == pytest.approx([10 * 32 / 50, 20 * 19 / 30])


def test_non_square_padding(rgb, square):
    image_processor = SamHfImageProcessor(size=64, pad_size={"height": 48, "width": 64})
    batch = SamHfProcessor(image_processor)(rgb, input_masks=square, segmentation_maps=square)
    assert batch.pixel_values.shape == (1, 3, 48, 64)
    assert batch.input_masks.shape == (1, 1, 12, 16)
    assert batch.labels.shape == (1, 1, 48, 64)


def test_a_strip_keeps_one_row(processor):
    batch = processor(np.zeros((1, 500, 3), np.uint8), input_points=[250, 0], input_labels=1)
    assert batch.reshaped_input_sizes.tolist() == [[1, 64]]
    assert batch.input_points.tolist() == [[[[32, 0]]]]


def test_size_without_longest_edge_raises():
    with pytest.raises(ValueError, match="longest_edge"):
        SamHfImageProcessor(size={"height": 64, "width": 64})


def test_return_tensors_np(processor, rgb):
    batch = processor(rgb, input_points=[1, 2], input_labels=1, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in batch.values())


def test_only_given_keys_are_returned(processor, rgb):
    assert set(processor(rgb)) == set(processor.model_input_names)
    assert set(processor(rgb, input_boxes=[1, 2, 3, 4])) == {*processor.model_input_names, "input_boxes"}


def test_save_and_load(tmp_path, rgb):
    processor = SamHfProcessor(
        SamHfImageProcessor(size={"longest_edge": 64}, mask_size={"longest_edge": 32}, do_stretch_contrast=True)
    )
    processor.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path / "image_processor")
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SamHfProcessor
    image_processors = [
        loaded.image_processor,
        SamHfProcessor.from_pretrained(tmp_path).image_processor,
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path / "image_processor"),
    ]
    for image_processor in image_processors:
        assert type(image_processor) is SamHfImageProcessor
        assert image_processor.to_dict() == processor.image_processor.to_dict()
    assert torch.equal(loaded(rgb).pixel_values, processor(rgb).pixel_values)


def test_thresholds_are_saved_and_change_no_input(tmp_path, processor, rgb):
    plain = SamHfImageProcessor(size={"longest_edge": 64})
    assert not {"pred_iou_thresh", "stability_score_thresh"} & set(plain.to_dict())
    own = SamHfImageProcessor(size={"longest_edge": 64}, pred_iou_thresh=0, stability_score_thresh=0.125)
    own.stability_score_thresh = 0.25
    SamHfProcessor(own).save_pretrained(tmp_path)
    for loaded in (
        AutoProcessor.from_pretrained(tmp_path).image_processor,
        AutoImageProcessor.from_pretrained(tmp_path),
    ):
        assert (loaded.pred_iou_thresh, loaded.stability_score_thresh) == (0, 0.25)
        assert torch.equal(loaded(rgb, return_tensors="pt").pixel_values, plain(rgb, return_tensors="pt").pixel_values)
    assert torch.equal(processor(rgb, pred_iou_thresh=0.5).pixel_values, processor(rgb).pixel_values)
    # transformers writes its own without them, and reads ours.
    SamImageProcessor().save_pretrained(tmp_path / "stock")
    assert SamHfImageProcessor.from_pretrained(tmp_path / "stock").pred_iou_thresh is None
    own.save_pretrained(tmp_path / "image_processor")
    assert SamImageProcessor.from_pretrained(tmp_path / "image_processor").size == {"longest_edge": 64}


def test_the_tile_size_is_saved_and_changes_no_input(tmp_path, processor, rgb):
    assert "tile_size" not in processor.image_processor.to_dict()
    own = SamHfProcessor.from_config(SamHfConfig(), tile_size=50)
    own.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.tile_size == 50 and AutoImageProcessor.from_pretrained(tmp_path).tile_size == 50
    plain = SamHfProcessor.from_config(SamHfConfig())
    assert plain.image_processor.tile_size is None
    assert torch.equal(loaded(rgb).pixel_values, plain(rgb).pixel_values)


@pytest.mark.parametrize("tile_size", [0, -64, 12.5, "64", True])
def test_a_tile_size_that_is_none(tile_size):
    with pytest.raises(ValueError, match="tile_size is .*positive integer"):
        SamHfImageProcessor(tile_size=tile_size)


@pytest.mark.parametrize("edge, patch", [(512, 16), (512, 8), (1024, 16)])
def test_the_folder_of_a_stock_model_has_our_processor_with_its_mask_grid(tmp_path, rgb, square, edge, patch):
    stock = SamImageProcessor(size={"longest_edge": edge}, pad_size={"height": edge, "width": edge})
    SamProcessor(stock).save_pretrained(tmp_path)
    without_model = SamHfProcessor.from_pretrained(tmp_path).image_processor
    StockConfig(vision_config={"image_size": edge, "patch_size": patch}).save_pretrained(tmp_path)
    loaded = SamHfProcessor.from_pretrained(tmp_path)
    for image_processor in (loaded.image_processor, SamHfImageProcessor.from_pretrained(tmp_path)):
        assert type(image_processor) is SamHfImageProcessor
        assert image_processor.pad_size == {"height": edge, "width": edge}
        assert image_processor.mask_size == {"longest_edge": 4 * edge // patch}
    assert loaded(rgb, input_masks=square).input_masks.shape[-1] == 4 * edge // patch
    for image_processor in (without_model, SamHfProcessor(stock).image_processor):
        assert type(image_processor) is SamHfImageProcessor
        assert image_processor.mask_size == {"longest_edge": edge // 4}


def test_another_image_processor_is_refused():
    with pytest.raises(ValueError, match=r"ViTImageProcessor, expected .*from_config\(model.config\)"):
        SamHfProcessor(ViTImageProcessor())


def test_from_config_has_the_mask_grid_of_the_model():
    small = SamHfProcessor.from_config(SamHfConfig.from_preset("small"), do_stretch_contrast=True).image_processor
    assert (small.size, small.mask_size) == ({"longest_edge": 256}, {"longest_edge": 128})
    assert small.pad_size == {"height": 256, "width": 256} and small.do_stretch_contrast
    base = SamHfProcessor.from_config(SamHfConfig(), image_size=512).image_processor
    assert (base.size, base.mask_size) == ({"longest_edge": 512}, {"longest_edge": 128})
    config = SamHfConfig()
    with pytest.raises(ValueError, match="image_size=100 should be a multiple of 16"):
        SamHfProcessor.from_config(config, image_size=100)
    config.vision_config.image_size = 1000
    with pytest.raises(ValueError, match="image_size=1000 should be a multiple"):
        SamHfProcessor.from_config(config)


def in_image(side: int) -> torch.Tensor:
    """Logits on a square grid whose image, 30 x 50, fills the width: they are positive left of column 20."""
    columns = torch.arange(side).expand(1, 1, side, side)
    return torch.where(columns < side * 20 / 50, 5.0, -5.0)


@pytest.mark.parametrize("reshaped", [True, False], ids=["sizes", "original sizes"])
@pytest.mark.parametrize("upscaled", [False, True], ids=["grid", "upscaled"])
@pytest.mark.parametrize("edge", [320, 640, 1280])
def test_masks_of_one_calls_size_are_restored(rgb, edge, upscaled, reshaped):
    processor = SamHfProcessor(SamHfImageProcessor(size=640, mask_size=160))
    batch = processor(rgb, size={"longest_edge": edge})
    if upscaled and not reshaped and edge != 640:
        return  # their size alone may as well be that of a mask grid
    masks = in_image(edge if upscaled else edge // 4)
    sizes = [batch.original_sizes, batch.reshaped_input_sizes][: 1 + reshaped]
    (mask,) = processor.post_process_masks([masks], *sizes)
    expected = torch.arange(WIDTH).expand(HEIGHT, WIDTH) < 20
    assert torch.equal(mask[0, 0], expected)


def test_masks_of_one_calls_padding_are_restored(rgb):
    processor = SamHfProcessor(SamHfImageProcessor(size=640))
    batch = processor(rgb, pad_size={"height": 384, "width": 640})
    (mask,) = processor.post_process_masks(
        [in_image(160)[..., :96, :]], batch.original_sizes, batch.reshaped_input_sizes
    )
    assert torch.equal(mask[0, 0], torch.arange(WIDTH).expand(HEIGHT, WIDTH) < 20)


def test_padding_beyond_the_size_is_the_configured_one():
    processor = SamHfProcessor(SamHfImageProcessor(size=64, pad_size={"height": 256, "width": 256}))
    logits = torch.randn(1, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    stock = SamImageProcessor(pad_size={"height": 256, "width": 256})
    (expected,) = stock.post_process_masks(logits, [[30, 50]], [[38, 64]])
    for sizes in ([[[30, 50]], [[38, 64]]], [[[30, 50]]]):
        assert torch.equal(processor.post_process_masks(logits, *sizes)[0], expected)


@pytest.mark.parametrize("kind", ["numpy", "torch", "pil"])
def test_scaled_floats_without_rescaling(processor, rgb, kind):
    image = {"numpy": rgb / 255, "torch": torch.from_numpy(rgb / 255).permute(2, 0, 1)}.get(kind)
    if kind == "pil":
        rgb = rgb[..., 0]
        image = PIL.Image.fromarray((rgb / 255).astype(np.float32))
    expected = processor(rgb).pixel_values
    pixels = processor([image, rgb], do_rescale=False).pixel_values
    assert torch.allclose(pixels[:1], expected, atol=1e-5)
    assert pixels[1].max() > 500  # as stock has it: integers are what they are
    configured = SamHfImageProcessor(size=64, do_rescale=False)(image, return_tensors="pt").pixel_values
    assert torch.equal(configured, pixels[:1])
    assert torch.equal(processor(image).pixel_values, expected)


IMAGES = {
    "uint8": lambda rgb: rgb,
    "int64": lambda rgb: rgb.astype(np.int64),
    "uint8 tensor": lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1),
    "PIL": PIL.Image.fromarray,
    "float32": lambda rgb: (rgb / 255).astype(np.float32),
    "float64": lambda rgb: rgb / 255,
    "float32 tensor": lambda rgb: torch.from_numpy(rgb / 255).float().permute(2, 0, 1),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("factor", [1, 1 / 255, 1 / 127.5, 0.5, None], ids=str)
@pytest.mark.parametrize("configured", [True, False], ids=["configured", "of the call"])
def test_every_way_of_rescaling_equals_stock(rgb, kind, factor, configured):
    """None: `do_rescale=False`. Where stock would divide floats twice, they are as with a factor of 1."""
    image, is_float = IMAGES[kind](rgb), kind.startswith("float")
    options = {"do_rescale": False} if factor is None else {"rescale_factor": factor}
    own = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    ours = SamHfImageProcessor(**own, **(options if configured else {}))
    of_call = {} if configured else options
    if is_float and factor in (1 / 127.5, 0.5):
        with pytest.raises(ValueError, match=r"rescale_factor is 0\.\d+, but images holds floats.* expected 1 or"):
            ours(image, **of_call)
        return
    pixels = ours(image, return_tensors="pt", **of_call).pixel_values
    as_stock = {"rescale_factor": 1.0 if is_float else float(factor)} if factor or is_float else options
    stock = SamImageProcessor(**own, **as_stock)
    expected = stock(image, return_tensors="pt").pixel_values
    # Stock resizes other types than uint8 without rounding to 8 bits: the difference is a level at most.
    level = 1 / 255 if is_float else 1.0 if factor is None else factor
    tolerance = 1.01 * level / 0.224 if is_float or kind == "int64" else 1e-5 * expected.abs().max()
    assert (pixels - expected).abs().max() <= tolerance and expected.std() > 0.01


def test_maps_are_not_dropped_by_the_image_processor(processor, rgb, square):
    for arguments in ([square], []):
        with pytest.raises(ValueError, match=r"no segmentation_maps, .* SamHfProcessor\(image_processor\)"):
            processor.image_processor(rgb, *arguments, **({} if arguments else {"segmentation_maps": square}))


def test_points_without_labels_are_foreground(processor, rgb):
    points = [[[[10, 20]], [[1, 2], [3, 4]]], None, [None, [[5, 6]]], [[]]]
    batch = processor([rgb] * 4, input_points=points)
    pad = PADDING
    expected = [[[1, pad], [1, 1]], [[pad] * 2] * 2, [[pad] * 2, [1, pad]], [[pad] * 2] * 2]
    assert batch.input_labels.tolist() == expected
    assert processor(images=rgb, input_points=[[[40, 25]]]).input_labels.tolist() == [[[1]]]
    with pytest.raises(ValueError, match="input_points of image 0, object 0 came as"):
        processor(rgb, input_points=[[1, [2, 3]]])


@pytest.mark.parametrize("options", [{}, {"size": {"longest_edge": 32}}, {"do_resize": False}])
def test_prompts_without_an_image_equal_those_with_it(processor, rgb, square, options):
    prompts = {
        "input_points": [[[[10, 20]]], [[[3, 4], [5, 6]]]],
        "input_boxes": [[[1, 2, 3, 4]], [None]],
        "input_masks": [[square], None],
        "segmentation_maps": [[square], [square[:20, :20]]],
    }
    images = [rgb, rgb[:20, :20]]
    expected = processor(images, **prompts, **options)
    for sizes in (expected.original_sizes, [(30, 50), (20, 20)]):
        batch = processor(original_sizes=sizes, **prompts, **options)
        assert set(batch) == set(expected) - {"pixel_values"}
        for key, value in batch.items():
            assert torch.equal(value.nan_to_num(-7), expected[key].nan_to_num(-7)), key
    assert torch.equal(
        processor(original_sizes=(30, 50), input_points=[10, 20]).input_points,
        processor(original_sizes=[(30, 50)], input_points=[[[[10, 20]]]]).input_points,
    )


@pytest.mark.parametrize("sizes", [[], 5, [[30]], [[30.5, 50]], [[0, 50]]])
def test_sizes_that_are_none_are_refused(processor, sizes):
    with pytest.raises(ValueError, match="original_sizes is .*, expected"):
        processor(input_points=[1, 2], original_sizes=sizes)


def test_images_and_their_sizes_are_refused_together(processor, rgb):
    with pytest.raises(ValueError, match="not both"):
        processor(rgb, original_sizes=(30, 50))


def test_only_pixels_are_cast(processor, rgb, square):
    batch = processor(rgb, input_points=[45.3, 20], input_masks=square, segmentation_maps=square)
    before = dict(batch)
    for arguments in [("cpu", torch.bfloat16), (torch.bfloat16,)]:
        moved = processor(rgb, input_points=[45.3, 20], input_masks=square, segmentation_maps=square).to(*arguments)
        assert list(moved) == list(before) and moved.pixel_values.dtype == torch.bfloat16
        for key in before.keys() - {"pixel_values"}:
            assert torch.equal(moved[key].nan_to_num(-7), before[key].nan_to_num(-7)), key
    assert {value.device.type for value in batch.to("meta").values()} == {"meta"}
    assert {value.device.type for value in processor(rgb).to(device="meta", dtype=torch.half).values()} == {"meta"}


def test_stock_configuration_loads(tmp_path):
    SamImageProcessor().save_pretrained(tmp_path)
    loaded = SamHfImageProcessor.from_pretrained(tmp_path)
    assert loaded.pad_size == {"height": 1024, "width": 1024}
    assert loaded.mask_size == {"longest_edge": 256}


def test_methods_of_the_mask_generation_pipeline(processor, rgb):
    image_processor = processor.image_processor
    crop_boxes, grid, crops, labels = image_processor.generate_crop_boxes(
        PIL.Image.fromarray(rgb), 64, points_per_crop=4
    )
    assert crop_boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]
    assert grid.shape == (1, 16, 1, 2) and labels.shape == (1, 16, 1)
    batch = image_processor(images=crops, return_tensors="pt")
    assert torch.equal(batch.pixel_values, processor(rgb).pixel_values)


def grey16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint16) * 16 + 1000


KINDS = {
    "pil": lambda rgb: PIL.Image.fromarray(rgb),
    "numpy": lambda rgb: rgb,
    "numpy channels first": lambda rgb: rgb.transpose(2, 0, 1),
    "torch channels first": lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1),
    "torch channels last": lambda rgb: torch.from_numpy(rgb),
    "int64 of 8-bit values": lambda rgb: rgb.astype(np.int64),
    "float64": lambda rgb: rgb / 255,
    "float32 tensor": lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1) / 255,
    "rgba": lambda rgb: PIL.Image.fromarray(rgb).convert("RGBA"),
    "rgba array": lambda rgb: np.dstack([rgb, np.full(rgb.shape[:2], 255, dtype=np.uint8)]),
    "reversed view": lambda rgb: rgb[..., ::-1].copy()[..., ::-1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_colour_image_is_the_same_image(kind, rgb):
    read = read_image(KINDS[kind](rgb))
    assert read.dtype == torch.uint8
    assert torch.equal(read, torch.from_numpy(rgb).permute(2, 0, 1))


GREY_KINDS = {
    "L": lambda grey: PIL.Image.fromarray(grey),
    "LA": lambda grey: PIL.Image.fromarray(grey).convert("LA"),
    "palette": lambda grey: PIL.Image.fromarray(grey).convert("P"),
    "float pil": lambda grey: PIL.Image.fromarray(grey.astype(np.float32) / 255),
    "array": lambda grey: grey,
    "array [H, W, 1]": lambda grey: grey[..., None],
    "tensor [1, H, W]": lambda grey: torch.from_numpy(grey)[None],
    "uint16": grey16,
    "big-endian uint16": lambda grey: grey16(grey).astype(">u2"),
    "int32 tensor": lambda grey: torch.from_numpy(grey16(grey).astype(np.int32)),
    "uint16 tensor": lambda grey: torch.from_numpy(grey16(grey)),
    "I;16": lambda grey: PIL.Image.fromarray(grey16(grey)),
    "I": lambda grey: PIL.Image.fromarray(grey16(grey).astype(np.int32)),
}


@pytest.mark.parametrize("kind", GREY_KINDS)
def test_every_kind_of_grey_image_is_the_same_image(kind):
    grey = np.arange(256, dtype=np.uint8).reshape(8, 32)  # full range, so that range scaling is the identity
    read = read_image(GREY_KINDS[kind](grey))
    assert read.shape == (3, 8, 32)
    assert all(torch.equal(channel, torch.from_numpy(grey)) for channel in read)


def test_16_bit_file(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(8, 32)
    PIL.Image.fromarray(grey16(grey)).save(tmp_path / "deep.png")
    for path in (tmp_path / "deep.png", str(tmp_path / "deep.png")):
        assert torch.equal(read_image(path)[0], torch.from_numpy(grey))


def test_bool_and_constant_images():
    assert read_image(np.array([[True, False]])).unique().tolist() == [0, 255]
    assert read_image(np.full((2, 3), 700, dtype=np.uint16)).unique().tolist() == [0]
    assert read_image(np.full((2, 3), 7, dtype=np.uint8), stretch_contrast=True).unique().tolist() == [7]


def test_transparency_is_composited_on_white():
    rgba = PIL.Image.new("RGBA", (4, 3), (100, 0, 0, 0))
    rgba.putpixel((0, 0), (100, 0, 0, 255))
    palette = PIL.Image.new("P", (4, 3), 0)
    palette.putpalette([100, 0, 0, 0, 0, 0])
    palette.info["transparency"] = 0
    assert read_image(rgba)[:, 0, 0].tolist() == [100, 0, 0]
    assert read_image(rgba)[:, 1, 1].tolist() == [255, 255, 255]
    assert read_image(palette).unique().tolist() == [255]
    assert torch.equal(read_image(np.asarray(rgba) / 255), read_image(rgba))


def test_exif_orientation_is_applied(tmp_path, processor):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    upright = np.zeros((40, 20, 3), dtype=np.uint8)
    upright[:10] = 255
    PIL.Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    for image in (tmp_path / "turned.png", PIL.Image.open(tmp_path / "turned.png")):
        assert torch.equal(read_image(image), torch.from_numpy(upright).permute(2, 0, 1))
    assert processor(str(tmp_path / "turned.png")).original_sizes.tolist() == [[40, 20]]


def test_batch_of_mixed_kinds(processor, rgb):
    batch = processor([rgb, PIL.Image.fromarray(rgb), torch.from_numpy(rgb[..., 0])])
    assert batch.pixel_values.shape == (3, 3, 64, 64)
    assert torch.equal(batch.pixel_values[0], batch.pixel_values[1])
    stacked = processor(np.stack([rgb, rgb]))
    assert torch.equal(stacked.pixel_values, batch.pixel_values[:2])


def test_stretch_contrast_brings_a_dark_image_to_full_range(processor):
    image = np.random.default_rng(0).integers(2, 12, (64, 64, 3), dtype=np.uint8)
    image[0, 0] = 255  # one hot pixel must not set the range
    stretched = read_image(image, stretch_contrast=True)
    assert stretched.min() == 0 and stretched[:, 1:].max() == 255
    assert processor(image).pixel_values.std() < 0.2
    assert processor(image, do_stretch_contrast=True).pixel_values.std() > 1
    configured = SamHfImageProcessor(size=64, do_stretch_contrast=True)(image, return_tensors="pt")
    assert torch.equal(configured.pixel_values, processor(image, do_stretch_contrast=True).pixel_values)
    deep = image.astype(np.uint16) * 200
    assert (read_image(deep, stretch_contrast=True).int() - stretched.int()).abs().max() <= 1


def test_stretch_contrast_on_real_fluorescence(shared_data):
    paths = sorted((shared_data / "dsb2018" / "images").glob("*.png"))[:20]
    assert paths
    plain = torch.stack([read_image(p).float().std() for p in paths])
    stretched = torch.stack([read_image(p, stretch_contrast=True).float().std() for p in paths])
    assert (stretched >= plain - 1).all() and stretched.mean() > 1.5 * plain.mean()


POINT_FORMS = [
    ([10, 20], [[[10, 20]]]),
    ([[10, 20], [30, 5]], [[[10, 20], [30, 5]]]),
    ([[[10, 20]], [[30, 5]]], [[[10, 20]], [[30, 5]]]),
    ([[[[10, 20]], [[30, 5]]]], [[[10, 20]], [[30, 5]]]),
]


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor], ids=["list", "numpy", "torch"])
@pytest.mark.parametrize("given, expected", POINT_FORMS)
def test_every_nesting_of_points_for_a_single_image(processor, rgb, given, expected, convert):
    labels = ones_like_points(given)
    batch = processor(rgb, input_points=convert(given), input_labels=convert([labels])[0])
    scale = torch.tensor([64 / WIDTH, 38 / HEIGHT])
    torch.testing.assert_close(batch.input_points[0], torch.tensor(expected) * scale)
    assert (batch.input_labels == 1).all() and batch.input_labels.shape == batch.input_points.shape[:-1]


@pytest.mark.parametrize("boxes", [[1, 2, 30, 20], [[1, 2, 30, 20]], [[[1, 2, 30, 20]]]])
def test_every_nesting_of_boxes_for_a_single_image(processor, rgb, boxes):
    for value in (boxes, np.array(boxes), torch.tensor(boxes, dtype=torch.bfloat16)):
        batch = processor(rgb, input_boxes=value)
        expected = torch.tensor([[[1, 2, 30, 20]]]) * torch.tensor([64 / WIDTH, 38 / HEIGHT]).repeat(2)
        torch.testing.assert_close(batch.input_boxes, expected)


def test_a_list_of_one_image_takes_the_image_axis(processor, rgb):
    points = [[[10, 20], [30, 5]]]
    batch = processor([rgb], input_points=points, input_labels=[[1, 0]])
    assert batch.input_points.shape == (1, 1, 2, 2)


def test_ragged_at_every_axis(processor, rgb):
    small = rgb[:20, :20]
    batch = processor(
        [rgb, small, rgb],
        input_points=[
            [[[10, 20]], [[1, 2], [3, 4], [5, 6]]],
            [[7, 8]],
            [None, None, np.array([[9, 9], [8, 8]])],
        ],
        input_labels=[[[1], [1, 0, 1]], [1], [None, None, [0, 1]]],
        input_boxes=[[[1, 2, 3, 4], None], [[1, 2, 3, 4]], [[float("nan")] * 4, [1, 1, 2, 2], None]],
    )
    assert batch.input_points.shape == (3, 3, 3, 2)
    assert batch.input_labels.tolist() == [
        [[1, -10, -10], [1, 0, 1], [-10] * 3],
        [[1, -10, -10], [-10] * 3, [-10] * 3],
        [[-10] * 3, [-10] * 3, [0, 1, -10]],
    ]
    assert (batch.input_points[batch.input_labels == PADDING] == 0).all()
    has_box = ~batch.input_boxes.isnan().any(-1)
    assert has_box.tolist() == [[True, False, False], [True, False, False], [False, True, False]]
    torch.testing.assert_close(batch.input_points[1, 0, 0], torch.tensor([7.0, 8.0]) * 64 / 20)


def test_padding_does_not_change_what_is_there(processor, rgb):
    one = processor(rgb, input_points=[[[10, 20]]], input_labels=[[1]])
    both = processor(
        [rgb, rgb], input_points=[[[[10, 20]]], [[[1, 2], [3, 4], [5, 6]]]], input_labels=[[1], [1, 0, 1]]
    )
    assert both.input_points.shape == (2, 1, 3, 2)
    assert torch.equal(both.input_points[:1, :, :1], one.input_points)
    assert both.input_labels[0, 0].tolist() == [1, PADDING, PADDING]


def test_image_without_prompts_and_without_objects(processor, rgb):
    batch = processor(
        [rgb, rgb, rgb],
        input_points=[None, [], [[1, 2]]],
        input_labels=[None, [], [1]],
        input_boxes=[[[1, 2, 3, 4], [1, 2, 3, 4]], [], None],
    )
    assert batch.input_boxes.isnan().all(-1).tolist() == [[False, False], [True, True], [True, True]]
    assert (batch.input_labels != PADDING).flatten(1).sum(1).tolist() == [0, 0, 1]


def test_padding_points_of_the_caller_are_kept_inert(processor, rgb):
    batch = processor(rgb, input_points=[[1, 2], [float("nan"), -10]], input_labels=[1, PADDING])
    assert batch.input_points[0, 0, 1].tolist() == [0, 0]


def test_nothing_is_float64(processor, rgb, square):
    batch = processor(
        rgb,
        input_points=np.array([10.0, 20.0]),
        input_labels=np.array(1.0),
        input_boxes=np.array([1.0, 2, 3, 4]),
        input_masks=square,
        segmentation_maps=square.astype(np.float64),
    )
    integer = {"original_sizes", "reshaped_input_sizes", "input_labels"}
    for key, value in batch.items():
        expected = torch.int64 if key in integer else torch.bool if key == "has_input_masks" else torch.float32
        assert value.dtype == expected, key


def test_normalised_coordinates_are_warned_about(processor, rgb, monkeypatch):
    warned = []
    monkeypatch.setattr("sam_hf.processing_sam_hf.logger.warning_once", warned.append)
    processor(rgb, input_boxes=[1, 2, 30, 20])
    assert not warned
    processor(rgb, input_boxes=[0.1, 0.2, 0.5, 0.6])
    assert "normalised" in warned[0]


def test_mask_prompts_are_area_averaged_logits(processor, rgb):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[:, :25] = True  # half of the image: 32 of 64 model columns, 8 of 16 cells
    batch = processor(rgb, input_masks=mask)
    assert batch.input_masks.shape == (1, 1, 16, 16)
    assert (batch.input_masks[0, 0, :9, :8] == 10).all()
    assert (batch.input_masks[0, 0, :9, 8:] == -10).all()
    assert (batch.input_masks[0, 0, 9, :8] == 0).all()  # rows 36 to 39, of which 2 are image
    assert (batch.input_masks[0, 0, 10:] == -10).all()  # padding


@pytest.mark.parametrize("scale", [np.bool_, np.uint8, lambda m: m.astype(np.uint8) * 255, lambda m: m.astype(int)])
def test_mask_dtypes_agree(processor, rgb, square, scale):
    expected = processor(rgb, input_masks=square)
    for mask in (scale(square), torch.from_numpy(np.array(scale(square)))):
        assert torch.equal(processor(rgb, input_masks=mask).input_masks, expected.input_masks)


def test_mask_nesting_and_missing_masks(processor, rgb, square):
    logits = torch.randn(16, 16)
    forms = [square, square[None], square[None, None], [square], PIL.Image.fromarray(square), [[square]]]
    reference = processor(rgb, input_masks=square).input_masks
    for form in forms:
        assert torch.equal(processor(rgb, input_masks=form).input_masks, reference)
    batch = processor([rgb, rgb], input_masks=[[square, None, logits], logits])
    assert batch.has_input_masks.tolist() == [[True, False, True], [True, False, False]]
    assert torch.equal(batch.input_masks[0, 2], logits) and torch.equal(batch.input_masks[1, 0], logits)
    assert (batch.input_masks[~batch.has_input_masks] == 0).all()


def test_previous_logits_pass_unchanged_in_a_batch(processor, rgb):
    logits = torch.randn(2, 3, 16, 16)
    assert torch.equal(processor([rgb, rgb], input_masks=logits).input_masks, logits)


def test_label_map_and_stack_agree(processor, rgb, square):
    other = np.zeros_like(square)
    other[20:25, 40:48] = True
    label_map = square * 3 + other * 900
    stacks = [
        np.stack([square, other]),
        [square, other],
        [torch.from_numpy(square), other.astype(np.uint8) * 255],
    ]
    maps = [
        label_map.astype(np.uint16),
        torch.from_numpy(label_map),
        PIL.Image.fromarray(label_map.astype(np.int32)),
    ]
    expected = processor(rgb, segmentation_maps=stacks[0]).labels
    assert expected.shape == (1, 2, 64, 64)
    assert expected[0].nansum((1, 2)).tolist() == pytest.approx([200 * 1.62, 40 * 1.62], rel=0.1)
    for value in stacks[1:] + maps:
        assert torch.equal(processor(rgb, segmentation_maps=value).labels.nan_to_num(7), expected.nan_to_num(7))


def test_labels_are_nan_in_padding_only(processor, rgb, square):
    batch = processor([rgb, rgb[:20, :20]], segmentation_maps=[[square, square, None], np.ones((20, 20), int)])
    assert batch.labels.shape == (2, 3, 64, 64)
    assert not batch.labels[0, :2, :38].isnan().any() and batch.labels[0, :, 38:].isnan().all()
    assert batch.labels[0, 2].isnan().all()
    assert (batch.labels[1, 0] == 1).all() and batch.labels[1, 1:].isnan().all()
    assert set(batch.labels[0, 0, :38].unique().tolist()) == {0.0, 1.0}


def test_labels_keep_ignored_pixels_and_empty_maps(processor, rgb, square):
    soft = square.astype(np.float32)
    soft[0, 0] = np.nan
    labels = processor(rgb, segmentation_maps=soft).labels
    assert labels[0, 0, 0, 0].isnan() and not labels[0, 0, 2:38, 2:].isnan().any()
    batch = processor([rgb, rgb], segmentation_maps=[np.zeros((HEIGHT, WIDTH), int), square])
    assert batch.labels.shape == (2, 1, 64, 64) and batch.labels[0].isnan().all()


NAN = float("nan")
PROMPT_ERRORS = {
    "labels without points": ({"input_labels": [1]}, "input_labels came without input_points"),
    "points too deep": (
        {"input_points": [[[[[1, 2]]]]], "input_labels": [[[[1]]]]},
        r"input_points of one image came as \[1\]\[1\]\[1\]\[1\]\[2\], expected \[x, y\]",
    ),
    "points too shallow": ({"input_points": 3, "input_labels": 1}, "input_points of one image came as 3"),
    "triples": (
        {"input_points": [[1, 2, 3]], "input_labels": [1]},
        r"came as \[1\]\[3\], expected \[P\]\[2\]",
    ),
    "uneven objects": (
        {"input_points": [[1, 2], [[3, 4]]], "input_labels": [[1], [1]]},
        r"object 0 came as \[2\], expected \[P\]\[2\]",
    ),
    "uneven points": ({"input_points": [[1, 2], 3], "input_labels": [1, 1]}, "numbers beside lists"),
    "text": ({"input_points": [["a", 2]], "input_labels": [1]}, "input_points holds a str"),
    "two images for one": (
        {"input_points": [[[[1, 2]]], [[[1, 2]]]], "input_labels": [[[1]], [[1]]]},
        "input_points has 2 images",
    ),
    "fewer labels": (
        {"input_points": [[1, 2], [3, 4]], "input_labels": [1]},
        r"2 point\(s\) .* but 1 label\(s\)",
    ),
    "labels nested otherwise": (
        {"input_points": [[[1, 2]], [[3, 4]]], "input_labels": [1, 1]},
        "input_points has 2, input_labels has 1",
    ),
    "unknown label": ({"input_points": [1, 2], "input_labels": 2}, "input_labels holds 2: expected 1"),
    "fractional label": ({"input_points": [1, 2], "input_labels": 0.5}, "input_labels holds 0.5"),
    "nan point": ({"input_points": [NAN, 2], "input_labels": 1}, "input_points .* NaN or infinite"),
    "infinite point": ({"input_points": [1, float("inf")], "input_labels": 1}, "NaN or infinite"),
    "swapped point": ({"input_points": [20, 45], "input_labels": 1}, r"\(20, 45\), outside .* not \(y, x\)"),
    "negative point": ({"input_points": [-1.5, 4], "input_labels": 0}, "outside the image of width 50"),
    "box of three": ({"input_boxes": [1, 2, 3]}, r"input_boxes .* came as \[3\], expected \[4\]"),
    "box too deep": ({"input_boxes": [[[[1, 2, 3, 4]]]]}, r"input_boxes of one image came as .*\[N\]\[4\]"),
    "box x, y, w, h": ({"input_boxes": [20, 10, 15, 12]}, r"not \(x, y, width, height\)"),
    "box upside down": ({"input_boxes": [2, 10, 15, 5]}, "y1 <= y2"),
    "half a box": ({"input_boxes": [1, 2, NAN, 4]}, "input_boxes .* NaN or infinite"),
    "infinite box": ({"input_boxes": [1, 2, float("inf"), 4]}, "input_boxes .* NaN or infinite"),
    "box outside": (
        {"input_boxes": [5, 40, 15, 48]},
        r"centre of a box lies at \(x, y\) = \(10, 44\), outside",
    ),
    "counts of points and boxes": (
        {
            "input_points": [[1, 2], [3, 4]],
            "input_labels": [1, 1],
            "input_boxes": [[1, 2, 3, 4], [1, 2, 3, 4]],
        },
        r"input_points has 1, input_labels has 1, input_boxes has 2 object\(s\)",
    ),
    "counts of boxes and maps": (
        {"input_boxes": [1, 2, 3, 4], "segmentation_maps": np.arange(1500).reshape(30, 50) % 3},
        "input_boxes has 1, segmentation_maps has 2",
    ),
    "mask of another size": (
        {"input_masks": np.ones((50, 30), bool)},
        r"\(50, 30\), expected \(30, 50\), .* image",
    ),
    "logits of another size": ({"input_masks": np.ones((30, 50))}, r"expected \(16, 16\), .* mask grid"),
    "nan logits": ({"input_masks": np.full((16, 16), NAN)}, "NaN or infinite logits"),
    "mask values": ({"input_masks": np.full((30, 50), 3)}, "mask of one object holds 3"),
    "mask axes": ({"input_masks": np.ones(4, bool)}, r"input_masks of one image came as shape \(4,\)"),
    "masks of 2 images": ({"input_masks": np.ones((2, 1, 30, 50), bool)}, "input_masks has 2 images"),
    "map of another size": (
        {"segmentation_maps": np.ones((31, 50), int)},
        r"\(31, 50\), expected \(30, 50\)",
    ),
    "soft stack": ({"segmentation_maps": np.full((1, 30, 50), 0.5)}, "holds 0.5; .* Threshold"),
    "label map in a list": (
        {"segmentation_maps": [np.arange(1500).reshape(30, 50) % 3]},
        "holds 0, 1, 2; .* not in a list",
    ),
    "negative label map": ({"segmentation_maps": np.full((30, 50), -1)}, "label map holds -1"),
    "text map": ({"segmentation_maps": [["a"]]}, "segmentation_maps"),
}


@pytest.mark.parametrize("case", PROMPT_ERRORS)
def test_prompt_errors(processor, rgb, case):
    arguments, message = PROMPT_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        processor(rgb, **arguments)


def test_batch_errors_name_the_image(processor, rgb):
    with pytest.raises(ValueError, match=r"came as \[1\]\[4\] for a list of 2 image\(s\)"):
        processor([rgb, rgb], input_boxes=[[1, 2, 3, 4]])
    with pytest.raises(ValueError, match="first axis must be the image axis, of length 1"):
        processor([rgb], input_points=[[1, 2], [3, 4]], input_labels=[1, 1])
    with pytest.raises(ValueError, match="image 1, object 0.*outside the image of width 20"):
        processor([rgb, rgb[:20, :20]], input_points=[[40, 20], [40, 10]], input_labels=[1, 1])
    with pytest.raises(ValueError, match="segmentation_maps of image 1, object 0"):
        processor([rgb, rgb[:20]], segmentation_maps=[np.ones((30, 50), int), np.ones((30, 50), int)])


def test_border_tolerance(processor, rgb):
    processor(rgb, input_points=[[-1, -1], [WIDTH, HEIGHT]], input_labels=[1, 1])
    processor(rgb, input_boxes=[-5, -3, WIDTH + 4, HEIGHT + 2])  # as unclipped detectors give
    processor(rgb, input_boxes=[WIDTH, HEIGHT, WIDTH, HEIGHT])  # empty, at the corner


IMAGE_ERRORS = {
    "none": (None, "images is None"),
    "no image": ([], "empty list"),
    "no pixels": (np.zeros((0, 5, 3), np.uint8), r"without pixels: its shape is \(0, 5, 3\)"),
    "no pixels, PIL": (PIL.Image.new("RGB", (0, 5)), r"without pixels: its \(width, height\) is \(0, 5\)"),
    "two channels": (np.zeros((8, 9, 2), np.uint8), r"shape \(8, 9, 2\): expected \[H, W\]"),
    "one axis": (np.zeros(8, np.uint8), "shape"),
    "five axes": ([np.zeros((1, 1, 8, 8, 3), np.uint8)], "shape"),
    "float beyond 1": (np.full((8, 8), 200.0), "floats from 200 to 200, expected 0 to 1"),
    "nan": (np.full((8, 8), NAN), "NaN or infinite"),
    "not an image": ({"image": 1}, "images holds a dict"),
    "nested lists": ([[np.zeros((8, 8), np.uint8)]], "images holds a list"),
    "no such file": ("/no/such/file.png", "image source"),
}


@pytest.mark.parametrize("case", IMAGE_ERRORS)
def test_image_errors(processor, case):
    images, message = IMAGE_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        processor(images)


@pytest.mark.parametrize("is_sam2", [False, True])
def test_the_processor_of_a_configuration_resizes_as_its_family_does(is_sam2):
    config = SamHfConfig(prompt_encoder_config={"end_every_prompt": is_sam2})
    inputs = SamHfProcessor.from_config(config, 64)(np.zeros((32, 64, 3), dtype=np.uint8))
    assert inputs["reshaped_input_sizes"].tolist() == [[64 if is_sam2 else 32, 64]]
