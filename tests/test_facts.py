"""What is proven about tensors: intervals that hold, constants that are folded, and what depends on what."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx
import pytest

from tests.cases import case, const, ints, real, spread
from tests.cases.build import build, explained_inputs
from tests.cases.table import CASES
from tests.graphs import net, weight
from tests.reference_ops import evaluator
from xaicompile import ir
from xaicompile.bodies import quantised
from xaicompile.facts import ANY, TRANSFER, Facts, Interval, find_constants

MORE = [  # rows that the gradients' table lacks or that have other constants
    case("Swish", "default", real(3, 4), opset=24),
    case("Clip", "below the data", real(3, 4), const(real(low=-5, high=-4)), const(real(low=-3.5, high=-3))),
    case("Clip", "above the data", real(3, 4), const(real(low=4, high=5)), const(real(low=6, high=7))),
    case("Clip", "no lower end", real(3, 4), None, const(real(low=0.5, high=1))),
    case("Clip", "data as ends", real(3, 4), real(), real()),
    case("LeakyRelu", "steep", real(3, 4), alpha=3.0),
    case("LeakyRelu", "negative", real(3, 4), alpha=-0.5),
    case("PRelu", "negative slope", real(3, 4), const(real(4, low=-1, high=-0.1))),
    case("ThresholdedRelu", "negative", real(3, 4), alpha=-0.5),
    case("Elu", "negative", real(3, 4), alpha=-1.0),
    case("Mul", "by a negative", real(3, 4), const(real(4, low=-2, high=-1))),
    case("Div", "by a positive", real(3, 4), const(real(4, low=1, high=2))),
    case("Div", "by a negative", real(3, 4), const(real(4, low=-2, high=-1))),
    case("Sub", "from a constant", const(real(4)), real(3, 4)),
    case("Pow", "even", real(3, 4), const(real(low=2, high=2))),
    case("Pow", "odd", real(3, 4), const(real(low=3, high=3))),
    case("Pad", "negative value", real(3, 4), ints(1, 0, 0, 2), const(real(low=-3, high=-3)), mode="constant"),
    case("ReduceMax", "axis", spread(3, 4), ints(1)),
    case("GlobalLpPool", "default", real(2, 3, 4, 4)),
]
BOXES: dict[str, Interval] = {
    "any sign": (-2.0, 2.0),
    "positive": (0.5, 3.0),
    "from zero": (0.0, 2.0),
    "to zero": (-2.0, 0.0),
    "negative": (-3.0, -0.5),
    "half open": (0.0, math.inf),
    "nothing known": ANY,
}


# The sizes of NonZero and Range change with the values; the reference mixes types in MeanVarianceNormalization
LEFT_OUT = ("NonZero", "Range", "MeanVarianceNormalization")
ROWS = {row.id: row for row in (*CASES, *MORE) if row.op not in LEFT_OUT}


@functools.cache
def bounded(row_id: str, box: Interval) -> dict[str, tuple[str, Interval, np.ndarray]]:
    """Op, interval and values of each tensor that a node makes, on inputs that fill the box."""
    row = ROWS[row_id]
    model, feed = build(row, "float64")
    names = explained_inputs(row)
    low, high = max(box[0], -4.0), min(box[1], 4.0)
    for name in names:
        value = feed[name]
        span = float(np.ptp(value)) or 1.0
        feed[name] = low + (value - value.min()) / span * (high - low)
    p = ir.load(model)
    find_constants(p)
    facts = Facts(p, names, box)
    del model.graph.output[:]
    makers = {y: node.op_type for node in model.graph.node for y in node.output if y}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in makers)
    with np.errstate(all="ignore"):
        values = evaluator(model).run(None, feed)
    return {
        name: (op, facts.bounds(p.tensors[name]), np.asarray(value))
        for (name, op), value in zip(makers.items(), values, strict=True)
        if name in p.tensors  # raising the opset renames some
    }


@pytest.mark.parametrize("row", ROWS)
def test_intervals_hold(row: str) -> None:
    for box in BOXES.values():
        for name, (op, (low, high), value) in bounded(row, box).items():
            if value.dtype.kind in "iuf":
                known = value[np.isfinite(value)]
                slack = 1e-12 * np.abs(known).max(initial=1.0)
                where = f"{op} {name} from {box}: {known} in [{low}, {high}]"
                assert low <= high, where
                assert (known >= low - slack).all() and (known <= high + slack).all(), where


def test_every_transfer_row_is_exercised() -> None:
    """Each row of the table says something about a tensor in some case."""
    said = set()
    for row in ROWS:
        for box in BOXES.values():
            said |= {op for op, interval, _ in bounded(row, box).values() if interval != ANY}
    assert set(TRANSFER) - said == {"ConstantOfShape", "QuantizeLinear"}  # the tests below


def test_the_interval_of_constant_of_shape() -> None:
    body = "s = Shape(x)\nk = ConstantOfShape<value=float[1] {-3.0}>(s)\nz = ConstantOfShape(s)\ny = Sum(x, k, z)"
    p, facts = facts_of(net("(float[N,3] x) => (float[N,3] y)", body))
    assert facts.bounds(p.tensors["k"]) == (-3.0, -3.0) and facts.bounds(p.tensors["z"]) == (0.0, 0.0)


# Elementwise ops, pools and reductions whose results have bounds to speak of; linear ops and normalisations have none
BOUNDED = """
    MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool LRN Relu LeakyRelu PRelu Elu Selu Celu
    ThresholdedRelu Clip Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign Gelu Mish Erf Exp Log Sqrt Abs Neg
    Reciprocal Pow Add Sub Mul Div Sum Mean Max Min Softmax LogSoftmax ReduceSum ReduceMean ReduceMax ReduceMin
    ReduceL2 ReduceSumSquare Flatten Reshape Transpose Squeeze Unsqueeze Concat Split Slice Pad Gather Expand Tile
    Where Identity Dropout Cast ConstantOfShape ScatterElements ScatterND GatherElements GatherND OneHot
    DepthToSpace CumSum TopK Trilu
