"""Neuralization: what a kernel machine, a clustering or a softmax computes is rewritten as a network that rules can
explain (spec section 9). The prediction stays as it is; the explained quantity is what is rewritten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from xaicompile.bodies.record import Recorder
from xaicompile.carry import AFFINE
from xaicompile.composite import Composite
from xaicompile.errors import RuleError, UnsupportedError
from xaicompile.explained import End
from xaicompile.ir import Program, Tensor, View
from xaicompile.neuralization import clusters, forms, kernels, ratio
from xaicompile.neuralization.reading import Differs, Distances, Reader
from xaicompile.registry import OWN, info, nearest

KINDS = ("log-ratio", "kde", "one-class-svm", "kmeans", "kernel-kmeans", "distances")
AUTO = ("kernel-kmeans", "one-class-svm", "kde", "kmeans", "log-ratio")
WANTED = {
    "log-ratio": "class probabilities (Softmax, LogSoftmax or Sigmoid at the end)",
    "kde": "a sum of kernels, sum_j w_j exp(-gamma |x - u_j|^2)",
    "one-class-svm": "a sum of kernels less a threshold, sum_j w_j exp(-gamma |x - u_j|^2) - rho",
    "kmeans": "distances to cluster centres, or their ArgMin",
    "kernel-kmeans": "a softmax over the logarithms of kernel sums",
    "distances": "squared distances to constant points",
}
ENDS = ("Max", "Clip", "Relu", "Mul", "Add", "ReduceSum", "ReduceSumSquare")  # what may end squared distances
METADATA = "xaicompile.neuralize"


def kinds_of(p: Program, asked: Sequence[str], rules: Composite, named: bool) -> list[str]:
    """What to look for: as asked, else as the rule set says, else as the model does that `neuralize` made.

    Args:
        named: Whether the user named the tensor to explain; then what the model says of itself does not count.

    Raises:
        RuleError: An unknown kind, or a rule set that looks at many points.
    """
    asked = list(asked or rules.neuralize)
    if asked and rules.method:
        raise RuleError(f"rule '{rules.name}' looks at many points, and can't be applied to a neuralized model")
    said = {prop.key: prop.value for prop in p.source.model.metadata_props}
    if not asked and METADATA in said and not rules.method and not named:
        asked = [said[METADATA]]
    for kind in asked:
        if kind not in (*KINDS, "auto"):
            raise nearest(kind, (*KINDS, "auto"), "kind of --neuralize:")
    return [kind for name in asked for kind in (AUTO if name == "auto" else (name,))]


def run(p: Program, kinds: Sequence[str], end: End, named: bool) -> End:
    """Rewrites the explained quantity as the first of these kinds that the graph shows.

    Args:
        end: What would be explained else.
        named: Whether the user named it, so that no other output is looked at.

    Raises:
        UnsupportedError: None of them is there; says what was looked for, and at which node the graph differs.
    """
    reasons: dict[str, str] = {}
    starts = [end.tensor] if named else list({t.name: t for t in (*p.outputs, end.tensor)}.values())
    for kind in kinds:
        for t in starts:
            p.builder.method, before = "neuralize", p.builder.method
            try:
                with p.builder.scope(kind), p.builder.recorded() as recorded:
                    found = REWRITES[kind](Reader(p, guess=len(kinds) == len(AUTO)), t, end)
            except Differs as why:
                reasons.setdefault(kind, f"{kind}: looked for {WANTED[kind]} in front of '{t.name}', but {why}")
                continue
            finally:
                p.builder.method = before
            node = View("", [], [], name=f"neuralize/{kind}", nodes=(f"neuralize/{kind}",))
            p.views += Recorder(p).views(node, recorded)
            mark_activations(p)
            if found.score in {t.name for t in p.outputs}:  # a model that `neuralize` made
                return replace(found, constants={})
            return found
    raise UnsupportedError(f"nothing to neuralize. {'. '.join(reasons.values())}")


def mark_activations(p: Program) -> None:
    """Finds the activations whose output distances are taken of: relevance passes them also where they are 0.

    Distances put relevance on units that are off, and no cotangent can carry that (spec 9.8).
    """
    producers = p.producers()
    todo = [view.x[0] for view in p.views if view.op == "SquaredDistance" and view.domain == OWN]
    while todo:
        t = todo.pop()
        view = None if t is None else producers.get(t.name)
        if view is None or view.domain:
            continue
        row = info(view)
        if row.derivative is not None:
            p.passing.add(view.name)
        elif row.layout or view.op in AFFINE:
            todo += [x for x in view.x if x is not None and not x.constant]


def of_distances(reader: Reader, found: Distances) -> Tensor:
    """Squared distances that are read as such: those of the graph where they are precise enough, else new ones."""
    b, value = reader.b, found.value
    if value is None or value.rank != 2:
        return forms.squared_distances(b, found.x, found.points)
    read_distances(reader, found, value)
    return value


def read_distances(reader: Reader, found: Distances, value: Tensor) -> None:
    """Puts one view in place of the nodes that make squared distances in the graph."""
    p, b = reader.p, reader.b
    made_by = reader.producers[value.name]
    if made_by.op == "SquaredDistance":
        return
    centre = b.mean_axes(found.points, [0])
    with b.recorded() as recorded:
        v, w = found.x - centre, found.points - centre
    views = Recorder(p).views(made_by, recorded)
    view = View("SquaredDistance", [v, w], [value], domain=OWN, name=made_by.name, nodes=made_by.nodes)
    at = p.views.index(made_by)
    p.views[at : at + 1] = [*views, view]
    reader.producers[value.name] = view


def log_ratio(reader: Reader, t: Tensor, end: End) -> End:
    """log p/(1-p) of a class: at the scores in front of a Softmax or Sigmoid."""
    try:
        found = ratio.head(reader, t)
    except Differs:
        made_by = reader.maker(t)
        joined = made_by is not None and made_by.op == "Concat"  # of probabilities, as it may be
        if reader.guess or joined or not asked_for(t, end):
            raise
        found = ratio.Head(t, True)
    ratios = "softmax" if found.exclusive else ""
    notes = [f"explains log p/(1-p), p the {'softmax' if found.exclusive else 'sigmoid'} of '{found.logits.name}'"]
    return End(found.logits, end.cut, notes, score="log_ratio", ratio=ratios)


def asked_for(t: Tensor, end: End) -> bool:
    """True for scores [N, classes] that end the model without a Softmax."""
    many = t.rank == 2 and t.shape is not None and t.shape[1] != 1
    return t is end.tensor and t.is_float and many and not end.cut


def outlierness(reader: Reader, t: Tensor, end: End) -> End:
    """o' = -log(f / sum w), with -log sum w beside it, and the threshold in the same units where there is one."""
    found = kernels.scored(reader, t)
    k = found.kernels
    kept = k.weights > 0
    if not kept.any():
        raise Differs("all kernels have weight 0")
    if kept.all():
        d = of_distances(reader, k.distances)
    else:
        points = reader.b.op("Gather", k.distances.points, reader.b.const(np.flatnonzero(kept)), axis=0)
        d = forms.squared_distances(reader.b, k.distances.x, points)
    total = float(k.weights[kept].sum())
    constants = {"outlierness_bias": -np.log(total)}
    if found.threshold > 0:
        constants["outlierness_threshold"] = -np.log(found.threshold / total)
    score = forms.outlierness(reader.b, d, k.gamma, k.weights[kept], k.distances.root)
    notes = ["explains -log of the normed kernel sum"]
    return replace(end, tensor=score, notes=notes, score="outlierness", constants=constants)


