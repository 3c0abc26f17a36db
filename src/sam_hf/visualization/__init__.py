"""Pictures of masks, clicks and boxes, for people."""

from .overlays import draw_boxes, draw_clicks, draw_masks, object_colors
from .sheets import SheetRow, prediction_sheet

__all__ = ["SheetRow", "draw_boxes", "draw_clicks", "draw_masks", "object_colors", "prediction_sheet"]
