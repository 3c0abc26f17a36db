"""Masks of what is prompted, in images of any size."""

from .image import Answers, PromptedImage

__all__ = ["Answers", "PromptedImage"]
