"""How good a model is, click after click."""

from .interactive import ClickTrace, simulate_clicks
from .negatives import score_negative
from .summary import ClickSummary, summarise_clicks

__all__ = ["ClickSummary", "ClickTrace", "score_negative", "simulate_clicks", "summarise_clicks"]
