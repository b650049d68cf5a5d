"""The public functions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from xaicompile.compiler import compile_model
from xaicompile.ir.model import ModelLike
from xaicompile.seeds import Contrast, Reduce, Target


def compile(
    model: ModelLike,
    rule: str | os.PathLike[str] = "lrp-gamma",
    *,
    parameters: Mapping[str, Any] | None = None,
    target: Target = None,
    explain_output: str | None = None,
    explain_input: str | Sequence[str] | None = None,
    explain_reduce: Reduce | None = None,
    maps: int | None = None,
    contrast: Contrast | None = None,
    neuralize: str | Sequence[str] = (),
    pool: str | int | None = None,
    inner: str | os.PathLike[str] | None = None,
    project: int | None = None,
    structure: str | Sequence[str] | None = None,
    all_walks: bool = False,
    top_walks: int | None = None,
    normalise: bool = False,
    smooth: int | None = None,
    sigma: float | None = None,
    chunk: int | None = None,
    evaluate: str | None = None,
    layers: Sequence[str] = (),
    concepts: Sequence[str] = (),
    top_concepts: int | None = None,
    ledger: bool = False,
    plugins: Sequence[str | os.PathLike[str]] = (),
    preprocess: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Turns a model into one that gives the same prediction plus the relevance of every input value.

    Args:
        model: Path, bytes or ModelProto of a model of any opset. External data is not read.
        rule: Name of a shipped rule set, or path of a TOML file.
        parameters: Overrides of the rule set's parameters, such as {"gamma": 0.1}.
        target: Default of the emitted `target` input: the flat index into one sample's output, one for all samples
            or one each. None: the largest output of each sample.
        explain_output: Name of the tensor to explain, as it is. None: the first floating-point output, in front of
            a trailing Softmax, LogSoftmax, Sigmoid, ZipMap or ArgMax.
        explain_input: Name or names of the inputs to explain. None: every floating-point input.
        explain_reduce: Explain the sum, mean or maximum of a sample's outputs instead of one element.
        maps: How many targets are explained of each sample. The input `target` is then [N, maps], by default the
            largest outputs (-1 the largest, -2 the second largest, ...), and each map has a place on an axis of its
            own behind the batch: `relevance` is [N, maps, ...].
        contrast: Explains the target's output minus that of the runner-up, or minus those of all others, weighted by
            their softmax: the gradient of the log-ratio log p / (1 - p).
        neuralize: Rewrites what is explained as a network, as the first of these kinds that the graph shows:
            "log-ratio" (log p/(1-p) of a class), "kde", "one-class-svm" (-log of the normed sum of kernels), "kmeans",
            "kernel-kmeans" (the evidence for a cluster), "distances" (nothing is rewritten, but distances are read as
            such), or "auto" for all but the last. The explained scalar becomes an output `log_ratio`, `outlierness` or
            `cluster_evidence` [N]; beside `outlierness` stand `outlierness_bias` and `outlierness_threshold` [1].
        pool: Pooling rule of a neuralized model: "v-out", "v-act" or "winner". None: that of its kind. For the rules
            "bilrp" and "second-order-lrp": side of the squares of pixels that are their regions, 16 by default.
        inner: For the rule "bilrp" (Eberle et al. 2022): the rule set that explains each unit of the embedding,
            "lrp-gamma" by default; for "second-order-lrp" that of the layers around the products. An encoder gets a
            second input `other` (`other_<name>` for several), shaped like its own; a model that ends in a dot product
            or cosine of two inputs keeps its inputs. Outputs are `similarity` [N] and `relevance` [N, P, P'] of pairs
            of regions, tokens or features of the two inputs; with `ledger`, also `explained` (the similarity) and
            `ledger` [N].
        project: For the rule "bilrp": explains that many random projections of the embedding in place of its units,
            which changes the similarity to <P phi, P phi'>, P of normal numbers over sqrt(project).
        structure: For the rule "gnn-lrp" (Schnake et al. 2022): the inputs or constants that hold the graph, a dense
            adjacency or lists of edges; relevance does not go into them. The model gets the inputs `walks`
            [walks, T + 1] (the nodes of each walk through its T interaction layers, -1 for any node) and `subgraph`
            [sets, nodes] (1 for nodes inside), and the outputs `node_relevance` [nodes], `edge_relevance`
            [T, receivers, senders], or [T, edges] for lists of edges, `walk_relevance` [walks] and
            `subgraph_relevance` [sets], the sum over all walks inside; [N, ...] for inputs [N, nodes, features]. What
            a layer hands on beside the structure is no edge. Where layers have edges of their own, there is no
            `edge_relevance`. The parameters relevance (of features and nodes), edges, walks and subgraph leave out
            what they are 0 for, and what it costs. "attention" stands for the weights of attention, through which
            nothing flows back then (Ali et al. 2022): walks go from token to token, by all heads together.
        all_walks: For "gnn-lrp": adds `all_walks_relevance`, [nodes, ..., nodes] with an axis for each of the T + 1
            nodes of a walk, [N, ...] in front for several graphs. It takes nodes^T backward passes: for small graphs.
        top_walks: For "gnn-lrp": adds that many walks of the largest relevance, of either sign, the largest first:
            `top_walks` [top_walks, T + 1] (int64) and `top_walk_relevance` [top_walks], [N, ...] for several graphs;
            -1 and 0 where there are no more. They are found from their ends, of which {"beam": 128} are kept from
            layer to layer, one backward pass each; nothing is missed if there are no more ends than that.
        normalise: Divides by the explained value, so that relevance and ledger sum to 1.
        smooth: Averages the rule set over this many noisy inputs (SmoothGrad, Smilkov et al. 2017).
        sigma: Standard deviation of that noise, in units of each sample's range; 0.1 by default.
        chunk: How many steps of a method are done in one pass, as one batch; memory grows with it. By default 2 where
            the model is proven to treat each sample by itself, else 1.
        evaluate: "pixel-flipping" adds `flipping_curve` [N, steps + 1], `aopc`, `aoc` and `auc` [N]: what the explained
            value is as the most relevant values are replaced (Samek et al. 2017). `parameters` then also takes steps,
            fraction, patch, order (morf or lerf), replacement (zero, mean, blur, noise or inpaint), score (logit,
            probability or output) and seed; "rule.steps" is the rule set's own.
        layers: Names of intermediate tensors whose relevance is given out as `relevance_<name>`.
        concepts: Names of intermediate tensors whose channels are concepts (CRP, Achtibat et al. 2023): an input
            `concepts` (or `concepts_<name>` for several), [1 or N, channels], says how much of each passes in the
            backward pass; by default all of each. Channels are axis 1, or the last axis of token sequences.
        top_concepts: Adds the channels with the largest relevance in each of `layers` and `concepts`, as
            `concept_ids_<name>` and `concept_relevance_<name>`, [N, top_concepts].
        ledger: Adds outputs `explained` [N], `ledger` [N] and `ledger_by_node` [N, nodes]: what biases, stabilisers
            and non-homogeneous ops absorbed, so that sum(relevance) + ledger == explained. N is 1 where
            samples can't be told apart, as the nodes of a graph.
        plugins: Python files that register rules of one's own; loading one runs it.
        preprocess: How images are prepared, kept in the metadata for `xaicompile explain`: mean and std (a number, or
            one a channel), range (1 or 255, the largest pixel value in their units), resize (short side) and crop
            ([height, width]). Mean and std give the bounds `low` and `high` to rules that take them.

    Returns:
        The emitted model: the source's inputs plus `target` (int64, optional), the source's outputs first and
        unchanged, then `relevance` (or `relevance_<input>` for several inputs) of the input's shape and dtype.

    Raises:
        ModelError: The model can't be read or is not valid.
        RuleError: Unknown rule, parameter or tensor name.
        UnsupportedError: Some nodes have no rule; all are listed.
    """
    return compile_model(
        model,
        rule,
        parameters=parameters,
        target=target,
        explain_output=explain_output,
        explain_input=explain_input,
        explain_reduce=explain_reduce,
        maps=maps,
        contrast=contrast,
        neuralize=neuralize,
        pool=pool,
        inner=inner,
        project=project,
        structure=structure,
        all_walks=all_walks,
        top_walks=top_walks,
        normalise=normalise,
        smooth=smooth,
        sigma=sigma,
        chunk=chunk,
        evaluate=evaluate,
        layers=layers,
        concepts=concepts,
        top_concepts=top_concepts,
        ledger=ledger,
        plugins=plugins,
        preprocess=preprocess,
    ).model


def explain(
    model: ModelLike,
    inputs: np.ndarray | Mapping[str, np.ndarray],
    rule: str | os.PathLike[str] = "lrp-gamma",
    *,
    target: Target = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Compiles a model and runs it once in ONNX Runtime.

    Args:
        model: As for `compile`.
        inputs: The model's inputs by name, or an array for its only input; the batch is axis 0.
        rule: As for `compile`.
        target: The element to explain, one for all samples or one each; None: the largest output.
        options: Further arguments of `compile`.

    Returns:
        Every output of the emitted model by name.

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed.
        ModelError, RuleError, UnsupportedError: As for `compile`.
    """
    from xaicompile import runtime

    compiled = compile_model(model, rule, target=target, **options)
    return runtime.run(compiled.model, inputs, base_dir=compiled.base_dir)
