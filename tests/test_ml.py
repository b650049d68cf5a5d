"""Classical models (`ai.onnx.ml`): their ops are read as the standard ops that they compute."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import xaicompile
from tests.differences import Inputs, assert_gradients, one_node, projected
from tests.graphs import data, run, weight
from xaicompile.checks import check
from xaicompile.compiler import compile_model
from xaicompile.errors import UnsupportedError

DOMAIN = "ai.onnx.ml"
X = {"x": data(3, 4)}
W, ONE, B = weight(3, 4), weight(1, 4), [0.1, -0.2, 0.3]
VECTORS, PAIRS = data(7, 4, seed=1), data(2, 7, seed=2)
SUPPORT = {"support_vectors": VECTORS.ravel().tolist(), "kernel_params": [0.3, 0.4, 3.0]}
TWO = {**SUPPORT, "coefficients": PAIRS[0].tolist(), "vectors_per_class": [3, 4], "rho": [0.2],
       "classlabels_ints": [0, 1]}  # fmt: skip
THREE = {**SUPPORT, "coefficients": PAIRS.ravel().tolist(), "vectors_per_class": [2, 2, 3], "rho": B,
         "classlabels_ints": [0, 1, 2]}  # fmt: skip
LINEAR = {"coefficients": W.ravel().tolist(), "intercepts": B}
BINARY = {"coefficients": ONE.ravel().tolist(), "intercepts": [0.3], "classlabels_ints": [0, 1]}

CASES: dict[str, tuple[str, Inputs, str, int, dict]] = {
    "classes": ("LinearClassifier", X, "x", 2, {**LINEAR, "classlabels_ints": [0, 1, 2]}),
    "classes by softmax": ("LinearClassifier", X, "x", 2,
                           {**LINEAR, "classlabels_strings": ["a", "b", "c"], "post_transform": "SOFTMAX"}),
    "classes by sigmoid": ("LinearClassifier", X, "x", 2,
                           {**LINEAR, "classlabels_ints": [0, 1, 2], "post_transform": "LOGISTIC"}),
    "one score for two classes": ("LinearClassifier", X, "x", 2, BINARY),
    "one score, softmax": ("LinearClassifier", X, "x", 2, {**BINARY, "post_transform": "SOFTMAX"}),
    "one score, sigmoid": ("LinearClassifier", X, "x", 2, {**BINARY, "post_transform": "LOGISTIC"}),
    "targets": ("LinearRegressor", X, "x", 1, {**LINEAR, "targets": 3}),
    "target without intercept": ("LinearRegressor", X, "x", 1, {"coefficients": ONE.ravel().tolist()}),
    "targets by sigmoid": ("LinearRegressor", X, "x", 1, {**LINEAR, "targets": 3, "post_transform": "LOGISTIC"}),
    "scaler": ("Scaler", X, "x", 1, {"offset": [1.0, 2.0, 3.0, 4.0], "scale": [0.5, -2.0, 3.0, 1.0]}),
    "one scale for all": ("Scaler", X, "x", 1, {"offset": [1.0], "scale": [0.5]}),
    "largest": ("Normalizer", X, "x", 1, {"norm": "MAX"}),
    "l1": ("Normalizer", X, "x", 1, {"norm": "L1"}),
    "l2": ("Normalizer", X, "x", 1, {"norm": "L2"}),
    "columns": ("FeatureVectorizer", {"x": data(3, 4), "z": data(3, 2)}, "x z", 1, {"inputdimensions": [4, 2]}),
    "machine for two": ("SVMClassifier", X, "x", 2, {**TWO, "kernel_type": "RBF"}),
    "machine, sigmoid": ("SVMClassifier", X, "x", 2, {**TWO, "kernel_type": "LINEAR", "post_transform": "LOGISTIC"}),
    "machine, softmax": ("SVMClassifier", X, "x", 2, {**TWO, "kernel_type": "POLY", "post_transform": "SOFTMAX"}),
    "machine for three": ("SVMClassifier", X, "x", 2, {**THREE, "kernel_type": "SIGMOID"}),
    "machine without vectors": ("SVMClassifier", X, "x", 2,
                                {"coefficients": W.ravel().tolist(), "rho": [0.2], "classlabels_ints": [0, 1, 2],
                                 "kernel_params": [0.0, 0.0, 0.0]}),
    "machine for numbers": ("SVMRegressor", X, "x", 1, {**SUPPORT, "coefficients": PAIRS[0].tolist(), "n_supports": 7,
                                                        "rho": [0.2], "kernel_type": "POLY"}),
    "line for numbers": ("SVMRegressor", X, "x", 1, {"coefficients": ONE.ravel().tolist(), "rho": [0.2],
                                                     "kernel_params": [0.0, 0.0, 0.0]}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_that_of_the_runtimes_op(name: str) -> None:
    op, inputs, order, outputs, attrs = CASES[name]
    model = projected(one_node(op, inputs, {}, order, DOMAIN, outputs, **attrs), f"y{outputs - 1}", inputs)
    emitted = assert_gradients(model, inputs)
    assert check(emitted, model, inputs=inputs).passed
    assert {n.domain for n in emitted.graph.node[3:]} == {""}
    if not (name == "largest" or "machine" in name):  # a maximum has its own rule; kernels conserve nothing
        ledger = xaicompile.compile(model, "lrp-0", explain_output="s", ledger=True, explain_input=list(inputs))
        assert check(ledger, model, inputs=inputs).passed


def classifier(**attrs: object) -> onnx.ModelProto:
    """Scaler, LinearClassifier, Normalizer and ZipMap, as converters write a pipeline."""
    labels = {"classlabels_int64s": attrs["classlabels_ints"]}
    nodes = [
        helper.make_node(
            "Scaler", ["x"], ["s"], domain=DOMAIN, offset=[0.1, 0.2, 0.3, 0.4], scale=[2.0, 1.0, 0.5, 3.0]
        ),
        helper.make_node("LinearClassifier", ["s"], ["label", "p"], name="classifier", domain=DOMAIN, **attrs),
        helper.make_node("Cast", ["p"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Normalizer", ["c"], ["n"], domain=DOMAIN, norm="L1"),
        helper.make_node("ZipMap", ["n"], ["zipped"], domain=DOMAIN, **labels),
    ]
    kinds = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        helper.make_value_info("zipped", helper.make_sequence_type_proto(kinds)),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])]
    graph = helper.make_graph(nodes, "pipeline", inputs, outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


SCALED = (X["x"] - np.array([0.1, 0.2, 0.3, 0.4], np.float32)) * np.array([2.0, 1.0, 0.5, 3.0], np.float32)


def test_a_pipelines_scores_are_explained_not_its_probabilities() -> None:
    """LOGISTIC, the division by the sum and the ZipMap are cut; the gradient is the coefficient times the scale."""
    model = classifier(**LINEAR, classlabels_ints=[3, 5, 9], post_transform="LOGISTIC")
    compiled = compile_model(model, "gradient", target=2)
    assert [c.split()[0] for c in compiled.cut] == ["ZipMap", "sum", "Sigmoid"]
    found = run(compiled.model, X)
    np.testing.assert_allclose(found["relevance"], [W[2] * [2.0, 1.0, 0.5, 3.0]] * 3, rtol=1e-6)
    assert found["zipped"] == run(model, X)["zipped"]
    report = check(compiled.model, model, inputs=X)
    assert report.passed and "bit-identical" in str(report.to_dict())


def test_the_scores_of_two_classes_are_each_others_opposites() -> None:
    """One row of coefficients and two labels: class 0 is explained by -z, class 1 by z, not by twice that."""
    model = classifier(**BINARY, post_transform="LOGISTIC")
    z = SCALED @ ONE[0] + np.float32(0.3)
    for target, sign in ((0, -1.0), (1, 1.0)):
        found = run(xaicompile.compile(model, "lrp-0", target=target, ledger=True), X)
        np.testing.assert_allclose(found["explained"], sign * z, rtol=1e-5)
        np.testing.assert_allclose(found["relevance"], sign * X["x"] * ONE[0] * [2.0, 1.0, 0.5, 3.0], rtol=1e-5)
    found = run(xaicompile.compile(model, "lrp-0", ledger=True), X)
    np.testing.assert_allclose(found["explained"], np.abs(z), rtol=1e-5)


def test_calibrated_probabilities_of_two_classes_are_explained_by_their_log_odds() -> None:
    """The runtime comes to them by a short iteration, so that they are off in the third digit; the odds are exact."""
    attrs = {**TWO, "kernel_type": "LINEAR", "prob_a": [-1.2], "prob_b": [0.1]}
    model = one_node("SVMClassifier", X, {}, "x", DOMAIN, 2, **attrs)
    del model.graph.output[:]
    model.graph.node.append(helper.make_node("Cast", ["y1"], ["p"], to=TensorProto.FLOAT))
    model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 2]))
    odds = 1.2 * ((X["x"] @ VECTORS.T) @ PAIRS[0] + 0.2) - 0.1
    for target, sign in ((0, 1.0), (1, -1.0)):
        found = run(xaicompile.compile(model, "gradient", target=target), X)
        np.testing.assert_allclose(found["relevance"], [sign * 1.2 * PAIRS[0] @ VECTORS] * 3, rtol=1e-5)
        np.testing.assert_allclose(found["p"][:, target], 1 / (1 + np.exp(-sign * odds)), atol=2e-3)


def test_missing_values_carry_nothing() -> None:
    x = np.array([[1.0, np.nan, 3.0, 0.0], [np.nan, 2.0, 0.0, 4.0]], np.float32)
    for gone, missing in ((float("nan"), np.isnan(x)), (0.0, x == 0)):
        feed = {"x": x if np.isnan(gone) else np.nan_to_num(x, nan=7.0)}
        attrs = {"imputed_value_floats": [9.0, 8.0, 7.0, 6.0], "replaced_value_float": gone}
        model = projected(one_node("Imputer", feed, {}, "x", DOMAIN, **attrs), "y0", feed)
        emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum")
        np.testing.assert_array_equal(run(emitted, feed)["relevance"], data(2, 4, seed=9) * ~missing)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_a_row_of_zeros_stays_finite(norm: str) -> None:
    feed = {"x": np.zeros((2, 4), np.float32)}
    model = projected(one_node("Normalizer", feed, {}, "x", DOMAIN, norm=norm), "y0", feed)
    found = run(xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum"), feed)
    assert np.isfinite(found["relevance"]).all()


def test_picked_columns_and_labels() -> None:
    columns = np.array([2, 0], np.int64)
    model = one_node("ArrayFeatureExtractor", X, {"i": columns}, "x i", DOMAIN)
    emitted = assert_gradients(projected(model, "y0", X), X)
    assert not run(emitted, X)["relevance"][:, [1, 3]].any()
    binary = projected(one_node("Binarizer", X, {}, "x", DOMAIN, threshold=0.2), "y0", X)
    found = run(xaicompile.compile(binary, "gradient", explain_output="s", explain_reduce="sum"), X)
    assert not found["relevance"].any()


def test_trees_are_refused_with_advice() -> None:
    tree = {
        "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [0.5, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0],
        "n_targets": 1,
    }  # fmt: skip
    model = projected(one_node("TreeEnsembleRegressor", X, {}, "x", DOMAIN, **tree), "y0", X)
    with pytest.raises(UnsupportedError, match=r"trees are constant .* --explain-output"):
        xaicompile.compile(model, explain_output="s")


def test_probabilities_of_several_classes_that_are_iterated_are_refused_with_advice() -> None:
    attrs = {**THREE, "kernel_type": "RBF", "prob_a": [-1.0] * 3, "prob_b": [0.1] * 3}
    model = projected(one_node("SVMClassifier", X, {}, "x", DOMAIN, 2, **attrs), "y1", X)
    with pytest.raises(UnsupportedError, match="export the classifier with its raw scores"):
        xaicompile.compile(model, explain_output="s")


@pytest.mark.parametrize("labelled", [True, False])
def test_trees_that_sort_are_refused_with_the_same_advice(labelled: bool) -> None:
    """Their scores go into a ZipMap, and have no type that inference knows."""
    tree = {
        "nodes_treeids": [0] * 3, "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0] * 3, "nodes_values": [0.5, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        "class_treeids": [0, 0], "class_nodeids": [1, 2], "class_ids": [0, 1], "class_weights": [1.0, 1.0],
        "classlabels_int64s": [0, 1],
    }  # fmt: skip
    nodes = [helper.make_node("TreeEnsembleClassifier", ["x"], ["label", "p"], name="forest", domain=DOMAIN, **tree)]
    outputs = [helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])]
    if labelled:
        nodes.append(helper.make_node("ZipMap", ["p"], ["named"], domain=DOMAIN, classlabels_int64s=[0, 1]))
        kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        outputs.append(helper.make_value_info("named", helper.make_sequence_type_proto(kind)))
    else:
        outputs.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 2]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(DOMAIN, 1)], ir_version=8)
    with pytest.raises(UnsupportedError, match=r"'forest'.* trees are constant .* --explain-output") as caught:
        compile_model(model)
    assert [g.node for g in caught.value.gaps] == ["forest"]


def test_an_output_whose_stated_shape_is_wrong() -> None:
    """The runtime only warns; skl2onnx writes two columns where one is picked (RidgeClassifier)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"], name="matmul"),
        helper.make_node("ArrayFeatureExtractor", ["z", "second"], ["y"], name="pick", domain=DOMAIN),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 4), ("y", 2))]
    held = {"w": weight(4, 3), "second": np.asarray([1])}
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in held.items()])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    out = run(compile_model(model, "gradient").model, X)
    assert out["y"].shape == (3, 1)
    np.testing.assert_array_equal(out["relevance"], [weight(4, 3)[:, 1]] * 3)
    del model.graph.node[1]
    model.graph.node[0].output[0] = "y"  # three columns
    out = run(compile_model(model, "gradient", target=2).model, X)
    np.testing.assert_array_equal(out["relevance"], [weight(4, 3)[:, 2]] * 3)


