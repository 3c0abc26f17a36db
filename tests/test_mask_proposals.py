"""Masks that the instance decoder proposes for the objects under first prompts: what they are, who gets them, and what
teaches them."""

import math

import pytest
import torch
from test_instance_decoder import HIGH_RES, processor, step_batch  # noqa: F401  a fixture
from tiny_models import IMAGE, MASK, PATCH, random_pixels, tiny_model
from torch.export import Dim, export

from sam_hf import PADDING, SamHfConfig
from sam_hf.instance_decoder import CELLS_PER_PLACE, MARGIN, NUM_PLACES, PROPOSAL_LIMIT, SamHfMaskProposals
from sam_hf.training.interactive import InteractiveTrainer

PROPOSING = {"instance_decoder_config": {"hidden_size": 8, "guides_masks": True, "proposes_masks": True}}
CELL = PATCH // 4
NAN = math.nan


@pytest.fixture(scope="module")
def model():
    return tiny_model(**PROPOSING, **HIGH_RES, decoder={"use_object_score": True})


@pytest.fixture(scope="module")
def embeddings(model):
    with torch.no_grad():
        return model.get_image_embeddings(random_pixels(batch=2))


def plain_answer(model, embeddings, **prompts):
    """Of the mask decoder, which here gets no other mask prompts than those that are given."""
    names = "input_points", "input_labels", "input_boxes", "input_masks", "has_input_masks"
    given = [prompts.get(name) for name in names]
    if given[0] is not None and given[1] is None:
        given[1] = torch.ones(given[0].shape[:-1], dtype=torch.long)
    features = embeddings[1:]
    return model.mask_decoder(features, *model.embed_prompts(features, *given))


def naive_proposals(proposals, features, foreground, cells, is_given):
    """Cell by cell."""
    height, width = features.shape[-2:]
    projected = proposals.projection(features)
    logits = torch.empty(*cells.shape[:2], height, width)
    for b, n, y, x in torch.cartesian_prod(*(torch.arange(side) for side in logits.shape)).tolist():
        best = -PROPOSAL_LIMIT
        for (i, j), counts in zip(cells[b, n].tolist(), is_given[b, n].tolist(), strict=True):
            here, there = projected[b, :NUM_PLACES, y, x].clone(), projected[b, :NUM_PLACES, j, i].clone()
            here[:2] += torch.tensor([x, y]) / CELLS_PER_PLACE
            there[:2] += torch.tensor([i, j]) / CELLS_PER_PLACE
            reach, margin = projected[b, NUM_PLACES:, j, i]
            if counts:
                best = max(best, (MARGIN + margin - reach.exp() * (here - there).square().sum()).item())
        both = torch.tensor(best).sigmoid().double() * foreground[b, y, x].sigmoid().double()
        logits[b, n, y, x] = (both / (1 - both)).log()
    return logits.clamp(-PROPOSAL_LIMIT, PROPOSAL_LIMIT)


