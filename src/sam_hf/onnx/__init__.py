"""Export a model for ONNX Runtime and transformers.js: other languages, and the browser."""

from .command import main
from .exporting import export_onnx

__all__ = ["export_onnx", "main"]
