"""Masks of what is prompted, in images of any size."""

from .image import Answers, PromptedImage
from .in_turn import answer_in_turn, open_image

__all__ = ["Answers", "PromptedImage", "answer_in_turn", "open_image"]
