"""Bad input for the methods, from the command line: one clear line, exit code 2 or 3, and nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.graphs import net
from tests.nets import cnn
from tests.test_bad_input import refused, saved
from xaicompile.cli import cli

VALUES = {
    "integrated-gradients": {
        "steps=0": "'steps' is 0",
        "steps=-3": "negative",
        "steps=2.5": "whole number",
        "steps=many": "'steps' is a number",
        "steps=nan": "'steps' is a number",
        "steps=1,2": "'steps' is a number",
        "steps=1e30": "larger than",
        "quadrature=simpson": "'simpson'",
        "quadrature=3": "quadrature",
        "baseline=nan": "finite",
        "baseline=1,2,3": "[3] don't fit x",
        "baseline=gone.npy": "'gone.npy'",
        "window=3": "unknown parameter",
    },
    "smooth-integrated-gradients": {"steps=0": "'steps'", "samples=0": "'samples'", "sigma=-1": "negative"},
    "smoothgrad": {
        "samples=0": "'samples' is 0",
        "samples=x": "'samples' is a number",
        "samples=1e30": "larger than",
        "sigma=-0.1": "negative",
        "sigma=x": "'sigma' is a number",
        "noise=pink": "'pink'",
        "seed=1.5": "whole number",
        "seed=-1": "negative",
    },
    "gradient-squared": {"samples=0": "'samples' is 0", "sigma=-1": "negative"},
    "vargrad": {"samples=0": "'samples' is 0", "sigma=-1": "negative"},
    "occlusion": {
        "window=0": "'window' is 0",
        "window=13": "larger than x",
        "window=3,3": "'window' is a number",
        "stride=0": "'stride' is 0",
        "stride=-1": "negative",
        "fill=white": "'fill' is a number",
    },
    "shap-gradient": {
        "samples=0": "'samples' is 0",
        "samples=4": "needs a background",
        "background=gone.npy": "'gone.npy'",
        "background=0.5": "an array of samples",
    },
    "taylor": {"root=gone.npy": "'gone.npy'"},
    "deeplift": {"baseline=gone.npy": "'gone.npy'"},
    "random": {"seed=-1": "negative", "seed=0.5": "whole number"},
}


@pytest.mark.parametrize(("rule", "value", "hint"), [(r, v, h) for r, each in VALUES.items() for v, h in each.items()])
def test_values(tmp_path: Path, rule: str, value: str, hint: str) -> None:
    assert hint in refused(tmp_path, saved(tmp_path, cnn()), "--rule", rule, "--set", value, code=2)


ARRAYS = {
    "shape": np.ones((5, 7)),
    "rank": np.ones((1, 1, 3, 12, 12)),
    "words": np.array(["a"]),
    "complex": np.ones((1, 3, 12, 12), np.complex64),
    "infinite": np.full((1, 3, 12, 12), np.inf),
    "no samples": np.ones((0, 3, 12, 12)),
}
PLACES = [("integrated-gradients", "baseline"), ("shap-gradient", "background"), ("taylor", "root"),
          ("deeplift", "baseline")]  # fmt: skip


@pytest.mark.parametrize(("rule", "key"), PLACES)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_do_not_fit(tmp_path: Path, rule: str, key: str, name: str) -> None:
    np.save(tmp_path / "array.npy", ARRAYS[name])
    path = saved(tmp_path, cnn())
    assert f"'{key}'" in refused(tmp_path, path, "--rule", rule, "--set", f"{key}={tmp_path}/array.npy", code=2)


@pytest.mark.parametrize(("rule", "key"), [(rule, key) for rule, key in PLACES if key != "background"])
def test_one_baseline_holds_for_all_of_an_open_batch(tmp_path: Path, rule: str, key: str) -> None:
    """Seven would fit seven samples and no other number; a fixed batch may have one each."""
    np.save(tmp_path / "array.npy", np.ones((7, 3, 12, 12), np.float32))
    given = ("--rule", rule, "--set", f"{key}={tmp_path}/array.npy")
    line = refused(tmp_path, saved(tmp_path, cnn()), *given, code=2)
    assert f"'{key}' has 7 samples" in line and f"--set {key}=input" in line
    path = saved(tmp_path, cnn(batch=7))
    result = CliRunner().invoke(cli, [str(path), *given])
    assert result.exit_code == 0, result.output


def test_one_baseline_holds_for_all_open_sizes(tmp_path: Path) -> None:
    body = "g = GlobalAveragePool(x) y = Flatten(g)"
    path = saved(tmp_path, net("(float[N,2,H,W] x) => (float[N,2] y)", body))
    given = ("--rule", "integrated-gradients", "--set", f"baseline={tmp_path}/array.npy")
    np.save(tmp_path / "array.npy", np.ones((1, 2, 8, 1), np.float32))
    assert "a size of 8 along axis 2" in refused(tmp_path, path, *given, code=2)
    np.save(tmp_path / "array.npy", np.ones((2, 1, 1), np.float32))
    result = CliRunner().invoke(cli, [str(path), *given])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("rule", "key"), PLACES)
def test_files_that_hold_no_array(tmp_path: Path, rule: str, key: str) -> None:
    path = saved(tmp_path, cnn())
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("text", "empty", "objects"):
        line = refused(tmp_path, path, "--rule", rule, "--set", f"{key}={tmp_path}/{name}.npy", code=3)
        assert f"{name}.npy" in line
    np.savez(tmp_path / "none.npz")
    line = refused(tmp_path, path, "--rule", rule, "--set", f"{key}={tmp_path}/none.npz", code=2)
    assert "holds no array" in line
    (tmp_path / "folder.npy").mkdir()
    assert "folder.npy" in refused(tmp_path, path, "--rule", rule, "--set", f"{key}={tmp_path}/folder.npy", code=2)


def test_a_background_is_not_one_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "row.npy", np.ones(12))
    option = f"background={tmp_path}/row.npy"
    line = refused(tmp_path, saved(tmp_path, cnn()), "--rule", "shap-gradient", "--set", option, code=2)
    assert "an array of samples" in line


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--chunk", "5", "--rule", "integrated-gradients"), "32 steps can't be done 5 at a time"),
        (("--smooth", "4", "--sigma", "-1"), "negative"),
        (("--smooth", "4", "--sigma", "nan"), "'sigma' is a number"),
        (("--sigma", "1"), "--smooth N"),
        (("--smooth", "4", "--rule", "occlusion"), "a method of its own"),
    ],
)
def test_options(tmp_path: Path, options: tuple[str, ...], hint: str) -> None:
    assert hint in refused(tmp_path, saved(tmp_path, cnn()), *options, code=2)


@pytest.mark.parametrize("option", ["--chunk", "--smooth"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_options_that_are_no_counts(tmp_path: Path, option: str, value: str) -> None:
    """These click refuses by itself, with a usage line above its one line of error."""
    path = saved(tmp_path, cnn())
    result = CliRunner().invoke(cli, [str(path), "--rule", "integrated-gradients", option, value])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(f"Error: Invalid value for '{option}'")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_window_of_the_default_size_is_cut_down(tmp_path: Path) -> None:
    """So that occlusion runs on small inputs as it is; the window that fits just so is fine, too."""
    path = saved(tmp_path, cnn())
    for options in ((), ("--set", "window=12")):
        result = CliRunner().invoke(cli, [str(path), "--rule", "occlusion", "--force", *options])
        assert result.exit_code == 0, result.output
