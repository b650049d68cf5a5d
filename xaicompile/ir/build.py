"""The builder: emits new nodes, each tensor with a unique name, a dtype and a shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from xaicompile.errors import ModelError
from xaicompile.ir.graph import Dim, Operand, Shape, Tensor, View, schema_of
from xaicompile.ir.types import LIKE_INPUT

Typed = tuple[np.dtype[Any] | None, Shape | None]
SMALL = 4096  # constants up to this many elements are known by value


class Builder:
    """Emits nodes of the standard domain; `b.Conv(x, w, strides=[2, 2])` is short for `b.op("Conv", ...)`.

    Equal nodes are emitted once. Python numbers become constants of the dtype of the other operands, lists of
    integers become int64 vectors.
    """

    def __init__(self, opset: int, names: Iterable[str]) -> None:
        self.opset = opset
        self.nodes: list[gs.Node] = []
        self.method = "explain"
        self._scope = ""
        self._names = set(names)
        self._seen: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}
        self._types: dict[tuple[Any, ...], list[Typed]] = {}
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._counter: dict[str, int] = {}
        self.made: set[str] = set()
        self.outputs: set[str] = set()
        self._record: list[View] | None = None

    def __getattr__(self, op: str) -> Callable[..., Tensor]:
        if not op[0].isupper():
            raise AttributeError(op)
        return lambda *x, **attrs: self.op(op, *x, **attrs)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names emitted inside start with `<method>/<name>/`."""
        before, self._scope = self._scope, name
        try:
            yield
        finally:
            self._scope = before

    @contextmanager
    def recorded(self) -> Iterator[list[View]]:
        """Gives every node asked for inside as a view, those that stood there before included."""
        before, self._record = self._record, []
        try:
            yield self._record
        finally:
            self._record = before

    def read_as(self, view: View, make: Callable[[], Tensor]) -> Tensor:
        """Records what is emitted as one view, whose output it is."""
        outer, self._record = self._record, None
        try:
            made = make()
        finally:
            self._record = outer
        if outer is not None:
            outer.append(view.varied(y=[made]))
        return made

    def unique(self, stem: str) -> str:
        """A name that nothing in the model has, `stem` itself if it is free, and keeps it."""
        name, n = stem, self._counter.get(stem, 1)
        while name in self._names:
            n += 1
            name = f"{stem}_{n}"
        self._counter[stem] = n
        self._names.add(name)
        return name

    def op(self, op: str, *x: Operand | None, shape: Shape | None = None, **attrs: Any) -> Tensor:
        """Emits a node with one output. `shape` states the result's shape where inference would lose it."""
        return self.many(op, 1, *x, shape=shape, **attrs)[0]

    def many(
        self, op: str, outputs: int, *x: Operand | None, shape: Shape | None = None, **attrs: Any
    ) -> tuple[Tensor, ...]:
        """Emits a node with several outputs."""
        tensors = self._operands(x)
        while tensors and tensors[-1] is None:
            tensors.pop()
        attrs = {k: v for k, v in attrs.items() if v is not None}
        key = (op, outputs, tuple(t and t.name for t in tensors), repr(sorted(attrs.items())))
        if key not in self._seen:
            self._seen[key] = self._emit(op, outputs, tensors, shape, attrs)
        if self._record is not None:
            self._record.append(View(op, tensors, list(self._seen[key]), attrs, since=self.opset))
        return self._seen[key]

    def _operands(self, x: Sequence[Operand | None]) -> list[Tensor | None]:
        """Turns numbers and lists among the operands into constants that fit the tensors among them."""
        dtypes = [t.dtype for t in x if isinstance(t, Tensor) and t.dtype is not None]
        like = next((d for d in dtypes if d.kind != "b"), np.dtype(np.float32))
        found: list[Tensor | None] = []
        for t in x:
            if t is None or isinstance(t, Tensor):
                found.append(t)
            elif isinstance(t, np.ndarray):
                found.append(self.const(t))
            elif isinstance(t, bool | int | float | np.generic):
                found.append(self.const(np.asarray(t, np.bool_ if isinstance(t, bool) else like)))
            else:
                found.append(self.const(np.asarray(t, np.int64)))
        return found

    def _emit(
        self, op: str, outputs: int, x: list[Tensor | None], shape: Shape | None, attrs: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        path = "/".join(p for p in (self.method, self._scope) if p)
        name = self.unique(f"{path}/{op}")
        names = [name] + [self.unique(f"{name}_out{i}") for i in range(1, outputs)]
        types = self.infer(op, outputs, x, attrs)
        made = []
        for i, n in enumerate(names):
            dtype, dims = types[i]
            if i == 0 and shape is not None:
                dims = merged(dims, shape)
            constant = bool(x) and all(t is None or t.constant for t in x)
            made.append(Tensor(gs.Variable(n, dtype=dtype, shape=listed(dims)), self, dtype, dims, constant=constant))
        inputs = [t.var if t else gs.Variable.empty() for t in x]
        self.made.update(names)
        self.nodes.append(gs.Node(op, name=name, attrs=attrs, inputs=inputs, outputs=[t.var for t in made]))
        return tuple(made)

    def infer(self, op: str, outputs: int, x: list[Tensor | None], attrs: dict[str, Any]) -> list[Typed]:
        """dtype and shape of a node's outputs by the schema's own inference, worked out once for equal signatures."""
        schema = schema_of(op, "", self.opset)
        assert schema is not None, f"{op} is not an op of opset {self.opset}"
        if op == "SequenceLength":  # whatever the members are: a sequence has no dtype of its own
            return [(np.dtype(np.int64), ())]
        if any(t is not None and t.dtype is None for t in x):
            return [(None, None)] * outputs
        if op in LIKE_INPUT and x[0] is not None:
            return [(x[0].dtype, x[0].shape)]
        values = [t.value if t is not None and decides_shapes(t) else None for t in x]
        signature = tuple(
            t and (t.dtype, t.shape, v if v is None else v.tobytes()) for t, v in zip(x, values, strict=True)
        )
        key = (op, outputs, signature, repr(sorted(attrs.items())))
        if key not in self._types:
            names = ["" if t is None else f"x{i}" for i, t in enumerate(x)]
            made = [f"y{i}" for i in range(outputs)]
            types = {n: tensor_type(t) for n, t in zip(names, x, strict=True) if t is not None}
            data = {n: numpy_helper.from_array(v, n) for n, v in zip(names, values, strict=True) if v is not None}
            node, opsets = helper.make_node(op, names, made, **attrs), [helper.make_opsetid("", self.opset)]
            try:
                found = onnx.shape_inference.infer_node_outputs(
                    schema, node, types, data, opset_imports=opsets, ir_version=10
                )
            except onnx.shape_inference.InferenceError as error:
                shapes = ", ".join("-" if t is None else repr(t) for t in x)
                reason = str(error).splitlines()[0].removeprefix("[ShapeInferenceError] ")
                where = f"'{self._scope}'" if self._scope else "the model"
                raise ModelError(f"the shapes at {where} don't fit: {op} of {shapes}: {reason}") from error
            self._types[key] = [type_and_shape(found[n]) if n in found else (None, None) for n in made]
        return self._types[key]

    def const(self, value: np.ndarray, name: str = "") -> Tensor:
        """A constant; equal ones are made once."""
        value = np.ascontiguousarray(value) if value.ndim else np.asarray(value)
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            unique = self.unique(f"{self.method}/{name or 'const'}")
            var = gs.Constant(unique, value)
            self._constants[key] = Tensor(
                var, self, value.dtype, value.shape, value if value.size <= SMALL else None, True
            )
        return self._constants[key]

    def constants(self) -> list[gs.Constant]:
        """All constants made so far."""
        return [t.var for t in self._constants.values()]

    def typed(
        self,
        op: str,
        x: Sequence[Tensor | None],
        types: Sequence[tuple[np.dtype[Any] | None, Shape | None]],
        **attrs: Any,
    ) -> tuple[Tensor, ...]:
        """Emits a node with subgraphs, whose outputs' types are stated."""
        path = "/".join(p for p in (self.method, self._scope) if p)
        name = self.unique(f"{path}/{op}")
        names = [name] + [self.unique(f"{name}_out{i}") for i in range(1, len(types))]
        made = [
            Tensor(gs.Variable(n, dtype=dtype, shape=listed(shape)), self, dtype, shape)
            for n, (dtype, shape) in zip(names, types, strict=True)
        ]
        inputs = [t.var if t else gs.Variable.empty() for t in x]
        self.made.update(names)
        self.nodes.append(gs.Node(op, name=name, attrs=attrs, inputs=inputs, outputs=[t.var for t in made]))
        return tuple(made)

    def where(self, condition: Tensor, yes: Tensor | float, no: Tensor | float, like: Tensor) -> Tensor:
        """Where, with numbers in the dtype of `like`."""
        typed = [v if isinstance(v, Tensor) else self.const(np.asarray(v, like.dtype)) for v in (yes, no)]
        return self.op("Where", condition, *typed)

    def keep(self, x: Tensor, condition: Tensor) -> Tensor:
        """x where a condition of its shape holds, else 0; a product, since Where takes 20 times as long on a CPU."""
        return x * self.op("Cast", condition, to=helper.np_dtype_to_tensor_dtype(x.dtype))

    def outside(self, name: str, dtype: np.dtype[Any], shape: Shape) -> Tensor:
        """A tensor that is no node's output: a new graph input of a name from `unique`."""
        return Tensor(gs.Variable(name, dtype=dtype, shape=listed(shape)), self, dtype, shape)

    def rename(self, t: Tensor, name: str) -> None:
        """Gives a tensor that this builder made its name as a graph output."""
        t.var.name, t.var.shape = name, listed(t.shape)
        self.made.add(name)
        self.outputs.add(name)

    def forward(self, view: View) -> Tensor:
        """Emits the forward computation of a varied view and returns its first output.

        A MatMul view may carry a bias as its third input, which the op itself has not.
        """
        if view.op == "MatMul" and len(view.x) > 2:
            product = self.op("MatMul", view.x[0], view.x[1])
            return product if view.x[2] is None else product + view.x[2]
        return self.op(view.op, *view.x, **view.attrs)

    # Shapes: a constant where it is known, read at run time where it is not.

    def shape_of(self, x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
        """The int64 vector of x's dimensions from axis `start` to `end`."""
        dims = None if x.shape is None else x.shape[start:end]
        if dims is not None and all(isinstance(d, int) for d in dims):
            return self.const(np.asarray(dims, np.int64))
        return self.op("Shape", x, start=start or None, end=end)

    def dim(self, x: Tensor, axis: int) -> Tensor:
        """One dimension of x as an int64 vector of length 1. `axis` counts from the front where rank is unknown."""
        if axis < 0 and x.rank is not None:
            axis += x.rank
        return self.shape_of(x, axis, axis + 1 if axis != -1 else None)

    def reshape_like(self, x: Tensor, like: Tensor) -> Tensor:
        """x with the shape of `like`."""
        if x.static is not None and x.static == like.static:
            return x
        return self.op("Reshape", x, self.shape_of(like), shape=like.shape, allowzero=1)

    def expand_like(self, x: Tensor, like: Tensor) -> Tensor:
        """x broadcast to the shape of `like`."""
        if x.static is not None and x.static == like.static:
            return x
        return self.op("Expand", x, self.shape_of(like), shape=like.shape)

    def zeros_like(self, x: Tensor) -> Tensor:
        """Zeros of x's dtype and shape."""
        zero = onnx.numpy_helper.from_array(np.zeros(1, x.dtype))
        return self.op("ConstantOfShape", self.shape_of(x), value=zero, shape=x.shape)

    def sum_axes(self, x: Tensor, axes: Sequence[int] | Tensor, keepdims: bool = False) -> Tensor:
        """Sum over axes."""
        if not isinstance(axes, Tensor) and not list(axes):
            return x
        return self.op("ReduceSum", x, axes, keepdims=int(keepdims))

    def mean_axes(self, x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
        """Mean over axes."""
        return self.op("ReduceMean", x, list(axes), keepdims=int(keepdims))

    def add_all(self, terms: Sequence[Tensor]) -> Tensor:
        """The sum of one or more tensors of one shape, as one node."""
        if len(terms) == 1:
            return terms[0]
        shape: Shape | None = None
        for t in terms:
            shape = merged(shape, t.shape)
        return terms[0] + terms[1] if len(terms) == 2 else self.op("Sum", *terms, shape=shape)

    def unbroadcast(self, g: Tensor, x: Tensor) -> Tensor:
        """Sums g over the axes that broadcasting added to x or stretched, also where that shows only at run time."""
        if x.shape is None or g.shape is None:
            return self._unbroadcast_by_rank(g, x)
        extra = len(g.shape) - len(x.shape)
        if extra > 0:
            g = self.sum_axes(g, list(range(extra)))
        if g.shape is None or (g.shape == x.shape and None not in x.shape):
            return g
        if extra < 0:  # the message is smaller than x: a rule left out axes along which it is constant
            return self.expand_like(g, x)
        pairs = list(zip(g.shape, x.shape, strict=True))
        if all(a == b and a is not None for a, b in pairs):
            return g
        if any(isinstance(a, int) and a == 1 and b != 1 for a, b in pairs):
            return self.expand_like(g, x)
        axes = [i for i, (a, b) in enumerate(pairs) if b == 1 and a != 1]
        if all(b == 1 or (a == b and a is not None) for a, b in pairs):
            return self.sum_axes(g, axes, keepdims=True)
        stretched = self.op("Not", self.op("Equal", self.shape_of(g), self.shape_of(x)))
        where = self.op("Squeeze", self.op("NonZero", stretched), [0])
        return self.op("ReduceSum", g, where, keepdims=1, noop_with_empty_axes=1, shape=x.shape)

    def _unbroadcast_by_rank(self, g: Tensor, x: Tensor) -> Tensor:
        """The same where a rank is unknown: pad x's shape with ones in front, sum, reshape."""
        ones = self.op(
            "Expand", [1], self.op("Sub", self.op("Shape", self.op("Shape", g)), self.op("Shape", self.op("Shape", x)))
        )
        stretched = self.op(
            "Not", self.op("Equal", self.op("Shape", g), self.op("Concat", ones, self.op("Shape", x), axis=0))
        )
        where = self.op("Squeeze", self.op("NonZero", stretched), [0])
        summed = self.op("ReduceSum", g, where, keepdims=1, noop_with_empty_axes=1)
        return self.op("Reshape", summed, self.op("Shape", x), shape=x.shape, allowzero=1)


def merged(a: Shape | None, b: Shape | None) -> Shape | None:
    """The better known of two descriptions of one shape, axis by axis; a number beats a symbol beats nothing."""
    if a is None or b is None or len(a) != len(b):
        return b if a is None else a

    def better(p: Dim, q: Dim) -> Dim:
        return p if isinstance(p, int) or q is None else q

    return tuple(better(p, q) for p, q in zip(a, b, strict=True))


def listed(shape: Shape | None) -> list[Dim] | None:
    """A shape as the list that the graph library and onnx.helper expect."""
    return None if shape is None else list(shape)


def decides_shapes(t: Tensor) -> bool:
    """True for values that inference may read: integers, and the few floating-point numbers of a size."""
    return t.value is not None and (t.value.dtype.kind in "iu" or t.value.size <= 8)


def tensor_type(t: Tensor) -> onnx.TypeProto:
    """A tensor's dtype and shape as a proto."""
    assert t.dtype is not None
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(t.dtype), listed(t.shape))


def type_and_shape(t: onnx.TypeProto) -> Typed:
    """numpy dtype and shape of a tensor type; (None, None) for sequences, maps and unknown types."""
    if not t.HasField("tensor_type") or not t.tensor_type.elem_type:
        return None, None
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(t.tensor_type.elem_type))
    if not t.tensor_type.HasField("shape"):
        return dtype, None
    dims: list[Dim] = []
    for d in t.tensor_type.shape.dim:
        dims.append(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None))
    return dtype, tuple(dims)
