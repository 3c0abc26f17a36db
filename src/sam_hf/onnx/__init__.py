"""Export a model for ONNX Runtime and transformers.js: other languages, and the browser; or for X-AnyLabeling."""

from .command import main
from .exporting import export_onnx
from .x_anylabeling import export_x_anylabeling

__all__ = ["export_onnx", "export_x_anylabeling", "main"]
