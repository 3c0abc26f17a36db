"""What is clicked on in an evaluation: models of this package and of transformers, classical methods, and yours."""

from .opening import open_predictor
from .own import SamHfPredictor
from .predictor import AutomaticPredictor, Prediction, Predictor, Prompts

__all__ = ["AutomaticPredictor", "Prediction", "Predictor", "Prompts", "SamHfPredictor", "open_predictor"]
