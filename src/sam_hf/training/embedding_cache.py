"""Embeddings of images by a frozen encoder, kept on the disk: each image is encoded once, whatever run it is in."""

import hashlib
import json
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..modeling_sam_hf import SamHfModel
from ..positions import PositionFrame
from .checkpoints import flush


class EmbeddingCache:
    """Stands in for `SamHfModel.get_image_embeddings`, as long as the encoder does not change.

    A file is named by all that it depends on: weights, configuration and precision of the encoder, and the pixels that
    it sees, hence image and preprocessing. Nothing is ever out of date, several processes and runs may share a folder,
    and as files get their name when they are complete, it may be interrupted at any moment. Nothing is deleted.

    Args:
        model: its encoder is frozen and gives the same embedding every time.
        folder: takes `<hash>.safetensors`, 4 MiB for an image of SAM in float32.
    """

    def __init__(self, model: SamHfModel, folder: str | Path):
        self.model, self.folder = model, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.is_full = False
        encoder = model.vision_encoder
        digest = hashlib.sha256(json.dumps(model.config.vision_config.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(bytes_of(tensor))
        self.encoder_key = digest.digest()

    def __call__(self, pixel_values: Tensor, frame: PositionFrame | None = None) -> list[Tensor]:
        """As `SamHfModel.get_image_embeddings`, without gradient."""
        device = pixel_values.device
        paths = [self.path(pixels, frame, device.type) for pixels in pixel_values.cpu()]
        found = [read(path, device) for path in paths]
        if any(features is None for features in found):
            with torch.no_grad():
                # All of the batch: parts of it may round differently.
                embeddings = self.model.get_image_embeddings(pixel_values, frame)
            for path, *features in zip(paths, *embeddings, strict=True):
                self.keep(path, features)
            return embeddings
        whole = [features for features in found if features is not None]
        return [torch.stack([features[name] for features in whole]) for name in sorted(whole[0])]

    def keep(self, path: Path, features: list[Tensor]) -> None:
        """Write a file, as long as there is room: a cache must not end a run."""
        if self.is_full or path.exists():
            return
        try:
            write(path, features)
        except (OSError, SafetensorError) as error:
            self.is_full = True
            warnings.warn(f"{self.folder} takes no more embeddings: {error}. Images are encoded anew.", stacklevel=2)

    def path(self, pixels: Tensor, frame: PositionFrame | None, device_type: str) -> Path:
        precision = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else pixels.dtype
        digest = hashlib.sha256(self.encoder_key)
        digest.update(f"{precision} {frame and tuple(frame)} {tuple(pixels.shape)}".encode())
        digest.update(bytes_of(pixels))
        return self.folder / f"{digest.hexdigest()}.safetensors"


def bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def read(path: Path, device: torch.device) -> dict[str, Tensor] | None:
    """The features of a file; None if there is none. A damaged one is removed, with a warning."""
    try:
        return load_file(path, device=str(device)) if path.exists() else None
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{path} is damaged and made anew: {error}.", stacklevel=2)
        path.unlink(missing_ok=True)
        return None


def write(path: Path, features: list[Tensor]) -> None:
    """Write a file that is complete or absent."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial")
    try:
        save_file({str(index): part.contiguous() for index, part in enumerate(features)}, partial)
        flush(partial)  # else a power cut may keep the name and lose the content
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_cache(model: SamHfModel, folder: str | None, is_augmented: bool) -> EmbeddingCache | None:
    """The cache of a run, or None, with a warning that says why if one was asked for by `folder`."""
    if folder is None:
        return None
    reason = None
    if any(parameter.requires_grad for parameter in model.vision_encoder.parameters()):
        reason = "the image encoder trains, which changes its embeddings; add --freeze encoder"
    elif is_augmented:
        reason = "augmentation makes a new image of every draw; add --augment false"
    elif model.config.vision_config.attention_dropout:
        reason = "dropout changes embeddings from step to step; set attention_dropout to 0 in the model's config.json"
    if reason:
        warnings.warn(f"--embedding_cache is off: {reason}.", stacklevel=2)
        return None
    return EmbeddingCache(model, folder)


__all__ = ["EmbeddingCache", "open_cache"]
