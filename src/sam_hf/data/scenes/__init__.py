"""Procedural scenes with exact masks: data for tests, demonstrations and a first training, no download."""

from .dataset import SyntheticScenes

__all__ = ["SyntheticScenes"]
