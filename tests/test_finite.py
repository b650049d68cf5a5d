"""No NaN and no infinity in any output of any rule set, wherever the source model's own tensors are finite (spec 1.9).

Inputs of zeros, of ones, 1e4 times too large, next to nothing, and ordinary ones, all in one batch: an image that is
dead must not spoil its neighbours. Float32 in ONNX Runtime; float16 in numpy, which rounds and overflows after each
node as a GPU does (on a CPU the runtime computes float16 in float32).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

import xaicompile
from tests.finite_nets import NETS, Net
from tests.graphs import Arrays, exact, net, run
from xaicompile import composite
from xaicompile.errors import RuleError

ROWS = ("zeros", "ones", "large", "tiny", "ordinary", "flat")
TARGETS = np.asarray([0, 1, 2, 3, 0, 1])
BOX = {"low": -1.0, "high": 1.0}
BOXES = {"z-box", "epsilon-gamma-box", "z-box, no stabiliser"}  # refused where the first layer reads no bounded input
FEW = {"samples": 2, "steps": 2}  # of methods that evaluate at many points
GRAPHS = ("gnn-lrp",)  # for other models: tests/test_walks.py
PRODUCTS = "second-order-lrp"  # refused where a network has no products
METHODS = [rule for rule in composite.shipped() if composite.load(rule).method and rule not in GRAPHS]
CURVED = ("hessian-x-input", "hessian-vector-product", "integrated-hessians")
# Rows of which the float16 model itself overflows somewhere.
OVERFLOWS = {"unbiased": ("large",), "gated": ("large",), "divisions": ("large",)}

LINEAR, FIRST = 'match = { kind = "linear" }', 'match = { place = "first-linear" }'
POOLS = 'match = { op = ["MaxPool", "GlobalMaxPool", "ReduceMax"] }'
SUMS = 'match = { op = ["Add", "Sum", "AveragePool", "GlobalAveragePool", "ReduceMean"] }'
PLAIN = {"ignore": 'bias = "ignore"', "zero": "epsilon = 0.0"}
VARIANTS = {
    "epsilon, no stabiliser, bias ignored": (
        (LINEAR, "epsilon", PLAIN["zero"], PLAIN["ignore"]),
        (POOLS, "average", PLAIN["zero"]),
        (SUMS, "norm", PLAIN["zero"]),
    ),
    "epsilon, bias ignored": ((LINEAR, "epsilon", PLAIN["ignore"]), (POOLS, "average"), (SUMS, "norm")),
    "epsilon next to nothing": ((LINEAR, "epsilon", "epsilon = 1e-40"), (POOLS, "average", "epsilon = 1e-40")),
    "relative": (
        (LINEAR, "epsilon", "epsilon = 0.25", 'stabiliser = "relative"'),
        (POOLS, "average", "epsilon = 0.25", 'stabiliser = "relative"'),
    ),
    "relative, bias ignored": ((LINEAR, "epsilon", 'stabiliser = "relative"', PLAIN["ignore"]),),
    "clip": ((LINEAR, "epsilon", 'stabiliser = "clip"'),),
    "clip, bias ignored": ((LINEAR, "epsilon", 'stabiliser = "clip"', PLAIN["ignore"]),),
    "gamma, bias ignored": ((LINEAR, "gamma", PLAIN["ignore"]), (POOLS, "proportional", PLAIN["zero"])),
    "gamma 100": ((LINEAR, "gamma", "gamma = 100.0"),),
    "gamma 0": ((LINEAR, "gamma", "gamma = 0.0"),),
    "z-plus, no stabiliser, bias ignored": (
        (LINEAR, "z-plus", PLAIN["zero"], PLAIN["ignore"]),
        (POOLS, "proportional"),
    ),
    "alpha-beta, no stabiliser": ((LINEAR, "alpha-beta", PLAIN["zero"]),),
    "alpha-beta, no stabiliser, bias ignored": ((LINEAR, "alpha-beta", PLAIN["zero"], PLAIN["ignore"]),),
    "flat, no stabiliser": ((FIRST, "flat", PLAIN["zero"]), (LINEAR, "gamma")),
    "w-square, no stabiliser": ((FIRST, "w-square", PLAIN["zero"], 'bias = "absorb"'), (LINEAR, "z-plus")),
    "z-box, no stabiliser": ((FIRST, "z-box", PLAIN["zero"]), (LINEAR, "gamma")),
}
PLAIN_SETS = [name for name in composite.shipped() if not composite.load(name).neuralize and name not in GRAPHS]
RULES = [*PLAIN_SETS, *VARIANTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the variants, and of a background."""
    made = tmp_path_factory.mktemp("rules")
    for name, entries in VARIANTS.items():
        lines = ["\n".join(("[[rules]]", match, f'rule = "{rule}"', *more)) for match, rule, *more in entries]
        text = "\n".join([*lines, '[[rules]]\nrule = "default"\n'])
        (made / f"{name}.toml").write_text(text, encoding="utf-8")
    return made


