"""Simulated users: clicks and boxes from masks, as pure functions without any global random state."""

from .centers import sample_center_clicks
from .people import sample_people_clicks
from .sampling import (
    DRAW_RANGE,
    FEEDBACK_LIMIT,
    INITIAL_DRAWS,
    boxes_from_masks,
    jitter_boxes,
    sample_error_clicks,
    sample_initial_prompts,
)

__all__ = [
    "DRAW_RANGE",
    "FEEDBACK_LIMIT",
    "INITIAL_DRAWS",
    "boxes_from_masks",
    "jitter_boxes",
    "sample_center_clicks",
    "sample_error_clicks",
    "sample_initial_prompts",
    "sample_people_clicks",
]
