"""Interactive rounds: candidates, corrective clicks, feedback, padding, gradients."""

import math

import pytest
import torch
from tiny_models import IMAGE, random_labels, random_pixels, tiny_model
from torch import Tensor

from sam_hf import BACKGROUND, FOREGROUND, PADDING, SamHfModel
from sam_hf.clicks import DRAW_RANGE, INITIAL_DRAWS, sample_center_clicks, sample_error_clicks, sample_initial_prompts
from sam_hf.positions import PositionFrame
from sam_hf.training.interactive import FEEDBACK_LIMIT, InteractiveOutput, InteractiveTrainer

EVERYTHING = {
    "vision": {"high_res_layers": [0, 1]},
    "decoder": {"use_object_score": True, "iou_prediction_use_sigmoid": True},
}


def training_batch(num_rounds: int = 4, box_probability: float = 0.5, num_objects: int = 3) -> dict[str, Tensor]:
    """As the collator makes it: padding at the right of the image, objects prompted by a click or a box."""
    generator = torch.Generator().manual_seed(0)
    labels = random_labels(2, num_objects, IMAGE, IMAGE)
    labels[..., 56:] = math.nan
    draws = torch.rand(2, num_objects, INITIAL_DRAWS, generator=generator, dtype=torch.float64)
    points, point_labels, boxes = sample_initial_prompts(
        labels == 1, valid=labels.isfinite(), draws=draws, box_probability=box_probability
    )
    batch = {
        "pixel_values": random_pixels(),
        "input_points": points,
        "input_labels": point_labels,
        "input_boxes": boxes,
        "labels": labels,
    }
    if num_rounds > 1:
        shape = (2, num_objects, num_rounds - 1)
        draws = torch.rand(shape, generator=generator, dtype=torch.float64)
        batch["click_draws"] = (draws * DRAW_RANGE).int()
    return batch


