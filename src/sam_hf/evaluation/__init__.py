"""How good a model is, prompt after prompt, and what it finds by itself."""

from .comparison import Comparison, compare, comparison_table
from .everything import FoundMasks, evaluate_everything, instance_numbers, report_everything
from .interactive import ClickTrace, simulate_clicks, trace_image
from .negatives import score_negative
from .numbers import evaluation_numbers
from .options import EVERYTHING, EvaluationOptions, parse_evaluation_options
from .predictors import AutomaticPredictor, Prediction, Predictor, Prompts, SamHfPredictor, open_predictor
from .processes import evaluate
from .protocols import PROTOCOLS, Protocol
from .report import draw_cases, names_of, write_report
from .summary import ClickSummary, summarise_clicks
from .thresholds import FittedThresholds, fit_thresholds
from .traces import TRACES, load_traces, save_traces

__all__ = [
    "EVERYTHING",
    "PROTOCOLS",
    "TRACES",
    "AutomaticPredictor",
    "ClickSummary",
    "ClickTrace",
    "Comparison",
    "EvaluationOptions",
    "FittedThresholds",
    "FoundMasks",
    "Prediction",
    "Predictor",
    "Prompts",
    "Protocol",
    "SamHfPredictor",
    "compare",
    "comparison_table",
    "draw_cases",
    "evaluate",
    "evaluate_everything",
    "evaluation_numbers",
    "fit_thresholds",
    "instance_numbers",
    "load_traces",
    "names_of",
    "open_predictor",
    "parse_evaluation_options",
    "report_everything",
    "save_traces",
    "score_negative",
    "simulate_clicks",
    "summarise_clicks",
    "trace_image",
    "write_report",
]
