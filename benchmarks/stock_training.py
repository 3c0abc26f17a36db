"""Train `transformers.SamModel` as the notebooks do, for a given time: the peer of a run in docs/results.md.

    python benchmarks/stock_training.py --dataset DSB2018_FOLDER --output runs/quality/stock_0 --seconds 240 --seed 0

One object of each image, prompted by its box with each side moved by up to 20 pixels; one mask for it; dice and
cross-entropy; Adam. What differs from them: weights are random, so that all parts are trained and the rate is higher,
and the contrast of images is stretched, as it is for the model that it is compared with. The sizes are those of the
preset `small` at 384 pixels.
"""

import argparse
import json
import time
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

from sam_hf import SamHfConfig
from sam_hf.data import Records, decode_masks, open_dataset, rgb_array

IMAGE_SIZE, BATCH, BOX_NOISE = 384, 4, 20


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240, help="of the processor, for the steps")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # ten times as fast in the first steps
    rng = np.random.default_rng(args.seed)
    model, processor = stock_model()
    dataset = open_dataset(args.dataset, "train")
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    begin, losses = time.process_time(), []
    bar = tqdm(count(), unit="step")
    for _ in bar:
        share = (time.process_time() - begin) / args.seconds
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(1.0, 0.02 + 2 * (1 - share), (len(losses) + 1) / 20)
        inputs, target = batch(dataset, processor, rng)
        logits = model(**inputs, multimask_output=False).pred_masks[:, 0, 0]
        loss = dice_and_cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
    model.save_pretrained(args.output / "best")
    processor.save_pretrained(args.output / "best")
    seconds = round(time.process_time() - begin)
    about = {"steps": len(losses), "processor_seconds": seconds, "loss": float(np.mean(losses[-20:]))}
    (args.output / "training.json").write_text(json.dumps(about) + "\n")
    print(f"{args.output}: {len(losses)} steps, {seconds} s")


def stock_model() -> tuple[SamModel, SamProcessor]:
    """Of the sizes of the preset `small`, as far as SAM has them."""
    small = SamHfConfig.from_preset("small", IMAGE_SIZE)
    vision, decoder = small.vision_config, small.mask_decoder_config
    width = vision.output_channels
    config = SamConfig(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": vision.patch_size,
            "hidden_size": vision.hidden_size,
            "mlp_dim": vision.mlp_dim,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "output_channels": width,
            "window_size": vision.window_size,
            "global_attn_indexes": vision.global_attn_indexes,
            "use_rel_pos": vision.use_rel_pos,
            "num_pos_feats": width // 2,  # of prompts
            "scale": width // 2,
        },
        prompt_encoder_config={
            "hidden_size": width,
            "image_size": IMAGE_SIZE,
            "patch_size": vision.patch_size,
            "image_embedding_size": IMAGE_SIZE // vision.patch_size,
        },
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": decoder.mlp_dim,
            "num_hidden_layers": decoder.num_hidden_layers,
            "num_attention_heads": decoder.num_attention_heads,
            "iou_head_hidden_dim": decoder.iou_head_hidden_dim,
        },
    )
    sizes = {"size": {"longest_edge": IMAGE_SIZE}, "pad_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    grid = 4 * IMAGE_SIZE // vision.patch_size
    masks = {"mask_size": {"longest_edge": grid}, "mask_pad_size": {"height": grid, "width": grid}}
    return SamModel(config), SamProcessor(SamImageProcessor(**sizes, **masks))


def batch(dataset: Records, processor: SamProcessor, rng: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Model inputs for one box of each of `BATCH` images, and the masks of their objects on the mask grid."""
    images, boxes, masks = [], [], []
    while len(images) < BATCH:
        record = dataset[int(rng.integers(len(dataset)))]
        if not record["objects"]:
            continue
        mask = decode_masks([record["objects"][int(rng.integers(len(record["objects"])))]])[0]
        y, x = np.nonzero(mask)
        height, width = mask.shape
        noise = rng.integers(0, BOX_NOISE, 4) * (-1, -1, 1, 1)
        box = np.array([x.min(), y.min(), x.max(), y.max()]) + noise
        boxes.append([box.clip(0, [width, height, width, height]).tolist()])
        images.append(rgb_array(record["image"], stretch_contrast=True))
        masks.append(mask.astype(np.uint8))
    inputs = processor(images, segmentation_maps=masks, input_boxes=boxes, return_tensors="pt")
    target = inputs.pop("labels").float()
    names = ("pixel_values", "input_boxes")
    return {name: inputs[name].float() for name in names}, target


def dice_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch, [B, h, w]; the notebooks take MONAI's `DiceCELoss(sigmoid=True, squared_pred=True)`."""
    share = logits.sigmoid()
    overlap, size = (share * target).sum((1, 2)), (share**2 + target**2).sum((1, 2))
    dice = 1 - (2 * overlap + 1e-5) / (size + 1e-5)
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, target)


if __name__ == "__main__":
    main()
