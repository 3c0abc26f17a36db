"""SAM 2 between transformers, Meta's files and this package: weights to the bit, and what only video needs."""

import copy
import re
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sam2_models import SIDE, sam2_model
from test_sam2 import OUTPUTS, assert_equal, pixels, prompts
from tiny_models import randomise
from transformers import AutoModel, Sam2Model, Sam2Processor, Sam2VideoModel, Sam2VideoProcessor

from sam_hf import SamHfConfig, SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.convert import load_checkpoint, main, save_checkpoint
from sam_hf.convert.sam2 import META_VIDEO, meta_sam2_name, preset_of
from sam_hf.sam2_weights import SAM2_VIDEO_PARTS
from sam_hf.vision_configuration import VISION_PRESETS

IGNORED = {"transformers_version", "architectures", "dtype", "_name_or_path"}


def architecture(fields: dict) -> dict:
    """Without what concerns a file."""
    return {
        name: architecture(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
        if name not in IGNORED
    }


@pytest.fixture(scope="module", params=[False, True], ids=["image", "video"])
def stock(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    model = sam2_model(video=request.param)
    model.save_pretrained(folder)
    return folder, model, request.param


@pytest.fixture
def squares() -> SamHfProcessor:
    return SamHfProcessor(SamHfImageProcessor(size={"longest_edge": SIDE}, keep_aspect_ratio=False))


@torch.no_grad()
def tuned(folder) -> SamHfModel:
    model = SamHfModel.from_pretrained(folder).eval()
    for value in model.parameters():
        value += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    return model


def test_weights_and_configuration_return(stock, tmp_path, capsys):
    folder, model, is_video = stock
    main([str(folder), str(tmp_path / "ours")])
    base = ["--base", str(folder)] if is_video else []
    main([str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "transformers", *base])
    told = capsys.readouterr().out
    assert "transformers.SamModel`, or `Sam2Model`" in told and ("for images alone" in told) != is_video
    back, info = AutoModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert type(back) is type(model) and not any(info.values())
    for name, value in model.state_dict().items():
        assert torch.equal(value, back.state_dict()[name]), name
    # As read from a file, where transformers 5.17 adds fields of the prompt encoder to the mask decoder of videos.
    read = type(model.config).from_pretrained(folder)
    assert architecture(back.config.to_dict()) == architecture(read.to_dict())
    kind = Sam2VideoProcessor if is_video else Sam2Processor
    image_processor = kind.from_pretrained(tmp_path / "back").image_processor
    assert (image_processor.size["height"], image_processor.size["width"]) == (SIDE, SIDE)
    assert not SamHfProcessor.from_pretrained(tmp_path / "back").image_processor.keep_aspect_ratio


@torch.no_grad()
def test_tuned_weights_answer_in_transformers(stock, squares, tmp_path):
    folder, model, is_video = stock
    ours = tuned(folder)
    save_checkpoint(ours, squares, tmp_path / "new", "transformers", base=folder if is_video else None)
    theirs = Sam2Model.from_pretrained(tmp_path / "new").eval()  # of a model for video its parts for images
    inputs = {"pixel_values": pixels(), **prompts("points boxes"), "multimask_output": False}
    assert_equal(ours(**inputs), theirs(**inputs))
    assert len(OUTPUTS) == 3
    if is_video:
        new, old = Sam2VideoModel.from_pretrained(tmp_path / "new").state_dict(), model.state_dict()
        same = {name for name in old if torch.equal(new[name], old[name])}
        assert (
            {name for name in same if "positional_embedding" not in name}
            == {name for name in old if re.match(SAM2_VIDEO_PARTS, name)}
            != set()
        )


def test_a_base_of_another_size_is_refused(stock, squares, tmp_path):
    folder, _, is_video = stock
    ours = SamHfModel.from_pretrained(folder, image_size=96)
    with pytest.raises(
        ValueError, match=r"another model:\n  - vision_config.image_size is 96, and that of the base 128"
    ):
        save_checkpoint(ours, squares, tmp_path / "new", "transformers", base=folder)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"instance_decoder_config": {"hidden_size": 8, "guides_masks": True}}, "instance_decoder_config"),
        (
            {"mask_decoder_config": {"ambiguous_candidates": "all"}},
            "ambiguous_candidates is all, and SAM 2 has multim",
        ),
        ({"mask_decoder_config": {"hidden_act": "gelu"}}, "hidden_act is gelu, and SAM 2 has relu"),
        ({"mask_decoder_config": {"use_object_score": False}}, "use_object_score is False, and SAM 2 has True"),
        ({"prompt_encoder_config": {"end_every_prompt": False}}, "end_every_prompt is False, and SAM 2 has True"),
        ({"prompt_encoder_config": {"position_scale": [0.5, 2.0]}}, "position_scale is"),
        ({"vision_config": {"patch_stride": 2}}, "patch_stride is 2, and SAM 2 has 4"),
    ],
)
def test_what_sam2_does_not_have_is_refused(stock, squares, tmp_path, fields, named):
    config = SamHfModel.from_pretrained(stock[0]).config.to_dict()
    for part, values in fields.items():
        config[part] = (config[part] or {}) | values
    model = SamHfModel(SamHfConfig.from_dict(config))
    with pytest.raises(ValueError, match=named):
        save_checkpoint(model, squares, tmp_path / "new", "transformers")


