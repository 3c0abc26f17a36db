"""The instance decoder: its targets from label maps, its loss, its place in the model and in a step of training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_collator import assert_same, collator, record
from tiny_models import IMAGE, MASK, tiny_model

from sam_hf import SamHfConfig, SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.convert import save_checkpoint
from sam_hf.data import LabelMapFolder, SyntheticScenes
from sam_hf.data.augmentation import RandomCropScaleFlip
from sam_hf.data.label_map import label_map_from_objects
from sam_hf.data.sa1b import Sa1bFolder, Sa1bTar
from sam_hf.data.schema import decode_masks, objects_from_masks
from sam_hf.instance_decoder import instance_losses
from sam_hf.loss_points import IGNORED
from sam_hf.training import Options
from sam_hf.training.adapters import add_lora
from sam_hf.training.batches import build_collator
from sam_hf.training.instance_targets import instance_targets
from sam_hf.training.interactive import InteractiveTrainer
from sam_hf.training.models import prepare_model
from sam_hf.training.optimization import parameter_groups

GUIDED = {"instance_decoder_config": {"hidden_size": 8, "guides_masks": True}}
HIGH_RES = {"vision": {"high_res_layers": [0, 1]}}


@pytest.fixture(scope="module")
def processor() -> SamHfProcessor:
    image_processor = SamHfImageProcessor(size={"longest_edge": IMAGE}, mask_size={"longest_edge": MASK})
    return SamHfProcessor(image_processor)


def random_label_map(size: tuple[int, int], num_objects: int, seed: int) -> np.ndarray:
    """Ellipses over each other, some cut off by the border."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, dtype=np.int32)
    rows, columns = np.ogrid[: size[0], : size[1]]
    for label in range(1, num_objects + 1):
        y, x, a, b = *(rng.random(2) * size), *rng.uniform(2, 9, 2)
        labels[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1] = label
    return labels


def naive_targets(labels: np.ndarray) -> np.ndarray:
    """Of a label map without `IGNORED` on its own grid, by looking at every pair of cells."""
    maps = np.zeros((3, *labels.shape))
    cells = np.argwhere(np.ones(labels.shape, dtype=bool))
    for label in set(labels[labels > 0].tolist()):
        own, others = np.argwhere(labels == label), cells[(labels != label).ravel()]
        far = np.sqrt(((own[:, None] - others) ** 2).sum(-1)).min(axis=1)
        away = np.sqrt(((own - own[far.argmax()]) ** 2).sum(-1))
        maps[:, own[:, 0], own[:, 1]] = np.ones(len(own)), far / far.max(), 1 - away / max(away.max(), 1)
    return maps


@pytest.mark.parametrize("seed", range(3))
def test_targets_are_the_naive_ones(seed):
    labels = random_label_map((28, 36), 9, seed)
    np.testing.assert_allclose(instance_targets(labels, labels.shape), naive_targets(labels), atol=1e-6)


def test_a_border_of_the_image_is_no_border_of_an_object():
    labels = np.zeros((9, 9), dtype=np.int32)
    labels[:, :4] = 1  # cut off on three sides
    _, distance, center = instance_targets(labels, (9, 9))
    np.testing.assert_allclose(distance[:, :4], np.broadcast_to([1, 0.75, 0.5, 0.25], (9, 4)))
    assert center[0, 0] == 1  # the first of those that are as far


def test_an_object_without_a_border_is_the_farthest_from_it_in_the_middle():
    _, distance, center = instance_targets(np.ones((7, 9), dtype=np.int32), (7, 9))
    assert np.unravel_index(distance.argmax(), distance.shape) == (3, 4) and center[3, 4] == 1
    assert (distance > 0).all()


def test_a_cell_has_the_label_of_its_middle_and_unknown_is_nan():
    labels = np.kron(np.array([[0, 1], [IGNORED, 2]], dtype=np.int32), np.ones((4, 4), dtype=np.int32))
    labels[::4] = 0  # a line that no middle is on
    maps = instance_targets(labels, (4, 4))
    assert maps.dtype == np.float32 and maps.shape == (3, 4, 4)
    assert np.isnan(maps[:, 2:, :2]).all() and not np.isnan(maps[:, :2]).any() and not np.isnan(maps[:, :, 2:]).any()
    np.testing.assert_array_equal(maps[0] == 1, np.kron([[0, 1], [0, 1]], np.ones((2, 2))) == 1)


