"""Rules that differ from the gradient. Importing this package fills the rule table."""

from xaicompile.relevance import activation, default, linear, norm, norms, product, products, resize, sample

__all__ = ["activation", "default", "linear", "norm", "norms", "product", "products", "resize", "sample"]