@pytest.fixture
def published(monkeypatch) -> SamHfModel:
    """As if the published tiny one were narrow."""
    narrow = {
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "image_size": SIDE,
    }
    monkeypatch.setitem(VISION_PRESETS, "hiera_tiny", VISION_PRESETS["hiera_tiny"] | narrow)
    return randomise(SamHfModel(SamHfConfig.from_preset("hiera_tiny"))).eval()


def meta_file(model: SamHfModel, path) -> dict[str, torch.Tensor]:
    """With a weight that only video needs."""
    weights = {meta_sam2_name(name): value for name, value in model.state_dict().items()}
    weights |= {"memory_attention.norm.weight": torch.rand(4), "maskmem_tpos_enc": torch.rand(7)}
    torch.save({"model": weights}, path)
    return weights


def test_meta_files_return(published, squares, tmp_path, capsys):
    weights = meta_file(published, tmp_path / "sam2.pt")
    main([str(tmp_path / "sam2.pt"), str(tmp_path / "ours")])
    assert "SAM 2 tiny" in capsys.readouterr().out
    ours = SamHfModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in published.state_dict().items())
    assert architecture(ours.config.vision_config.to_dict()) == architecture(published.config.vision_config.to_dict())
    ours.mask_decoder.iou_token.weight.data += 1
    ours.save_pretrained(tmp_path / "ours")
    main([str(tmp_path / "ours"), str(tmp_path / "tuned.pt"), "--base", str(tmp_path / "sam2.pt")])
    found = torch.load(tmp_path / "tuned.pt", weights_only=True)["model"]
    assert found.keys() == weights.keys()
    assert [name for name in found if not torch.equal(found[name], weights[name])] == [
        "sam_mask_decoder.iou_token.weight"
    ]
    assert not load_checkpoint(tmp_path / "tuned.pt").processor.image_processor.keep_aspect_ratio


def test_what_metas_file_of_sam2_does_not_say_is_listed(published, squares, tmp_path):
    meta_file(published, tmp_path / "sam2.pt")
    model = copy.deepcopy(published)

    def written(name: str) -> list[str]:
        return save_checkpoint(model, squares, tmp_path / name, "meta", base=tmp_path / "sam2.pt")

    before = written("a.pt")
    model.config.mask_decoder_config.dynamic_multimask_stability_thresh = 0.9
    squares.image_processor.image_mean, squares.image_processor.image_std = [0.5, 0.5, 0.5], (0.229, 0.224, 0.225)
    threshold, overrides, mean = (note for note in written("b.pt") if note not in before)
    assert threshold == "mask_decoder_config.dynamic_multimask_stability_thresh is 0.9, and Meta's code has 0.98"
    assert "apply_postprocessing=False" in overrides
    assert [part.partition("dynamic_multimask_")[2] for part in overrides.split(", ")[1:]] == [
        "via_stability=True", "stability_delta=0.05", "stability_thresh=0.9"
    ]  # fmt: skip
    assert mean == "image_mean is [0.5, 0.5, 0.5], and Meta's code has [0.485, 0.456, 0.406]"
    model.config.mask_decoder_config.num_attention_heads = 4
    with pytest.raises(ValueError, match="num_attention_heads is 4, and Meta's code has 8"):
        written("c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_checkpoints_of_metas_training_are_read(published, tmp_path):
    """They have the state of the run beside the weights (`Trainer.save_checkpoint` of its `training/trainer.py`)."""
    weights = meta_file(published, tmp_path / "sam2.pt")
    optimizer = torch.optim.AdamW([{"params": [weights["no_mem_embed"].clone().requires_grad_()], "lr": 1e-4}])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "loss": OrderedDict(),
        "steps": {"train": 7, "val": 0},
        "time_elapsed": 1.5,
        "best_meter_values": {},
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    torch.save({"model": weights, **state}, tmp_path / "checkpoint.pt")
    found, expected = (load_checkpoint(tmp_path / name).model for name in ("checkpoint.pt", "sam2.pt"))
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in expected.state_dict().items())