def test_a_loop_behind_an_op_whose_type_only_its_body_tells() -> None:
    """As the distances of skl2onnx's Gaussian process, whose Scan stands behind a Scaler."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], name="scaler", domain=DOMAIN, offset=[0.5], scale=[2.0]),
        helper.make_node(
            "Scan", ["s", "others"], ["same", "d"], name="scan", num_scan_inputs=1,
            body=helper.make_graph(
                [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Sub", ["a", "o"], ["c"]),
                 helper.make_node("ReduceSumSquare", ["c", "last"], ["e"], keepdims=0)],
                "step", [value("a", TensorProto.FLOAT, [None, None]), value("o", TensorProto.FLOAT, [None])],
                [value("b", TensorProto.FLOAT, [None, None]), value("e", TensorProto.FLOAT, [None])],
                [numpy_helper.from_array(np.asarray([1]), "last")],
            ),
        ),
        helper.make_node("Gather", ["d", "some"], ["g"], name="gather", axis=0),
        helper.make_node("Transpose", ["g"], ["y"], name="turn", perm=[1, 0]),
    ]  # fmt: skip
    ends = [value("x", TensorProto.FLOAT, ["N", 4]), value("y", TensorProto.FLOAT, ["N", 2])]
    held = [numpy_helper.from_array(VECTORS, "others"), numpy_helper.from_array(np.asarray([1, 3]), "some")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    out = run(compile_model(model, "gradient", target=1).model, X)
    np.testing.assert_allclose(out["relevance"], 4 * (2 * (X["x"] - 0.5) - VECTORS[3]), rtol=1e-5)
