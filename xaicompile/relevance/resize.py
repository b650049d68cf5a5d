"""Resize where values from outside of the image are a constant other than zero."""

from __future__ import annotations

from xaicompile.registry import Context, Messages, relevance
from xaicompile.relevance.default import as_it_is


@relevance("Resize")
def resize(ctx: Context) -> Messages:
    """The transpose; a constant other than zero outside of the image is bias-like."""
    outside = ctx.attr("coordinate_transformation_mode") == "tf_crop_and_resize" and ctx.attr("extrapolation_value")
    return as_it_is(ctx) if outside else ctx.vjp()