def test_a_label_map_has_small_objects_on_top_and_crowds_unknown():
    masks = np.zeros((3, 6, 8), dtype=bool)
    masks[0, 1:3, 1:3] = masks[1, :5, :6] = masks[2, 3:, 5:] = True
    objects = objects_from_masks(masks)
    objects[2]["iscrowd"] = 1
    expected = np.zeros((6, 8), dtype=np.int32)
    expected[:5, :6], expected[3:, 5:], expected[1:3, 1:3] = 2, IGNORED, 1
    np.testing.assert_array_equal(label_map_from_objects(objects, (6, 8)), expected)
    assert not label_map_from_objects([], (6, 8)).any()


def test_run_lengths_are_painted_as_they_are_decoded():
    labels = random_label_map((40, 31), 25, seed=3)
    masks = np.stack([labels == label for label in range(1, 26)])
    masks = masks[masks.any(axis=(1, 2))]
    painted = label_map_from_objects(objects_from_masks(masks), labels.shape)
    np.testing.assert_array_equal(
        decode_masks(objects_from_masks(masks)), [painted == k + 1 for k in range(len(masks))]
    )


def test_loss_has_closed_form():
    # One cell of object of two: cross-entropies of 1/2 and 1/4 against their targets, less what these have themselves.
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0]])[None, :, None]
    logits = torch.zeros(1, 3, 1, 2)
    logits[0, 2] = np.log(1 / 3)  # chance of 1/4
    foreground, distance = np.log(2), np.log(2)
    center = -0.5 * np.log(1 / 4) - 0.5 * np.log(3 / 4) - np.log(2)
    dice = 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    loss = instance_losses(logits, targets)
    torch.testing.assert_close(loss, torch.tensor([foreground + distance + center + dice]).float())


def test_loss_is_zero_at_the_targets_and_blind_to_what_is_ignored():
    targets = torch.from_numpy(instance_targets(random_label_map((20, 20), 5, seed=1), (20, 20)))[None]
    right = targets.logit(eps=1e-7)
    assert instance_losses(right, targets) < 1e-3
    wrong, ignored = right.clone(), targets.clone()
    wrong[:, :, 5:15], ignored[:, :, 5:15] = 3.0, torch.nan
    assert instance_losses(wrong, targets) > 0.5 and instance_losses(wrong, ignored) < 1e-3
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    instance_losses(logits, torch.full((2, 3, 4, 4), torch.nan)).sum().backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("vision", [{}, {"high_res_layers": [0, 1]}], ids=["plain", "high resolution"])
@torch.no_grad()
def test_maps_come_with_the_embeddings(vision):
    model = tiny_model(vision=vision, **GUIDED)
    pixels = torch.randn(2, 3, IMAGE, IMAGE)
    embeddings = model.get_image_embeddings(pixels)
    maps = model.get_instance_maps(embeddings)
    assert maps.shape == (2, 3, MASK, MASK) and maps.min() >= 0 and maps.max() <= 1
    assert [part.shape for part in embeddings[1:]] == [part.shape for part in model.get_vision_features(pixels)]
    points = torch.rand(2, 3, 1, 2) * IMAGE
    whole = model(pixel_values=pixels, input_points=points).pred_masks
    taken = model(image_embeddings=embeddings, input_points=points).pred_masks
    assert torch.equal(whole, taken)
    for one, single in zip(embeddings, model.get_image_embeddings(pixels[1:]), strict=True):
        torch.testing.assert_close(one[1:], single, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_maps_know_all_features():
    model = tiny_model(**GUIDED, **HIGH_RES)
    features = model.get_vision_features(torch.randn(1, 3, IMAGE, IMAGE))
    maps = model.get_instance_maps(model.add_instances(features))
    for index in range(3):
        changed = [feature + (number == index) for number, feature in enumerate(features)]
        assert (model.get_instance_maps(model.add_instances(changed)) - maps).abs().max() > 1e-3, index


@torch.no_grad()
def test_guides_start_at_nothing_and_then_matter():
    torch.manual_seed(0)
    bare = tiny_model(**HIGH_RES)
    weights = bare.state_dict()
    config = SamHfConfig.from_dict(bare.config.to_dict() | GUIDED)
    guided = SamHfModel(config).eval()
    guided.load_state_dict(weights, strict=False)
    given = {"pixel_values": torch.randn(1, 3, IMAGE, IMAGE), "input_points": torch.rand(1, 2, 1, 2) * IMAGE}
    expected = bare(**given).pred_masks
    assert torch.equal(guided(**given).pred_masks, expected)
    assert len(guided.instance_decoder.guides) == 2
    for guide in guided.instance_decoder.guides:
        guide.weight.fill_(0.1)
        assert not torch.equal(guided(**given).pred_masks, expected)
        guide.weight.zero_()
    # Without guides none of its weights matters.
    alone = tiny_model(instance_decoder_config={"hidden_size": 8}, **HIGH_RES)
    alone.load_state_dict(weights, strict=False)
    assert torch.equal(alone(**given).pred_masks, expected)


def test_a_model_without_says_so(tmp_path):
    model = tiny_model()
    assert model.config.instance_decoder_config is None and model.instance_decoder is None
    with pytest.raises(ValueError, match="has no instance decoder: train one"):
        model.get_instance_maps(model.get_image_embeddings(torch.randn(1, 3, IMAGE, IMAGE)))
    for preset, has_one in (("small", True), ("base", False)):
        assert (SamHfConfig.from_preset(preset).instance_decoder_config is not None) == has_one


@torch.no_grad()
def test_it_is_saved_and_loaded(tmp_path):
    model = tiny_model(**GUIDED, **HIGH_RES)
    model.save_pretrained(tmp_path)
    loaded = SamHfModel.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, IMAGE, IMAGE)
    for one, other in zip(model.get_image_embeddings(pixels), loaded.get_image_embeddings(pixels), strict=True):
        assert torch.equal(one, other)