class Recorder:
    """The arguments and results of every `decode` of a model."""

    def __init__(self, model: SamHfModel, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[tuple] = []
        decode = model.decode

        def recorded(*args, **kwargs):
            outputs = decode(*args, **kwargs)
            self.calls.append((args, outputs))
            return outputs

        monkeypatch.setattr(model, "decode", recorded)


@pytest.fixture
def model() -> SamHfModel:
    return tiny_model(**EVERYTHING).train()


@pytest.fixture
def record(model: SamHfModel, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(model, monkeypatch)


def choices(calls: list[tuple], input_boxes: Tensor) -> list[Tensor]:
    """The candidate of every round that the rules feed back, int64 [B, N]."""
    chosen = []
    for turn, (_, (_, scores, _)) in enumerate(calls):
        best = 1 + scores[:, :, 1:].argmax(dim=-1)
        is_click = input_boxes.isnan().any(dim=-1)
        chosen.append(torch.where(is_click & (turn == 0), best, 0))
    return chosen


def test_rounds_and_their_report(model, record):
    output = InteractiveTrainer(model)(**training_batch(num_rounds=4))
    assert isinstance(output, InteractiveOutput)
    assert len(record.calls) == 4
    assert [args[1].shape[2] for args, _ in record.calls] == [1, 2, 3, 4]
    assert output.loss.shape == () and output.loss.requires_grad
    assert output.iou_per_click.shape == (4,) and not output.iou_per_click.requires_grad
    assert (output.iou_per_click >= 0).all() and (output.iou_per_click <= 1).all()
    assert {"focal", "dice", "iou", "object_score", "mask_iou"} == set(output.loss_dict)


def test_corrective_clicks_lie_in_the_error_of_the_own_prediction(model, record):
    batch = training_batch()
    InteractiveTrainer(model)(**batch)
    chosen = choices(record.calls, batch["input_boxes"])
    target, valid = batch["labels"] == 1, batch["labels"].isfinite()
    seen = set()
    for turn in range(3):
        masks = record.calls[turn][1][0]
        mask = torch.take_along_dim(masks, chosen[turn][..., None, None, None], dim=2)
        prediction = torch.nn.functional.interpolate(mask[:, :, 0], (IMAGE, IMAGE), mode="bilinear") > 0
        (_, points, labels, *_), _ = record.calls[turn + 1]
        assert torch.equal(points[:, :, : turn + 1], record.calls[turn][0][1])  # earlier clicks stay
        x, y = points[:, :, -1].long().unbind(dim=-1)
        for b in range(2):
            for n in range(3):
                here = (b, n, y[b, n], x[b, n])
                assert valid[here] and prediction[here] != target[here]
                assert labels[b, n, -1] == (FOREGROUND if target[here] else BACKGROUND)
                seen.add(labels[b, n, -1].item())
    assert seen == {FOREGROUND, BACKGROUND}


def test_feedback_is_the_chosen_mask_detached_and_clamped(model, record):
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight.mul_(100)
    batch = training_batch()
    InteractiveTrainer(model)(**batch)
    chosen = choices(record.calls, batch["input_boxes"])
    assert record.calls[0][0][4] is None
    for turn in range(3):
        feedback = record.calls[turn + 1][0][4]
        masks = record.calls[turn][1][0]
        expected = torch.take_along_dim(masks, chosen[turn][..., None, None, None], dim=2)[:, :, 0]
        assert masks.requires_grad and not feedback.requires_grad
        assert expected.abs().max() > FEEDBACK_LIMIT
        assert torch.equal(feedback, expected.clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT))


def test_candidates_rule():
    trainer = InteractiveTrainer(tiny_model())
    labels = torch.tensor([[[1, PADDING], [PADDING, PADDING], [1, 0], [0, PADDING], [1, PADDING]]])
    boxes = torch.full((1, 5, 4), math.nan)
    boxes[0, 4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    three, one = [False, True, True, True], [True, False, False, False]
    # One click; nothing; two clicks; one background click; a click in a box.
    assert trainer.candidates(labels, boxes)[0].tolist() == [three, one, one, three, one]


@pytest.mark.parametrize("box_probability", [0.0, 1.0])
def test_loss_is_the_mean_over_rounds_of_the_loss_of_forward(model, record, box_probability):
    """Each round repeated by `SamHfModel.forward` with what the round got."""
    batch = training_batch(box_probability=box_probability)
    output = InteractiveTrainer(model)(**batch)
    losses, terms = [], []
    for turn, (args, _) in enumerate(list(record.calls)):  # the model records these calls too
        repeated = model(
            image_embeddings=args[0],
            input_points=args[1],
            input_labels=args[2],
            input_boxes=args[3],
            input_masks=args[4],
            labels=batch["labels"],
        )
        assert repeated.pred_masks.shape[2] == (3 if turn == 0 and box_probability == 0 else 1)
        losses.append(repeated.loss)
        terms.append(repeated.loss_dict)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    for name, value in output.loss_dict.items():
        torch.testing.assert_close(value, torch.stack([term[name] for term in terms]).mean())


def test_one_round_is_the_loss_of_forward(model):
    batch = training_batch(num_rounds=1, box_probability=0.0)
    output, expected = InteractiveTrainer(model)(**batch), model(**batch)
    torch.testing.assert_close(output.loss, expected.loss)
    output.loss.backward()
    gradients = {name: part.grad.clone() for name, part in model.named_parameters()}
    model.zero_grad()
    expected.loss.backward()
    for name, part in model.named_parameters():
        torch.testing.assert_close(gradients[name], torch.zeros_like(part) if part.grad is None else part.grad)


def test_iou_per_click_is_that_of_the_mask_a_user_sees(model, record):
    batch = training_batch()
    output = InteractiveTrainer(model)(**batch)
    chosen = choices(record.calls, batch["input_boxes"])
    target, valid = batch["labels"] == 1, batch["labels"].isfinite()
    for turn, (_, (masks, _, _)) in enumerate(record.calls):
        mask = torch.take_along_dim(masks, chosen[turn][..., None, None, None], dim=2)[:, :, 0]
        seen = torch.nn.functional.interpolate(mask, (IMAGE, IMAGE), mode="bilinear") > 0
        both = (seen & target & valid).flatten(2).sum(-1)
        either = ((seen | target) & valid).flatten(2).sum(-1)
        assert output.iou_per_click[turn].item() == pytest.approx((both / either).mean().item(), abs=1e-6)


def test_a_step_is_determined_by_its_batch(model):
    batch = training_batch()
    torch.manual_seed(0)
    one = InteractiveTrainer(model)(**batch)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    other = InteractiveTrainer(model)(**batch)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.loss, other.loss) and torch.equal(one.iou_per_click, other.iou_per_click)
    different = InteractiveTrainer(model)(**{**batch, "click_draws": DRAW_RANGE - 1 - batch["click_draws"]})
    assert not torch.equal(different.loss, one.loss)


def test_padded_objects_are_inert(model):
    batch = training_batch()
    expected = InteractiveTrainer(model)(**batch)
    expected.loss.backward()
    gradients = {name: part.grad for name, part in model.named_parameters()}
    model.zero_grad()

    padding = {
        "input_points": 0.0,
        "input_labels": PADDING,
        "input_boxes": math.nan,
        "labels": math.nan,
        "click_draws": 0,
    }
    padded = {
        name: torch.cat([value, torch.full_like(value[:, :2], padding[name])], dim=1) if name in padding else value
        for name, value in batch.items()
    }
    output = InteractiveTrainer(model)(**padded)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.iou_per_click, expected.iou_per_click)
    output.loss.backward()
    for name, part in model.named_parameters():
        torch.testing.assert_close(part.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_a_batch_of_padding_has_no_loss(model):
    batch = training_batch()
    batch["labels"] = torch.full_like(batch["labels"], math.nan)
    batch["input_labels"] = torch.full_like(batch["input_labels"], PADDING)
    batch["input_boxes"] = torch.full_like(batch["input_boxes"], math.nan)
    output = InteractiveTrainer(model)(**batch)
    assert output.loss.item() == 0.0 and not output.iou_per_click.any()
    output.loss.backward()
    assert all(not part.grad.any() for part in model.parameters())


def test_an_empty_object_trains_the_object_score_alone(model):
    batch = training_batch(num_objects=1)
    batch["labels"] = torch.where(batch["labels"].isnan(), batch["labels"], 0.0)
    batch["input_labels"] = torch.full_like(batch["input_labels"], BACKGROUND)
    batch["input_boxes"] = torch.full_like(batch["input_boxes"], math.nan)
    output = InteractiveTrainer(model)(**batch)
    assert output.loss_dict["object_score"] > 0
    assert output.loss_dict["focal"] == output.loss_dict["dice"] == output.loss_dict["iou"] == 0


@pytest.mark.parametrize("num_rounds", [1, 4])
@pytest.mark.parametrize("box_probability", [0.0, 0.5, 1.0])
def test_every_parameter_takes_part_in_every_step(model, box_probability, num_rounds):
    """Distributed data parallel waits for the gradient of each parameter, be it zero."""
    InteractiveTrainer(model)(**training_batch(num_rounds, box_probability)).loss.backward()
    assert [name for name, part in model.named_parameters() if part.grad is None] == []


def test_every_parameter_learns(model):
    InteractiveTrainer(model)(**training_batch()).loss.backward()
    still = [name for name, part in model.named_parameters() if part.grad.abs().max() < 1e-9]
    # The bias of the keys cancels in the softmax; a candidate that is never the best has no mask that is trained.
    excused = ("k_proj.bias", "output_hypernetworks_mlps")
    assert [name for name in still if not any(part in name for part in excused)] == []


def test_frozen_parameters_stay_out(model):
    model.vision_encoder.requires_grad_(False)
    InteractiveTrainer(model)(**training_batch()).loss.backward()
    assert all(part.grad is None for part in model.vision_encoder.parameters())
    assert model.mask_decoder.mask_tokens.weight.grad.any()


def test_bfloat16_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = InteractiveTrainer(model)(**training_batch())
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    output.loss.backward()
    assert all(part.grad.isfinite().all() for part in model.parameters())


def test_a_share_of_corrections_is_central(model):
    generator = torch.Generator().manual_seed(1)
    target, prediction = (torch.rand(2, 5, 12, 16, generator=generator) > 0.5 for _ in range(2))
    valid = torch.ones_like(target)
    valid[..., 13:] = False
    draws = torch.tensor([0.0, 0.2, 0.4, 0.55, 0.999], dtype=torch.float64).expand(2, 5)[..., None]
    trainer = InteractiveTrainer(model, center_share=0.5)
    points, labels = trainer.sample_clicks(target, prediction, valid, (draws * DRAW_RANGE).int())
    center, center_labels = sample_center_clicks(target, prediction, valid=valid)
    anywhere, anywhere_labels = sample_error_clicks(
        target, prediction, valid=valid, draws=(2 * draws - 1).clamp(min=0)
    )
    assert torch.equal(points, torch.cat([center[:, :3], anywhere[:, 3:]], dim=1))
    assert torch.equal(labels, torch.cat([center_labels[:, :3], anywhere_labels[:, 3:]], dim=1))
    assert not torch.equal(points, center) and not torch.equal(points, anywhere)


def test_a_crop_is_encoded_and_decoded_where_it_is(model, monkeypatch):
    batch, frame = training_batch(2), PositionFrame(2 * IMAGE, 2 * IMAGE, IMAGE, 8)
    recorder = Recorder(model, monkeypatch)
    decoded_at = []
    decode = model.decode
    monkeypatch.setattr(
        model, "decode", lambda *args, **given: decoded_at.append(given["frame"]) or decode(*args, **given)
    )
    InteractiveTrainer(model)(**batch, frame=list(frame))
    expected = model.get_image_embeddings(batch["pixel_values"], frame)
    for embeddings, *_ in (args for args, _ in recorder.calls):
        assert all(torch.equal(part, other) for part, other in zip(embeddings, expected, strict=True))
    assert not torch.equal(expected[-1], model.get_image_embeddings(batch["pixel_values"])[-1])
    assert decoded_at == [frame, frame]