def test_files_and_commands_that_do_not_fit(published, squares, tmp_path):
    weights = meta_file(published, tmp_path / "sam2.pt")
    save_checkpoint(published, squares, tmp_path / "ours", "sam_hf")

    def refused(*arguments) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        return str(stopped.value)

    assert "--base sam2.1_hiera_tiny.pt" in refused(tmp_path / "ours", tmp_path / "new.pt")
    assert "is for models of SAM 2 that go back" in refused(tmp_path / "sam2.pt", tmp_path / "new", "--base", "x")
    content = (tmp_path / "sam2.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    assert "cut.pt is no whole file" in refused(tmp_path / "cut.pt", tmp_path / "new")
    torch.save({"model": weights | {"surprise.weight": torch.rand(2)}}, tmp_path / "more.pt")
    assert "unexpected: 1 of surprise.weight" in refused(tmp_path / "more.pt", tmp_path / "new")
    torch.save({"model": {n: v for n, v in weights.items() if n != "no_mem_embed"}}, tmp_path / "less.pt")
    assert "missing: 1 of no_mem_embed" in refused(tmp_path / "less.pt", tmp_path / "new")
    positions = weights["image_encoder.trunk.pos_embed"]
    torch.save(
        {"model": weights | {"image_encoder.trunk.pos_embed": positions.repeat(1, 2, 1, 1)}}, tmp_path / "wide.pt"
    )
    assert "first of width 16, as no published SAM 2 has" in refused(tmp_path / "wide.pt", tmp_path / "new")
    refusal = refused(tmp_path / "ours", tmp_path / "new.pt", "--base", tmp_path / "less.pt")
    assert "less.pt is another model" in refusal
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.pt").exists()


def test_meta_files_become_folders_of_transformers_in_one_step(published, tmp_path):
    weights = meta_file(published, tmp_path / "sam2.pt")
    main([str(tmp_path / "sam2.pt"), str(tmp_path / "stock"), "--to", "transformers"])
    stock, info = Sam2Model.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(stock.mask_decoder.iou_token.weight, weights["sam_mask_decoder.iou_token.weight"])


def test_bases_without_all_that_video_needs_are_refused(published, squares, tmp_path):
    video = sam2_model(video=True)
    video.save_pretrained(tmp_path / "video")
    ours = SamHfModel.from_pretrained(tmp_path / "video")
    ours.save_pretrained(tmp_path / "ours")
    sam2_model().save_pretrained(tmp_path / "image")
    weights = load_file(tmp_path / "video/model.safetensors")
    del weights["no_object_pointer"]
    shutil.copytree(tmp_path / "video", tmp_path / "less")
    save_file(weights, tmp_path / "less/model.safetensors", {"format": "pt"})
    meta_file(published, tmp_path / "sam2.pt")
    save_checkpoint(published, squares, tmp_path / "whole.pt", "meta", base=tmp_path / "sam2.pt")
    bare = {meta_sam2_name(name): value for name, value in published.state_dict().items()}
    torch.save({"model": bare}, tmp_path / "bare.pt")
    for base, message in (
        ("image", "a model of type 'sam2', without what video needs"),
        ("ours", "a model of type 'sam_hf'"),
        ("less", "missing: 1 of no_object_pointer"),
        ("sam2.pt", "is a file; for transformers"),
    ):
        with pytest.raises(ValueError, match=message):
            save_checkpoint(ours, squares, tmp_path / "new", "transformers", base=tmp_path / base)
    with pytest.raises(ValueError, match="bare.pt has nothing of what video needs"):
        save_checkpoint(published, squares, tmp_path / "new.pt", "meta", base=tmp_path / "bare.pt")
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.pt").exists()


@pytest.mark.parametrize("content", ["cut", "empty", "pointer", "page", "no zip"])
def test_files_that_are_no_files_of_torch_are_named(published, content, tmp_path):
    meta_file(published, tmp_path / "sam2.pt")
    contents = {
        "cut": (tmp_path / "sam2.pt").read_bytes()[
            :50_000
        ],  # torch has another error than for one that is cut in half
        "empty": b"",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "page": b"<!doctype html>",
        "no zip": b"PK\x03\x04" + bytes(500),
    }
    (tmp_path / "x.pt").write_bytes(contents[content])
    with pytest.raises(SystemExit, match="x.pt is no whole file of torch.save; download or copy it again"):
        main([str(tmp_path / "x.pt"), str(tmp_path / "new")])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["detector.backbone.a", "tracker.no_mem_embed"], "of SAM 3, .*Sam3TrackerModel"),
        (["image_encoder.trunk.body.a", "spatial_perceiver.latents"], "EdgeTAM, .*EdgeTamModel"),
        (["image_encoder.trunk.pos_embed", "sam_mask_decoder.hf_token.weight"], "SAM-HQ 2"),
    ],
)
def test_relatives_of_sam2_are_refused_by_name(names, told, tmp_path):
    torch.save({"model": dict.fromkeys(names, torch.zeros(1, 16, 7, 7))}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=told):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.slow
