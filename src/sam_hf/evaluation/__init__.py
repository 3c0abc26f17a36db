"""How good a model is, click after click."""

from .interactive import ClickTrace, simulate_clicks
from .summary import ClickSummary, summarise_clicks

__all__ = ["ClickSummary", "ClickTrace", "simulate_clicks", "summarise_clicks"]
