"""Ops that can't be explained for a reason, and what can be done instead."""

from __future__ import annotations

from xaicompile.ir import View

LAYOUT = "com.microsoft.nchwc"


def reason(view: View) -> str:
    """Why an op has no gradient and what to do about it; "" if there is nothing to say."""
    if view.domain == LAYOUT:
        return (
            "they are in the memory layout of one processor: compile the file as it was before the runtime's layout "
            "optimisation (its level 'extended' is as far as a file can go)"
        )
    if view.op.startswith("TreeEnsemble"):
        return (
            "trees are constant almost everywhere and have no gradient: explain a tensor before them with "
            "--explain-output, or the whole model by sampling around the input, which needs no compiler"
        )
    if view.op == "SVMClassifier" and view.attrs.get("prob_a"):
        return (
            "the probabilities of more than two classes come from an iteration: export the classifier with its raw "
            "scores instead"
        )
    return ""