def test_metas_predictors_answer_the_same(tmp_path):
    """At full size, with the package itself: `pip install --no-deps sam2 hydra-core iopath omegaconf portalocker`."""
    build = pytest.importorskip("sam2.build_sam", reason="needs Meta's sam2")
    predictor_of = pytest.importorskip("sam2.sam2_image_predictor").SAM2ImagePredictor
    yaml = "configs/sam2.1/sam2.1_hiera_t.yaml"
    meta = randomise(build.build_sam2(yaml, device="cpu")).eval()
    torch.save({"model": meta.state_dict()}, tmp_path / "meta.pt")
    ours, processor, _ = load_checkpoint(tmp_path / "meta.pt")
    assert preset_of(ours.config) == "hiera_tiny"
    left = {name for name in meta.state_dict() if META_VIDEO.fullmatch(name)}
    assert {meta_sam2_name(name) for name in ours.state_dict()} == meta.state_dict().keys() - left
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
    predictor = predictor_of(meta)
    predictor.set_image(image)
    pixel_values = predictor._transforms(image)[None]
    inputs = processor(Image.fromarray(image), input_points=[[250, 100]], input_labels=[1])
    # Meta resizes floats, and transformers whole numbers.
    torch.testing.assert_close(inputs["pixel_values"], pixel_values, atol=0.05, rtol=0)
    for multimask_output in (True, False):
        _, iou, logits = predictor.predict(
            point_coords=np.array([[250, 100]]), point_labels=np.array([1]), multimask_output=multimask_output
        )
        with torch.no_grad():
            output = ours(
                pixel_values=pixel_values, input_points=inputs["input_points"], multimask_output=multimask_output
            )
        torch.testing.assert_close(output.pred_masks[0, 0].clamp(-32, 32).numpy(), logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.iou_scores[0, 0].numpy(), iou, atol=1e-5, rtol=0)
    with torch.no_grad():
        ours.mask_decoder.iou_token.weight += 1
    ours.config.mask_decoder_config.dynamic_multimask_stability_thresh = 0.9
    *_, note = save_checkpoint(ours, processor, tmp_path / "tuned.pt", "meta", base=tmp_path / "meta.pt")
    told = {"hydra_overrides_extra": re.findall(r"\+\+[^,]+", note), "apply_postprocessing": False}
    decoder = build.build_sam2(yaml, str(tmp_path / "tuned.pt"), device="cpu", **told).sam_mask_decoder
    assert decoder.dynamic_multimask_via_stability is True and decoder.dynamic_multimask_stability_thresh == 0.9
    video = build.build_sam2_video_predictor(yaml, str(tmp_path / "tuned.pt"), device="cpu").state_dict()
    changed = [name for name, value in meta.state_dict().items() if not torch.equal(value, video[name])]
    assert changed == ["sam_mask_decoder.iou_token.weight"]
