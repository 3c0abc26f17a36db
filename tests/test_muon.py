"""Muon next to AdamW: who updates what, and that a reloaded optimizer goes on as before."""

import copy

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from sam_hf.training import (
    LORA_PRESETS,
    PARTS,
    MuonWithAdamW,
    TrainingState,
    add_lora,
    block_matrices,
    freeze,
    parameter_groups,
    set_learning_rate,
)


def take_steps(model: nn.Module, optimizer: MuonWithAdamW, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_every_trainable_parameter_has_one_optimizer():
    model = tiny_model()
    model.vision_encoder.requires_grad_(False)
    optimizer = MuonWithAdamW(model, parameter_groups(model, 0.1), lr=0.1)
    assert optimizer.parts[1].param_groups[0]["params"] == block_matrices(model)
    optimised = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(optimised) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("preset", LORA_PRESETS)
def test_adapters_are_adamws(preset):
    model = add_lora(tiny_model(), preset, frozen=PARTS)
    assert block_matrices(model) == []
    (part,) = MuonWithAdamW(model, parameter_groups(model, 0.1)).parts
    assert type(part) is torch.optim.AdamW
    # Next to them a decoder that trains in full keeps its matrices.
    model, plain = add_lora(tiny_model(), "encoder", frozen=["prompt_encoder"]), tiny_model()
    freeze(plain, ["encoder", "prompt_encoder"])
    assert len(block_matrices(model)) == len(block_matrices(plain)) > 0


def test_a_model_without_matrices_is_adamws():
    model = tiny_model()
    freeze(model, PARTS.keys() - {"prompt_encoder", "backbone"})
    optimizer = MuonWithAdamW(model, parameter_groups(model, 0.1), lr=0.1)
    before = model.prompt_encoder.no_mask_embed.weight.detach().clone()
    take_steps(model, optimizer, range(1))
    assert len(optimizer.parts) == 1 and not torch.equal(model.prompt_encoder.no_mask_embed.weight, before)


def test_matrices_move_in_all_directions_alike_and_as_far_as_with_adamw():
    model = tiny_model()
    weight = model.vision_encoder.layers[1].mlp.lin1.weight
    before = weight.detach().clone()
    optimizer = MuonWithAdamW(model, parameter_groups(model, 0.0), lr=0.1)
    weight.grad = torch.outer(torch.randn(len(weight)), torch.randn(weight.shape[1])) + 0.02 * torch.randn_like(weight)
    optimizer.step()
    update = before - weight.detach()
    strengths = torch.linalg.svdvals(update)
    assert strengths.max() < 2 * strengths.min()
    assert 0.15 < update.square().mean().sqrt() / 0.1 < 0.25  # AdamW's typical share of the rate is 0.2


@pytest.mark.parametrize("was_muon", [True, False])
def test_moments_of_another_optimizer_are_refused(tmp_path, was_muon):
    model = tiny_model()
    groups = parameter_groups(model, 0.1)
    optimizers = [MuonWithAdamW(model, groups), torch.optim.AdamW(groups)]
    saved, other = optimizers if was_muon else optimizers[::-1]
    take_steps(model, saved, range(1))
    TrainingState(1).save(tmp_path, saved)
    assert TrainingState.load(tmp_path, saved) == TrainingState(1)
    with pytest.raises(ValueError, match="of a run with another --optimizer"):
        TrainingState.load(tmp_path, other)


def test_a_reloaded_optimizer_goes_on_as_before():
    model = tiny_model()
    optimizer = MuonWithAdamW(model, parameter_groups(model, 0.1), lr=0.01)
    take_steps(model, optimizer, range(3))
    other = copy.deepcopy(model)
    resumed = MuonWithAdamW(other, parameter_groups(other, 0.1), lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one in (optimizer, resumed):
        set_learning_rate(one, 0.005)
    take_steps(model, optimizer, range(3, 5))
    take_steps(other, resumed, range(3, 5))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
