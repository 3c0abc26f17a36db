"""Annotate images in a browser: click, correct, save masks to train on."""

from .command import main
from .folder import AnnotationFolder, Conflict
from .server import build_app
from .session import Session

__all__ = ["AnnotationFolder", "Conflict", "Session", "build_app", "main"]
