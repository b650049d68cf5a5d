"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xaicompile.errors import RuleError

if TYPE_CHECKING:
    from xaicompile.compiler import Compiled
    from xaicompile.images import Preprocess

Command = TypeVar("Command", bound=Callable[..., Any])


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Pool(click.ParamType):  # type: ignore[type-arg]
    """A pooling rule, or a whole number."""

    name = "pool"
    rules = click.Choice(["v-out", "v-act", "winner"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that a text says, or the rule that it names."""
        return int(value) if str(value).isdecimal() else self.rules.convert(value, param, ctx)


preprocess_options = stack(
    click.option("--mean", metavar="M[,M...]", help="Subtracted from the pixels: one number, or one a channel."),
    click.option("--std", metavar="S[,S...]", help="Divides the pixels after that."),
    click.option(
        "--size", metavar="R[,C]", help="Short side after resizing, and the middle part that is kept (256,224)."
    ),
    click.option(
        "--pixel-range",
        "span",
        type=click.Choice(["1", "255"]),
        help="Largest pixel value in the units of mean and std; 255 if one of them is above 1, else 1.",
    ),
)
rule_options = stack(
    click.option(
        "--rule", "-r", default="lrp-gamma", show_default=True, metavar="RULE", help="Rule set: name or TOML."
    ),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the rule (repeatable)."),
    click.option(
        "--target",
        metavar="T[,T...]",
        help="Default target: index of the output, one a sample (with --maps, K of one sample); else the largest.",
    ),
    click.option("--explain-output", metavar="NAME", help="Explain this tensor as it is (default: the logits)."),
    click.option("--explain-input", multiple=True, metavar="NAME", help="Explain this input (repeatable; else all)."),
    click.option("--explain-reduce", type=click.Choice(["sum", "mean", "max"]), help="Instead of one target element."),
    click.option(
        "--maps", type=click.IntRange(1), metavar="K", help="K maps a sample: targets [N,K], else the K largest."
    ),
    click.option(
        "--contrast",
        type=click.Choice(["runner-up", "others"]),
        help="Explain what is for the target and against these.",
    ),
    click.option(
        "--neuralize",
        multiple=True,
        type=click.Choice(["auto", "log-ratio", "kde", "one-class-svm", "kmeans", "kernel-kmeans", "distances"]),
        help="Rewrite what is explained as a network (repeatable; the first that the model shows).",
    ),
    click.option(
        "--pool",
        type=Pool(),
        metavar="[v-out|v-act|winner|P]",
        help="Pooling rule of a neuralized model (default: by its kind); of bilrp and second-order-lrp: side of their "
        "regions in pixels (16).",
    ),
    click.option("--inner", metavar="RULE", help="Of bilrp and second-order-lrp: the rules of each pass (lrp-gamma)."),
    click.option(
        "--project", type=click.IntRange(1), metavar="M", help="Of bilrp: M random projections in place of the units."
    ),
    click.option(
        "--structure",
        multiple=True,
        metavar="NAME",
        help="Of gnn-lrp: the input or constant that holds the graph (repeatable), or attention: from token to token.",
    ),
    click.option("--all-walks", is_flag=True, help="Of gnn-lrp: also give all walks, nodes^T passes for T layers."),
    click.option(
        "--top-walks", type=click.IntRange(1), metavar="K", help="Of gnn-lrp: also find the K most relevant walks."
    ),
    click.option("--normalise", "--normalize", is_flag=True, help="Divide by the explained value."),
    click.option("--smooth", type=click.IntRange(1), metavar="N", help="Average the rule over N noisy inputs."),
    click.option("--sigma", type=float, metavar="S", help="Noise of --smooth, in units of each input's range (0.1)."),
    click.option("--chunk", type=click.IntRange(1), metavar="K", help="Steps of a method done in one pass (2, or 1)."),
    click.option(
        "--evaluate",
        type=click.Choice(["pixel-flipping"]),
        help="Also give how the score falls as values are replaced.",
    ),
    click.option("--layers", default="", metavar="A[,B...]", help="Also give the relevance of these inner tensors."),
    click.option(
        "--concepts",
        default="",
        metavar="A[,B...]",
        help="Add an input that masks channels of these tensors (CRP).",
    ),
    click.option(
        "--top-concepts", type=click.IntRange(1), metavar="K", help="Also give the K most relevant channels of layers."
    ),
    click.option("--ledger", is_flag=True, help="Also give what biases and stabilisers absorbed, per node."),
    click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Python file with rules (repeatable)."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
force_option = click.option("--force", is_flag=True, help="Overwrite the input itself, or external data that is there.")
device_option = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)


def value_of(text: str) -> Any:
    """A parameter's value: number, boolean, list with commas, else text."""
    if "," in text:
        return [value_of(part) for part in text.split(",") if part]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parameters_of(settings: tuple[str, ...]) -> dict[str, Any]:
    """The parameters that --set gives."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals or not value:
            raise RuleError(f"--set {setting}: expected KEY=VALUE, such as gamma=0.1")
        found[key.strip()] = value_of(value.strip())
    return found


def target_of(text: str | None) -> int | list[int] | None:
    """The target that --target gives."""
    if text is None:
        return None
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise RuleError(f"--target {text}: expected an index, or one a sample with commas between") from None
    return values[0] if len(values) == 1 else values


def preprocess_of(options: Mapping[str, Any]) -> Preprocess | None:
    """How photos are prepared, None if no option says it."""
    from xaicompile.images import Preprocess

    span = options["span"]
    return Preprocess.from_options(options["mean"], options["std"], options["size"], float(span) if span else None)


def compiled_by(model: str, options: Mapping[str, Any], audit: bool = False) -> Compiled:
    """The model compiled as the options say."""
    from xaicompile.compiler import compile_model

    preprocess = preprocess_of(options)
    return compile_model(
        model,
        options["rule"],
        parameters=parameters_of(options["settings"]),
        target=target_of(options["target"]),
        explain_output=options["explain_output"],
        explain_input=options["explain_input"] or None,
        explain_reduce=options["explain_reduce"],
        maps=options["maps"],
        contrast=options["contrast"],
        neuralize=options["neuralize"],
        pool=options["pool"],
        inner=options["inner"],
        project=options["project"],
        structure=options["structure"],
        all_walks=options["all_walks"],
        top_walks=options["top_walks"],
        normalise=options["normalise"],
        smooth=options["smooth"],
        sigma=options["sigma"],
        chunk=options["chunk"],
        evaluate=options["evaluate"],
        layers=names_in(options["layers"]),
        concepts=names_in(options["concepts"]),
        top_concepts=options["top_concepts"],
        ledger=options["ledger"],
        audit=audit,
        plugins=options["plugins"],
        preprocess=None if preprocess is None else preprocess.to_dict(),
    )


def names_in(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(name for name in text.split(",") if name)


def show_json(value: Any) -> None:
    """Writes a value as JSON."""
    click.echo(json.dumps(value, indent=2))
