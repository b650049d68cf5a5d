"""Kernel machines and clusterings: dense formulas in numpy (the oracle), and the ways to write them as graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from tests.graphs import net

Array = np.ndarray


def soft(h: Array, axis: int = -1) -> Array:
    """Soft weights of a soft minimum: softmax of -h."""
    e = np.exp(-(h - h.min(axis, keepdims=True)))
    return e / e.sum(axis, keepdims=True)


def entropy(p: Array, axis: int = -1) -> Array:
    """-sum p log p, and 0 for p = 0."""
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis)


def squares(x: Array, points: Array) -> Array:
    """(x - u_j)^2 by feature, [N,M,d]: what the compiler never makes."""
    return (x[:, None] - points) ** 2


class Density:
    """o' = -log of a normed kernel sum, and its relevance, as a dense computation."""

    def __init__(self, x: Array, points: Array, weights: Array, gamma: float, root: bool = False) -> None:
        self.parts = squares(x, points)
        self.d = self.parts.sum(-1)
        self.share = weights / weights.sum()
        kernel = np.exp(-gamma * (np.sqrt(self.d) if root else self.d))
        self.score = -np.log((kernel * self.share).sum(1))
        self.p = kernel * self.share / (kernel * self.share).sum(1, keepdims=True)
        self.gamma = gamma

    def v_out(self) -> Array:
        """R_i = o' sum_j p_j (x - u_j)_i^2 / d_j."""
        return self.score[:, None] * np.einsum("nm,nmd->nd", self.p / self.d, self.parts)

    def v_act(self) -> Array:
        """R_i = gamma sum_j p_j (x - u_j)_i^2."""
        return self.gamma * np.einsum("nm,nmd->nd", self.p, self.parts)

    def winner(self) -> Array:
        """All to the point with the largest term."""
        best, rows = self.p.argmax(1), np.arange(len(self.p))
        return self.score[:, None] * self.parts[rows, best] / self.d[rows, best][:, None]

    def divergence(self) -> Array:
        """KL(p || normed weights)."""
        return (self.p * np.log(self.p / self.share)).sum(1)


def evidence(x: Array, centres: Array) -> Array:
    """min over k != c of d_k - d_c, [N,K], pair by pair."""
    d = squares(x, centres).sum(-1)
    pairs = d[:, None, :] - d[:, :, None]
    pairs[:, np.arange(len(centres)), np.arange(len(centres))] = np.inf
    return pairs.min(-1)


def midpoint(x: Array, centres: Array, c: int, k: int) -> Array:
    """(x - m) w of the hyperplane between two centres, with m in their middle: sums to d_k - d_c."""
    middle, w = (centres[c] + centres[k]) / 2, 2 * (centres[c] - centres[k])
    return (x - middle) * w


def kernel_logits(x: Array, points: Array, members: Array, gamma: float, beta: float) -> Array:
    """beta/gamma log of each cluster's kernel sum."""
    return beta / gamma * np.log(np.exp(-gamma * squares(x, points).sum(-1)) @ members)


def log_odds(z: Array) -> Array:
    """log p/(1-p) of each class, by pairs: -log sum exp(z_j - z_k) over the others."""
    others = np.where(np.eye(z.shape[1], dtype=bool), -np.inf, z[:, None, :] - z[:, :, None])
    return -np.logaddexp.reduce(others, -1)


# --- graphs -----------------------------------------------------------------------------------------------------------

DIFFERENCE = "one = Constant <value_ints = [1]> () u = Unsqueeze(x, one) e = Sub(u, points)"
LAST = "last = Constant <value_ints = [-1]> ()"
LENGTHS = """one = Constant <value_ints = [1]> () xx = Mul(x, x)
    s = ReduceSum <keepdims = 1> (xx, one)"""
