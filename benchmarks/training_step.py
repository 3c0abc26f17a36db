"""One step of interactive training, forward and backward, against a loop over transformers' model."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from click_sampling import noise_argmax_clicks
from measuring import Limits, Row, alternate, count_flops
from models import SIZES, Setup, our_model, stock_model
from torch import Tensor

from sam_hf import SamHfModel
from sam_hf.clicks import DRAW_RANGE
from sam_hf.training.interactive import InteractiveTrainer

ROUNDS, OBJECTS = 4, 16
Encode = Callable[[Tensor], list[Tensor]]


def training_batch(setup: Setup, side: int) -> dict[str, Tensor]:
    """One image and 16 rectangles with a click on each, as `ClickSamplingCollator` returns them."""
    generator = torch.Generator().manual_seed(0)
    corners = (side // 2 * torch.rand(OBJECTS, 2, generator=generator)).long()
    labels = torch.zeros(1, OBJECTS, side, side)
    for label, (x, y) in zip(labels[0], corners.tolist(), strict=True):
        label[y : y + side // 4, x : x + side // 4] = 1
    batch = {
        "pixel_values": torch.randn(1, 3, side, side, generator=generator),
        "input_points": corners[None, :, None].float() + side // 8,
        "input_labels": torch.ones(1, OBJECTS, 1, dtype=torch.long),
        "input_boxes": torch.full((1, OBJECTS, 4), torch.nan),
        "labels": labels,
        "click_draws": torch.randint(DRAW_RANGE, (1, OBJECTS, ROUNDS - 1), generator=generator),
    }
    return {name: value.to(setup.device) for name, value in batch.items()}


def stock_step(stock: torch.nn.Module, ours: torch.nn.Module, batch: dict[str, Tensor], encode: Encode) -> Tensor:
    """The same rounds as a loop. One mask prompt per image is all that it takes, so each object gets its own image."""
    features = [feature.repeat(OBJECTS, 1, 1, 1) for feature in encode(batch["pixel_values"])]
    embedding = features if len(features) > 1 else features[0]
    points, labels = (batch[name].transpose(0, 1) for name in ("input_points", "input_labels"))
    target = batch["labels"][0][:, None]
    feedback, losses = None, []
    for turn in range(ROUNDS):
        output = stock(
            image_embeddings=embedding,
            input_points=points,
            input_labels=labels,
            input_masks=feedback,
            multimask_output=turn == 0,
        )
        result = ours.object_losses(output.pred_masks, output.iou_scores, None, target)
        losses.append(ours.reduce_losses(result)[0])
        best = output.iou_scores.argmax(-1)[..., None, None, None]
        feedback = torch.take_along_dim(output.pred_masks.detach(), best, dim=2)[:, :, 0].clamp(-32, 32)
        prediction = F.interpolate(feedback, target.shape[-2:], mode="bilinear") > 0
        click, label = noise_argmax_clicks(target > 0, prediction)
        points = torch.cat([points, click[:, None].float()], dim=2)
        labels = torch.cat([labels, label[:, None]], dim=2)
    return torch.stack(losses).mean()


def step_functions(
    ours: SamHfModel, stock: torch.nn.Module, batch: dict[str, Tensor], encode: Encode
) -> dict[str, Callable]:
    """Forward and backward of both; `encode` is that of `stock`, from pixels to features with gradient."""
    trainer = InteractiveTrainer(ours)

    def our_step() -> None:
        ours.zero_grad()
        trainer(**batch).loss.backward()

    def their_step() -> None:
        stock.zero_grad()
        stock_step(stock, ours, batch, encode).backward()

    return {"ours": our_step, "transformers": their_step}


def training_rows(setup: Setup, limits: Limits) -> Iterator[Row]:
    ours, stock = (model(setup, setup.training_size, torch.float32).train() for model in (our_model, stock_model))
    batch = training_batch(setup, SIZES[setup.training_size]["image_size"])
    functions = step_functions(ours, stock, batch, lambda pixels: [stock.vision_encoder(pixels).last_hidden_state])
    limit = count_flops(functions["ours"]) / limits.flops
    times, _ = alternate(functions, setup)
    name = f"training step, {ROUNDS} rounds of {OBJECTS} objects"
    yield Row(name, "loop over SamModel", times["ours"], times["transformers"], limit=limit)
