"""LRP in matrix form, written from the definitions (spec section 5, zennit's table) and from nothing in the program.

A linear layer is its Jacobian, found by pushing unit vectors through it. Relevance, not a cotangent, is what flows
here, and every contribution z_kj = J_kj x_j stands in a matrix of its own: no convolution, no transpose of an operator,
no sign analysis and no c-space form is shared with the program that is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Matrix:
    """A layer z = J x + b on flattened arrays.

    Attributes:
        jacobian: J, [m, d].
        bias: b, [m].
        ones: The Jacobian when every weight is one; J itself for layers without weights. [m, d]
        samples: How many samples z holds, in front.
    """

    jacobian: Array
    bias: Array
    ones: Array
    samples: int

    def z(self, x: Array) -> Array:
        """The pre-activation."""
        return self.jacobian @ x + self.bias

    def contributions(self, x: Array) -> Array:
        """z_kj = J_kj x_j."""
        return self.jacobian * x


def jacobian(function: Callable[[Array], Array], shape: tuple[int, ...]) -> Array:
    """The matrix of a linear function, unit vector by unit vector."""
    units = np.eye(int(np.prod(shape)))
    return np.stack([np.asarray(function(unit.reshape(shape))).ravel() for unit in units], axis=1)


# --- stabilisers ------------------------------------------------------------------------------------------------------


def sign(z: Array) -> Array:
    """The sign, +1 at zero (spec 1.3)."""
    return np.where(z < 0, -1.0, 1.0)


def stabilised(z: Array, epsilon: float, kind: str = "absolute", samples: int = 1) -> Array:
    """z away from zero, in one of three ways (spec 1.3, 1.4)."""
    if kind == "clip":
        return sign(z) * np.maximum(np.abs(z), epsilon)
    if kind == "relative":
        rows = z.reshape(samples, -1)
        return z + sign(z) * np.repeat(epsilon * np.sqrt((rows**2).mean(axis=1)), rows.shape[1])
    return z + sign(z) * epsilon


def over(r: Array, denominator: Array) -> Array:
    """r / denominator with 0/0 = 0."""
    return np.divide(r, denominator, out=np.zeros_like(r), where=denominator != 0)


# --- rules: relevance r of the outputs, [m], to relevance of the inputs, [d] ------------------------------------------


def epsilon(
    layer: Matrix, x: Array, r: Array, epsilon: float = 1e-6, stabiliser: str = "absolute", bias: str = "absorb"
) -> Array:
    """R_j = sum_k z_kj / st(z_k) R_k."""
    z = layer.z(x) if bias == "absorb" else layer.contributions(x).sum(axis=1)
    return layer.contributions(x).T @ over(r, stabilised(z, epsilon, stabiliser, layer.samples))


def gamma(layer: Matrix, x: Array, r: Array, gamma: float = 0.25, bias: str = "absorb") -> Array:
    """Contributions of the sign of z_k count 1 + gamma times; units with z_k = 0 pass nothing."""
    z = np.sign(layer.z(x))

    def boosted(part: Array, z: Array) -> Array:
        return part * np.where(np.sign(part) * z > 0, 1 + gamma, 1.0)

    parts = boosted(layer.contributions(x), z[:, None])
    offset = boosted(layer.bias, z) if bias == "absorb" else 0.0
    return parts.T @ over(np.where(z == 0, 0.0, r), parts.sum(axis=1) + offset)


def shares(layer: Matrix, x: Array, r: Array, epsilon: float, bias: str, side: int) -> Array:
    """In proportion to the contributions of one sign."""

    def one_sided(part: Array) -> Array:
        return np.where(part * side > 0, part, 0.0)

    parts = one_sided(layer.contributions(x))
    offset = one_sided(layer.bias) if bias == "absorb" else 0.0
    return parts.T @ over(r, stabilised(parts.sum(axis=1) + offset, epsilon))


def z_plus(layer: Matrix, x: Array, r: Array, epsilon: float = 1e-6, bias: str = "absorb") -> Array:
    """In proportion to the positive contributions."""
    return shares(layer, x, r, epsilon, bias, +1)


def alpha_beta(
    layer: Matrix,
    x: Array,
    r: Array,
    alpha: float = 2.0,
    beta: float = 1.0,
    epsilon: float = 1e-6,
    bias: str = "absorb",
) -> Array:
    """alpha times the shares of the positive contributions, minus beta times those of the negative ones."""
    plus = shares(layer, x, r, epsilon, bias, +1)
    return alpha * plus - beta * shares(layer, x, r, epsilon, bias, -1)


def z_box(layer: Matrix, x: Array, r: Array, low: Array, high: Array, epsilon: float = 1e-6) -> Array:
    """In proportion to x_j J_kj - l_j max(J_kj, 0) - h_j min(J_kj, 0)."""
    weight = layer.jacobian
    parts = x * weight - low * np.maximum(weight, 0) - high * np.minimum(weight, 0)
    return parts.T @ over(r, stabilised(parts.sum(axis=1), epsilon))


def w_square(layer: Matrix, x: Array, r: Array, epsilon: float = 1e-6, bias: str = "ignore") -> Array:
    """In proportion to the squared weights."""
    parts = layer.jacobian**2
    offset = layer.bias**2 if bias == "absorb" else 0.0
    return parts.T @ over(r, parts.sum(axis=1) + offset + epsilon)


def flat(layer: Matrix, x: Array, r: Array, epsilon: float = 1e-6) -> Array:
    """The same to each input of a unit."""
    return layer.ones.T @ over(r, layer.ones.sum(axis=1) + epsilon)


def winner(layer: Matrix, x: Array, r: Array) -> Array:
    """All to the first largest input; `layer` is the average pool in place of the maximum."""
    values = np.where(layer.jacobian != 0, x, -np.inf)
    return np.bincount(values.argmax(axis=1), weights=r, minlength=x.size)


RULES: dict[str, Callable[..., Array]] = {
    "epsilon": epsilon,
    "norm": epsilon,
    "gamma": gamma,
    "z-plus": z_plus,
    "alpha-beta": alpha_beta,
    "z-box": z_box,
    "w-square": w_square,
    "flat": flat,
    "winner": winner,
    "average": epsilon,
    "proportional": z_plus,
}
