"""More than one map from one model: several targets, contrasts, normalised relevance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xaicompile
from tests.graphs import Arrays, data, net, run, weight
from tests.nets import cnn
from xaicompile.checks import check
from xaicompile.errors import RuleError

X = data(3, 3, 12, 12)
CLASSES = 5


def explained(target: Any = None, rule: str = "lrp-gamma", **options: Any) -> Arrays:
    feed = {"x": X} if target is None else {"x": X, "target": np.asarray(target, np.int64)}
    return run(xaicompile.compile(cnn(), rule, ledger=rule != "gradient", **options), feed)


def one_by_one(**options: Any) -> list[Arrays]:
    return [explained([t], **options) for t in range(CLASSES)]


@pytest.mark.parametrize("rule", ["lrp-gamma", "gradient"])
def test_k_maps_are_those_of_k_runs(rule: str) -> None:
    single, chosen = one_by_one(rule=rule), np.array([[0, 4, 2], [1, 1, 3], [4, 0, 1]])
    found = explained(chosen, rule, maps=3)
    assert found["relevance"].shape == (3, 3, *X.shape[1:])
    for i, k in np.ndindex(3, 3):
        for name in set(found) - {"logits"}:
            np.testing.assert_array_equal(found[name][i, k], single[chosen[i, k]][name][i])


def test_the_largest_outputs_by_default_and_by_rank() -> None:
    single = one_by_one()
    order = np.argsort(-single[0]["logits"], axis=1)
    largest = explained(maps=2)["relevance"]
    mixed = explained([[-3, 2]], maps=2)["relevance"]
    for i in range(3):
        for k in range(2):
            np.testing.assert_array_equal(largest[i, k], single[order[i, k]]["relevance"][i])
    beyond = explained([[-3, 2]], maps=2)
    assert not beyond["explained"][:, 0].any() and not mixed[:, 0].any()  # two maps rank two outputs: -3 is none
    np.testing.assert_array_equal(mixed[:, 1], single[2]["relevance"])
    stated = run(xaicompile.compile(cnn(), maps=2, target=[3, 1]), {"x": X})["relevance"]
    np.testing.assert_array_equal(stated[:, 1], single[1]["relevance"])


def test_layers_and_ledger_have_a_map_each() -> None:
    found = explained(maps=4, layers=["a1"])
    assert found["ledger"].shape == found["explained"].shape == (3, 4)
    assert found["relevance_a1"].shape[:2] == (3, 4) == found["ledger_by_node"].shape[:2]
    total = found["relevance"].sum((2, 3, 4)) + found["ledger"]
    np.testing.assert_allclose(total, found["explained"], rtol=1e-4, atol=1e-5)


def test_an_output_without_a_batch_has_its_maps_in_front() -> None:
    model = net("(float[4] x) => (float[3] y)", "y = MatMul(x, w)", w=weight(4, 3))
    x = data(4)
    found = run(xaicompile.compile(model, "gradient", maps=3), {"x": x, "target": np.array([[0, 1, 2]])})
    np.testing.assert_allclose(found["relevance"], weight(4, 3).T, rtol=1e-6)


def test_several_maps_pass_the_check() -> None:
    made = xaicompile.compile(cnn(), "lrp-gamma", maps=3, ledger=True)
    report = check(made, cnn())
    assert report.passed, [item for item in report.failed]


# --- contrast ---------------------------------------------------------------------------------------------------------


def test_against_the_runner_up_is_the_difference_of_two_maps() -> None:
    """A backward pass is linear in what it starts with."""
    single = one_by_one()
    logits = single[0]["logits"].astype(np.float64)
    for target in range(CLASSES):
        found = explained([target], contrast="runner-up")
        others = np.where(np.arange(CLASSES) == target, -np.inf, logits).argmax(1)
        for i in range(3):
            expected = single[target]["relevance"][i] - single[others[i]]["relevance"][i]
            np.testing.assert_allclose(found["relevance"][i], expected, rtol=1e-4, atol=1e-6)
            assert found["explained"][i] == pytest.approx(logits[i, target] - logits[i, others[i]], rel=1e-5, abs=1e-6)


def test_against_all_others_is_the_gradient_of_the_log_ratio() -> None:
    """Seed +1 at the target and -p at the others, p their softmax: d/dz of log(p_k / (1 - p_k)) (spec 9.5)."""
    model = net("(float[N,4] x) => (float[N,6] y)", "y = MatMul(x, w)", w=weight(4, 6))
    x, w = data(5, 4).astype(np.float64), weight(4, 6).astype(np.float64)
    made = xaicompile.compile(model, "gradient", contrast="others")
    found = run(made, {"x": x.astype(np.float32), "target": np.array([2])})["relevance"]

    def log_ratio(x: np.ndarray) -> np.ndarray:
        z = x @ w
        rest = np.delete(z, 2, axis=1)
        return z[:, 2] - np.log(np.exp(rest).sum(1))

    step = 1e-6
    expected = np.stack([(log_ratio(x + step * e) - log_ratio(x - step * e)) / (2 * step) for e in np.eye(4)], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("contrast", ["runner-up", "others"])
def test_no_target_no_contrast(contrast: str) -> None:
    found = explained([99], contrast=contrast)
    assert not found["relevance"].any() and not found["explained"].any()


# --- normalised -------------------------------------------------------------------------------------------------------


def test_normalised_relevance_and_ledger_sum_to_one() -> None:
    plain, found = explained(), explained(normalise=True)
    np.testing.assert_allclose(found["explained"], 1, rtol=1e-6)
    np.testing.assert_allclose(found["relevance"].sum((1, 2, 3)) + found["ledger"], 1, rtol=1e-5)
    shares = plain["relevance"] / plain["explained"].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(found["relevance"], shares, rtol=1e-4, atol=1e-8)


def test_nothing_explained_stays_nothing() -> None:
    found = explained([99], normalise=True)
    assert np.isfinite(found["relevance"]).all() and not found["relevance"].any()


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"maps": 6}, "--maps 6: 'logits' has 5 values a sample"),
        ({"maps": 0}, "--maps 0: at least one"),
        ({"maps": 2, "target": [1, 2, 3]}, "--target: 3 given, but --maps asks for 2"),
        ({"maps": 2, "explain_reduce": "sum"}, "--maps chooses among outputs"),
        ({"contrast": "others", "explain_reduce": "sum"}, "--contrast chooses among outputs"),
        ({"contrast": "nobody"}, "--contrast is runner-up or others"),
        ({"rule": "gradient", "normalise": True}, "gives no relevance"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RuleError, match=said):
        xaicompile.compile(cnn(), **{"rule": "lrp-gamma", **options})


def test_one_output_has_no_contrast() -> None:
    model = net("(float[N,4] x) => (float[N,1] y)", "y = MatMul(x, w)", w=weight(4, 1))
    with pytest.raises(RuleError, match="one value a sample, and no other"):
        xaicompile.compile(model, contrast="others")
