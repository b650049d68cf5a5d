"""ONNX Runtime: the only file that imports it. Sessions, devices, random inputs for checks and benchmarks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from xaicompile.errors import ModelError, RuntimeMissingError

DEVICES = ("cpu", "cuda")
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16,
    "tensor(uint32)": np.uint32,
    "tensor(int32)": np.int32,
    "tensor(uint64)": np.uint64,
    "tensor(int64)": np.int64,
    "tensor(string)": np.object_,
}
_QUIET = 4  # ONNX Runtime's log level for what ends the process; errors come as exceptions


@dataclass(frozen=True)
class Port:
    """One input or output of a session: its name, numpy type (None if it is no tensor) and dimensions."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]


def available() -> bool:
    """Say whether ONNX Runtime is installed."""
    try:
        _library()
    except RuntimeMissingError:
        return False
    return True


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(
            'ONNX Runtime is not installed; run `pip install "xaicompile[cpu]"` '
            'or `pip install "xaicompile[gpu]"`, one of the two'
        ) from error
    return onnxruntime


def version() -> str:
    """Version of the installed ONNX Runtime."""
    return str(_library().__version__)


def _providers(device: str) -> list[Any]:
    library = _library()
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in library.get_available_providers():
        raise RuntimeMissingError(
            "this ONNX Runtime has no CUDA support; run `pip uninstall onnxruntime` and "
            '`pip install "xaicompile[gpu]"` (the CPU and the GPU package exclude each other)'
        )
    if hasattr(library, "preload_dlls"):
        library.preload_dlls()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


class Session:
    """A loaded model. Runs on numpy arrays by name, and says what the model takes and gives."""

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto,
        *,
        device: str = "cpu",
        threads: int | None = None,
        base_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: A path (the way for models above 2 GB), serialised bytes, or a ModelProto.
            device: `cpu` or `cuda`.
            threads: Number of CPU threads inside an operator; ONNX Runtime's own choice if None.
            base_dir: Folder of the external data of a model that is not given as a path.

        Raises:
            RuntimeMissingError: ONNX Runtime, or its CUDA support, is not installed.
            ModelError: ONNX Runtime does not load the model.
        """
        library = _library()
        options = library.SessionOptions()
        options.log_severity_level = _QUIET
        if threads is not None:
            options.intra_op_num_threads = threads
        if isinstance(model, onnx.ModelProto):
            model = model.SerializeToString()
        if base_dir is not None and isinstance(model, bytes):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(base_dir))
        source = model if isinstance(model, bytes) else os.fspath(model)
        providers = _providers(device)
        try:
            self._session = library.InferenceSession(source, options, providers=providers)
        except Exception as error:
            where = "the model" if isinstance(source, bytes) else f"'{source}'"
            raise ModelError(f"ONNX Runtime does not load {where}: {_one_line(error)}") from error
        if device == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise RuntimeMissingError("ONNX Runtime could not start CUDA: are a driver, CUDA and cuDNN installed?")
        self.device = device
        self.inputs = [_port(item) for item in self._session.get_inputs()]
        self.overridable = [_port(item) for item in self._session.get_overridable_initializers()]
        self.outputs = [_port(item) for item in self._session.get_outputs()]
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run once and return the outputs by name (all of them by default)."""
        names = list(outputs) if outputs is not None else [port.name for port in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise ModelError(f"ONNX Runtime could not run the model: {_one_line(error)}") from error

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        """Put the inputs on the device once, so that repeated runs measure the model and not the copies."""
        return Bound(self._session, inputs, self.device)


class Bound:
    """A session with its inputs and outputs kept on the device; call it to run once."""

    def __init__(self, session: Any, inputs: Mapping[str, np.ndarray], device: str) -> None:
        self._session = session
        self._binding = session.io_binding()
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, _library().OrtValue.ortvalue_from_numpy(value, device, 0))
        for item in session.get_outputs():
            self._binding.bind_output(item.name, device)

    def __call__(self) -> None:
        """Run once and wait until the outputs are there."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()


def _port(item: Any) -> Port:
    dtype = DTYPES.get(item.type)
    return Port(item.name, None if dtype is None else np.dtype(dtype), tuple(item.shape or ()))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def run(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    inputs: np.ndarray | Mapping[str, np.ndarray],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Load a model, run it once and return every output by name; see `Session` and `adapt`."""
    session = Session(model, device=device, base_dir=base_dir)
    return session.run(adapt(session, inputs))


def adapt(session: Session, inputs: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Match arrays with the inputs of a session: an array alone goes to the only input, types are cast."""
    if not isinstance(inputs, Mapping):
        if len(session.inputs) != 1:
            names = ", ".join(f"'{port.name}'" for port in session.inputs)
            raise ModelError(f"the model has {len(session.inputs)} inputs ({names}); give one array for each, by name")
        inputs = {session.inputs[0].name: inputs}
    ports = {port.name: port for port in [*session.inputs, *session.overridable]}
    unknown = [name for name in inputs if name not in ports]
    missing = [port.name for port in session.inputs if port.name not in inputs]
    if unknown or missing:
        parts = [f"no input '{name}' in the model" for name in unknown]
        parts += [f"input '{name}' is missing" for name in missing]
        raise ModelError("; ".join(parts) + f" (its inputs: {', '.join(ports)})")
    return {name: np.ascontiguousarray(value, dtype=ports[name].dtype) for name, value in inputs.items()}


def random_inputs(
    session: Session,
    rng: np.random.Generator,
    *,
    batch: int = 2,
    size: int = 8,
    low: Any = None,
    high: Any = None,
) -> dict[str, np.ndarray]:
    """Random inputs for a session.

    Args:
        session: The session whose required inputs to fill.
        rng: Source of the numbers.
        batch: Length of a first axis that is dynamic; the same for all inputs.
        size: Length of any other dynamic axis; axes of the same symbolic name get the same length.
        low: If given with `high`, floating-point inputs are uniform in this box (scalars, or arrays that broadcast).
        high: See `low`.

    Returns:
        Arrays by input name. Floating-point inputs are normal if no box is given, integers are 0 or 1.
    """
    lengths: dict[str, int] = {}
    return {port.name: _random(port, rng, lengths, batch, size, low, high) for port in session.inputs}


def _random(
    port: Port, rng: np.random.Generator, lengths: dict[str, int], batch: int, size: int, low: Any, high: Any
) -> np.ndarray:
    if port.dtype is None or port.dtype == np.object_:
        raise ModelError(f"input '{port.name}' is no tensor of numbers, so no random values can be made for it")
    shape = []
    for axis, dim in enumerate(port.shape):
        wanted = batch if axis == 0 else size
        if isinstance(dim, int) and dim >= 0:
            shape.append(dim)
        else:
            shape.append(lengths.setdefault(dim, wanted) if isinstance(dim, str) else wanted)
    if not np.issubdtype(port.dtype, np.floating):
        return rng.integers(0, 2, shape).astype(port.dtype)
    if low is not None and high is not None:
        return rng.uniform(np.broadcast_to(low, shape), np.broadcast_to(high, shape)).astype(port.dtype)
    return rng.standard_normal(shape).astype(port.dtype)
