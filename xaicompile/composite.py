"""Named rule sets ("composites"): TOML in, one (node, rule, reason) list out."""

from __future__ import annotations

import fnmatch
import hashlib
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile import registry
from xaicompile.backward import Picked
from xaicompile.errors import RuleError
from xaicompile.facts import Facts
from xaicompile.ir import View
from xaicompile.registry import METHOD_PARAMETERS, METHODS, PARAMETERS, RULES, Context, nearest
from xaicompile.relevance.layer import linear_of

KEYS = {"name", "doc", "cite", "extends", "output", "method", "neuralize", "pool", "parameters", "rules"}
MATCHERS = {"op", "name", "kind", "place", "depth", "rank", "given"}
RECTIFYING = ("default", "identity")  # pass relevance through an activation, but where its output is 0
POOLINGS = ("v-out", "v-act", "winner")
SOFT_POOLS = ("SoftMin", "ReduceLogSumExp", "ClusterEvidence")
PLACES = {"first-linear", "last-linear"}
KINDS = {"linear", "activation", "layout", "other"}
WORDS = {
    "stabiliser": ("absolute", "relative", "clip"),
    "bias": ("absorb", "ignore"),
    "noise": ("relative", "absolute"),
    "similarity": ("dot", "cosine"),
    "quadrature": ("midpoint", "gauss-legendre", "riemann-right", "riemann-left", "trapezoid"),
}
SIGNED = {"low", "high", "fill"}  # numbers that may be negative
FREE = {"baseline", "root", "background", "group"}  # a word, a number, numbers, or the path of a file


@dataclass(frozen=True)
class Entry:
    """One line of a composite: which nodes, which rule, with which parameters fixed."""

    rule: str
    match: Mapping[str, Any]
    fixed: Mapping[str, Any]
    origin: str


@dataclass
class Composite:
    """A resolved rule set.

    Attributes:
        output: "relevance" (x*c) or "cotangent" (c itself).
        method: How the rules are applied: "" once, else a method that applies them at many points.
        parameters: Defaults of the set, overridden by what the user sets.
        neuralize: What the explained quantity may be rewritten as, in the order in which it is looked for.
        pool: Pooling rule of a neuralized model; "" for that of its kind.
        text: The TOML texts that it was read from, itself first.
    """

    name: str
    doc: str = ""
    cite: str = ""
    output: str = "relevance"
    method: str = ""
    neuralize: tuple[str, ...] = ()
    pool: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    text: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def accepted(self) -> dict[str, Any]:
        """Every parameter that the set's rules take, with the value in force (None: not given)."""
        known = {k: v for e in self.entries for k, v in PARAMETERS[e.rule].items() if k not in e.fixed}
        return {**METHOD_PARAMETERS.get(self.method, {}), **known, **self.parameters}

    def pool_by(self, pool: Any, where: str) -> None:
        """Makes one rule that of all pools of a neuralized model.

        Raises:
            RuleError: It is no pooling rule.
        """
        if pool not in POOLINGS:
            raise nearest(str(pool), POOLINGS, f"pooling rule of {where}:")
        self.pool = str(pool)
        self.entries.insert(0, Entry(self.pool, {"op": list(SOFT_POOLS)}, {}, f"pool of {where}"))

    def set(self, given: Mapping[str, Any]) -> None:
        """Overrides parameters.

        Raises:
            RuleError: No rule of the set takes a parameter of that name, or not such a value.
        """
        for key, value in given.items():
            if key not in self.accepted:
                raise nearest(key, self.accepted, f"parameter of rule '{self.name}'")
            self.parameters[key] = valid(key, value, self.accepted[key])


