"""SAM 2 in training: what a run keeps of its source, what trains, and a run from a folder of transformers."""

import copy
import json

import numpy as np
import pytest
import torch
import yaml
from sam2_models import SIDE, sam2_model
from tiny_runs import arguments, assert_answers_as_in_the_run, load_example
from transformers import AutoModel, AutoProcessor, Sam2ImageProcessor, Sam2Processor

from sam_hf import SamHfConfig, SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.automatic import MaskGenerator
from sam_hf.data.augmentation import RandomCropScaleFlip
from sam_hf.data.schema import objects_from_masks
from sam_hf.image_processing_sam_hf import MASK_PROMPT_LOGIT
from sam_hf.positions import PositionFrame
from sam_hf.prompted import PromptedImage
from sam_hf.training import (
    InteractiveTrainer,
    Options,
    add_lora,
    batch_fitting,
    machine_fit,
    open_cache,
    parameter_groups,
)
from sam_hf.training.adapters import load_adapter
from sam_hf.training.batches import build_collator, usable_negatives
from sam_hf.training.memory_use import KeptForBackward
from sam_hf.training.models import build_processor, prepare_model
from sam_hf.training.optimization import block_matrices
from sam_hf.training.parts import freeze
from sam_hf.training.reporting import read_log
from sam_hf.vision_configuration import HIERA, VISION_PRESETS

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a model for video, with a processor of other mean and deviation."""
    path = tmp_path_factory.mktemp("sam2")
    sam2_model(video=True).save_pretrained(path)
    size = {"height": SIDE, "width": SIDE}
    Sam2Processor(Sam2ImageProcessor(size=size, image_mean=MEAN, image_std=STD)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def squares() -> SamHfProcessor:
    return SamHfProcessor(SamHfImageProcessor(size={"longest_edge": SIDE}, keep_aspect_ratio=False))


def image(height: int = 60, width: int = 100) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def record(height: int = 60, width: int = 100) -> dict:
    masks = np.zeros((2, height, width), dtype=bool)
    masks[0, 10:40, 5:35] = masks[1, 20:50, 60:90] = True
    return {"image": image(height, width), "objects": objects_from_masks(masks), "image_id": "a", "draw": 0}


def test_the_processor_equals_that_of_stock(folder):
    stock, ours = Sam2Processor.from_pretrained(folder), SamHfProcessor.from_pretrained(folder)
    expected = stock(image(), input_points=[[[[3, 5]]]], input_boxes=[[[7, 9, 70, 50]]], return_tensors="pt")
    batch = ours(image(), input_points=[[[3, 5]]], input_boxes=[[7, 9, 70, 50]])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    for name in ("input_points", "input_boxes"):
        torch.testing.assert_close(batch[name].double(), expected[name].double(), atol=1e-4, rtol=0)
    logits = torch.randn(1, 1, 3, SIDE // 4, SIDE // 4)
    wanted = stock.post_process_masks(logits, expected["original_sizes"], binarize=False)[0]
    for sizes in (batch["reshaped_input_sizes"], None):
        assert torch.equal(ours.post_process_masks(logits, batch["original_sizes"], sizes, binarize=False)[0], wanted)


def test_squares_are_saved(squares, tmp_path):
    squares.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path).image_processor
    assert again.keep_aspect_ratio is False and again.size["longest_edge"] == SIDE


def test_sizes_that_are_no_squares_are_refused(tmp_path):
    Sam2ImageProcessor(size={"height": 64, "width": 48}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only squares"):
        SamHfImageProcessor.from_pretrained(tmp_path)


def test_automatic_masks_are_those_of_prompts(folder, squares):
    """Of the same clicks, in pixels of an image that is no square."""
    model = SamHfModel.from_pretrained(folder).eval()
    everything = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    found = MaskGenerator(model, squares, points_per_side=3, **everything)(image())
    assert len(found) > 9
    for item in found:
        inputs = squares(image(), input_points=[item["point_coords"]], input_labels=[[1]])
        # A click is in the middle of its cell, half a pixel from where the corner of the first pixel is 0.
        with torch.no_grad():
            output = model(**inputs, multimask_output=True)
        masks = squares.post_process_masks(output.pred_masks, inputs["original_sizes"])[0][0].numpy()
        assert min((mask != item["segmentation"]).sum() for mask in masks) <= 2


def test_prompts_in_tiles_are_those_of_the_tile(folder, squares):
    model, pixels = SamHfModel.from_pretrained(folder).eval(), image(60, 150)
    tiled = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": SIDE}, keep_aspect_ratio=False, tile_size=80))
    point, label = torch.tensor([[[140.0, 30.0]]]), torch.ones(1, 1, dtype=torch.int64)
    prompted = PromptedImage(model, tiled, pixels)
    answer = prompted.predict(point, label)
    x1, y1, x2, y2 = prompted.views[int(answer.views[0])]
    alone = PromptedImage(model, squares, pixels[y1:y2, x1:x2])
    expected = alone.predict(point - torch.tensor([x1, y1]), label)
    assert (x1, x2) == (70, 150) and torch.equal(answer.logits, expected.logits)
    masks = prompted.to_pixels(answer.logits, answer.views)
    assert torch.equal(masks[..., y1:y2, x1:x2], alone.to_pixels(expected.logits, expected.views)) and masks.any()
    # Half a tile to the right, so that what was there is there again.
    moved = prompted.resample(answer.logits[0, 0, 0], int(answer.views[0]), 0)
    assert moved[:, : int(70 / 80 * moved.shape[1])].max() == -MASK_PROMPT_LOGIT


def test_windows_are_stretched_as_whole_images_are():
    """A square of 30 pixels in an image of 60 x 120 is twice as high as wide in a square, in any window."""
    masks = np.zeros((1, 60, 120), dtype=bool)
    masks[0, 15:45, 45:75] = True
    augmentation = RandomCropScaleFlip(64, (0.5, 1.5), hflip=False, keep_aspect_ratio=False)
    seen = set()
    for seed in range(10):
        pixels, (mask,) = augmentation(image(60, 120), objects_from_masks(masks), np.random.default_rng(seed))
        assert pixels.shape == (64, 64, 3)
        rows, columns = (mask.any(axis).sum() for axis in (1, 0))
        assert rows == pytest.approx(2 * columns, abs=2)
        seen.add(int(rows))
    assert len(seen) > 3
    (whole,) = augmentation(image(60, 120), objects_from_masks(masks), np.random.default_rng(0))[1][:1]
    assert whole.shape == (64, 64)


def test_batches_and_maps_are_of_squares(squares):
    options = Options(instances=True, augment=False)
    batch = build_collator(squares, SIDE, options)([record()])
    rows, columns = (int((batch["labels"][0] == 1).any(0).any(axis).sum()) for axis in (1, 0))
    assert rows == pytest.approx(40 * SIDE / 60, abs=1) and columns == pytest.approx(60 * SIDE / 100, abs=1)
    assert not (batch["labels"] < 0).any() and not batch["instance_targets"].isnan().any()
    crop = build_collator(squares, SIDE // 2, Options())([record()])
    assert crop["pixel_values"].shape[-2:] == (64, 64) and not (crop["labels"] < 0).any()
    assert all(number % 16 == 0 for number in crop["frame"][2:])


def test_a_run_keeps_the_preprocessing_of_its_source(folder, tmp_path):
    model = prepare_model(folder)
    image_processor = build_processor(model, crop_sizes=[64]).image_processor
    assert (list(image_processor.image_mean), list(image_processor.image_std)) == (MEAN, STD)
    assert image_processor.keep_aspect_ratio is False and image_processor.mask_size["longest_edge"] == SIDE // 4
    assert build_processor(prepare_model("small")).image_processor.keep_aspect_ratio
    with pytest.raises(ValueError, match="crop_size=48 should be a multiple of 32"):
        build_processor(model, crop_sizes=[48])


def test_the_object_score_of_sam_2_trains_only_with_negatives(folder, tmp_path):
    def trains(model) -> bool:
        flags = {part.requires_grad for name, part in model.named_parameters() if "pred_obj_score_head." in name}
        return flags.pop() if len(flags) == 1 else NotImplemented

    model = prepare_model(folder)
    assert not trains(model) and model.config.object_score_weight == 0
    assert usable_negatives(Options(), model.config) == 0
    taught = prepare_model(folder, object_score=True)
    assert trains(taught) and taught.config.object_score_weight == 1
    assert usable_negatives(Options(), taught.config) == 0.2
    assert usable_negatives(Options(negatives=0.5), taught.config) == 0.5
    assert not trains(prepare_model(folder, lora="encoder"))
    model.save_pretrained(tmp_path)
    assert not trains(prepare_model(tmp_path))


def test_random_weights_learn_object_scores(tmp_path):
    model = prepare_model("hiera_mini", image_size=64)
    assert model.config.object_score_weight == 1
    assert model.num_parameters() == pytest.approx(2_600_000, rel=0.1)
    SamHfConfig.from_preset("hiera_tiny").save_pretrained(tmp_path)
    assert SamHfConfig.from_pretrained(tmp_path).object_score_weight == 0
    assert "hiera_tiny" in VISION_PRESETS


def test_lower_layers_learn_more_slowly(folder):
    options = Options(model=str(folder))
    options.choose_learning_rates(is_trained=True)
    assert options.layer_decay == 0.9
    groups = parameter_groups(SamHfModel.from_pretrained(folder), 0.05, 1.0, options.layer_decay)
    share = {name: group["rate_share"] for group in groups for name, _ in group["params"]}
    assert share["vision_encoder.pos_embed_window"] == pytest.approx(0.9**9)
    assert share["vision_encoder.layers.7.attn.qkv.weight"] == pytest.approx(0.9)
    assert share["vision_encoder.neck.conv_s0.weight"] == share["mask_decoder.iou_token.weight"] == 1


@pytest.mark.parametrize(("lora", "layers"), [("encoder", 8), ("encoder_late", 4), ("decoder", 0), ("all", 8)])
def test_adapters(folder, lora, layers):
    model = prepare_model(folder, lora=lora)
    names = [name for name, part in model.named_parameters() if part.requires_grad and "vision_encoder" in name]
    assert len(names) == 4 * layers and all("lora_" in name for name in names)


def test_what_is_frozen_stays_and_is_cached(folder, tmp_path):
    model = prepare_model(folder, frozen=["encoder"])
    assert not any(part.requires_grad for part in model.vision_encoder.parameters())
    cache = open_cache(model, str(tmp_path), is_augmented=False)
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    first, again = cache(pixels, None), cache(pixels, None)
    assert len(first) == 3 and len(list(tmp_path.glob("*.safetensors"))) == 1
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_paths_are_dropped_while_training(folder):
    model = prepare_model(folder, drop_path=0.5)
    rates = [layer.drop_path_rate for layer in model.vision_encoder.layers]
    assert rates == pytest.approx([0.5 * n / 7 for n in range(8)])
    pixels = torch.randn(1, 3, SIDE, SIDE)
    answers = [model.train().get_vision_features(pixels)[-1] for _ in range(6)]
    assert any(not torch.equal(answers[0], other) for other in answers)
    freeze(model, ["encoder"])
    assert not any(layer.drop_path_rate for layer in model.vision_encoder.layers)


def test_muon_has_the_matrices_of_blocks(folder):
    model = SamHfModel.from_pretrained(folder)
    names = {id(part): name for name, part in model.named_parameters()}
    found = {names[id(matrix)] for matrix in block_matrices(model)}
    assert "vision_encoder.layers.3.proj.weight" in found and "vision_encoder.layers.0.mlp.lin1.weight" in found
    assert not any("neck" in name or "patch_embed" in name for name in found)


def test_a_crop_trains_where_it_is(folder):
    model = SamHfModel.from_pretrained(folder).train()
    frame = PositionFrame(SIDE, SIDE, 32, 48)
    features = model.get_image_embeddings(torch.randn(1, 3, 64, 64), frame)
    model.decode(features, torch.full((1, 1, 1, 2), 9.0), torch.ones(1, 1, 1).long(), frame=frame)[0].sum().backward()
    gradient = model.vision_encoder.pos_embed.grad
    assert gradient.abs().sum() > 0


def test_an_instance_decoder_fits(folder):
    model = prepare_model(folder, instances=True)
    embeddings = model.get_image_embeddings(torch.randn(1, 3, SIDE, SIDE))
    assert model.get_instance_maps(embeddings).shape == (1, 3, SIDE // 4, SIDE // 4)


def test_checkpointing_keeps_less(folder):
    kept = []
    for checkpoint_activations in (False, True):
        model = prepare_model(folder)
        trainer = InteractiveTrainer(copy.deepcopy(model), checkpoint_activations=checkpoint_activations).train()
        with KeptForBackward() as memory:
            features = trainer.model.get_vision_features(torch.randn(1, 3, SIDE, SIDE))
        kept.append(memory.num_bytes(trainer))
        assert features[-1].requires_grad
    assert kept[1] < 0.5 * kept[0]


def test_a_run_from_a_folder_of_stock(folder, tmp_path):
    run = tmp_path / "run"
    given = {"max_steps": 4, "crop_size": 64, "eval_every": 4, "instances": "true"}
    load_example().main(arguments(folder, run, **given))
    lines = read_log(run / "log.jsonl")
    assert len(lines) > 0
    again, info = AutoModel.from_pretrained(run / "best", output_loading_info=True)
    assert not any(info.values()) and isinstance(again, SamHfModel)
    head = "mask_decoder.pred_obj_score_head.proj_out.weight"
    assert torch.equal(again.state_dict()[head], SamHfModel.from_pretrained(folder).state_dict()[head])
    processor = AutoProcessor.from_pretrained(run / "best").image_processor
    assert processor.keep_aspect_ratio is False and list(processor.image_mean) == MEAN
    assert json.loads((run / "best" / "config.json").read_text())["vision_config"]["model_type"] == HIERA


@pytest.mark.usefixtures("on_cpu")
def test_a_planned_run_with_adapters_whose_batch_is_fitted(folder, tmp_path, monkeypatch):
    """`best` answers as in the run, and so do the weights of the source with the adapter beside it."""
    monkeypatch.setattr(batch_fitting, "available_memory", lambda _: 30e6)
    monkeypatch.setattr(machine_fit, "process_seconds", lambda: 0.0)  # of other tests
    given = {"minutes": 1, "batch_size": "auto", "lora": "encoder", "lora_rank": 2, "max_steps": 2, "num_workers": 0}
    given |= {"final_eval_images": 1, "eval_images": 1, "num_corrections": 1, "max_objects": 2, "threshold_images": 0}
    given |= {"eval_every": 2, "model": folder, "output_dir": tmp_path / "run"}
    load_example().main([f"--{name}={value}" for name, value in given.items()])
    options = yaml.safe_load((tmp_path / "run" / "options.yaml").read_text())
    assert 1 <= options["whole_batch_size"] < options["batch_size"] < 16 and options["image_size"] == SIDE
    best = tmp_path / "run" / "best"
    assert_answers_as_in_the_run(best)
    adapted = add_lora(SamHfModel.from_pretrained(folder), "encoder", rank=2)
    load_adapter(adapted, best / "adapter")
    inputs = {"pixel_values": torch.randn(1, 3, SIDE, SIDE), "input_points": torch.tensor([[[[30.0, 50.0]]]])}
    with torch.no_grad():
        answers = [
            model.eval()(**inputs).pred_masks
            for model in (AutoModel.from_pretrained(best), adapted, SamHfModel.from_pretrained(folder))
        ]
    torch.testing.assert_close(answers[1], answers[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(answers[2], answers[0], atol=1e-4, rtol=1e-4)
