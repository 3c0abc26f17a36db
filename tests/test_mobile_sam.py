"""MobileSAM: as timm's TinyViT and the other parts of `segment_anything` answer together, its files, and training."""

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from test_parity import meta_prompts
from tiny_models import IMAGE, random_prompts, randomise
from torch import Tensor, nn
from transformers import AutoModel

from sam_hf import SamHfConfig, SamHfModel, SamHfProcessor, SamHfTinyVitConfig
from sam_hf.convert import load_checkpoint, main, save_checkpoint
from sam_hf.data.schema import objects_from_masks
from sam_hf.training import InteractiveTrainer, Options, parameter_groups
from sam_hf.training.batches import build_collator
from sam_hf.training.memory_use import KeptForBackward
from sam_hf.training.models import prepare_model, save_model

tiny_vit = pytest.importorskip("timm.models.tiny_vit")

WIDTH = 32
# Grids of 16, 8, 4 and 4 cells of an image of 64 pixels: two of the three kinds of windows do not fill them.
TINY = {"embed_dims": [16, 16, 24, 32], "depths": [1, 1, 2, 1], "num_heads": [2, 3, 4], "window_sizes": [3, 4, 3]}
PUBLISHED = {
    "embed_dims": [64, 128, 160, 320],
    "depths": [2, 2, 6, 2],
    "num_heads": [4, 5, 10],
    "window_sizes": [7, 14, 7],
}
# What timm calls the weights, and MobileSAM's file does instead.
TIMM_NAMES = [
    (r"^patch_embed\.conv1\.", "patch_embed.seq.0."),
    (r"^patch_embed\.conv2\.", "patch_embed.seq.2."),
    (r"^stages\.1\.downsample", "layers.0.downsample"),
    (r"^stages\.2\.downsample", "layers.1.downsample"),
    (r"^stages\.3\.downsample", "layers.2.downsample"),
    (r"^stages", "layers"),
    (r"\.conv\.weight$", ".c.weight"),
    (r"^head\.norm", "norm_head"),
    (r"^head\.fc", "head"),
]


