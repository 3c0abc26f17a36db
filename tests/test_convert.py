"""Weights move between Meta's files, transformers' folders and ours unchanged, and what does not fit is said."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from segment_anything.build_sam import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from test_parity import meta_twin, stock_twin
from tiny_models import IMAGE, PATCH, WIDTH, random_pixels, random_prompts, randomise, tiny_model
from torch import Tensor, nn
from transformers import AutoModel, SamProcessor
from transformers import SamModel as StockModel

from sam_hf import SamHfConfig, SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.configuration_sam_hf import own_fields
from sam_hf.convert import config_from_meta, load_checkpoint, main, meta_name, read_meta_checkpoint, save_checkpoint

# What Meta's code has, and its files do not say.
META_DECODER = {"num_attention_heads": 8, "layer_norm_eps": 1e-5}


def fitting_model(seed: int = 1, **config) -> SamHfModel:
    return tiny_model(seed, decoder=META_DECODER, **config)


def processor() -> SamHfProcessor:
    return SamHfProcessor(
        SamHfImageProcessor(size={"longest_edge": IMAGE}, mask_size={"longest_edge": 4 * IMAGE // PATCH})
    )


@pytest.fixture
def originals(tmp_path) -> dict[str, Path]:
    """The same model as each of the three packages writes it."""
    model = fitting_model()
    paths = {"sam_hf": tmp_path / "ours", "transformers": tmp_path / "stock", "meta": tmp_path / "meta.pth"}
    model.save_pretrained(paths["sam_hf"])
    processor().save_pretrained(paths["sam_hf"])
    stock_twin(model).save_pretrained(paths["transformers"])
    torch.save(meta_twin(model).state_dict(), paths["meta"])
    return paths


def stored(path: Path) -> dict[str, Tensor]:
    return torch.load(path) if path.is_file() else load_file(path / "model.safetensors")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def place(folder: Path, format: str) -> str:
    return str(folder / (f"{format}.pth" if format == "meta" else format))


@pytest.mark.parametrize("via", ["sam_hf", "transformers", "meta"])
@pytest.mark.parametrize("start", ["sam_hf", "transformers", "meta"])
def test_there_and_back_is_exact(originals, start, via, tmp_path):
    there, back = place(tmp_path / "there", via), place(tmp_path / "back", start)
    main([str(originals[start]), there, "--to", via])
    assert_same(stored(Path(there)), stored(originals[via]))
    main([there, back, "--to", start])
    assert_same(stored(Path(back)), stored(originals[start]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype, tmp_path):
    model = fitting_model().to(dtype)
    save_checkpoint(model, processor(), tmp_path / "half.pth", "meta")
    save_checkpoint(load_checkpoint(tmp_path / "half.pth").model, processor(), tmp_path / "stock", "transformers")
    # The Fourier matrix is read as float32, whatever it was stored in; that changes no number.
    assert_same(load_checkpoint(tmp_path / "stock").model.float().state_dict(), model.float().state_dict())
    assert StockModel.from_pretrained(tmp_path / "stock").dtype == dtype


@torch.no_grad()
def test_meta_weights_answer_alike_in_all_packages(originals, tmp_path):
    main([str(originals["meta"]), str(tmp_path / "to_ours")])
    main([str(originals["meta"]), str(tmp_path / "to_stock"), "--to", "transformers"])
    ours = SamHfModel.from_pretrained(tmp_path / "to_ours")
    stock, info = StockModel.from_pretrained(tmp_path / "to_stock", output_loading_info=True)
    assert not any(info.values())
    for model in (ours, stock):
        assert model.config.mask_decoder_config.layer_norm_eps == 1e-5
    meta = meta_twin(fitting_model())
    pixels, prompts = random_pixels(1), random_prompts("points", batch=1)
    sparse, dense = meta.prompt_encoder((prompts["input_points"][0], prompts["input_labels"][0]), None, None)
    expected, _ = meta.mask_decoder(
        meta.image_encoder(pixels), meta.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True
    )
    for model in (ours, stock):
        masks = model(pixels, **prompts, multimask_output=True).pred_masks[0]
        assert (masks - expected).abs().max() < 1e-5


def test_processors_prepare_alike(originals, tmp_path):
    main([str(originals["sam_hf"]), str(tmp_path / "to_stock"), "--to", "transformers"])
    main([str(originals["meta"]), str(tmp_path / "to_ours")])
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    stock_processor = SamProcessor.from_pretrained(tmp_path / "to_stock")
    assert stock_processor.image_processor.mask_pad_size == dict.fromkeys(("height", "width"), 4 * IMAGE // PATCH)
    stock = stock_processor(image, return_tensors="pt")["pixel_values"]
    ours = SamHfProcessor.from_pretrained(tmp_path / "to_ours")
    assert isinstance(ours.image_processor, SamHfImageProcessor)
    assert stock.shape == (1, 3, IMAGE, IMAGE)
    assert torch.equal(ours(image)["pixel_values"], stock)


@pytest.mark.parametrize(
    ("preset", "build"), [("base", build_sam_vit_b), ("large", build_sam_vit_l), ("huge", build_sam_vit_h)]
)
def test_shapes_tell_the_size(preset, build):
    with torch.device("meta"):
        weights = build().state_dict()
        found, expected = config_from_meta(weights), SamHfConfig.from_preset(preset)
        assert set(weights) == {meta_name(name) for name in SamHfModel(found).state_dict()}
    expected.mask_decoder_config.layer_norm_eps = 1e-5
    for part, config_class in list(SamHfConfig.sub_configs.items())[:3]:
        for field in own_fields(config_class):
            value = getattr(getattr(expected, part), field)
            value = list(value) if isinstance(value, tuple) else value
            assert getattr(getattr(found, part), field) == value, field


def test_longer_iou_heads_have_other_numbers():
    names = [meta_name(f"mask_decoder.iou_prediction_head.{layer}.bias", 4) for layer in ("layers.1", "proj_out")]
    assert names == [f"mask_decoder.iou_prediction_head.layers.{index}.bias" for index in (2, 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": np.zeros(1)}, "more than tensors"),
        ({"weights": {"a": torch.zeros(1)}, "step": 3}, r"state dict .* holds \['step', 'weights'\]"),
        ({"mask_decoder.hf_token.weight": torch.zeros(1)}, "is of SAM-HQ"),
        ({"a": torch.zeros(1)}, "no weight 'image_encoder.patch_embed.proj.weight'"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "x.pth")


def test_windows_of_two_sizes_are_refused(originals):
    weights = read_meta_checkpoint(originals["meta"])
    weights["image_encoder.blocks.1.attn.rel_pos_h"] = torch.zeros(3, WIDTH // 2)
    with pytest.raises(ValueError, match=r"windows of \[2, 3\]"):
        config_from_meta(weights)


def damage(path: Path) -> None:
    """Take one weight away, add another, and change the shape of a third."""
    weights = stored(path)
    meta = path.is_file()
    del weights["mask_decoder.iou_token.weight"]
    weights["mask_decoder.hq_token.weight"] = torch.zeros(1, WIDTH)
    bias = "image_encoder.neck.1.bias" if meta else "vision_encoder.neck.layer_norm1.bias"
    weights[bias] = torch.zeros(WIDTH + 1)
    torch.save(weights, path) if meta else save_file(weights, path / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("format", ["sam_hf", "transformers", "meta"])
def test_damaged_sources_are_listed(originals, format):
    damage(originals[format])
    with pytest.raises(ValueError, match="does not fit") as error:
        load_checkpoint(originals[format])
    lines = str(error.value).splitlines()
    assert lines[1] == "  - unexpected: 1 of mask_decoder.hq_token, such as mask_decoder.hq_token.weight"
    assert lines[2] == "  - missing: 1 of mask_decoder.iou_token, such as mask_decoder.iou_token.weight"
    assert lines[3].endswith(f".bias is [{WIDTH + 1}], expected [{WIDTH}]") and len(lines) == 4


@pytest.mark.parametrize("format", ["transformers", "meta"])
def test_additions_to_sam_are_listed(format, tmp_path):
    options = {"use_object_score": True, "dynamic_multimask_via_stability": True, "ambiguous_candidates": "all"}
    model = tiny_model(vision={"high_res_layers": [0, 1]}, decoder=META_DECODER | options)
    with pytest.raises(ValueError) as error:
        save_checkpoint(model, processor(), place(tmp_path, format), format)
    heads = "use_object_score", "pred_obj_score_head"
    for part in ("high_res_layers is", "high_res_s0", *heads, "via_stability", "ambiguous_candidates"):
        assert part in str(error.value)
    assert not any(tmp_path.iterdir())
    assert save_checkpoint(model, processor(), tmp_path / "ours", "sam_hf") == []
    assert_same(stored(tmp_path / "ours"), model.state_dict())


@pytest.mark.parametrize("format", ["meta", "transformers"])
def test_preprocessing_that_others_do_not_do_is_listed(format, tmp_path):
    own = processor()
    told = save_checkpoint(fitting_model(), own, tmp_path / "x.pth" if format == "meta" else tmp_path / "x", format)
    own.image_processor.tile_size = 90
    own.image_processor.image_std = [0.5, 0.5, 0.5]  # of which transformers is told
    path = tmp_path / "y.pth" if format == "meta" else tmp_path / "y"
    notes = sorted(set(save_checkpoint(fitting_model(), own, path, format)) - set(told))
    expected = ["image_std is [0.5, 0.5, 0.5], and Meta's code has [0.229, 0.224, 0.225]"] * (format == "meta")
    assert notes[:-1] == expected and "tiles of 90 pixels" in notes[-1]


def test_what_metas_file_does_not_say_is_listed(tmp_path):
    model = tiny_model(decoder={"num_attention_heads": 2})
    with pytest.raises(ValueError, match="num_attention_heads is 2, and Meta's code has 8"):
        save_checkpoint(model, processor(), tmp_path / "x.pth", "meta")
    model = tiny_model(vision={"use_rel_pos": False}, decoder=META_DECODER)
    with pytest.raises(ValueError, match="no weight .*rel_pos_h"):
        save_checkpoint(model, processor(), tmp_path / "x.pth", "meta")
    model = tiny_model(decoder={"num_attention_heads": 8})
    notes = save_checkpoint(model, processor(), tmp_path / "x.pth", "meta")
    assert "mask_decoder_config.layer_norm_eps is 1e-06, and Meta's code has 1e-05" in notes


@pytest.fixture
def adapted() -> nn.Module:
    return get_peft_model(fitting_model(), LoraConfig(target_modules=["qkv", "q_proj"], r=2))


@pytest.mark.parametrize("format", ["sam_hf", "transformers", "meta"])
def test_unmerged_adapters_are_refused_and_merged_ones_not(adapted, format, tmp_path):
    target = place(tmp_path, format)
    with pytest.raises(ValueError, match="adapters that are not merged; call `merge_and_unload") as error:
        save_checkpoint(adapted.base_model.model, processor(), target, format)
    assert "missing" not in str(error.value) and not any(tmp_path.iterdir())
    merged = adapted.merge_and_unload()
    save_checkpoint(merged, processor(), target, format)
    assert_same(load_checkpoint(target).model.state_dict(), merged.state_dict())


def test_folders_of_adapters_are_refused(adapted, originals, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter that is not merged"):
        load_checkpoint(tmp_path / "adapter")
    weights = adapted.base_model.model.state_dict()
    save_file(weights, originals["sam_hf"] / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="adapters that are not merged"):
        load_checkpoint(originals["sam_hf"])


def test_another_type_of_model_is_refused(originals):
    config = originals["transformers"] / "config.json"
    config.write_text(config.read_text().replace('"model_type": "sam"', '"model_type": "sam_hq"'))
    with pytest.raises(ValueError, match="'sam_hq', expected one of sam_hf, sam, sam2"):
        load_checkpoint(originals["transformers"])


def test_command_line_says_what_it_did(originals, tmp_path, capsys):
    main([str(originals["meta"]), str(tmp_path / "new"), "--image-size", str(2 * IMAGE)])
    output = capsys.readouterr().out
    assert "or `mobile_sam`; a size of its own, 128 pixels, 174 weights" in output
    assert "wrote" in output and "`SamHfModel`" in output
    found = load_checkpoint(tmp_path / "new")
    assert found.format == "sam_hf" and found.model.config.image_size == 2 * IMAGE
    image_processor = found.processor.image_processor
    assert image_processor.size["longest_edge"] == image_processor.pad_size["height"] == 2 * IMAGE
    assert image_processor.mask_size["longest_edge"] == 4 * 2 * IMAGE // PATCH


def test_command_line_runs_as_a_module(originals, tmp_path):
    command = [sys.executable, "-m", "sam_hf.convert", str(originals["sam_hf"]), str(tmp_path / "new.pth")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr  # which may hold warnings of libraries
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["read", "wrote", "note:"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{meta}", "{transformers}"], "there is something at .*--overwrite"),
        (["{meta}", "{meta}", "--overwrite"], "the same place"),
        (["{meta}", "{new}.pth", "--to", "sam_hf"], "the format sam_hf is a folder"),
        (["{meta}", "{new}", "--to", "meta"], "the format meta is a .pth or .pt file"),
        (["{new}.pth", "{new}"], "there is nothing at .*new.pth"),
        (["{meta}", "{new}", "--image-size", "30"], "image_size=30 is not a multiple of patch_size=8"),
    ],
)
def test_command_line_refuses(originals, arguments, message, tmp_path):
    paths = {name: str(path) for name, path in originals.items()} | {"new": str(tmp_path / "new")}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit, match=message):
        main([argument.format(**paths) for argument in arguments])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_overwrite(originals):
    main([str(originals["meta"]), str(originals["sam_hf"]), "--overwrite"])
    assert_same(stored(originals["sam_hf"]), fitting_model().state_dict())


@pytest.fixture
def stock_folder(tmp_path) -> Path:
    stock_twin(tiny_model(seed=1)).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def make_old(folder: Path) -> None:
    """As transformers 4 wrote it: the Fourier matrix twice, fields of text models, no types of the parts."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    matrix = weights["shared_image_embedding.positional_embedding"].clone()
    save_file(weights | {"prompt_encoder.shared_embedding.positional_embedding": matrix}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"torch_dtype": "float32", "transformers_version": None, "_commit_hash": None}
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        config[part] |= {"max_length": 20, "num_beams": 1, "torchscript": False, "model_type": ""}
        config[part] |= {"pruned_heads": {}, "tie_word_embeddings": True, "_name_or_path": "", "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def said(caplog) -> Iterator[pytest.LogCaptureFixture]:
    """What transformers warns of; its logger does not pass messages on."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("old", [False, True])
def test_stock_folder_loads_without_a_word(stock_folder, old, said):
    if old:
        make_old(stock_folder)
    model, info = SamHfModel.from_pretrained(stock_folder, output_loading_info=True)
    assert said.text == "" and not any(info.values())
    expected = tiny_model(seed=1)
    assert_same(model.state_dict(), expected.state_dict())
    assert model.config.model_type == "sam_hf" and not hasattr(model.config.prompt_encoder_config, "image_size")
    for part, config_class in list(SamHfConfig.sub_configs.items())[:3]:
        for field in own_fields(config_class):
            assert getattr(getattr(model.config, part), field) == getattr(getattr(expected.config, part), field)
    assert type(AutoModel.from_pretrained(stock_folder)) is StockModel


@torch.no_grad()
def test_additions_to_a_stock_model_are_reported_and_start_at_sam(stock_folder, said):
    options = {"vision_config": {"high_res_layers": [0, 1]}, "mask_decoder_config": {"use_object_score": True}}
    model, info = SamHfModel.from_pretrained(stock_folder, **options, output_loading_info=True)
    for part in ("MISSING", "high_res_s0.proj_out.weight", "obj_score_token", "newly initialized"):
        assert part in said.text
    new = {name.split(".")[1] for name in info["missing_keys"]}
    assert new == {"high_res_s0", "high_res_s1", "obj_score_token", "pred_obj_score_head"}
    assert not model.vision_encoder.high_res_s0.proj_out.weight.any()
    assert model.mask_decoder.obj_score_token.weight.any()
    assert_same(
        {n: v for n, v in model.state_dict().items() if n not in info["missing_keys"]}, tiny_model(1).state_dict()
    )
    high_res = SamHfModel.from_pretrained(stock_folder, vision_config=options["vision_config"])
    pixels, prompts = random_pixels(), random_prompts("points")
    expected = SamHfModel.from_pretrained(stock_folder)(pixels, **prompts).pred_masks
    assert torch.equal(high_res(pixels, **prompts).pred_masks, expected)


def resized_by_pillow(positions: Tensor, size: int) -> Tensor:
    """[1, h, w, C] to [1, size, size, C]; Pillow's bicubic filter widens when it shrinks, as it should here."""
    channels = [Image.fromarray(channel.numpy()) for channel in positions[0].permute(2, 0, 1)]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC)) for channel in channels]
    return torch.from_numpy(np.stack(resized, axis=-1))[None]