def rows(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """One sample for each of ROWS."""
    drawn = np.random.default_rng(0).standard_normal((6, *shape))
    drawn[5] = drawn[5, :1] if len(shape) > 1 else drawn[5, 0]  # constant along the first axis
    scale = np.asarray([0, 0, 1e4, 1e-30, 1, 1]).reshape(-1, *[1] * len(shape))
    shift = np.asarray([0, 1, 0, 0, 0, 0]).reshape(scale.shape)
    return (drawn * scale + shift).astype(dtype)


def runner(dtype: type) -> Callable[[onnx.ModelProto, Mapping[str, np.ndarray]], Arrays]:
    """What runs a model of the type."""
    return run if dtype is np.float32 else exact


@functools.cache
def usable(name: str, dtype: type) -> np.ndarray:
    """Which rows leave every tensor of the source model finite."""
    kind, model = NETS[name], NETS[name].make(dtype)
    inner = onnx.shape_inference.infer_shapes(model).graph.value_info
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    model.graph.output.extend(v for v in inner if v.type.tensor_type.elem_type in floats)
    x = rows(kind.shape, dtype)
    return np.asarray([sound(kind, runner(dtype)(model, {"x": x[i : i + 1]})) for i in range(len(x))])


def sound(kind: Net, outputs: Arrays) -> bool:
    """True if all is finite, but for the -inf of masks."""
    masked = {k: np.isneginf(v) for k, v in outputs.items() if k in kind.masked}
    return all((np.isfinite(v) | masked.get(k, False)).all() for k, v in outputs.items())


def options(rule: str, folder: Path, net: Net) -> dict[str, object]:
    """What a rule set is compiled with here."""
    if rule in VARIANTS:
        return {"rule": folder / f"{rule}.toml", "parameters": BOX if rule in BOXES else None, "ledger": True}
    rules = composite.load(rule)
    parameters: dict[str, object] = dict(BOX) if rule in BOXES else {}
    parameters |= {k: v for k, v in FEW.items() if k in rules.accepted}
    if "background" in rules.accepted:
        np.save(folder / "background.npy", np.zeros((1, *net.shape), np.float32))
        parameters["background"] = str(folder / "background.npy")
    return {"rule": rule, "parameters": parameters, "ledger": rules.output == "relevance" and not rules.method}


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("name", NETS)
@np.errstate(all="ignore")
def test_every_output_is_finite(name: str, dtype: type, folder: Path) -> None:
    net, good = NETS[name], usable(name, dtype)
    skipped = tuple(row for row, ok in zip(ROWS, good, strict=True) if not ok)
    assert skipped == (OVERFLOWS.get(name, ()) if dtype is np.float16 else ())
    model, feed = net.make(dtype), {"x": rows(net.shape, dtype)[good], "target": TARGETS[good]}
    seen: set[bytes] = set()
    broken, refused = {}, set()
    for rule in RULES:
        if dtype is np.float16 and rule in METHODS:  # noise and paths leave the range of float16: see below
            continue
        chosen = options(rule, folder, net)
        try:
            made = xaicompile.compile(model, **chosen)
        except RuleError:
            refused.add(rule)
            continue
        body = b"".join(n.SerializeToString() for n in made.graph.node).replace(f"{rule}/".encode(), b"")
        if body in seen:  # the same as another rule set here
            continue
        seen.add(body)
        given = {k: v for k, v in feed.items() if k in {i.name for i in made.graph.input}}
        given |= {"other": feed["x"][::-1].copy()} if rule == "bilrp" else {}  # as many as x
        if rule in CURVED and name == "divisions":  # the second derivative of |x| at 1e-30 is beyond float32
            given = {k: np.delete(v, ROWS.index("tiny"), axis=0) for k, v in given.items()}
        outputs = runner(dtype)(made, given)
        wrong = {k: int((~np.isfinite(v)).sum()) for k, v in outputs.items() if not np.isfinite(v).all()}
        broken |= {rule: wrong} if wrong else {}
    assert not broken
    no_reference = {"deeplift"} if name == "recurrent" else set()  # there is none inside a Scan
    assert refused <= BOXES | {PRODUCTS} | no_reference
    assert len(seen) > 15


@pytest.mark.parametrize("rule", METHODS)
@np.errstate(all="ignore")
def test_methods_are_finite_in_half_precision(rule: str, folder: Path) -> None:
    """Squares of gradients above 255, and sums over points."""
    for name in ("attention, -inf",) if rule == PRODUCTS else ("unbiased", "attention, -inf"):
        x = rows(NETS[name].shape, np.float16)[[0, 1, 4]]
        outputs = exact(xaicompile.compile(NETS[name].make(np.float16), **options(rule, folder, NETS[name])), {"x": x})
        assert all(np.isfinite(v).all() for v in outputs.values())


def test_gamma_in_double_precision_is_finite_in_the_runtime(tmp_path: Path) -> None:
    """ONNX Runtime takes a float64 that float32 can't hold for 0: what keeps 0/0 away must not be one."""
    (tmp_path / "g.toml").write_text('extends = "lrp-gamma"\n[[rules]]\nmatch = { op = "MatMul" }\nrule = "gamma"\n')
    rng = np.random.default_rng(0)
    model = net(
        "(double[N,6] x) => (double[N,3] y)",
        "h = MatMul(x, w1) a = Relu(h) y = MatMul(a, w2)",
        w1=rng.normal(size=(6, 8)),
        w2=rng.normal(size=(8, 3)),
    )
    x = rng.normal(size=(4, 6)) * np.array([[0], [1], [1], [1]])
    found = run(xaicompile.compile(model, tmp_path / "g.toml"), {"x": x})["relevance"]
    want = exact(xaicompile.compile(model, tmp_path / "g.toml"), {"x": x})["relevance"]
    assert np.isfinite(found).all() and not found[0].any() and found[1:].any()
    np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-14)
