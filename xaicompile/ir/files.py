"""External data, and writing a model so that nothing half-written is left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from xaicompile.errors import ModelError, OutputError


def external_files(proto: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    """The external data files of a model; each must lie inside its folder and be long enough."""
    found: dict[str, None] = {}
    for tensor in tensors_of(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        info = {e.key: e.value for e in tensor.external_data}
        location = info.get("location", "")
        target = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not target.is_relative_to(folder.resolve()):
            raise ModelError(f"external data of '{tensor.name}' leaves the model's folder: '{location}'")
        if not target.is_file():
            raise ModelError(f"external data of '{tensor.name}' is missing: {target}")
        need = int(info.get("offset") or 0) + int(info.get("length") or 0)
        if target.stat().st_size < need:
            raise ModelError(f"external data of '{tensor.name}' is cut short: {target} ends before byte {need}")
        found[location] = None
    return tuple(found)


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and tensor attributes, those of subgraphs included."""
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            yield from tensors_of(inner)


def save(model: onnx.ModelProto, path: Path, source_dir: Path | None = None, force: bool = False) -> list[Path]:
    """Writes a model under a temporary name and renames it; external data is written beside it.

    An older file of that name is replaced, as compilers do. External data is shared where the output lies in the
    source's folder, else copied; data files that are there already may belong to another model and are not replaced.

    Returns:
        The files written.

    Raises:
        OutputError: The place can't be written, or external data is there already and `force` is not given.
    """
    copied: list[Path] = []
    try:
        folder = path.parent.resolve()
        if not folder.is_dir():
            raise OutputError(f"no such folder: {folder}")
        data: dict[Path, Path] = {}
        if source_dir is not None and source_dir.resolve() != folder:
            data = {folder / name: source_dir / name for name in external_files(model, source_dir)}
        for into in data:
            if into.exists() and not force:
                raise OutputError(f"{into} (external data) exists; --force overwrites it")
        for into, origin in data.items():
            into.parent.mkdir(parents=True, exist_ok=True)
            copy_data(origin, into)
            copied.append(into)
        write(model, path, folder)
    except BaseException as error:
        for into in copied:
            into.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"can't write {path}: {error.strerror or error}") from error
        raise
    return [path, *copied]


def write(model: onnx.ModelProto, path: Path, folder: Path) -> None:
    """The model under its final name, never half-written."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def umask() -> int:
    """The process's file mode mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def copy_data(source: Path, into: Path) -> None:
    """A copy of a data file under its final name, never half-written."""
    temporary = into.with_name(f".{into.name}.part")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, into)
    finally:
        temporary.unlink(missing_ok=True)