class Original(nn.Module):
    """MobileSAM of parts that others have written, with random weights, in eval mode."""

    def __init__(self, sizes: dict[str, list[int]], width: int = WIDTH):
        super().__init__()
        stages = {name: [1, *values] if len(values) == 3 else values for name, values in sizes.items()}
        self.encoder = tiny_vit.TinyVit(**stages)
        # The one difference: the last stage keeps its grid.
        self.encoder.stages[3].downsample.conv2.conv.stride = (1, 1)
        deep = sizes["embed_dims"][-1]
        self.neck = ImageEncoderViT(img_size=16, embed_dim=deep, depth=0, num_heads=1, out_chans=width).neck
        self.prompt_encoder = PromptEncoder(width, (IMAGE // 16,) * 2, (IMAGE, IMAGE), mask_in_chans=16)
        self.mask_decoder = MaskDecoder(
            transformer_dim=width, transformer=TwoWayTransformer(2, width, 8, 64), iou_head_hidden_dim=width
        )
        with torch.no_grad():
            randomise(self)
        for name, value in self.encoder.state_dict().items():
            if name.endswith(("bn.weight", "running_var")):
                value.abs_().add_(0.5)
        self.eval()

    def encode(self, pixels: Tensor) -> Tensor:
        return self.neck(self.encoder.forward_features(pixels))

    def weights(self) -> dict[str, Tensor]:
        """As in the published file; some have indices of biases, too."""
        found = {f"image_encoder.neck.{name}": value for name, value in self.neck.state_dict().items()}
        for name, value in self.encoder.state_dict().items():
            for theirs, published in TIMM_NAMES:
                name = re.sub(theirs, published, name)
            found[f"image_encoder.{name}"] = value
        rest = {name: value for name, value in self.state_dict().items() if name.startswith(("prompt_", "mask_"))}
        indices = {"image_encoder.layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(9, 9, dtype=torch.long)}
        return found | rest | indices


@pytest.fixture(scope="module")
def original() -> Original:
    return Original(TINY)


@pytest.fixture(scope="module")
def file(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    torch.save(original.weights(), path)
    return path


@pytest.fixture(scope="module")
def folder(file):
    """For inputs of 64 pixels."""
    model = load_checkpoint(file).model
    model.config.image_size = IMAGE
    save_checkpoint(model, SamHfProcessor.from_config(model.config), file.with_name("ours"), "sam_hf")
    return file.with_name("ours")


def pixels(height: int = IMAGE, width: int = IMAGE) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (96, 32)])
@torch.no_grad()
def test_the_encoder_equals_timm_and_the_neck_of_sam(original, folder, size, attention):
    model = SamHfModel.from_pretrained(folder, attn_implementation=attention)
    output = model.encode(pixels(*size), output_hidden_states=True, output_attentions=attention == "eager")
    assert (output.last_hidden_state - original.encode(pixels(*size))).abs().max() < 1e-5
    _, stages = original.encoder.forward_intermediates(pixels(*size), norm=False)
    for index, stage in zip((1, 2, 4, 5), stages, strict=True):
        assert (output.hidden_states[index].permute(0, 3, 1, 2) - stage).abs().max() < 1e-5
    if attention == "eager":
        assert [weights.shape[1:] for weights in output.attentions] == [(2, 9, 9), (3, 16, 16), (3, 16, 16), (4, 9, 9)]


@torch.no_grad()
def test_the_published_size_equals_timm(tmp_path):
    published = Original(PUBLISHED, width=256)
    torch.save(published.weights(), tmp_path / "mobile_sam.pt")
    model = load_checkpoint(tmp_path / "mobile_sam.pt").model
    for name, value in PUBLISHED.items():
        assert getattr(model.config.vision_config, name) == value
    assert model.config.vision_config.to_dict() == SamHfConfig.from_preset("mobile").vision_config.to_dict()
    expected = published.encode(pixels(96, 128))
    assert (model.get_image_embeddings(pixels(96, 128))[0] - expected).abs().max() < 1e-5


@torch.no_grad()
def test_masks_equal_segment_anything(original, folder):
    prompts = random_prompts("points boxes", batch=1, num_objects=3)
    output = SamHfModel.from_pretrained(folder)(pixels()[:1], **prompts, multimask_output=True)
    sparse, dense = original.prompt_encoder(*meta_prompts(prompts, 0))
    dense_positions = original.prompt_encoder.get_dense_pe()
    masks, scores = original.mask_decoder(original.encode(pixels()[:1]), dense_positions, sparse, dense, True)
    assert (output.pred_masks[0] - masks).abs().max() < 1e-5 and (output.iou_scores[0] - scores).abs().max() < 1e-5


def test_files_come_back_to_the_bit(file, tmp_path, capsys):
    back = tmp_path / "back.pt"
    main([str(file), str(tmp_path / "ours")])
    main([str(tmp_path / "ours"), str(back)])
    found, expected = torch.load(back), torch.load(file)
    assert found.keys() == {name for name in expected if "idxs" not in name}
    for name, value in found.items():
        unused = name.startswith(("image_encoder.head.", "image_encoder.norm_head."))
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, torch.zeros_like(expected[name]) if unused else expected[name]), name
    said = capsys.readouterr().out
    assert "classifier that `mobile_sam` loads and does not use is zeros" in said and "float32\n" in said
    again, info = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again.encode(pixels())[0], load_checkpoint(back).model.encode(pixels())[0])


