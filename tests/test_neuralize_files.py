"""`xaicompile neuralize`, and what it and the Python call refuse: one line, the exit code, and nothing written."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
import sklearn
from click.testing import CliRunner
from scipy.sparse import csr_matrix
from sklearn.cluster import DBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, OneClassSVM

import xaicompile
from tests.estimators import close, data, run
from xaicompile.cli import cli
from xaicompile.errors import ModelError, RuleError, UnsupportedError, XaiCompileError

WARNING = "loading a pickle runs code in it; prefer skops"
ROOT = Path(__file__).resolve().parents[1]


def called(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Standard output and error of the command."""
    result = CliRunner().invoke(cli, ["neuralize", *(str(a) for a in arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout, result.stderr


def refused(folder: Path, *arguments: str | Path, code: int) -> str:
    """The one line that says why; nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    out, err = called(*arguments, code=code)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "something was written"
    lines = [line for line in err.strip().splitlines() if line != WARNING]
    assert out == "" and len(lines) == 1 and lines[0].startswith("Error: "), err
    return lines[0]


@pytest.fixture
def svm() -> OneClassSVM:
    return OneClassSVM(nu=0.2).fit(data("wine")[0])


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".joblib", ".pkl", ".PICKLE"])
def test_a_pickle(suffix: str, svm: OneClassSVM, tmp_path: Path) -> None:
    path = tmp_path / f"svm{suffix}"
    if suffix == ".joblib":
        joblib.dump(svm, path)
    else:
        path.write_bytes(pickle.dumps(svm))
    out, err = called(path, "-o", tmp_path / "svm.onnx")
    assert err.strip() == WARNING
    assert str(tmp_path / "svm.onnx") in out and "outlierness_threshold" in out
    assert onnx.load(tmp_path / "svm.onnx") == xaicompile.neuralize(svm)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "svm.onnx"])


def test_a_skops_file(svm: OneClassSVM, tmp_path: Path) -> None:
    sio = pytest.importorskip("skops.io")
    sio.dump(svm, tmp_path / "svm.skops")
    out, err = called(tmp_path / "svm.skops", "--dtype", "float64")
    assert err == "" and str(tmp_path / "svm.onnx") in out
    assert onnx.load(tmp_path / "svm.onnx") == xaicompile.neuralize(svm, dtype="float64")


def test_types_of_a_skops_file_are_trusted_by_name(tmp_path: Path) -> None:
    sio = pytest.importorskip("skops.io")
    points, _, x = data("wine")
    e = KernelDensity(leaf_size=len(points)).fit(points)
    path = tmp_path / "kde.skops"
    sio.dump(e, path)
    types = sio.get_untrusted_types(file=path)
    assert len(types) > 1
    line = refused(tmp_path, path, code=3)
    assert all(f"--trust {name}" in line for name in types)
    assert types[1] in refused(tmp_path, path, "--trust", types[0], code=3)
    called(path, *(word for name in types for word in ("--trust", name)))
    got = run(onnx.load(tmp_path / "kde.onnx"), x)
    close(got["outlierness"] + got["outlierness_bias"], -e.score_samples(x), 1e-5)


def test_compiled_with_a_rule(svm: OneClassSVM, tmp_path: Path) -> None:
    joblib.dump(svm, tmp_path / "svm.joblib")
    out, _ = called(tmp_path / "svm.joblib", "--rule", "gradient")
    made = tmp_path / "svm.explained.onnx"
    assert str(made) in out and "relevance" in out
    got = run(onnx.load(made), x := data("wine")[2])
    assert got["relevance"].shape == x.shape and np.isfinite(got["relevance"]).all()
    close(got["outlierness"] + got["outlierness_bias"], -np.log(svm.score_samples(x)), 1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["svm.explained.onnx", "svm.joblib"]


def test_an_older_output_is_replaced_but_never_the_input(svm: OneClassSVM, tmp_path: Path) -> None:
    path = tmp_path / "svm.joblib"
    joblib.dump(svm, path)
    (tmp_path / "svm.onnx").write_text("old")
    called(path)
    assert onnx.load(tmp_path / "svm.onnx") == xaicompile.neuralize(svm)
    assert "the input itself" in refused(tmp_path, path, "-o", path, code=5)
    assert "no such folder" in refused(tmp_path, path, "-o", tmp_path / "none" / "a.onnx", code=5)
    assert "is a folder" in refused(tmp_path, path, "-o", tmp_path, code=5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.joblib", None, "no such file"),
        ("svm.onnx", b"x", "should be a fitted estimator"),
        ("svm.joblib", b"hello", "can't be read"),
        ("svm.pkl", b"", "can't be read"),
        ("svm.skops", b"hello", "can't be read"),
        ("dict.pkl", pickle.dumps({"a": 1}), "dict can't be written"),
        ("other.pkl", b"cnot_installed_here\nThing\n.", "needs the module not_installed_here"),
    ],
)
def test_bad_files(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if name.endswith(".skops"):
        pytest.importorskip("skops.io")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code = 4 if name == "dict.pkl" else 3
    assert said in refused(tmp_path, tmp_path / name, "-o", tmp_path / "out.onnx", code=code)


def test_bad_options(svm: OneClassSVM, tmp_path: Path) -> None:
    joblib.dump(svm, tmp_path / "svm.joblib")
    assert "--trust is for" in refused(tmp_path, tmp_path / "svm.joblib", "--trust", "a.B", code=3)
    assert "no-such-rule" in refused(tmp_path, tmp_path / "svm.joblib", "--rule", "no-such-rule", code=2)
    _, err = called(tmp_path / "svm.joblib", "--dtype", "float16", code=2)
    assert "float16" in err
    assert [p.name for p in tmp_path.iterdir()] == ["svm.joblib"]


def test_a_failed_check_writes_nothing(svm: OneClassSVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joblib.dump(svm, tmp_path / "svm.joblib")
    from xaicompile import checks

    def fails(*_: Any, **__: Any) -> checks.CheckReport:
        report = checks.CheckReport()
        report.add("prediction", False, "it differs")
        return report

    monkeypatch.setattr(checks, "check", fails)
    assert "it differs" in refused(tmp_path, tmp_path / "svm.joblib", "--rule", "gradient", code=1)


@pytest.mark.parametrize(("library", "suffix"), [("joblib", ".joblib"), ("skops.io", ".skops")])
def test_a_missing_library(library: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, library, None)
    line = refused(tmp_path, tmp_path / f"a{suffix}", code=6)
    assert library.split(".")[0] in line and 'pip install "xaicompile[sklearn]"' in line


def test_a_missing_scikit_learn(svm: OneClassSVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(svm))
    monkeypatch.setitem(sys.modules, "sklearn.svm._classes", None)
    assert 'scikit-learn; run `pip install "xaicompile[sklearn]"`' in refused(tmp_path, tmp_path / "a.pkl", code=6)


def test_what_scikit_learn_warns_of_is_one_line(svm: OneClassSVM, tmp_path: Path) -> None:
    version = sklearn.__version__.encode()
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(svm).replace(version, b"0" * len(version)))
    _, err = called(tmp_path / "a.pkl")
    lines = err.strip().splitlines()
    assert lines[0] == WARNING and lines[1].startswith("warning: ") and len(lines) == 2


def test_neither_importing_nor_kernel_k_means_needs_scikit_learn() -> None:
    blocked = dict.fromkeys(("sklearn", "joblib", "skops", "scipy"))
    code = f"import sys; sys.modules.update({blocked}); import xaicompile, xaicompile.cli\n"
    code += "m = xaicompile.neuralize.kernel_kmeans([[0.0], [1.0]], [0, 1], 1, 1); print(len(m.graph.output))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2", done.stderr


# --- estimators ---------------------------------------------------------------------------------------------------


def changed(e: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(e, name, value)
    return e


class Calibrated(LogisticRegression):
    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return super().predict_proba(X) ** 2


class Renamed(LogisticRegression):
    """Predicts as the class that it extends."""


BAD: dict[str, tuple[Any, type[XaiCompileError], str]] = {
    "number": (lambda x, y: 42, UnsupportedError, "int can't be written"),
    "class": (lambda x, y: KMeans, UnsupportedError, "KMeans is a class"),
    "forest": (lambda x, y: RandomForestClassifier(3).fit(x, y), UnsupportedError, "RandomForestClassifier can't be"),
    "no centres": (lambda x, y: DBSCAN().fit(x), UnsupportedError, "known are BisectingKMeans"),
    "search": (lambda x, y: GridSearchCV(SVC(), {"C": [1]}, cv=2).fit(x, y), UnsupportedError, "its best_estimator_"),
    "own": (lambda x, y: Calibrated().fit(x, y), UnsupportedError, "has a predict_proba of its own"),
    "kde": (lambda x, y: KernelDensity(), ModelError, "KernelDensity is not fitted (it has no"),
    "svm": (lambda x, y: OneClassSVM(), ModelError, "OneClassSVM is not fitted"),
    "svc": (lambda x, y: SVC(), ModelError, "SVC is not fitted"),
    "kmeans": (lambda x, y: KMeans(2), ModelError, "KMeans is not fitted"),
    "regression": (lambda x, y: LogisticRegression(), ModelError, "LogisticRegression is not fitted"),
    "perceptron": (lambda x, y: MLPClassifier(), ModelError, "MLPClassifier is not fitted"),
    "scaler": (lambda x, y: make_pipeline(StandardScaler(), KMeans(2).fit(x)), ModelError, "step 'standardscaler'"),
    "one cluster": (lambda x, y: KMeans(1).fit(x), UnsupportedError, "one cluster"),
    "linear machine": (lambda x, y: OneClassSVM(kernel="linear").fit(x), UnsupportedError, "the kernel 'linear'"),
    "poly": (lambda x, y: SVC(kernel="poly").fit(x, y), UnsupportedError, "only rbf kernels"),
    **{
        kernel: (lambda x, y, k=kernel: KernelDensity(kernel=k).fit(x), UnsupportedError, f"the kernel '{kernel}'")
        for kernel in ("tophat", "epanechnikov", "linear", "cosine")
    },
    "metric": (lambda x, y: KernelDensity(metric="manhattan").fit(x), UnsupportedError, "the metric 'manhattan'"),
    "power": (
        lambda x, y: KernelDensity(metric="minkowski", metric_params={"p": 3}).fit(x),
        UnsupportedError,
        "the metric 'minkowski'",
    ),
    "step": (
        lambda x, y: make_pipeline(StandardScaler(), PolynomialFeatures(), KMeans(2)).fit(x),
        UnsupportedError,
        "step 'polynomialfeatures' of the pipeline is PolynomialFeatures",
    ),
    "end": (lambda x, y: make_pipeline(StandardScaler(), PCA(2)).fit(x), UnsupportedError, "step 'pca' (PCA)"),
    "sparse": (lambda x, y: OneClassSVM().fit(csr_matrix(x)), ModelError, "sparse numbers in"),
    "sparse weights": (lambda x, y: LogisticRegression().fit(x, y).sparsify(), ModelError, "sparse numbers in coef_"),
    "nan": (
        lambda x, y: changed(KMeans(2).fit(x), cluster_centers_=np.full((2, 13), np.nan)),
        ModelError,
        "KMeans has NaN, infinite or too large numbers in cluster_centers_",
    ),
    "too large": (
        lambda x, y: make_pipeline(StandardScaler(), KMeans(2)).fit(x * 1e50),
        ModelError,
        "too large numbers in mean_",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_estimators(case: str, tmp_path: Path) -> None:
    make, error, said = BAD[case]
    points, y, _ = data("wine")
    with pytest.raises(error) as caught:
        xaicompile.neuralize(make(points, y))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_bad_estimator_in_a_file(tmp_path: Path) -> None:
    joblib.dump(RandomForestClassifier(3).fit(*data("wine")[:2]), tmp_path / "a.joblib")
    assert "RandomForestClassifier" in refused(tmp_path, tmp_path / "a.joblib", code=4)
    joblib.dump(KMeans(2), tmp_path / "a.joblib")
    assert "not fitted" in refused(tmp_path, tmp_path / "a.joblib", code=3)


def test_a_class_that_predicts_as_its_parent() -> None:
    points, y, x = data("wine")
    e = Renamed().fit(points, y)
    close(run(xaicompile.neuralize(e), x)["probabilities"], e.predict_proba(x), 1e-5)


def test_numbers_too_large_for_float32_fit_float64() -> None:
    e = KMeans(2, n_init=1, random_state=0).fit(data("wine")[0] * 1e50)
    with pytest.raises(ModelError, match="too large"):
        xaicompile.neuralize(e)
    assert np.isfinite(run(xaicompile.neuralize(e, dtype="float64"), data("wine")[2] * 1e50)["cluster_evidence"]).all()


def test_bad_dtype(svm: OneClassSVM) -> None:
    with pytest.raises(RuleError, match="float32 or float64, not 'float16'"):
        xaicompile.neuralize(svm, dtype="float16")


POINTS = np.arange(8.0).reshape(4, 2)
GOOD = {"X": POINTS, "labels": [0, 0, 1, 1], "gamma": 1.0, "beta": 1.0}
BAD_CLUSTERS: dict[str, tuple[dict[str, Any], str]] = {
    "gamma": ({"gamma": 0}, "gamma is 0, and should be a positive number"),
    "beta": ({"beta": -1.0}, "beta is -1.0"),
    "nan": ({"gamma": float("nan")}, "gamma is nan"),
    "text": ({"beta": "a"}, "beta is 'a'"),
    "list": ({"beta": [1.0]}, "beta is [1.0]"),
    "short": ({"labels": [0, 1]}, "labels have the shape [2] for 4 points"),
    "one": ({"labels": [3, 3, 3, 3]}, "all points have one label"),
    "z": ({"normalisers": [1.0]}, "2 positive numbers"),
    "negative z": ({"normalisers": [1.0, -1.0]}, "2 positive numbers"),
    "infinite": ({"X": np.where(POINTS > 5, np.inf, POINTS)}, "X has NaN, infinite"),
    "rank": ({"X": POINTS[0]}, "has the shape [2]"),
    "empty": ({"X": POINTS[:0], "labels": []}, "has the shape [0, 2]"),
    "sparse": ({"X": csr_matrix(POINTS)}, "X is sparse"),
    "words": ({"X": [["a", "b"]] * 4}, "X should be numbers"),
    "dtype": ({"dtype": "int8"}, "float32 or float64"),
}


@pytest.mark.parametrize("case", BAD_CLUSTERS)
def test_bad_kernel_k_means(case: str) -> None:
    changes, said = BAD_CLUSTERS[case]
    assert len(xaicompile.neuralize.kernel_kmeans(**GOOD).graph.output) == 2
    with pytest.raises((ModelError, RuleError)) as caught:
        xaicompile.neuralize.kernel_kmeans(**{**GOOD, **changes})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_help_lists_the_command() -> None:
    assert "\n  neuralize " in CliRunner().invoke(cli, ["--help"]).stdout
