"""How good an explanation is, measured inside the emitted model."""

from xaicompile.evaluation.flipping import Flipping, flipped, settings

__all__ = ["Flipping", "flipped", "settings"]
