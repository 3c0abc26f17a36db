"""All masks of an image, from a grid of clicks, or from the maps of an instance decoder."""

from .generator import WAYS, MaskGenerator

__all__ = ["WAYS", "MaskGenerator"]