def resized_by_numpy(table: Tensor, rows: int) -> Tensor:
    """[l, D] to [rows, D], linear between the centres of cells."""
    centres = (np.arange(rows) + 0.5) * len(table) / rows - 0.5
    columns = [np.interp(centres, np.arange(len(table)), column) for column in table.T.numpy()]
    return torch.from_numpy(np.stack(columns, axis=-1))


@pytest.mark.parametrize("kind", ["image_size", "vision_config", "config"])
@pytest.mark.parametrize("size", [IMAGE // 2, IMAGE + 5 * PATCH])
@pytest.mark.parametrize("format", ["sam_hf", "transformers"])
def test_positions_are_resampled_on_load(originals, format, size, kind):
    source = originals[format]
    options = {
        "image_size": {"image_size": size},
        "vision_config": {"vision_config": {"image_size": size}},
        "config": {"config": SamHfConfig.from_pretrained(source, image_size=size)},
    }[kind]
    model = SamHfModel.from_pretrained(source, **options)
    assert model.config.image_size == model.config.vision_config.image_size == size
    before, after = fitting_model().state_dict(), model.state_dict()
    grid = size // PATCH
    changed = {
        "vision_encoder.pos_embed": resized_by_pillow(before["vision_encoder.pos_embed"], grid),
        **{
            name: resized_by_numpy(before[name], 2 * grid - 1)
            for name in ("vision_encoder.layers.1.attn.rel_pos_h", "vision_encoder.layers.1.attn.rel_pos_w")
        },
    }
    for name, expected in changed.items():
        assert after[name].shape == expected.shape
        assert (after[name] - expected).abs().max() < 1e-5, name
    assert_same(
        {n: v for n, v in after.items() if n not in changed}, {n: before[n] for n in before if n not in changed}
    )


@torch.no_grad()
def test_resampling_on_load_is_resampling_at_run_time(originals, tmp_path):
    size = IMAGE // 2
    model = SamHfModel.from_pretrained(originals["transformers"], image_size=size)
    pixels, prompts = random_pixels(2, size, size), random_prompts("points")
    prompts["input_points"] /= 2
    expected = SamHfModel.from_pretrained(originals["transformers"])(pixels, **prompts).pred_masks
    assert torch.equal(model(pixels, **prompts).pred_masks, expected)
    model.save_pretrained(tmp_path / "saved")
    again, info = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert again.config.image_size == size and not any(info.values())
    assert_same(again.state_dict(), model.state_dict())
    assert AutoModel.from_pretrained(tmp_path / "saved", image_size=IMAGE).config.image_size == IMAGE


@pytest.mark.parametrize("image_size", [None, 2 * IMAGE])
@pytest.mark.parametrize("format", ["sam_hf", "transformers", "meta"])
def test_the_mask_grid_is_that_of_the_model(originals, tmp_path, format, image_size):
    """Patches of 8 pixels: half of the side, not a quarter."""
    for source in (originals[format], without_processor(originals[format], tmp_path)):
        model, processor, _ = load_checkpoint(source, image_size)
        edge = image_size or IMAGE
        assert processor.image_processor.size == {"longest_edge": edge}
        assert processor.image_processor.pad_size == {"height": edge, "width": edge}
        assert processor.image_processor.mask_size == {"longest_edge": 4 * edge // PATCH}
        save_checkpoint(model, processor, tmp_path / "stock", "transformers", overwrite=True)
        again = SamHfProcessor.from_pretrained(tmp_path / "stock").image_processor
        assert again.mask_size == {"longest_edge": 4 * edge // PATCH}


def without_processor(source: Path, folder: Path) -> Path:
    if source.is_file():
        return source
    shutil.copytree(source, folder / "bare")
    for file in ("preprocessor_config.json", "processor_config.json"):
        (folder / "bare" / file).unlink(missing_ok=True)
    return folder / "bare"


def test_sizes_that_patches_do_not_fill_are_refused(originals):
    with pytest.raises(ValueError, match="image_size=60 is not a multiple of patch_size=8; use 56"):
        SamHfModel.from_pretrained(originals["sam_hf"], image_size=60)


def test_tables_of_another_width_are_refused(originals):
    with pytest.raises(RuntimeError, match="mismatch"):
        SamHfModel.from_pretrained(originals["sam_hf"], vision_config={"num_attention_heads": 4})


@pytest.mark.slow
def test_vit_b_moves_through_all_formats(tmp_path):
    meta = randomise(build_sam_vit_b())
    torch.save(meta.state_dict(), tmp_path / "b.pth")
    main([str(tmp_path / "b.pth"), str(tmp_path / "ours")])
    main([str(tmp_path / "ours"), str(tmp_path / "stock"), "--to", "transformers"])
    main([str(tmp_path / "stock"), str(tmp_path / "back.pth")])
    assert_same(build_sam_vit_b(tmp_path / "back.pth").state_dict(), meta.state_dict())
    _, info = StockModel.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not any(info.values())
