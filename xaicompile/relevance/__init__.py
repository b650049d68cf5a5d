"""Rules that differ from the gradient. Importing this package fills the rule table."""

from xaicompile.relevance import (
    activation,
    default,
    first,
    linear,
    neural,
    norm,
    norms,
    pool,
    product,
    products,
    rescale,
    resize,
    sample,
)

__all__ = [
    "activation",
    "default",
    "first",
    "linear",
    "neural",
    "norm",
    "norms",
    "pool",
    "product",
    "products",
    "rescale",
    "resize",
    "sample",
]