def test_files_of_sam_leave_it_out_only_if_masks_do_not_need_it(tmp_path, processor):
    model = tiny_model(instance_decoder_config={"hidden_size": 8})
    (note,) = save_checkpoint(model, processor, tmp_path / "stock", "transformers")
    assert note.startswith("the instance decoder is left out")
    loaded = SamHfModel.from_pretrained(tmp_path / "stock").eval()
    assert loaded.instance_decoder is None
    given = {"pixel_values": torch.randn(1, 3, IMAGE, IMAGE), "input_points": torch.rand(1, 2, 1, 2) * IMAGE}
    with torch.no_grad():
        assert torch.equal(loaded(**given).pred_masks, model(**given).pred_masks)
    for field in ("guides_masks", "proposes_masks"):
        needed = tiny_model(instance_decoder_config={"hidden_size": 8, field: True})
        with pytest.raises(ValueError, match="masks need the instance decoder"):
            save_checkpoint(needed, processor, tmp_path / field, "transformers")


def test_the_collator_gives_maps_of_all_that_is_in_view(processor):
    augmentation = RandomCropScaleFlip(32, scale=(1.5, 2.5), vflip=True, rot90=True)
    options = {"augmentation": augmentation, "crop_size": 32, "max_objects": 2}
    records = [{**record(6, name), "draw": 7} for name in "abcd"]
    bare = collator(processor, **options)(records)
    batch = collator(processor, instances=True, **options)(records)
    targets = batch.pop("instance_targets")
    assert batch.pop("frame") == bare.pop("frame")
    assert_same(batch, bare)  # draw for draw
    assert targets.shape == (4, 3, 32 * MASK // IMAGE, 32 * MASK // IMAGE) and targets.dtype == torch.float16
    shares = torch.nn.functional.interpolate((bare["labels"] == 1).float(), targets.shape[-2:], mode="area")
    for of_image, share in zip(targets, shares, strict=True):
        foreground = of_image[0].nan_to_num(0) > 0
        assert foreground[(share > 0.6).any(dim=0)].all()  # those that clicks are on


def test_a_cell_of_the_mask_grid_may_be_half_a_pixel_wider():
    """Patches of 14 pixels are four cells of 3.5 each; crops begin at patches."""
    patches = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 112}, mask_size={"longest_edge": 32}))
    crops = collator(patches, instances=True, crop_size=56, augmentation=RandomCropScaleFlip(56, (1.0, 2.0)))
    places = []
    for draw in range(20):
        batch = crops([{**record(6, "a"), "draw": draw}])
        assert batch["instance_targets"].shape == (1, 3, 16, 16)
        places += batch["frame"][2:]
    assert set(places) == {0, 14, 28, 42, 56}
    # A square of 64 fills the input, and so its left half the left half of the cells.
    labels = np.ones((1, 64, 64), dtype=bool)
    labels[..., 32:] = False
    whole = {**record(1, "a", 64, 64), "objects": objects_from_masks(labels)}
    (maps,) = collator(patches, instances=True)([whole])["instance_targets"]
    assert torch.equal(maps[0], (torch.arange(32) < 16).half().expand(32, 32))