SQUARES = {
    "mul": f"{DIFFERENCE} q = Mul(e, e) {LAST} d = ReduceSum <keepdims = 0> (q, last)",
    "pow": f"{DIFFERENCE} q = Pow(e, two) {LAST} d = ReduceSum <keepdims = 0> (q, last)",
    "sumsquare": f"{DIFFERENCE} {LAST} d = ReduceSumSquare <keepdims = 0> (e, last)",
    "norm": f"{DIFFERENCE} {LAST} r = ReduceL2 <keepdims = 0> (e, last) d = Pow(r, two)",
    "matmul": f"""{LENGTHS} t = Transpose <perm = [1, 0]> (points) m = MatMul(x, t) m2 = Mul(m, two)
        a0 = Sub(s, m2) d0 = Add(a0, own) d = Max(d0, zero)""",
    "gemm": """one = Constant <value_ints = [1]> () s = ReduceSumSquare <keepdims = 1> (x, one) n = Mul(s, zero)
        m = Gemm <alpha = -2.0, transB = 1> (x, points, n) a0 = Add(s, m) d = Add(own, a0)""",
    "concat": f"""{LENGTHS} x2 = Mul(x, minus) n = Shape(s) ones = Expand(unit, n)
        c = Concat <axis = 1> (x2, s, ones) m = MatMul(c, table) d = Relu(m)""",
}
SUMS = {
    "matmul": "a = Mul(d, slope) k = Exp(a) y = MatMul(k, weights)",
    "gemm": "a = Mul(d, slope) k = Exp(a) w1 = Unsqueeze(weights, one) y = Gemm(k, w1)",
    "sum": "a = Mul(slope, d) k = Exp(a) kw = Mul(k, weights) y = ReduceSum <keepdims = 0> (kw, one)",
    "log": "a = Mul(d, slope) k = Exp(a) f = MatMul(k, weights) g = Log(f) y = Neg(g)",
    "lse": "a = Mul(d, slope) l = Log(weights) b = Add(a, l) y = ReduceLogSumExp <keepdims = 0> (b, one)",
    "stable": """a = Mul(d, slope) l = Log(weights) b = Add(a, l) top = ReduceMax <keepdims = 1> (b, one)
        t0 = Sub(b, top) e0 = Exp(t0) e1 = ReduceSum <keepdims = 1> (e0, one) e2 = Log(e1) y0 = Add(e2, top)
        y1 = Squeeze(y0, one) y = Neg(y1)""",
}
TYPES = {"float64": "double", "float32": "float", "float16": "float16"}


def constants(points: Array, gamma: float, weights: Array | None, dtype: str) -> dict[str, Array]:
    """What the texts above read."""
    table = np.concatenate([points.T, np.ones((1, len(points))), (points**2).sum(1)[None]])
    given = {
        "points": points,
        "own": (points**2).sum(1),
        "table": table,
        "two": np.asarray(2.0),
        "minus": np.asarray(-2.0),
        "zero": np.asarray(0.0),
        "unit": np.asarray(1.0),
        "slope": np.asarray(-gamma),
    }
    if weights is not None:
        given["weights"] = weights
    return {k: np.asarray(v, dtype) for k, v in given.items()}


def density_graph(
    squared: str,
    summed: str,
    points: Array,
    weights: Array,
    gamma: float,
    dtype: str = "float64",
    rho: float | None = None,
) -> onnx.ModelProto:
    """A kernel sum in one of its writings; with rho, less a threshold."""
    t, rank = TYPES[dtype], ["N", "1"] if summed == "gemm" else ["N"]
    body = f"{SQUARES[squared]} {SUMS[summed]}"
    given = constants(points, gamma, weights, dtype)
    if rho is not None:
        body, given["rho"] = body.replace(" y = ", " f = ") + " y = Sub(f, rho)", np.asarray(rho, dtype)
    used = {k: v for k, v in given.items() if f"{k}," in body or f"{k})" in body}
    return net(f"({t}[N,{points.shape[1]}] x) => ({t}[{','.join(rank)}] y)", body, **used)


