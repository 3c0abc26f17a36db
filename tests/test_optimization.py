"""What decays, how fast it learns, averages of weights, and memory."""

import re

import numpy as np
import pytest
import torch
from tiny_runs import small_config
from torch import nn
from two_processes import batches

from sam_hf import SamHfModel
from sam_hf.training import InteractiveTrainer, WeightAverage, parameter_groups, set_learning_rate, warmup_cosine
from sam_hf.training.memory_use import MEGABYTE
from sam_hf.training.models import has_weights, load_model
from sam_hf.training.options import Options
from sam_hf.training.reporting import report_memory


def test_only_projections_decay():
    model = SamHfModel(small_config(use_rel_pos=True))
    model.vision_encoder.patch_embed.requires_grad_(False)
    groups = {group["weight_decay"]: group["params"] for group in parameter_groups(model, 0.1)}
    decayed, others = ([name for name, _ in groups[decay]] for decay in (0.1, 0.0))
    names = dict(model.named_parameters())
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(decayed + others) == sorted(trainable) and len(trainable) < len(names)
    assert "mask_decoder.upscale_conv1.weight" in decayed and "vision_encoder.pos_embed" in others
    kept = ("bias", "norm", "iou_token", "mask_tokens", "score_token", "point_embed", "no_mask_embed", "pos")
    assert not [name for name in decayed if any(word in name for word in kept)]
    assert all(any(word in name for word in kept) for name in others)


def test_learning_rate_warms_up_and_decays():
    shares = [warmup_cosine(step, warmup_steps=10, max_steps=100) for step in range(101)]
    assert shares[0] == pytest.approx(0.1, rel=0.01) and 0.97 < max(shares) < 1
    assert np.argmax(shares) == 9 and shares[50] == pytest.approx(0.51) and shares[100] == pytest.approx(0.02)
    assert warmup_cosine(0, warmup_steps=0, max_steps=1) == 1


def test_lower_layers_learn_more_slowly():
    model = SamHfModel(small_config(use_rel_pos=True))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1, encoder_rate=0.5, layer_decay=0.8))
    set_learning_rate(optimizer, 1e-2)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates.keys() == dict(model.named_parameters()).keys()
    expected = {
        "mask_decoder.iou_token.weight": 1.0,
        "prompt_encoder.no_mask_embed.weight": 1.0,
        "vision_encoder.neck.conv1.weight": 0.5,
        "vision_encoder.layers.1.attn.qkv.weight": 0.5 * 0.8,
        "vision_encoder.layers.1.attn.rel_pos_h": 0.5 * 0.8,
        "vision_encoder.layers.0.attn.qkv.bias": 0.5 * 0.8**2,
        "vision_encoder.patch_embed.projection.weight": 0.5 * 0.8**3,
        "vision_encoder.pos_embed": 0.5 * 0.8**3,
    }
    assert {name: rates[name] / 1e-2 for name in expected} == pytest.approx(expected)


def test_average_of_weights():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, decay=0.7)
    expected = model.weight.detach().double()
    for step in range(1, 12):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    assert (1 + 1) / (10 + 1) < 0.7 < 12 / 15, "the test sees only one of the two cases"
    weight, latest = model.weight, model.weight.detach().clone()
    with pytest.raises(KeyError), average.applied() as trained:
        assert model.weight is weight and trained.keys() == {"weight"}
        torch.testing.assert_close(model.weight.double(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(trained["weight"], latest)
        raise KeyError
    assert torch.equal(model.weight, latest)
    with pytest.raises(ValueError, match="between 0 and 1"):
        WeightAverage(model, decay=1.0)


def test_checkpointed_activations_give_the_same_gradient_for_less_memory():
    (batch,) = batches((3,))
    gradients, lines = [], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = SamHfModel(small_config(drop_path_rate=0.3))
        trainer = InteractiveTrainer(model, checkpoint_activations=checkpointed).train()
        report_memory(trainer, (3, 640), False, lines.append)
        torch.manual_seed(1)
        trainer(**batch).loss.backward()
        trainer(**batch)  # is not measured
        gradients.append({name: part.grad for name, part in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    numbers = [[float(word.replace(",", "")) for word in re.findall(r"([\d,]+) MB", line)] for line in lines]
    (fixed, kept, largest), (_, _, largest_less) = numbers
    assert fixed == pytest.approx(4 * 4 * model.num_parameters() / MEGABYTE, abs=0.5)
    assert "[1, 3, 64, 64]" in lines[0] and "of 3 whole images" in lines[0]
    assert largest == pytest.approx(3 * 100 * kept, abs=0.5 * 3 * 100)
    assert len(lines) == 2 and largest_less < 0.5 * largest


def test_saved_bytes_are_counted_once():
    layer = nn.Sequential(nn.Linear(256, 512), nn.Sigmoid(), nn.Linear(512, 256))
    trainer = nn.Module()
    trainer.layer, trainer.forward = layer, lambda pixel_values: layer(pixel_values)
    lines = []
    report_memory(trainer, (1, 32), True, lines.append)
    trainer(pixel_values=torch.ones(1024, 3, 4, 256))
    # Inputs of both linear layers; the sigmoid keeps its output, which is one of them.
    expected = 1024 * 3 * 4 * (256 + 512) * 4 / MEGABYTE
    assert lines[0].endswith(f"{expected:.0f} MB kept for the backward pass of a batch [1024, 3, 4, 256]")


def test_what_is_kept_for_a_backward_pass_that_never_comes_is_not_counted():
    weight = nn.Parameter(torch.ones(256))
    trainer = nn.Module()
    trainer.weight = weight

    def forward(pixel_values: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            (pixel_values * weight).exp().sigmoid().sum().detach()
        return (pixel_values * weight).square()

    trainer.forward, lines = forward, []
    report_memory(trainer, (1, 32), True, lines.append)
    trainer(pixel_values=torch.ones(1024, 3, 4, 256))
    expected = 2 * 1024 * 3 * 4 * 256 * 4 / MEGABYTE  # the input and the product
    assert f" {expected:.0f} MB kept for the backward pass" in lines[0]


def test_learning_rates_fit_the_start(tmp_path, recwarn):
    SamHfModel(small_config()).save_pretrained(tmp_path)

    def rates(**given) -> tuple[float, float, float]:
        options = Options(**given)
        options.choose_learning_rates(is_trained=has_weights(options.model))
        return options.learning_rate, options.encoder_rate, options.layer_decay

    assert rates(model="small") == (1e-3, 1.0, 1.0)
    assert rates(model=str(tmp_path)) == (1e-4, 0.1, 0.8)
    assert rates(model=str(tmp_path), lora="encoder") == (1e-4, 1.0, 1.0)
    assert rates(model=str(tmp_path), learning_rate=1e-3, layer_decay=1.0) == (1e-3, 0.1, 1.0)
    assert rates(model="small", learning_rate=1e-2) == (1e-2, 1.0, 1.0)
    frozen = {"freeze": "prompt_encoder,encoder", "learning_rate": 1e-2}
    assert rates(model=str(tmp_path), **frozen) == (1e-2, 0.1, 0.8)
    assert not [warning for warning in recwarn if "likely to ruin" in str(warning.message)]
    for given in ({"learning_rate": 3e-3}, {"learning_rate": 3e-4, "encoder_rate": 1.0, "freeze": "decoder"}):
        with pytest.warns(UserWarning, match="--learning_rate .* is likely to ruin the image encoder"):
            rates(model=str(tmp_path), **given)


def test_drop_path_reaches_the_model():
    model = load_model("small", drop_path=0.25)
    assert model.config.vision_config.drop_path_rate == 0.25