def test_nobody_says_what_is_beside_a_small_image():
    objects, image = record(5, "a", 64, 64)["objects"], record(5, "a", 64, 64)["image"]
    augmentation = RandomCropScaleFlip(64, scale=(0.5, 0.5), hflip=False)
    *_, labels = augmentation(image, objects, np.random.default_rng(0), with_label_map=True)
    assert (labels[32:] == IGNORED).all() and (labels[:, 32:] == IGNORED).all()
    assert set(np.unique(labels[:32, :32])) == set(range(6))


def test_whole_images_are_padded_as_the_processor_pads(processor):
    batch = collator(processor, instances=True)([record(5, "a", 40, 50), record(2, "b", 50, 20)])
    targets = batch["instance_targets"]
    grids = torch.nn.functional.interpolate(batch["labels"].float(), targets.shape[-2:], mode="nearest")
    for of_image, labels in zip(targets, grids, strict=True):
        padded = (labels == -1).all(dim=0)
        # One row of cells may be half in the padding.
        assert (of_image[0].isnan() != padded).sum() <= max(padded.shape)
        assert of_image[0].isnan().any()
    whole = collator(processor, instances=True)([{**record(5, "a", 64, 64)}])["instance_targets"][0]
    objects = record(5, "a", 64, 64)["objects"]
    expected = instance_targets(label_map_from_objects(objects, (64, 64)), (MASK, MASK))
    np.testing.assert_allclose(whole.numpy(), expected, atol=1e-3)


def step_batch(processor: SamHfProcessor, num_images: int = 2) -> dict:
    records = [{**record(2 + index, "abcd"[index]), "draw": index} for index in range(num_images)]
    return collator(processor, instances=True, num_corrections=1)(records)


def test_a_step_adds_the_loss_weighted_by_objects(processor):
    model = tiny_model(**GUIDED, **HIGH_RES).train()
    trainer = InteractiveTrainer(model)
    batch = step_batch(processor)
    output = trainer(**batch)
    targets = batch.pop("instance_targets")
    without = trainer(**batch)
    assert "instances" not in without.loss_dict
    losses = instance_losses(model.get_instance_logits(model.get_image_embeddings(batch["pixel_values"])), targets)
    expected = (2 * losses[0] + 3 * losses[1]) / 5
    torch.testing.assert_close(output.loss_dict["instances"], expected.detach())
    torch.testing.assert_close(output.loss - without.loss, expected)
    # The same however images are spread over batches.
    count = torch.tensor(5)
    parts = [
        trainer(
            **{name: value[index : index + 1] for name, value in batch.items()},
            instance_targets=targets[index : index + 1],
            normalizer=count,
        ).loss_dict["instances"]
        for index in range(2)
    ]
    torch.testing.assert_close(sum(parts), expected.detach())


@pytest.mark.parametrize("with_targets", [True, False])
def test_every_parameter_has_a_gradient_in_every_step(processor, with_targets):
    model = tiny_model(**GUIDED, **HIGH_RES, decoder={"use_object_score": True}).train()
    batch = step_batch(processor)
    if not with_targets:
        del batch["instance_targets"]
    InteractiveTrainer(model)(**batch).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    learns = any(weight.grad.any() for weight in model.instance_decoder.head.parameters())
    assert learns == with_targets