"""


def test_the_operators_of_convolutional_networks_have_a_transfer_row() -> None:
    assert set(BOUNDED.split()) - set(TRANSFER) == set()


def test_the_interval_of_a_rounding_keeps_the_sign() -> None:
    """Views read a QuantizeLinear as the float that the integers stand for."""
    body = "r = Relu(x)\nq = QuantizeLinear(r, s)\ny = DequantizeLinear(q, s)"
    p = facts_of(net("(float[N,3] x) => (float[N,3] y)", body, s=np.asarray(0.5, np.float32)))[0]
    quantised.run(p)
    assert Facts(p, ["x"]).nonnegative(p.tensors["y"])
    assert not Facts(p, ["x"]).nonnegative(p.tensors["x"])


def test_a_sharper_fact_where_it_counts() -> None:
    """The facts that simplify rules: after these ops nothing is negative."""
    for op in ("Relu", "Sigmoid", "Softmax", "HardSigmoid", "Softplus", "Exp", "Abs", "ReduceL2", "ReduceSumSquare"):
        row = next(r for r in ROWS.values() if r.op == op)
        found = [interval for name, interval, _ in bounded(row.id, ANY).values() if name == op]
        assert all(low >= 0 for low, _ in found), op
    chain = "a = Relu(x)\nb = MaxPool<kernel_shape=[2,2]>(a)\nc = Concat<axis=1>(b, b)\nd = Add(c, c)\ny = Flatten(d)"
    p = facts_of(net("(float[N,3,4,4] x) => (float[N,M] y)", chain))[0]
    facts = Facts(p, ["x"])
    assert all(facts.nonnegative(p.tensors[name]) for name in "abcdy") and not facts.nonnegative(p.tensors["x"])


# --- constants and shapes -------------------------------------------------------------------------------------------


def facts_of(model: onnx.ModelProto) -> tuple[ir.Program, Facts]:
    p = ir.load(model)
    find_constants(p)
    return p, Facts(p, [t.name for t in p.inputs if t.is_float])


CHAIN = """
    s = Shape(x)
    c = Gather<axis=0>(s, one)
    h = Gather<axis=0>(s, two)
    n = Mul(c, h)
    w = Shape<start=3>(x)
    m = Squeeze(w)
    k = Mul(n, m)
    u = Unsqueeze(k, zero)
    t = Concat<axis=0>(minus, u)
    y = Reshape(x, t)
