"""How good a model is, prompt after prompt."""

from .interactive import ClickTrace, simulate_clicks, trace_image
from .negatives import score_negative
from .predictors import Prediction, Predictor, Prompts, SamHfPredictor
from .processes import evaluate
from .protocols import PROTOCOLS, Protocol
from .summary import ClickSummary, summarise_clicks

__all__ = [
    "PROTOCOLS",
    "ClickSummary",
    "ClickTrace",
    "Prediction",
    "Predictor",
    "Prompts",
    "Protocol",
    "SamHfPredictor",
    "evaluate",
    "score_negative",
    "simulate_clicks",
    "summarise_clicks",
    "trace_image",
]
