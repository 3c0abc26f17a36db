"""How good a model is, click after click."""

from .interactive import ClickTrace, mean_iou_per_click, simulate_clicks
from .summary import ClickSummary, summarise_clicks

__all__ = ["ClickSummary", "ClickTrace", "mean_iou_per_click", "simulate_clicks", "summarise_clicks"]
