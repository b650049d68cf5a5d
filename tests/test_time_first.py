"""Recurrent models whose axis 0 is time: each sample is explained, and only by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import data, exact, net, weight
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError
from xaicompile.seeds import Reduce

T, B, C, H, K = 5, 3, 4, 6, 2
CELLS = {"LSTM": 4, "GRU": 3, "RNN": 1}
HEADS = {  # what follows, the output's shape for T and B
    "every step": ("q = Squeeze(s, one)\ny = MatMul(q, v)", "{T},{B}"),
    "last state": ("q = Squeeze(h, zero)\ny = MatMul(q, v)", "{B}"),
    "last step": ("a = Squeeze(s, one)\nq = Gather<axis = 0>(a, last)\ny = MatMul(q, v)", "{B}"),
    "state as it is": ("y = MatMul(h, v)", "1,{B}"),
}
SIZES = {"static": (T, B), "any batch": (T, "N"), "any time": ("T", B), "any": ("T", "N"), "square": (B, B)}
X = data(T, B, C, dtype=np.float64)


def model(op: str = "LSTM", head: str = "last state", sizes: str = "any", batch: int | None = None) -> onnx.ModelProto:
    """A recurrent op with a linear layer; `batch` in place of a static size."""
    t, n = SIZES[sizes]
    n = batch if batch is not None and isinstance(n, int) else n
    size, (text, shape) = CELLS[op] * H, HEADS[head]
    signature = f"(double[{t},{n},{C}] x) => (double[{shape.format(T=t, B=n)},{K}] y)"
    arrays = {"w": weight(1, size, C), "r": weight(1, size, H), "b": weight(1, 2 * size), "v": weight(H, K)}
    arrays = {key: value.astype(np.float64) for key, value in arrays.items()}
    body = f"s, h = {op}<hidden_size = {H}>(x, w, r, b)\n{text}"
    return net(signature, body, zero=np.array([0]), one=np.array([1]), last=np.array(-1), **arrays)


@pytest.mark.parametrize("sizes", list(SIZES))
@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("op", list(CELLS))
def test_each_sample_as_if_alone(op: str, head: str, sizes: str) -> None:
    x = X[:B] if sizes == "square" else X
    made = compile_model(model(op, head, sizes), "lrp-epsilon", ledger=True)
    found = exact(made.model, {"x": x})
    assert any("axis 0 of 'x' is time" in note for note in made.notes)
    np.testing.assert_allclose(found["relevance"].sum() + found["ledger"], found["explained"], rtol=1e-9)
    values = np.moveaxis(found["y"], -2, 0).reshape(B, -1).max(1)  # of one sample, whatever the step
    np.testing.assert_allclose(found["explained"], [values.sum()], rtol=1e-12)  # one ledger for all of them
    alone = compile_model(model(op, head, sizes, batch=1), "lrp-epsilon", ledger=True).model
    for i in range(B):
        one = exact(alone, {"x": x[:, i : i + 1]})
        np.testing.assert_allclose(found["relevance"][:, i], one["relevance"][:, 0], rtol=1e-9, atol=1e-15)
        assert np.abs(one["relevance"]).max() > 1e-6
        np.testing.assert_allclose(one["explained"], values[i : i + 1], rtol=1e-12)


def test_each_sample_has_a_target_of_its_own() -> None:
    """It counts the values of a sample: all classes of the first step come first."""
    made = compile_model(model(head="every step"), "gradient-x-input", ledger=True).model
    found = exact(made, {"x": X, "target": np.array([1, 2, T * K - 1])})
    chosen = found["y"][0, 0, 1] + found["y"][1, 1, 0] + found["y"][-1, 2, -1]
    np.testing.assert_allclose(found["explained"], [chosen])
    assert not found["relevance"][1:, 0].any() and found["relevance"][0, 0].any()  # the future has no say


def test_what_counts_samples_along_axis_0_is_refused() -> None:
    with pytest.raises(RuleError, match="--maps: axis 0 of 'x' is time"):
        compile_model(model(), "lrp-epsilon", maps=2)


# --- methods ----------------------------------------------------------------------------------------------------------

SHORT: dict[str, dict[str, Any]] = {"integrated-gradients": {"steps": 3}, "taylor": {"root": 0.3}}
MIXING = ("smoothgrad", "vargrad", "smooth-integrated-gradients", "occlusion", "random")


@pytest.mark.parametrize("sizes", list(SIZES))
@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("rule", list(SHORT))
def test_a_path_of_each_sample_as_if_alone(rule: str, head: str, sizes: str) -> None:
    x = X[:B] if sizes == "square" else X
    made = compile_model(model("LSTM", head, sizes), rule, parameters=SHORT[rule])
    assert any("axis 0 of 'x' is time" in note for note in made.notes)
    found = exact(made.model, {"x": x})["relevance"]
    alone = compile_model(model("LSTM", head, sizes, batch=1), rule, parameters=SHORT[rule]).model
    for i in range(B):
        one = exact(alone, {"x": x[:, i : i + 1]})["relevance"][:, 0]
        np.testing.assert_allclose(found[:, i], one, rtol=1e-9, atol=1e-15)
        assert np.abs(one).max() > 1e-6


@pytest.mark.parametrize("reduce", [None, "sum"])
@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("rule", MIXING)
def test_methods_that_would_mix_samples_are_refused(rule: str, head: str, reduce: Reduce | None) -> None:
    for sizes in ("static", "any batch", "any", "square"):
        with pytest.raises(RuleError, match=r"axis 0 of 'x' is time.*fix the model's batch at 1.*integrated-grad") as e:
            compile_model(model("LSTM", head, sizes), rule, explain_reduce=reduce)
        assert "\n" not in str(e.value)


def test_a_background_of_time_first_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", X)
    for batch in (None, 1):
        with pytest.raises(RuleError, match="taken for one; use integrated-gradients") as caught:
            given = {"background": str(tmp_path / "b.npy")}
            compile_model(model("GRU", sizes="static", batch=batch), "shap-gradient", parameters=given)
        assert "\n" not in str(caught.value)
    with pytest.raises(RuleError, match="can't pass LSTM"):
        compile_model(model(), "deeplift")
    with pytest.raises(RuleError, match="--chunk 2: axis 0 is no batch"):
        compile_model(model(), "integrated-gradients", chunk=2)


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("rule", MIXING)
def test_all_methods_for_a_batch_of_one(rule: str, head: str) -> None:
    """One sample is one sample: noise of its whole range, one target for all of its steps."""
    x, f = X[:, :1], model("LSTM", head, "static", batch=1)
    found = exact(compile_model(f, rule).model, {"x": x, "target": np.array([1])})["relevance"]
    assert found.shape == x.shape and np.isfinite(found).all() and found.any()
    if rule == "smoothgrad":
        gradient = compile_model(f, "gradient").model
        drawn = np.random.default_rng(0).standard_normal((25, *x.shape))
        each = [exact(gradient, {"x": x + 0.1 * np.ptp(x) * n, "target": np.array([1])})["relevance"] for n in drawn]
        np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-9, atol=1e-12)
    if rule == "occlusion":
        np.testing.assert_allclose(found, (exact(f, {"x": x})["y"] - exact(f, {"x": 0 * x})["y"]).reshape(-1)[1])
