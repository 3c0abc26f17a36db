"""All masks of an image, from a grid of clicks."""

from .generator import MaskGenerator

__all__ = ["MaskGenerator"]