@torch.no_grad()
def test_they_are_the_naive_ones():
    generator = torch.Generator().manual_seed(0)
    proposals = SamHfMaskProposals(4)
    for weight in proposals.parameters():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    features, foreground = torch.randn(2, 4, 5, 7, generator=generator), torch.randn(2, 5, 7, generator=generator)
    cells = torch.randint(0, 5, (2, 3, 2, 2), generator=generator)
    is_given = torch.tensor([[[1, 1], [1, 0], [0, 1]], [[1, 1], [0, 1], [1, 0]]]).bool()
    expected = naive_proposals(proposals, features, foreground, cells, is_given)
    torch.testing.assert_close(proposals(features, foreground, cells, is_given), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_before_anything_is_learned_they_are_discs_of_foreground():
    proposals = SamHfMaskProposals(4)
    for weight in proposals.parameters():
        weight.zero_()
    foreground = torch.full((1, 40, 60), 20.0)
    foreground[:, :, 30:] = -20.0
    logits = proposals(torch.randn(1, 4, 40, 60), foreground, torch.tensor([[[[28, 10]]]]), torch.ones(1, 1, 1).bool())
    y, x = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    disc = ((x - 28) ** 2 + (y - 10) ** 2 < MARGIN * CELLS_PER_PLACE**2) & (x < 30)
    assert torch.equal(logits[0, 0] > 0, disc)


@torch.no_grad()
def test_the_prompted_cell_is_the_one_that_holds_the_pixel(model, embeddings):
    """Of the click, and of the middle of the box; beyond the image the nearest one."""
    cells = []

    def record(module, args):
        cells.append((args[2], args[3]))

    handle = model.instance_decoder.proposals.register_forward_pre_hook(record)
    points = torch.tensor([[1.7, 0.0], [1.0, 2.0], [IMAGE - 1.0, 5.0], [-9.0, IMAGE + 7.0]])
    labels = torch.tensor([1, 0, 1, PADDING])
    boxes = torch.tensor([[10.0, 20.0, 30.0, 34.0], [NAN, NAN, NAN, NAN]])
    try:
        masks, has_masks = model.propose_masks(
            [feature[:1, :, : feature.shape[2] // 2] for feature in embeddings],
            points.view(1, 2, 2, 2),
            labels.view(1, 2, 2),
            boxes[None],
        )
    finally:
        handle.remove()
    rows = MASK // 2
    assert masks.shape == (1, 2, rows, MASK) and has_masks.tolist() == [[True, True]]
    assert CELL == 2
    middle = [(10 + 30) // 2 // CELL, (20 + 34) // 2 // CELL]
    assert cells[0][0].tolist() == [[[[1, 0], [0, 1], middle], [[MASK - 1, 2], [0, rows - 1], [0, 0]]]]
    assert cells[0][1].tolist() == [[[True, False, True], [True, False, False]]]


@torch.no_grad()
def test_objects_without_a_mask_get_them_as_their_mask_prompt(model, embeddings):
    points = (
        torch.tensor([[12.0, 20.0], [40.0, 33.0], [50.0, 9.0], [7.0, 55.0]]).view(1, 4, 1, 2).expand(2, -1, -1, -1)
    )
    labels = torch.tensor([1, 1, 0, PADDING]).view(1, 4, 1).expand(2, -1, -1)
    boxes = torch.full((2, 4, 4), NAN)
    boxes[:, 3] = torch.tensor([5.0, 5.0, 50.0, 40.0])
    given = torch.randn(2, 4, MASK, MASK)
    proposals, _ = model.propose_masks(embeddings, points, labels, boxes)
    prompts = {"input_points": points, "input_labels": labels, "input_boxes": boxes}

    def check(expected_masks, expected_has, added, **more):
        answer = model.decode(embeddings, **prompts, **more)
        expected = plain_answer(model, embeddings, **prompts, input_masks=expected_masks, has_input_masks=expected_has)
        expected = expected[0] + added[:, :, None], *expected[1:]
        for ours, theirs in zip(answer, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    # The third has a background click alone.
    has = torch.tensor([[True, True, False, True]]).expand(2, -1)
    proposals = proposals * has[..., None, None]
    check(proposals, has, proposals)
    own = torch.tensor([[True, False, True, False]]).expand(2, -1)
    mixed = torch.where(own[..., None, None], given, proposals)
    check(mixed, has | own, proposals * ~own[..., None, None], input_masks=given, has_input_masks=own)
    check(given, None, torch.zeros_like(given), input_masks=given)
    # Without clicks and boxes there is nothing to propose.
    assert model.propose_masks(embeddings) == (None, None)
    torch.testing.assert_close(
        model.decode(embeddings, input_masks=given)[0], plain_answer(model, embeddings, input_masks=given)[0]
    )


@torch.no_grad()
def test_masks_that_are_kept_are_added_to_their_own(model, embeddings):
    one, clicks = [feature[:1] for feature in embeddings], 60 * torch.rand(1, 5, 1, 2)
    masks, scores, _ = model.decode(one, clicks, torch.ones(1, 5, 1, dtype=torch.long))
    middle = scores.median()
    kept, _, _ = model.decode(one, clicks, torch.ones(1, 5, 1, dtype=torch.long), keep=lambda scores: scores > middle)
    torch.testing.assert_close(kept, masks[scores > middle], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_first_prompt_stays_ambiguous(model, embeddings):
    click = torch.tensor([12.0, 20.0]).expand(2, 1, 1, 2)
    assert model(image_embeddings=embeddings, input_points=click).pred_masks.shape[2] == 3


def test_without_them_there_are_no_weights():
    plain = tiny_model(instance_decoder_config={"hidden_size": 8})
    assert not any("proposals" in name for name in plain.state_dict())
    embeddings = plain.get_image_embeddings(random_pixels())
    assert plain.propose_masks(embeddings, torch.zeros(len(embeddings[0]), 1, 1, 2)) == (None, None)
    assert SamHfConfig.from_preset("small").instance_decoder_config.proposes_masks
    assert SamHfConfig.from_preset("base").instance_decoder_config is None


def test_a_step_adds_their_mask_loss_and_nothing_else_teaches_them(model, processor):  # noqa: F811
    trainer = InteractiveTrainer(model)
    batch = step_batch(processor)
    batch.pop("instance_targets")
    model.zero_grad()
    output = trainer(**batch)
    embeddings = model.get_image_embeddings(batch["pixel_values"])
    prompts = batch["input_points"], batch["input_labels"], batch["input_boxes"]
    masks, has_masks = model.propose_masks(embeddings, *prompts)
    none = torch.zeros(*masks.shape[:2], 1)
    losses = model.object_losses(masks[:, :, None], none, None, batch["labels"], point_draws=batch.get("point_draws"))
    is_real = has_masks & (batch["labels"] == 1).flatten(2).any(-1)
    total = (model.config.focal_weight * losses.focal + model.config.dice_weight * losses.dice)[is_real].sum()
    count = (batch["labels"] >= 0).flatten(2).any(-1).sum()
    torch.testing.assert_close(output.loss_dict["proposals"], (total / count).detach())
    weight = model.instance_decoder.proposals.projection.weight
    (expected,) = torch.autograd.grad(total / count, weight)
    output.loss.backward()
    torch.testing.assert_close(weight.grad, expected, atol=1e-6, rtol=1e-4)
    assert weight.grad.any()
    # The same however images are spread over batches.
    parts = [
        trainer(**{name: value[index : index + 1] for name, value in batch.items()}, normalizer=count)
        for index in range(2)
    ]
    torch.testing.assert_close(sum(part.loss_dict["proposals"] for part in parts), output.loss_dict["proposals"])


def test_training_and_use_see_the_same_first_answer(model, processor):  # noqa: F811
    batch = step_batch(processor)
    batch.pop("instance_targets")
    seen = []

    class Recorder(InteractiveTrainer):
        def predict(self, image, prompts, batch):
            seen.append(super().predict(image, prompts, batch))
            return seen[-1]

    with torch.no_grad():
        Recorder(model)(**batch)
        prompts = {name: batch[name] for name in ("pixel_values", "input_points", "input_labels", "input_boxes")}
        for multimask_output, answered in ((True, seen[0].masks[:, :, -3:]), (False, seen[0].masks[:, :, :1])):
            shown = model(**prompts, multimask_output=multimask_output).pred_masks
            torch.testing.assert_close(shown, answered, atol=1e-5, rtol=1e-5)


def test_autocast_measures_distances_in_float32(model, embeddings):
    click = torch.tensor([50.0, 60.0]).expand(2, 1, 1, 2)
    with torch.no_grad():
        expected, _ = model.propose_masks(embeddings, click)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded, _ = model.propose_masks(embeddings, click)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, atol=0.15, rtol=0.05)


def test_they_compile_and_export_for_any_number_of_objects(model, embeddings):
    images, objects = Dim("B"), Dim("N")
    clicks = 60 * torch.rand(2, 3, 1, 2)
    labels = torch.ones(2, 3, 1, dtype=torch.long)
    program = export(
        model,
        (),
        kwargs={
            "image_embeddings": embeddings,
            "input_points": clicks,
            "input_labels": labels,
            "multimask_output": True,
        },
        dynamic_shapes={
            "image_embeddings": [{0: images}] * 4,
            "input_points": {0: images, 1: objects},
            "input_labels": {0: images, 1: objects},
            "multimask_output": None,
        },
    )
    other = {"input_points": 60 * torch.rand(2, 5, 1, 2), "input_labels": torch.ones(2, 5, 1, dtype=torch.long)}
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        inputs = {"image_embeddings": embeddings, **other, "multimask_output": True}
        expected = model(**inputs).pred_masks
        torch.testing.assert_close(program.module()(**inputs).pred_masks, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(compiled(**inputs).pred_masks, expected, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()