"""
INDICES = {"one": np.asarray(1), "two": np.asarray(2), "zero": np.asarray([0]), "minus": np.asarray([-1])}


def test_shape_chains_are_folded() -> None:
    p, _ = facts_of(net("(float[2,3,4,5] x) => (float[A,B] y)", CHAIN, **INDICES))
    assert p.tensors["t"].value is not None and p.tensors["t"].value.tolist() == [-1, 60]
    assert p.tensors["s"].value is not None and p.tensors["s"].value.tolist() == [2, 3, 4, 5]


def test_shapes_that_are_known_in_part() -> None:
    p, _ = facts_of(net("(float[N,3,4,5] x) => (float[A,B] y)", CHAIN, **INDICES))
    assert p.tensors["w"].value is None or p.tensors["w"].value.tolist() == [5]
    assert p.tensors["s"].value is None and not p.tensors["s"].constant


@pytest.mark.parametrize(
    ("attribute", "dtype"),
    [("value_float=2.0", np.float32), ("value_int=2", np.int64), ("value=float {2.0}", np.float32)],
)
def test_constants_get_the_type_of_the_schema(attribute: str, dtype: type) -> None:
    body = f"k = Constant<{attribute}>()\nf = Cast<to=1>(k)\ny = Mul(x, f)"
    p, _ = facts_of(net("(float[N,3] x) => (float[N,3] y)", body))
    value = p.tensors["k"].value
    assert value is not None and value.dtype == dtype and value == 2
    assert p.tensors["f"].constant and not p.tensors["y"].constant


def test_large_constants_are_not_read() -> None:
    p, _ = facts_of(net("(float[N,100] x) => (float[N,100] y)", "t = Tanh(w)\ny = MatMul(x, t)", w=weight(100, 100)))
    assert p.tensors["w"].value is None and p.tensors["w"].constant
    assert p.tensors["t"].value is None and p.tensors["t"].constant


def test_random_numbers_are_no_constants() -> None:
    body = "r = RandomNormal<shape=[3], seed=1.0>()\nk = Neg(v)\ny = Mul(x, r)\nz = Mul(x, k)"
    p, _ = facts_of(net("(float[N,3] x) => (float[N,3] y, float[N,3] z)", body, v=np.ones(3, np.float32)))
    assert not p.tensors["r"].constant and p.tensors["r"].value is None
    assert p.tensors["k"].constant


def test_weights_that_can_be_replaced_are_no_constants() -> None:
    model = net("(float[N,3] x, float[3] v) => (float[N,3] y)", "y = Mul(x, v)", v=np.ones(3, np.float32))
    p = ir.load(model)
    find_constants(p)
    facts = Facts(p, ["x"])
    assert not p.tensors["v"].constant and p.tensors["v"].value is None
    assert facts.bounds(p.tensors["v"]) == ANY


# --- dependence -------------------------------------------------------------------------------------------------------


def test_what_depends_on_an_input_and_what_carries_a_message() -> None:
    model = net(
        "(float[N,3] x, int64[N] i) => (float[N,3] y)",
        "m = Greater(x, zero)\nt = Gather<axis=0>(table, i)\ns = Shape(x)\ne = Expand(one, s)\n"
        "w = Where(m, x, t)\nk = Cast<to=7>(x)\nb = Cast<to=1>(k)\nu = Add(w, e)\ny = Add(u, b)",
        zero=np.asarray(0, np.float32),
        one=np.asarray([1], np.float32),
        table=weight(4, 3),
    )
    p, facts = facts_of(model)
    assert {name for name in p.tensors if facts.on_path(p.tensors[name])} == {"x", "w", "u", "y"}
    assert {"m", "s", "e", "k", "b"} <= facts.depends and not {"t", "i", "table"} & facts.depends


def test_which_tensors_feed_only_a_relu() -> None:
    model = net(
        "(float[N,3] x) => (float[N,3] y, float[N,3] d)",
        "a = Neg(x)\nb = Relu(a)\nc = Tanh(b)\nd = Neg(c)\ne = Relu(d)\nf = Neg(e)\ng = Relu(f)\nh = Add(f, g)\n"
        "y = Relu(h)",
    )
    _, facts = facts_of(model)
    assert {name: t.name for name, t in facts.activation.items()} == {
        "a": "b",
        "h": "y",
    }  # d is an output, f read twice
