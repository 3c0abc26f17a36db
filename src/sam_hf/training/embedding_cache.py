"""Embeddings of images by a frozen encoder, kept on the disk: each image is encoded once, whatever run it is in."""

import hashlib
import json
import os
import warnings
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..modeling_sam_hf import SamHfModel
from ..positions import PositionFrame
from .checkpoints import flush


class EmbeddingCache:
    """Stands in for `SamHfModel.get_vision_features`, as long as the encoder does not change.

    A file is named by all that it depends on: weights, configuration and precision of the encoder, and the pixels that
    it sees, hence image and preprocessing. Nothing is ever out of date, several processes and runs may share a folder,
    and as files get their name when they are complete, it may be interrupted at any moment. Nothing is deleted. A file
    has a checksum; one that is damaged in any way is made anew, and so is one of an earlier version that has none.

    Args:
        model: its encoder is frozen and gives the same embedding every time.
        folder: takes `<hash>.safetensors`, 4 MiB for an image of SAM in float32.
    """

    def __init__(self, model: SamHfModel, folder: str | Path):
        self.model, self.folder = model, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.is_full = self.has_told_damage = False
        encoder = model.vision_encoder
        digest = hashlib.sha256(json.dumps(model.config.vision_config.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(bytes_of(tensor))
        self.encoder_key = digest.digest()

    def __call__(self, pixel_values: Tensor, frame: PositionFrame | None = None) -> list[Tensor]:
        """As `SamHfModel.get_vision_features`, without gradient."""
        device = pixel_values.device
        paths = [self.path(pixels, frame, device.type) for pixels in pixel_values.cpu()]
        found = [self.find(path) for path in paths]
        whole = [features for features in found if features is not None]
        if len(whole) == len(paths):
            return [torch.stack(parts).to(device) for parts in zip(*whole, strict=True)]
        with torch.no_grad():
            # All of the batch: parts of it may round differently.
            embeddings = self.model.get_vision_features(pixel_values, frame)
        for path, known, *features in zip(paths, found, *embeddings, strict=True):
            if known is None:
                self.keep(path, features)
        return embeddings

    def find(self, path: Path) -> list[Tensor] | None:
        """The features in a file; None without one, or if it is damaged, of which the first one gets a warning."""
        try:
            return read(path) if path.exists() else None
        except (OSError, SafetensorError, ValueError) as error:
            if not self.has_told_damage:
                warnings.warn(f"{path} is damaged and made anew, as others may be: {error}.", stacklevel=2)
            self.has_told_damage = True
            return None

    def keep(self, path: Path, features: list[Tensor]) -> None:
        """Write a file, as long as there is room: a cache must not end a run."""
        if self.is_full:
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


def read(path: Path) -> list[Tensor]:
    """The features of a file, on the CPU.

    Raises:
        OSError, SafetensorError, ValueError: if it is damaged.
    """
    with safe_open(path, "pt") as file:
        features = [file.get_tensor(str(index)) for index in range(len(file.keys()))]
        expected = (file.metadata() or {}).get("crc32")
    if expected != checksum(features):
        raise ValueError("its content does not have its checksum" if expected else "it has no checksum")
    return features


def checksum(features: list[Tensor]) -> str:
    """Against flipped bits, and fast."""
    value = 0
    for part in features:
        value = zlib.crc32(bytes_of(part), value)
    return str(value)


def write(path: Path, features: list[Tensor]) -> None:
    """Write a file that is complete or absent."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial")
    named = {str(index): part.contiguous() for index, part in enumerate(features)}
    try:
        save_file(named, partial, metadata={"crc32": checksum(features)})
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
    elif getattr(model.config.vision_config, "attention_dropout", 0):
        reason = "dropout changes embeddings from step to step; set attention_dropout to 0 in the model's config.json"
    if reason:
        warnings.warn(f"--embedding_cache is off: {reason}.", stacklevel=2)
        return None
    return EmbeddingCache(model, folder)


__all__ = ["EmbeddingCache", "open_cache"]
