"""Clicks in the errors of masks, against the formula that draws noise for every pixel."""

from collections.abc import Callable, Iterator

import torch
from measuring import Limits, Row, alternate, peak_memory
from models import Setup
from torch import Tensor

from sam_hf.clicks import sample_error_clicks


def noise_argmax_clicks(target: Tensor, prediction: Tensor, num_points: int = 1) -> tuple[Tensor, Tensor]:
    """SAM 2's sampler: bool [K, 1, H, W] -> points [K, P, 2] and labels [K, P]."""
    count, _, height, width = target.shape
    false_positive, false_negative = ~target & prediction, target & ~prediction
    all_correct = torch.all((target == prediction).flatten(2), dim=2)[..., None, None]
    noise = torch.rand(count, num_points, height, width, 2, device=target.device)
    noise[..., 0] *= false_positive | (all_correct & ~target)
    noise[..., 1] *= false_negative
    index = noise.flatten(2).argmax(dim=2)
    labels, index = index % 2, index // 2
    return torch.stack((index % width, index // width), dim=2), labels


def click_functions(setup: Setup) -> dict[str, Callable]:
    generator = torch.Generator().manual_seed(0)
    shape = setup.masks, 1, setup.mask_side, setup.mask_side
    # Not `zeros`, whose memory is not there until it is used, and would count as that of the work.
    target, prediction = (torch.full(shape, False, device=setup.device) for _ in range(2))
    for mask in (*target, *prediction):  # boxes that overlap in part
        top, left = (setup.mask_side * torch.rand(2, generator=generator) / 2).long().tolist()
        mask[0, top : top + setup.mask_side // 3, left : left + setup.mask_side // 3] = True
    return {
        "ours": lambda: sample_error_clicks(target, prediction, generator=generator),
        "noise per pixel": lambda: noise_argmax_clicks(target, prediction),
    }


def click_rows(setup: Setup, limits: Limits) -> Iterator[Row]:
    name = f"error clicks, {setup.masks} masks of {setup.mask_side} x {setup.mask_side}"
    times, _ = alternate(click_functions(setup), setup)
    # Both masks have to be read, a byte per pixel.
    limit = 2 * setup.masks * setup.mask_side**2 / limits.bandwidth
    yield Row(name, "noise per pixel", times["ours"], times["noise per pixel"], limit=limit)
    peaks = [peak_memory("clicks", who, setup) for who in ("ours", "noise per pixel")]
    yield Row(f"peak memory, {name}", "noise per pixel", *peaks, unit="bytes")
