"""`xaicompile.neuralize`: networks of models that ONNX exporters don't know."""

from __future__ import annotations

from typing import Any

import onnx

from xaicompile.neuralization import sources


class Neuralize:
    """`xaicompile.neuralize(estimator)`, and `xaicompile.neuralize.kernel_kmeans(X, labels, gamma, beta)`."""

    def __call__(self, estimator: Any, dtype: str = "float32") -> onnx.ModelProto:
        """Writes a fitted scikit-learn estimator as a strictly equivalent network, which `compile` then explains.

        Args:
            estimator: KernelDensity (gaussian, exponential), OneClassSVM (rbf), KMeans, MiniBatchKMeans,
                BisectingKMeans, LogisticRegression, MLPClassifier, SVC or NuSVC (rbf), or a Pipeline with
                StandardScaler, MinMaxScaler or PCA before one of them.
            dtype: "float32" or "float64".

        Returns:
            A model with the input `X` [N, features] and the outputs
            `outlierness` [N], `outlierness_bias` [1] (a density or one-class SVM: their sum is -log of the density),
            `outlierness_threshold` [1] (one-class SVM), `cluster_evidence` [N,K], `probabilities` [N,K],
            `decision_function` (SVC), and `label` [N].

        Raises:
            ModelError: It is not fitted, or holds sparse or non-finite numbers.
            UnsupportedError: There is no network for it.
            RuleError: The dtype is another one.
        """
        return sources.network(estimator, dtype)

    kernel_kmeans = staticmethod(sources.kernel_kmeans)


neuralize = Neuralize()
