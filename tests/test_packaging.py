"""The rule sets are found from a wheel, an sdist and an editable install alike, in an empty folder."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.nets import cnn

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "rules").glob("*.toml"))


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, without anything of this checkout in its environment."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel, "editable": ROOT}


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_rules_are_found_in_an_empty_folder(kind: str, built: dict[str, Path], tmp_path: Path) -> None:
    bin_folder = environment(tmp_path / "venv")
    options = ["--no-deps", "--no-build-isolation", "--quiet", *(["-e"] if kind == "editable" else [])]
    python = bin_folder / Path(sys.executable).name
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, built[kind], cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    where = Path(run(python, "-c", "import xaicompile; print(xaicompile.__file__)", cwd=empty).strip())
    assert where.is_relative_to(ROOT if kind == "editable" else tmp_path / "venv")
    program = bin_folder / "xaicompile"
    for command in ([program], [python, "-m", "xaicompile"]):
        listed = run(*command, "rules", cwd=empty)
        assert sorted(line.split()[0] for line in listed.splitlines()) == NAMES
    (empty / "model.onnx").write_bytes(cnn().SerializeToString())
    run(program, "model.onnx", "--rule", "flat", cwd=empty)
    assert sorted(p.name for p in empty.iterdir()) == ["model.explained.onnx", "model.onnx"]


def environment(folder: Path) -> Path:
    """A virtual environment that sees the packages of this one, but not how xaicompile is installed here."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


def test_what_is_in_the_wheel(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = wheel.namelist()
    inside = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert {name.split("/")[0] for name in inside} == {"xaicompile"}
    shipped = {str(p.relative_to(ROOT)) for p in (ROOT / "rules").rglob("*.toml")}
    assert {name.removeprefix("xaicompile/") for name in inside if name.endswith(".toml")} == shipped
    assert "xaicompile/evaluation/report.html.j2" in inside and "rules/evaluation/tutorial.toml" in shipped
    assert "xaicompile/py.typed" in inside
    assert any(name.endswith("licenses/LICENSE") for name in names)
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "xaicompile").rglob("*.py")}
    assert modules <= inside


def test_what_is_in_the_sdist(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    wanted = {
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "pyproject.toml",
        "demo.sh",
        "models/fetch_demo.py",
        "models/heatmap.jpg",
    }
    assert wanted <= names
    assert {f"rules/{name}.toml" for name in NAMES} <= names and "tests/test_packaging.py" in names
    assert not any(name.endswith((".onnx", ".pyc")) for name in names)


def test_importing_needs_neither_the_runtime_nor_pictures() -> None:
    """Compiling runs where no ONNX Runtime, matplotlib or pillow is installed."""
    blocked = dict.fromkeys(("onnxruntime", "matplotlib", "PIL", "torch"))
    code = f"import sys; sys.modules.update({blocked}); sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from tests.nets import cnn; import xaicompile, xaicompile.cli\n"
    code += "print(len(xaicompile.compile(cnn()).graph.output))"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "2"