def test_it_learns_at_the_rate_of_the_decoder():
    model = tiny_model(**GUIDED, **HIGH_RES)
    groups = parameter_groups(model, 0.1, encoder_rate=0.25, layer_decay=0.5)
    found = {name: group for group in groups for name, _ in group["params"]}
    assert found["instance_decoder.block0.conv1.weight"]["rate_share"] == 1.0
    assert found["instance_decoder.block0.conv1.weight"]["weight_decay"] == 0.1
    assert found["instance_decoder.block0.layer_norm1.weight"]["weight_decay"] == 0.0


def test_autocast_runs_it(processor):
    batch = step_batch(processor)
    with torch.autocast("cpu", torch.bfloat16):
        output = InteractiveTrainer(tiny_model(**GUIDED, **HIGH_RES).train())(**batch)
    output.loss.backward()
    assert output.loss.isfinite() and output.loss_dict["instances"].dtype == torch.float32


def test_adapters_train_it_in_full_beside_them(processor):
    model = add_lora(tiny_model(**GUIDED), "encoder").train()
    batch = step_batch(processor)
    InteractiveTrainer(model)(**batch).loss.backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert any("instance_decoder" in name and "head" in name for name in trained)
    assert not any("instance_decoder.original_module" in name for name in trained)


@pytest.mark.parametrize("lora", ["encoder", "decoder"])
def test_adapters_leave_it_as_it_is_where_nothing_teaches_it(tmp_path, lora):
    tiny_model(**GUIDED).save_pretrained(tmp_path)
    model = prepare_model(tmp_path, lora=lora, instances=False)
    own = [weight.requires_grad for name, weight in model.named_parameters() if "instance_decoder" in name]
    assert own and not any(own)
    taught = prepare_model(tmp_path, lora=lora, instances=True)
    own = [weight.requires_grad for name, weight in taught.named_parameters() if "instance_decoder" in name]
    assert any(own) == (lora == "encoder")


@pytest.mark.parametrize(
    ("source", "asked", "names_every_object", "trains", "has_one"),
    [
        ("small", None, True, True, True),
        ("small", None, False, False, False),
        ("small", True, False, True, True),
        ("small", False, True, False, False),
        ("without", None, True, False, False),
        ("without", True, True, True, True),
        ("with", None, True, True, True),
        ("with", None, False, False, True),
    ],
)
def test_whether_it_trains_is_told_by_model_data_and_option(
    tmp_path, source, asked, names_every_object, trains, has_one
):
    if source != "small":
        tiny_model(**(GUIDED if source == "with" else {})).save_pretrained(tmp_path)
    options = Options(model="small" if source == "small" else str(tmp_path), instances=asked)
    options.choose_instances(SimpleNamespace(names_every_object=names_every_object))
    assert options.instances is trains
    model = prepare_model(options.model, image_size=None, instances=options.instances)
    assert (model.instance_decoder is not None) == has_one == (model.config.instance_decoder_config is not None)
    if has_one:
        assert all(weight.requires_grad == trains for weight in model.instance_decoder.parameters())
    processor = SamHfProcessor.from_config(model.config)
    side = processor.image_processor.size["longest_edge"]
    assert build_collator(processor, side, options, model.config).instances == trains


def test_data_says_whether_it_names_every_object(tmp_path):
    assert getattr(SyntheticScenes(1), "names_every_object", True)
    assert not Sa1bFolder.names_every_object and not Sa1bTar.names_every_object
    labels = Image.fromarray(np.kron(np.array([[0, 1], [2, 3]], dtype=np.uint8), np.ones((8, 8), dtype=np.uint8)))
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        labels.convert("RGB").save(tmp_path / "images" / f"{name}.png")
        labels.save(tmp_path / "masks" / f"{name}_1.png")
    assert LabelMapFolder(tmp_path).names_every_object
    labels.save(tmp_path / "masks" / "b_2.png")
    assert not LabelMapFolder(tmp_path).names_every_object