def test_what_files_do_not_say_is_told(folder, tmp_path):
    model, processor, _ = load_checkpoint(folder)
    notes = save_checkpoint(model, processor, tmp_path / "x.pt", "meta")
    assert "vision_config.image_size is 64, and Meta's code has 1024" in notes
    with pytest.raises(ValueError, match="Sam2Model`:\n  - an image encoder of type sam_hf_tiny_vit_model"):
        save_checkpoint(model, processor, tmp_path / "x", "transformers")
    weights = torch.load(tmp_path / "x.pt")
    torch.save({name: value for name, value in weights.items() if ".layers.3." not in name}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no weight 'image_encoder.layers.3.blocks.0.attn.attention_biases'"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 100}, "image_size=100 is not a multiple of 16; use 96"),
        ({"num_heads": [2, 4, 5, 10]}, r"have lengths \[4, 4, 4, 3\], expected \[4, 4, 3, 3\]"),
        ({"num_heads": [4, 5, 9]}, r"multiples of num_heads=\[4, 5, 9\]"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 should be in"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SamHfTinyVitConfig(**fields)


def test_odd_sides_are_refused(folder):
    with pytest.raises(ValueError, match="multiples of 16"):
        SamHfModel.from_pretrained(folder).get_image_embeddings(torch.zeros(1, 3, 64, 72))


def batch() -> dict[str, Any]:
    masks = np.zeros((2, 60, 60), dtype=bool)
    masks[0, 10:40, 5:35] = masks[1, 20:50, 40:55] = True
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    record = {"image": image, "objects": objects_from_masks(masks), "image_id": "a", "draw": 0}
    processor = SamHfProcessor.from_config(SamHfConfig(vision_config=SamHfTinyVitConfig(image_size=IMAGE)))
    return build_collator(processor, IMAGE, Options(augment=False, num_corrections=1))([record])


def train(model, steps: int = 4) -> list[float]:
    torch.manual_seed(0)
    trainer = InteractiveTrainer(model).train()
    groups = [{**group, "lr": 1e-3 * group["rate_share"]} for group in parameter_groups(model, 0.05, 1.0, 0.8)]
    optimizer, given, losses = torch.optim.AdamW(groups), batch(), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = trainer(**given).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_all_but_statistics_trains_and_is_saved(folder, tmp_path):
    model = prepare_model(folder)
    before = copy.deepcopy(model.state_dict())
    losses = train(model)
    assert losses[-1] < losses[0]
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    within = {name for name in kept if name.startswith("vision_encoder.")}
    assert within == {name for name in before if re.search(r"running_|num_batches", name)} and within
    save_model(model, tmp_path)
    again = prepare_model(tmp_path).eval()
    assert torch.equal(again.encode(pixels())[0], model.eval().encode(pixels())[0])


def test_an_image_does_not_depend_on_its_batch(folder):
    model = prepare_model(folder).train()
    alone, both = model.get_image_embeddings(pixels()[:1])[0], model.get_image_embeddings(pixels())[0]
    assert (alone - both[:1]).abs().max() < 1e-5


def test_lower_stages_learn_more_slowly(folder):
    groups = parameter_groups(SamHfModel.from_pretrained(folder), 0.05, 1.0, 0.5)
    rows = {name: (group["rate_share"], group["weight_decay"]) for group in groups for name, _ in group["params"]}
    assert rows["vision_encoder.patch_embed.seq.0.c.weight"] == (0.5**5, 0.05)
    assert rows["vision_encoder.layers.0.downsample.conv2.bn.weight"] == (0.5**4, 0)
    assert rows["vision_encoder.layers.3.blocks.0.attn.attention_biases"] == (0.5, 0)


@pytest.mark.parametrize(
    ("lora", "blocks"),
    [("encoder", {"1.0", "2.0", "2.1", "3.0"}), ("encoder_late", {"2.0", "2.1", "3.0"}), ("decoder", set())],
)
def test_adapters(folder, lora, blocks, tmp_path):
    model = prepare_model(folder, lora=lora)
    names = [name for name, part in model.named_parameters() if part.requires_grad and "vision_encoder" in name]
    assert all("lora_" in name for name in names) and len(names) == 4 * len(blocks)
    assert {".".join(re.findall(r"\d+", name)[:2]) for name in names} == blocks
    losses = train(model, 2)
    assert losses[0] != losses[1]
    save_model(model, tmp_path)
    merged = SamHfModel.from_pretrained(tmp_path).encode(pixels())[0]
    assert torch.allclose(merged, model.eval().encode(pixels())[0], atol=1e-5)


def test_a_frozen_encoder_stays_and_drops_no_paths(folder):
    model = prepare_model(folder, drop_path=0.5)
    rates = [block.drop_path_rate for layer in model.vision_encoder.layers for block in layer.blocks]
    assert rates == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5])
    encoded = [model.train().get_image_embeddings(pixels())[0] for _ in range(4)]
    assert any(not torch.equal(encoded[0], other) for other in encoded)
    model = prepare_model(folder, drop_path=0.5, frozen=["encoder"])
    before = model.get_image_embeddings(pixels())[0]
    train(model, 2)
    assert torch.equal(model.train().get_image_embeddings(pixels())[0], before)


def test_checkpointing_keeps_less(folder):
    kept, gradients = [], []
    for checkpoint_activations in (False, True):
        trainer = InteractiveTrainer(prepare_model(folder), checkpoint_activations=checkpoint_activations).train()
        with KeptForBackward() as memory:
            embedding = trainer.model.get_image_embeddings(pixels())[0]
        kept.append(memory.num_bytes(trainer))
        embedding.square().sum().backward()
        gradients.append(trainer.model.get_input_embeddings().weight.grad)
    assert kept[1] < 0.5 * kept[0] and torch.allclose(*gradients, rtol=1e-4)