def valid(key: str, value: Any, default: Any, where: str = "") -> Any:
    """The value of a parameter, if it is of the kind of its default: text, a number, or (for a box) numbers.

    Raises:
        RuleError: It is not.
    """
    if key in FREE:
        return value
    if isinstance(default, str):
        if isinstance(value, str) and value in WORDS.get(key, (value,)):
            return value
        raise RuleError(f"{where}parameter '{key}' is {' or '.join(WORDS.get(key, ('a word',)))}, not {value!r}")
    box = key in ("low", "high")
    numbers = np.asarray(value if value is not None else 0.0)
    if numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all() or (numbers.ndim and not box):
        kind = "one number, or one a channel" if box else "a number"
        raise RuleError(f"{where}parameter '{key}' is {kind}, not {value!r}")
    if key not in SIGNED and numbers < 0:
        raise RuleError(f"{where}parameter '{key}' is {value}; it must not be negative")
    return value


def folders() -> Iterator[Path]:
    """Where rule sets are shipped: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    for folder in (here / "rules", here.parent / "rules"):
        if folder.is_dir():
            yield folder


def shipped() -> dict[str, Path]:
    """Shipped rule sets by name."""
    return {p.stem: p for folder in folders() for p in sorted(folder.glob("*.toml"))}


def load(rule: str | Path, parameters: Mapping[str, Any] | None = None, pool: str | None = None) -> Composite:
    """Reads a rule set by name or by path to a TOML file; `pool` is a pooling rule in place of the set's own.

    Raises:
        RuleError: Unknown name, unreadable file, unknown key, rule or parameter.
    """
    path = Path(rule)
    if str(rule) in shipped():
        composite = from_file(shipped()[str(rule)], ())
    elif path.suffix == ".toml" or path.is_file():
        composite = from_file(path, ())
    else:
        raise nearest(str(rule), shipped(), "rule")
    if pool is not None:
        composite.pool_by(pool, "--pool")
    composite.set(parameters or {})
    return composite


def read_toml(path: Path, what: str, keys: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """The text of a TOML file and what it says.

    Raises:
        RuleError: It can't be read, or holds other keys than these.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except OSError as error:
        raise RuleError(f"{what} {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RuleError(f"{what} {path} is not TOML: {error}") from error
    for key in data:
        if key not in keys:
            raise nearest(key, keys, f"key in {path.name}:")
    return text, data


def from_file(path: Path, seen: Sequence[Path]) -> Composite:
    """Reads one TOML file and what it extends."""
    text, data = read_toml(path, "rule file", KEYS)
    base = Composite(path.stem)
    if "extends" in data:
        before = (*seen, path.resolve())
        target = extended(path, str(data["extends"]))
        if target.resolve() in before:
            raise RuleError(f"rule file {path} extends itself")
        base = from_file(target, before)
    output = data.get("output", base.output)
    if output not in ("relevance", "cotangent"):
        raise RuleError(f"{path.name}: output is 'relevance' or 'cotangent', not '{output}'")
    method = data.get("method", base.method)
    if method and method not in METHODS:
        raise nearest(str(method), METHODS, f"method in {path.name}:")
    rules = data.get("rules", [])
    if not isinstance(rules, list) or not all(isinstance(r, dict) for r in rules):
        raise RuleError(f"{path.name}: rules is a list of tables, [[rules]]")
    entries = [entry(e, f"{path.name} rule {i + 1}") for i, e in enumerate(rules)]
    result = Composite(
        name=str(data.get("name", path.stem)),
        doc=str(data.get("doc", base.doc)),
        cite=str(data.get("cite", base.cite)),
        output=output,
        method=method,
        neuralize=tuple(listed(data.get("neuralize", list(base.neuralize)))),
        pool=base.pool,
        parameters=dict(base.parameters),
        entries=entries + base.entries,
        text=text if not base.text else f"{text}\n# extends:\n{base.text}",
    )
    if not result.entries:
        raise RuleError(f"{path.name} holds no [[rules]]")
    if not all(isinstance(kind, str) for kind in result.neuralize):
        raise RuleError(f'{path.name}: neuralize is a list of kinds, ["log-ratio"]')
    if not isinstance(data.get("parameters", {}), dict):
        raise RuleError(f"{path.name}: parameters is a table, [parameters]")
    if "pool" in data:
        result.pool_by(data["pool"], path.name)
    result.set(data.get("parameters", {}))
    return result


def extended(path: Path, name: str) -> Path:
    """The file that a rule file extends: one beside it, or a shipped one (of the same name, too)."""
    beside = path.parent / (name if name.endswith(".toml") else f"{name}.toml")
    if beside.is_file() and not (beside.resolve() == path.resolve() and name in shipped()):
        return beside
    if name not in shipped():
        raise nearest(name, shipped(), f"rule that {path.name} extends:")
    return shipped()[name]


def entry(data: Mapping[str, Any], origin: str) -> Entry:
    """One [[rules]] table."""
    name = data.get("rule")
    if not isinstance(name, str):
        raise RuleError(f'{origin}: needs rule = "NAME"')
    if name not in RULES:
        raise nearest(name, RULES, f"rule in {origin}:")
    match = data.get("match", {})
    check_match(match, origin)
    fixed = {k: v for k, v in data.items() if k not in ("rule", "match")}
    for key in fixed:
        if key not in PARAMETERS[name]:
            raise nearest(key, PARAMETERS[name] or ["none"], f"parameter of '{name}' in {origin}:")
        valid(key, fixed[key], PARAMETERS[name][key], f"{origin}: ")
    return Entry(name, match, fixed, origin)


def check_match(match: Any, origin: str) -> None:
    """Refuses unknown matchers, and values that a matcher can't be compared with.

    Raises:
        RuleError: Names the matcher and what it takes.
    """
    if not isinstance(match, dict):
        raise RuleError(f'{origin}: match is a table, match = {{ op = "Conv" }}')
    for key, value in match.items():
        if key not in MATCHERS:
            raise nearest(key, MATCHERS, f"matcher in {origin}:")
        if key in ("kind", "place") and value not in (known := KINDS if key == "kind" else PLACES):
            raise nearest(str(value), known, f"{key} in {origin}:")
        if key in ("depth", "rank"):
            if not all(type(v) is int for v in listed(value)) or len(listed(value)) > 2 or value == []:
                raise RuleError(f"{origin}: {key} is a whole number or a range [LOW, HIGH], not {value!r}")
        elif not all(isinstance(v, str) for v in listed(value)):
            raise RuleError(f"{origin}: {key} is text or a list of texts, not {value!r}")


@dataclass(frozen=True)
class Choice:
    """The rule of one view and why."""

    view: View
    rule: str
    reason: str
    picked: Picked
    special: bool = False  # by an entry that asks something of the node


@dataclass(frozen=True)
class Place:
    """Where a view stands among the linear ops of the graph."""

    linear: bool
    depth: int
    first: bool
    last: bool


def assign(
    composite: Composite, views: Sequence[View], facts: Facts, entry: bool = True, depth: int = 0
) -> dict[View, Choice]:
    """The first entry that matches each view, in the order of the composite; subgraphs' views behind their node.

    Args:
        entry: Whether what stands first here reads the explained input; not so in the steps of a loop.
        depth: Linear ops in front of all of this.
    """
    where, chosen = places(views, facts), dict[View, Choice]()
    for view in views:
        place = where[view]
        place = replace(place, depth=place.depth + depth, first=place.first and entry)
        chosen[view] = choose(composite, view, place)
        if view.name in facts.program.passing and chosen[view].rule in RECTIFYING:
            because = f"distances put relevance also on units that are 0; by {chosen[view].reason}: {chosen[view].rule}"
            chosen[view] = Choice(view, "pass", because, Picked(RULES["pass"], {}))
        reads = [x for x in view.x[view.own :] if facts.on_path(x)]
        first = entry and view.op == "If" and all(x is None or x.name in facts.explained for x in reads)
        for body in view.bodies:
            inner = assign(composite, body.views, body.facts, first, place.depth)
            body.pick = lambda v, inner=inner: inner[v].picked  # type: ignore[misc]
            chosen |= inner
    return chosen


def unused(composite: Composite, choices: Sequence[Choice]) -> list[str]:
    """A note if what sets the rule set apart fits no node, as guided backprop in a model that has no ReLU."""
    special = [f"{e.rule} ({condition(e)})" for e in composite.entries if e.match]
    if not special or any(choice.special for choice in choices):
        return []
    plain = ", ".join(sorted({choice.rule for choice in choices}))
    return [f"no node fits {', '.join(special)}: '{composite.name}' is the same as '{plain}' for this model"]


def condition(e: Entry) -> str:
    """What an entry asks of a node, in words."""
    return ", ".join(f"{k}={v}" for k, v in e.match.items()) or "everything else"


def choose(composite: Composite, view: View, place: Place) -> Choice:
    """The rule of one view.

    Raises:
        RuleError: No entry matches.
    """
    for e in composite.entries:
        if matches(e.match, view, place, composite):
            parameters = {**PARAMETERS[e.rule], **taken(composite.parameters, e.rule), **e.fixed}
            picked = Picked(RULES[e.rule], parameters)
            return Choice(view, e.rule, f"{e.origin}: {condition(e)}", picked, special=bool(e.match))
    raise RuleError(f"rule set '{composite.name}' has no rule for {view}; end it with [[rules]] rule = \"default\"")


def taken(parameters: Mapping[str, Any], rule: str) -> dict[str, Any]:
    """The parameters that a rule takes."""
    return {k: v for k, v in parameters.items() if k in PARAMETERS[rule]}


def matches(match: Mapping[str, Any], view: View, place: Place, composite: Composite) -> bool:
    """True if a view meets every condition."""

    def within(value: int | None, wanted: int | list[int]) -> bool:
        return value is not None and listed(wanted)[0] <= value <= listed(wanted)[-1]

    tests: dict[str, Callable[[Any], bool]] = {
        "op": lambda v: any(fnmatch.fnmatchcase(view.op, p) for p in listed(v)),
        "name": lambda v: any(fnmatch.fnmatchcase(view.name, p) for p in listed(v)),
        "kind": lambda v: kind_of(view, place) == v,
        "place": lambda v: place.linear and (place.first if v == "first-linear" else place.last),
        "depth": lambda v: within(place.depth, v),
        "rank": lambda v: within(view.inp(0).rank if view.x and view.x[0] else None, v),
        "given": lambda v: all(composite.parameters.get(k) is not None for k in listed(v)),
    }
    return all(tests[key](value) for key, value in match.items())


def kind_of(view: View, place: Place) -> str:
    """linear, activation, layout or other."""
    row = registry.info(view)
    if place.linear:
        return "linear"
    if row.derivative is not None:
        return "activation"
    return "layout" if row.layout else "other"


def listed(value: Any) -> list[Any]:
    """A value or a list of values as a list."""
    return value if isinstance(value, list) else [value]


def is_linear(view: View, facts: Facts) -> bool:
    """True for a linear op with a weight, and data on one side only."""
    at = linear_of(Context(facts.program.builder, view, [], [], facts))
    return at is not None and at.weight is not None


def places(views: Sequence[View], facts: Facts) -> dict[View, Place]:
    """Depth and place of each view; `views` is in topological order and holds only what is explained."""
    linear = {view: is_linear(view, facts) for view in views}
    above: dict[str, int] = {}  # linear ops on the longest path from the input up to a tensor
    depth: dict[View, int] = {}
    for view in views:
        depth[view] = max((above.get(x.name, 0) for x in view.x if facts.on_path(x) and x is not None), default=0)
        for y in view.y:
            if y is not None:
                above[y.name] = depth[view] + int(linear[view])
    below: set[str] = set()  # tensors that a later linear op reads
    last: dict[View, bool] = {}
    for view in reversed(views):
        feeds = any(y is not None and y.name in below for y in view.y)
        last[view] = not feeds
        if feeds or linear[view]:
            below.update(x.name for x in view.x if x is not None and facts.on_path(x))
    return {v: Place(linear[v], depth[v], linear[v] and depth[v] == 0, linear[v] and last[v]) for v in views}