def svm_node(points: Array, weights: Array, gamma: float, rho: float) -> onnx.ModelProto:
    """The SVMRegressor that exporters write for a one-class SVM, with a sign behind it."""
    node = helper.make_node(
        "SVMRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        coefficients=weights.tolist(),
        kernel_params=[gamma, 0.0, 3.0],
        kernel_type="RBF",
        n_supports=len(points),
        post_transform="NONE",
        rho=[-rho],
        support_vectors=points.reshape(-1).tolist(),
    )
    sign = helper.make_node("Sign", ["y"], ["label"])
    values = {"x": ["N", points.shape[1]], "y": ["N", 1], "label": ["N", 1]}
    x, *outputs = (helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, s) for k, s in values.items())
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    graph = helper.make_graph([node, sign], "svm", [x], outputs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


Build = Callable[[Array, Array, float, float], onnx.ModelProto]


def powers(points: Array, members: Array, gamma: float, beta: float) -> onnx.ModelProto:
    """Kernel k-means as powers of kernel sums over their sum."""
    body = f"""{SQUARES["matmul"]} a1 = Mul(d, slope) k = Exp(a1) z = MatMul(k, members) p = Pow(z, power)
        total = ReduceSum <keepdims = 1> (p, one) y = Div(p, total)"""
    return clusters(body, points, members, gamma, beta)


def normalised(points: Array, members: Array, gamma: float, beta: float) -> onnx.ModelProto:
    """The same with normalisers Z of their own."""
    body = f"""{SQUARES["matmul"]} a1 = Mul(d, slope) k = Exp(a1) f = MatMul(k, members) z = Div(f, norms)
        p = Pow(z, power) total = ReduceSum <keepdims = 1> (p, one) y = Div(p, total)"""
    return clusters(body, points, (members > 0).astype(float), gamma, beta, norms=1 / members.max(0))


def separate(points: Array, members: Array, gamma: float, beta: float) -> onnx.ModelProto:
    """Each cluster's points and distances apart."""
    body = "one = Constant <value_ints = [1]> () u = Unsqueeze(x, one) last = Constant <value_ints = [2]> ()"
    names: list[str] = []
    given: dict[str, Array] = {}
    for c, column in enumerate(members.T):
        given |= {f"points{c}": points[column > 0], f"norm{c}": np.asarray(-np.log(column.max()))}
        body += f""" e{c} = Sub(u, points{c}) d{c} = ReduceSumSquare <keepdims = 0> (e{c}, last) a{c} = Mul(d{c}, slope)
            l{c} = ReduceLogSumExp <keepdims = 1> (a{c}, one) z{c} = Sub(l{c}, norm{c})"""
        names.append(f"z{c}")
    body += f" j = Concat <axis = 1> ({', '.join(names)}) b = Mul(j, power) y = Softmax <axis = 1> (b)"
    return clusters(body, points, members, gamma, beta, **given)


def logarithms(points: Array, members: Array, gamma: float, beta: float) -> onnx.ModelProto:
    """Kernel k-means as a softmax over logarithms."""
    body = f"""{SQUARES["mul"]} a1 = Mul(d, slope) k = Exp(a1) z = MatMul(k, members) l = Log(z) b = Mul(l, power)
        y = Softmax <axis = 1> (b)"""
    return clusters(body, points, members, gamma, beta)


def pools(points: Array, members: Array, gamma: float, beta: float) -> onnx.ModelProto:
    """Kernel k-means as a softmax over log-sum-exps, joined."""
    body, names = f"{SQUARES['sumsquare']} a1 = Mul(d, slope)", []
    for c, column in enumerate(members.T):
        places = ", ".join(map(str, np.flatnonzero(column)))
        body += f""" i{c} = Constant <value_ints = [{places}]> () g{c} = Gather <axis = 1> (a1, i{c})
            l{c} = ReduceLogSumExp <keepdims = 1> (g{c}, one) z{c} = Sub(l{c}, norm{c})"""
        names.append(f"z{c}")
    body += f" j = Concat <axis = 1> ({', '.join(names)}) b = Mul(j, power) y = Softmax <axis = 1> (b)"
    norms = {f"norm{c}": np.asarray(-np.log(column.max())) for c, column in enumerate(members.T)}
    return clusters(body, points, members, gamma, beta, **norms)


def clusters(body: str, points: Array, members: Array, gamma: float, beta: float, **more: Array) -> onnx.ModelProto:
    """A graph of kernel k-means."""
    given = constants(points, gamma, None, "float64") | {"members": members, "power": np.asarray(beta / gamma)} | more
    used = {k: v for k, v in given.items() if f"{k}," in body or f"{k})" in body}
    return net(f"(double[N,{points.shape[1]}] x) => (double[N,{members.shape[1]}] y)", body, **used)


KERNEL_K_MEANS: dict[str, Build] = {
    "powers": powers,
    "normalised": normalised,
    "separate": separate,
    "logarithms": logarithms,
    "pools": pools,
}