def one_class_svm(reader: Reader, t: Tensor, end: End) -> End:
    """The same; without a threshold it is a density, if nobody said what the model is."""
    if reader.guess and not kernels.scored(reader, t).threshold:
        raise Differs(f"{reader.at(t)} subtracts no threshold")
    return outlierness(reader, t, end)


def k_means(reader: Reader, t: Tensor, end: End) -> End:
    """The evidence for each cluster: how much nearer its centre is than the nearest other."""
    d = of_distances(reader, replace(clusters.k_means(reader, t), root=False))
    evidence, notes = forms.cluster_evidence(reader.b, d), ["explains min (d_k - d_c) of a cluster c"]
    return replace(end, tensor=evidence, notes=notes, score="cluster_evidence")


def kernel_k_means(reader: Reader, t: Tensor, end: End) -> End:
    """log p/(1-p) of a cluster, at soft minima over the distances to its points."""
    found = clusters.kernel_k_means(reader, t)
    d = of_distances(reader, found.distances)
    logits = forms.kernel_logits(reader.b, d, found.gamma, found.beta, found.members)
    notes = ["explains log p/(1-p) of a cluster"]
    return replace(end, tensor=logits, notes=notes, score="log_ratio", ratio="softmax")


def distances(reader: Reader, t: Tensor, end: End) -> End:
    """The explained tensor as it is; distances anywhere in front of it are read as such."""
    seen = 0
    for view in list(reader.p.views):
        y = view.y[0] if view.y else None
        if y is None or view.domain or view.op not in ENDS:
            continue
        try:
            found = reader.distances(y)
        except Differs:
            continue
        if found.value is not None and found.value is y and not found.root:
            read_distances(reader, found, y)
            seen += 1
    if not seen:
        raise Differs("none are in the graph")
    return end


REWRITES: dict[str, Callable[[Reader, Tensor, End], End]] = {
    "log-ratio": log_ratio,
    "kde": outlierness,
    "one-class-svm": one_class_svm,
    "kmeans": k_means,
    "kernel-kmeans": kernel_k_means,
    "distances": distances,
}
