"""Trigonometric and hyperbolic functions and their inverses.

Runtimes lack CUDA kernels for most of these ops, so that each derivative is put in terms of others.
"""

from __future__ import annotations

import math

from xaicompile.registry import elementwise

elementwise("Tan", lambda ctx, x, y: y * y + 1.0, at_zero=0.0)
elementwise("Asin", lambda ctx, x, y: 1.0 / ctx.b.Sqrt(1.0 - x * x), at_zero=0.0)
elementwise("Acos", lambda ctx, x, y: -1.0 / ctx.b.Sqrt(1.0 - x * x), at_zero=math.pi / 2)
elementwise("Atan", lambda ctx, x, y: 1.0 / (x * x + 1.0), at_zero=0.0)
elementwise("Sinh", lambda ctx, x, y: ctx.b.Sqrt(y * y + 1.0), at_zero=0.0)
elementwise("Cosh", lambda ctx, x, y: y * ctx.b.Tanh(x), at_zero=1.0)
elementwise("Asinh", lambda ctx, x, y: 1.0 / ctx.b.Sqrt(x * x + 1.0), at_zero=0.0)
elementwise("Acosh", lambda ctx, x, y: 1.0 / ctx.b.Sqrt(x * x - 1.0))
elementwise("Atanh", lambda ctx, x, y: 1.0 / (1.0 - x * x), at_zero=0.0)
