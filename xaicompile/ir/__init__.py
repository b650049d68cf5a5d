"""The intermediate representation: the only package that knows the graph library."""

from xaicompile.ir.build import Builder
from xaicompile.ir.files import save
from xaicompile.ir.graph import Program, Tensor, View
from xaicompile.ir.model import emit, load

__all__ = ["Builder", "Program", "Tensor", "View", "emit", "load", "save"]
