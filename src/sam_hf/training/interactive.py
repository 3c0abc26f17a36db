"""One training step: encode once, then prompt, predict and correct for several rounds (SAM paper, appendix A)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from ..clicks import DRAW_RANGE, FEEDBACK_LIMIT, sample_center_clicks, sample_error_clicks
from ..clicks.distances import is_in_host_memory
from ..instance_decoder import instance_losses
from ..layers import height_and_width
from ..loss_points import valid_pixels
from ..losses import ObjectTargets, mask_iou
from ..masks import best_masks
from ..modeling_sam_hf import SamHfModel
from ..positions import PositionFrame
from ..prompt_encoder import PADDING

FEEDBACK = ["clamped", "detached", "attached"]
# Shifts the points of the loss from round to round.
GOLDEN_RATIO = 0.6180339887498949


@dataclass
class InteractiveOutput(ModelOutput):
    """Result of one step.

    Args:
        loss: mean (or sum) over rounds of the weighted loss, with gradient. This and all others are sums over objects,
            divided by the number of objects of the batch or the `normalizer` of `forward`.
        loss_dict: the terms of `SamHfOutput.loss_dict`, means over rounds, `instances` if their targets are given, and
            `proposals` of a model that makes some.
        iou_per_click: float32 [rounds], mean true IoU of the candidate with the highest predicted IoU.
        candidate_share, candidate_iou: float32 [1 + M], of each answer to the first prompt: share of objects whose
            mask loss it takes, and mean true IoU. One of no share and a low IoU is dead.
    """

    loss: Tensor
    # All are there; a `ModelOutput` wants defaults.
    loss_dict: dict[str, Tensor] = None  # type: ignore[assignment]
    iou_per_click: Tensor = None  # type: ignore[assignment]
    candidate_share: Tensor = None  # type: ignore[assignment]
    candidate_iou: Tensor = None  # type: ignore[assignment]

    def detached_values(self) -> dict[str, Tensor]:
        """Everything by name as float32 scalars without gradient: `loss`, its terms, `iou_click_1`, ..."""
        values = {"loss": self.loss.detach(), **self.loss_dict}
        values |= {f"iou_click_{n}": iou for n, iou in enumerate(self.iou_per_click, start=1)}
        for name in ("candidate_share", "candidate_iou"):
            values |= {f"{name}_{n}": value for n, value in enumerate(self[name])}
        return values


@dataclass
class TrainingBatch:
    """The arguments of `InteractiveTrainer.forward`, and what follows from them for all rounds."""

    pixel_values: Tensor
    input_points: Tensor
    input_labels: Tensor
    input_boxes: Tensor
    labels: Tensor
    click_draws: Tensor | None = None
    point_draws: Tensor | None = None
    frame: PositionFrame | None = None
    normalizer: Tensor | None = None
    _targets: ObjectTargets | None = None

    @property
    def num_rounds(self) -> int:
        return 1 + (0 if self.click_draws is None else self.click_draws.shape[-1])

    @cached_property
    def target(self) -> Tensor:
        """bool [B, N, H, W]."""
        return self.labels == 1

    @cached_property
    def valid(self) -> Tensor:
        """bool [B, N, H, W], False where pixels are ignored."""
        return valid_pixels(self.labels)

    def targets(self, model: SamHfModel, grid: tuple[int, int]) -> ObjectTargets:
        """`SamHfModel.loss_targets` for masks of size `grid`, made once."""
        if self._targets is None:
            self._targets = model.loss_targets(self.labels, grid)
        return self._targets

    @cached_property
    def num_objects(self) -> Tensor:
        """What sums over objects are divided by."""
        if self.normalizer is not None:
            return self.normalizer
        return self.valid.flatten(2).any(dim=-1).sum().clamp(min=1)


class Prompts(NamedTuple):
    """What the model is asked in a round: [B, N, P, 2], [B, N, P], [B, N, 4], and logits [B, N, h, w] of the last."""

    points: Tensor
    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None


class Prediction(NamedTuple):
    """What the model answers in a round.

    Args:
        masks: logits [B, N, M, h, w]; scores: predicted IoU [B, N, M]; object_scores: [B, N, 1] or None.
        candidates: bool [B, N, M] or [M], those that count.
        feedback: float32 [B, N, h, w], logits of the candidate that the model rates highest, as the next round gets
            them.
        shown: bool [B, N, H, W], the mask of these, at the size of the input.
    """

    masks: Tensor
    scores: Tensor
    object_scores: Tensor | None
    candidates: Tensor
    feedback: Tensor
    shown: Tensor


class RoundLoss(NamedTuple):
    """Of one round: the weighted loss, its terms, the IoU of what is shown, and two of `InteractiveOutput`."""

    loss: Tensor
    terms: dict[str, Tensor]
    iou: Tensor
    candidate_share: Tensor
    candidate_iou: Tensor


class InteractiveTrainer(nn.Module):
    """Runs the model as a user would, in a single forward, so that data parallel wrappers see one step as one call.

    The first round answers the initial prompt; every later one gets the logits of the mask that the model itself
    rates highest, and most get one more click, drawn from where that mask is wrong. A subclass changes what it
    overrides: `rounds` for the course of a step, `loss`, `predict`, `correct`.

    Args:
        model: what to train.
        center_share: chance that a corrective click is at the centre of the largest error, where most users click,
            instead of anywhere in the error. On a CPU these take a while for large inputs.
        object_share: chance that it is anywhere in the object, be that wrong or not.
        feedback: "clamped" to +-32, as in use, and detached; "detached", logits as they are; "attached", the same with
            gradient.
        sum_rounds: add the losses of the rounds, instead of their mean.
        encode: stands in for `model.get_vision_features`, such as an `EmbeddingCache`.
        checkpoint_activations: compute what the encoder layers and the rounds need in the backward pass again, instead
            of keeping it: less memory for the same gradient, about a third more time.
    """

    def __init__(
        self,
        model: SamHfModel,
        *,
        center_share: float = 0.0,
        object_share: float = 0.0,
        feedback: str = "clamped",
        sum_rounds: bool = False,
        encode: Callable[..., list[Tensor]] | None = None,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        self.model = model
        self.center_share, self.object_share = center_share, object_share
        if min(center_share, object_share) < 0 or center_share + object_share > 1:
            raise ValueError(
                f"center_share={center_share} and object_share={object_share} should be chances of different things."
            )
        if feedback not in FEEDBACK:
            raise ValueError(f"feedback={feedback!r} should be one of {FEEDBACK}.")
        self.feedback = feedback
        self.sum_rounds = sum_rounds
        self.encoder = encode
        self.checkpoint_activations = checkpoint_activations
        if checkpoint_activations:
            # The old name warns where there is the new one, transformers 5.17 has the old one only.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})

    def forward(
        self,
        pixel_values: Tensor,
        input_points: Tensor,
        input_labels: Tensor,
        input_boxes: Tensor,
        labels: Tensor,
        click_draws: Tensor | None = None,
        point_draws: Tensor | None = None,
        frame: Sequence[int] | None = None,
        normalizer: Tensor | None = None,
        instance_targets: Tensor | None = None,
    ) -> InteractiveOutput:
        """Arguments as `ClickSamplingCollator` returns them; `click_draws` [B, N, R] asks for R more rounds.

        `normalizer`, a float scalar, takes the place of the number of objects in all means over objects, for steps of
        several batches or processes. `instance_targets` train the instance decoder.
        """
        if click_draws is not None and click_draws.is_floating_point():
            raise ValueError(
                f"click_draws are {click_draws.dtype}, expected int32 or int64 from 0 to {DRAW_RANGE - 1}."
            )
        batch = TrainingBatch(
            pixel_values,
            input_points,
            input_labels,
            input_boxes,
            labels,
            click_draws,
            point_draws,
            None if frame is None else PositionFrame(*frame),
            normalizer,
        )
        image = self.encode(batch)
        losses, terms, ious, shares, candidate_ious = zip(*self.rounds(image, batch), strict=True)
        loss = (sum(losses) if self.sum_rounds else torch.stack(losses).mean()) + self.touch_parameters()
        loss_dict = {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}
        if instance_targets is not None:
            instances = self.instance_loss(image, batch, instance_targets)
            loss, loss_dict = loss + instances, loss_dict | {"instances": instances.detach()}
        proposals = self.proposal_loss(image, batch)
        if proposals is not None:
            loss, loss_dict = loss + proposals, loss_dict | {"proposals": proposals.detach()}
        return InteractiveOutput(
            loss=loss,
            loss_dict=loss_dict,
            iou_per_click=torch.stack(ious),
            candidate_share=shares[0],
            candidate_iou=candidate_ious[0],
        )

    def rounds(self, image: list[Tensor], batch: TrainingBatch) -> Iterator[RoundLoss]:
        """The course of a step, from the embeddings of its images on."""
        prompts = self.prompt(batch)
        for turn in range(batch.num_rounds):
            prediction = self.predict(image, prompts, batch)
            yield self.loss(prediction, batch, turn)
            if turn + 1 < batch.num_rounds:
                prompts = self.correct(prompts, prediction, batch, turn)

    def encode(self, batch: TrainingBatch) -> list[Tensor]:
        """As `SamHfModel.get_image_embeddings`, once for all rounds."""
        encode = self.encoder or self.model.get_vision_features
        return self.model.add_instances(encode(batch.pixel_values, batch.frame))

    def instance_loss(self, image: list[Tensor], batch: TrainingBatch, instance_targets: Tensor) -> Tensor:
        """Of the instance decoder: an image counts as often as it has objects, so that steps may be cut anyhow."""
        logits = self.model.get_instance_logits(image)
        num_objects = batch.valid.flatten(2).any(dim=-1).sum(dim=-1)
        return (instance_losses(logits, instance_targets) * num_objects).sum() / batch.num_objects

    def proposal_loss(self, image: list[Tensor], batch: TrainingBatch) -> Tensor | None:
        """Of the masks that the model proposes for the first prompts: their mask loss, where there is an object."""
        points, labels, boxes, _ = self.prompt(batch)
        masks, has_masks = self.model.propose_masks(image, points, labels, boxes)
        if masks is None or has_masks is None:
            return None
        targets = batch.targets(self.model, height_and_width(masks))
        scores = torch.zeros(*masks.shape[:2], 1, device=masks.device)  # of no concern here
        losses = self.model.object_losses(masks[:, :, None], scores, None, targets, None, batch.point_draws)
        config = self.model.config
        total = config.focal_weight * losses.focal + config.dice_weight * losses.dice
        return (total * has_masks * targets.has_object).sum() / batch.num_objects

    def prompt(self, batch: TrainingBatch) -> Prompts:
        """The first prompts: a click or a box for each object."""
        return Prompts(batch.input_points, batch.input_labels, batch.input_boxes)

    def predict(self, image: list[Tensor], prompts: Prompts, batch: TrainingBatch) -> Prediction:
        """The answer to prompts: the candidates of a first prompt, or the one mask of all others."""
        masks, scores, object_scores = self.decode(image, prompts, batch.frame)
        if prompts.masks is None:
            candidates = self.candidates(prompts.labels, prompts.boxes)
        else:
            masks, scores = masks[:, :, :1], scores[:, :, :1]
            candidates = torch.ones(1, dtype=torch.bool, device=masks.device)
        feedback = self.choose_feedback(masks, scores, candidates)
        shown = self.model.upscale_to_input(feedback.detach()[:, :, None])[:, :, 0] > 0
        return Prediction(masks, scores, object_scores, candidates, feedback, shown)

    def loss(self, prediction: Prediction, batch: TrainingBatch, turn: int) -> RoundLoss:
        """The loss of round 0, 1, ..., with the terms and weights of the model's configuration."""
        points = None if batch.point_draws is None else (batch.point_draws + turn * GOLDEN_RATIO) % 1
        masks, scores, object_scores, candidates, *_ = prediction
        targets = batch.targets(self.model, (masks.shape[-2], masks.shape[-1]))
        objects = self.model.object_losses(masks, scores, object_scores, targets, candidates, points)
        loss, terms = self.model.reduce_losses(objects, batch.normalizer)
        answers = mask_iou(prediction.shown, batch.target, batch.valid)
        if object_scores is not None:  # which says so where nothing is to be shown
            answers = torch.where(targets.has_object, answers, (object_scores[..., 0] <= 0).float())
        iou = (answers * objects.valid).sum() / batch.num_objects
        trained = objects.best[..., None] == torch.arange(masks.shape[2], device=masks.device)
        of_candidates = [
            (part * objects.valid[..., None]).sum(dim=(0, 1)) / batch.num_objects for part in (trained, objects.iou)
        ]
        return RoundLoss(loss, terms, iou, *of_candidates)

    def correct(self, prompts: Prompts, prediction: Prediction, batch: TrainingBatch, turn: int) -> Prompts:
        """The prompts of the next round: one more click on every object where it is wrong, and its mask so far."""
        assert batch.click_draws is not None, "without draws there is one round"
        draws = batch.click_draws[..., turn : turn + 1]
        click, label = self.sample_clicks(batch.target, prediction.shown, batch.valid, draws)
        return Prompts(
            torch.cat([prompts.points, click], dim=2),
            torch.cat([prompts.labels, label], dim=2),
            prompts.boxes,
            prediction.feedback,
        )

    def choose_feedback(self, masks: Tensor, scores: Tensor, candidates: Tensor) -> Tensor:
        """Logits [B, N, h, w] of the candidate that the model rates highest, as the next round gets them."""
        chosen = best_masks(masks, scores.detach().masked_fill(~candidates, -torch.inf)).float()
        if self.feedback == "attached":
            return chosen
        chosen = chosen.detach()
        return chosen.clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT) if self.feedback == "clamped" else chosen

    def decode(
        self, image: list[Tensor], prompts: Prompts, frame: PositionFrame | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.checkpoint_activations:
            return checkpoint(self.model.decode, image, *prompts, frame=frame, use_reentrant=False)
        points, labels, boxes, masks = prompts
        return self.model.decode(image, points, labels, boxes, masks, frame=frame)

    def sample_clicks(self, target: Tensor, prediction: Tensor, valid: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """One click [B, N, 1, 2] and its label on every object, decided by `draws` [B, N, 1] in [0, `DRAW_RANGE`).

        Draws below 0 give padding: no new click.
        """
        is_new, draws = draws >= 0, torch.where(draws >= 0, draws, DRAW_RANGE - 1)
        # Draws are for the centre, from here on for the object, and from there on for the error.
        first_object, first_error = (
            round(share * DRAW_RANGE) for share in (self.center_share, self.center_share + self.object_share)
        )
        central, in_error = draws[..., 0] < first_object, draws >= first_error
        start = torch.where(in_error, first_error, first_object)
        width = torch.where(in_error, DRAW_RANGE - first_error, first_error - first_object)
        # What is left of a draw in its interval is uniform again.
        draws = ((draws - start) * DRAW_RANGE // width.clamp(min=1)).clamp(0, DRAW_RANGE - 1)
        # If nothing is predicted, the whole object is the error.
        points, labels = sample_error_clicks(target, prediction & in_error[..., None], valid=valid, draws=draws)
        if self.center_share:
            points, labels = put_in_center(points, labels, central, target, prediction, valid)
        return points.masked_fill(~is_new[..., None], 0.0), labels.masked_fill(~is_new, PADDING)

    def touch_parameters(self) -> Tensor:
        """Zero, with a zero gradient for every parameter: data parallel wrappers wait for all in every step."""
        # Those of all other parts take part in every loss.
        parts: list[nn.Module] = [self.model.prompt_encoder]
        if self.model.instance_decoder is not None:
            parts.append(self.model.instance_decoder)
        encoder: Any = self.model.vision_encoder
        if hasattr(encoder, "backbone"):
            parts.append(encoder.backbone)  # some have a norm or a token more than is used
        zero = self.model.prompt_encoder.no_mask_embed.weight.new_zeros(())
        trained = (weight for part in parts for weight in part.parameters() if weight.requires_grad)
        return 0.0 * sum((weight.sum() for weight in trained), zero)

    def candidates(self, input_labels: Tensor, input_boxes: Tensor) -> Tensor:
        """bool [B, N, 1 + M], before any feedback: the candidates of a single click, else the one first mask."""
        single_click = (input_labels != PADDING).sum(dim=-1) == 1
        ambiguous = single_click & input_boxes.isnan().any(dim=-1)
        decoder = self.model.mask_decoder
        chosen = torch.zeros(2, decoder.num_mask_tokens, dtype=torch.bool, device=input_labels.device)
        for row, multimask_output in zip(chosen, (False, True), strict=True):
            row[decoder.candidates(multimask_output)] = True
        return torch.where(ambiguous[..., None], chosen[1], chosen[0])


def put_in_center(
    points: Tensor, labels: Tensor, central: Tensor, target: Tensor, prediction: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Clicks [B, N, 1, 2] and labels [B, N, 1], of `central` objects, bool [B, N], at the centre of the error."""
    if is_in_host_memory(central):  # each object takes a while there
        chosen, predicted, allowed = (part[central][None] for part in (target, prediction, valid))
        found = sample_center_clicks(chosen, predicted, valid=allowed)
        points[central], labels[central] = (part[0] for part in found)
        return points, labels
    # To choose some would wait for the device. Those that are not have no pixel to be at the centre of.
    center, center_labels = sample_center_clicks(target, prediction, valid=valid & central[..., None, None])
    is_central = central[..., None]
    return torch.where(is_central[..., None], center, points), torch.where(is_central, center_labels, labels)


__all__ = [
    "FEEDBACK",
    "FEEDBACK_LIMIT",
    "InteractiveOutput",
    "InteractiveTrainer",
    "Prediction",
    "Prompts",
    "RoundLoss",
    "TrainingBatch",
]
