"""The demo: a classifier with real ImageNet weights explains a real photo.

Needs `python models/fetch_demo.py` to have been run; skipped where the files are not there.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from xaicompile import report
from xaicompile.cli import cli
from xaicompile.images import Preprocess, read_photo
from xaicompile.runtime import Session

MODELS = Path(__file__).resolve().parents[1] / "models"
sys.path.insert(0, str(MODELS))
import fetch_demo  # noqa: E402

MODEL, PHOTO = MODELS / "efficientnet-lite0.onnx", MODELS / "chelsea.png"
FACE = [(slice(56, 111), slice(35, 96)), (slice(76, 127), slice(172, 217)), (slice(178, 211), slice(122, 172))]
fetched = pytest.mark.skipif(not (MODEL.exists() and PHOTO.exists()), reason="run models/fetch_demo.py first")


def test_the_checkpoint_can_build_nothing_but_tensors() -> None:
    for thing in (os.system, Path("/"), np.float64(1)):
        with pytest.raises(pickle.UnpicklingError, match="no part of a tensor"):
            fetch_demo.TensorUnpickler(io.BytesIO(pickle.dumps(thing))).load()


def test_a_wrong_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import zipfile

    def download(command: list[str], **_: object) -> object:
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a.whl", "w") as wheel:
            wheel.writestr(fetch_demo.PHOTO.member, b"another photo")
        return type("Done", (), {"returncode": 0})()

    monkeypatch.setattr(fetch_demo.subprocess, "run", download)
    with pytest.raises(SystemExit, match="SHA-256"):
        fetch_demo.fetch(fetch_demo.PHOTO)


@fetched
def test_the_model_knows_the_cat() -> None:
    session = Session(MODEL)
    port = session.inputs[0]
    preprocess = Preprocess(mean=(127.0,), std=(128.0,), resize=256, crop=(224, 224))
    logits = session.run({"x": read_photo(PHOTO, port.shape, port.dtype, preprocess).values})["logits"][0]
    powers = np.exp(logits - logits.max())
    probability = powers / powers.sum()
    classes = report.read_classes(None, session.metadata)
    assert classes is not None and len(classes) == 1000
    best = probability.argsort()[::-1][:2]
    assert [classes[i] for i in best] == ["tiger cat", "Egyptian cat"]
    np.testing.assert_allclose(probability[best], [0.386, 0.356], atol=2e-3)


@fetched
def test_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "cat.onnx"
    options = ["--mean", "127", "--std", "128", "--size", "256,224", "--ledger", "--json"]
    result = CliRunner().invoke(cli, [str(MODEL), "--rule", "lrp-gamma", "-o", str(out), *options])
    assert result.exit_code == 0, result.output
    checks = {item["name"]: item for item in json.loads(result.stdout)["check"]["checks"]}
    assert checks["prediction"]["detail"].startswith("bit-identical")
    assert all(item["ok"] for item in checks.values()) and "ledger" in checks
    assert out.stat().st_size - MODEL.stat().st_size < 1_000_000

    result = CliRunner().invoke(cli, ["explain", str(out), str(PHOTO), "-o", str(tmp_path / "map.png"), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["class"] == "tiger cat" and facts["softmax"] == pytest.approx(0.386, abs=2e-3)
    assert (tmp_path / "map.png").stat().st_size > 10_000

    CliRunner().invoke(cli, ["explain", str(out), str(PHOTO), "-o", str(tmp_path / "map.npy")])
    relevance = np.load(tmp_path / "map.npy")[0].sum(0)
    positive = np.maximum(relevance, 0)
    face = np.zeros(positive.shape, bool)  # the cat's eyes and nose, in the 224 x 224 that the model sees
    for place in FACE:
        face[place] = True
    share = positive[face].sum() / positive.sum()
    assert share > 2 * face.mean(), f"{share:.2f} of the positive relevance on {face.mean():.2f} of the picture"
    assert positive.sum() > 5 * -np.minimum(relevance, 0).sum()


@fetched
def test_the_weights_are_those_of_the_package() -> None:
    model = onnx.load(MODEL)
    kinds = {node.op_type for node in model.graph.node}
    assert kinds == {"Conv", "BatchNormalization", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    assert sum(np.prod(t.dims) for t in model.graph.initializer if not t.name.endswith(("mean", "var"))) > 4.6e6
