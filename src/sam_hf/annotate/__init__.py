"""Annotate images in a browser: click, correct, save masks to train on."""

from .command import main  # the rest needs the extra "annotate"

__all__ = ["main"]
