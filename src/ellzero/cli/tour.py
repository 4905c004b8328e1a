"""`ellzero tour`: from a dense Iris network to a certified one of five parameters."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer  # noqa: TID253

from ellzero.cli.console import interruptible, say
from ellzero.cli.options import Force

if TYPE_CHECKING:
    from rich.console import RenderableType

CLASSES = ("setosa", "versicolor", "virginica")
COLUMNS = ("sepal length", "sepal width", "petal length", "petal width", "bias")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the tour.

    Parameters
    ----------
    title, text : str
        What it shows, and why.
    code : str
        The Python that is printed and run, in the names that the steps before have made.
    picture : callable
        Takes these names and returns what is shown below the code, one thing after the other.
    """

    title: str
    text: str
    code: str
    picture: Callable[[dict[str, Any]], list[RenderableType]]


def _weights(params: Any) -> RenderableType:
    from ellzero.report.pictures import weight_grid

    return weight_grid(params["coef"].tolist(), CLASSES, COLUMNS)


def _show_dense(made: dict[str, Any]) -> list[RenderableType]:
    line = (
        f"{made['dense'].n_nonzero} parameters, loss {made['dense'].value:.4f}, "
        f"test accuracy {made['accuracy'](made['dense'].params):.1%}"
    )
    return [_weights(made["dense"].params), line]


def _show_cut(made: dict[str, Any]) -> list[RenderableType]:
    from ellzero.report.pictures import bars

    losses = {"dense, 15": made["dense"].value, "cut to 5": made["cut_loss"]}
    return [_weights(made["cut"]), "Loss:", bars(losses, low=0.0)]


def _show_thresholding(made: dict[str, Any]) -> list[RenderableType]:
    from ellzero.report.pictures import bars, curve

    found, bound = made["found"], made["bound"]
    values = {
        "best": found.value,
        "median": found.measures["median_value"],
        "worst": found.measures["worst_value"],
    }
    return [
        f"No curvature over pairs of 5-sparse points is above {bound.value:.4f}; the largest of "
        f"5000 sampled pairs has {made['sampled'].value:.4f}.",
        "Loss of the best start over the steps:",
        curve(found.trace),
        f"{found.measures['starts']} starts, {found.measures['distinct_supports']} different "
        f"supports in the end, {found.measures['increases']} steps that raised a loss. "
        "Where they end:",
        bars(values, low=0.0),
    ]


def _show_proof(made: dict[str, Any]) -> list[RenderableType]:
    best, dense = made["best"], made["dense"]
    certificate = best.certificate
    return [
        _weights(best.params),
        str(certificate).split("\n       assumes")[0],
        f"None of {math.comb(15, 5)} supports is better; {best.measures['boxes']} boxes of "
        "supports with a lower bound each show it.",
        f"It costs {best.value - dense.value:.4f} of loss against the dense network; test "
        f"accuracy {made['accuracy'](best.params):.1%}.",
    ]


STEPS = (
    Step(
        "A dense network",
        "One layer, 3 classes, 4 measurements of a flower and a bias: 15 parameters, all of them "
        "used.",
        """\
import ellzero
from ellzero.datasets import iris_reference

X, y, X_test, y_test = iris_reference()
objective = ellzero.Softmax(X, y, ridge=0.01)
dense = ellzero.solve_dense(ellzero.Problem(objective))

def accuracy(params):
    return (objective.predict(params, X_test) == y_test).double().mean().item()
""",
        _show_dense,
    ),
    Step(
        "Keep five and hope",
        "The usual way: keep the five largest weights, set the others to zero. The ball of at "
        "most five nonzeros does that; nothing says that these five belong together.",
        """\
ball = ellzero.L0Ball(5)
cut = ball.project(dense.params)
cut_loss = objective.value(cut).item()
""",
        _show_cut,
    ),
    Step(
        "Iterative hard thresholding",
        "A gradient step, then the five largest again, until nothing moves. With a step of at "
        "most 1 / L, L bounding the curvature between sparse points, the loss never rises. Where "
        "it ends depends on where it starts.",
        """\
bound = ellzero.restricted_smoothness(objective, 10)        # differences of two 5-sparse points
sampled = ellzero.restricted_smoothness(objective, 10, method="monte-carlo")
problem = ellzero.Problem(objective, ball)
method = ellzero.solvers.IHT(step_size=0.99 / bound.value)
found = ellzero.solve(problem, method, starts=50, max_iter=1000, certify=False)
""",
        _show_thresholding,
    ),
    Step(
        "The best there is, and the proof",
        "`solve` chooses a solver that goes on to a proof, and certifies the point that it "
        "returns from the problem alone: the count, the stability, every exchange, the bound.",
        """\
best = ellzero.solve(problem)
""",
        _show_proof,
    ),
)
LAST = "A file, a report, and everybody can check"
LAST_TEXT = (
    "The same from the command line: train under several budgets, write a model and a report, and "
    "recompute every claim from the file and the data."
)


def tour(
    context: typer.Context,
    pause: Annotated[
        bool | None,
        typer.Option(
            "--pause/--no-pause", help="Wait for Enter between the steps; default: on a terminal."
        ),
    ] = None,
    browser: Annotated[
        bool | None,
        typer.Option(
            "--browser/--no-browser",
            help="Open the report in the browser at the end; default: on a terminal.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder of the last step; default ellzero-out/tour, written anew."),
    ] = None,
    force: Force = False,
) -> None:
    """Walk from a dense network of Iris to a certified one of five parameters, in five steps."""
    from rich.console import Console
    from rich.syntax import Syntax

    from ellzero.storage import check_output

    if out is None:
        out, force = "ellzero-out/tour", True
    check_output(out, force=force)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    waiting = terminal if pause is None else pause
    console = Console(highlight=False)
    made: dict[str, Any] = {}
    with interruptible():
        for i, step in enumerate(STEPS, start=1):
            _head(console, i, step.title, step.text)
            console.print(Syntax(step.code.rstrip(), "python", background_color="default"))
            console.print()
            with console.status("Running", spinner="line"):
                exec(compile(step.code, f"<step {i}>", "exec"), made)
            for part in step.picture(made):
                console.print(part)
            if waiting and not _goes_on(console):
                return
    _head(console, len(STEPS) + 1, LAST, LAST_TEXT)
    model, report = f"{out}/model.safetensors", f"{out}/report.html"
    trained = ["train", "iris", "--n-nonzero", "3:7", "--out", out, *(["--force"] * force)]
    for words in (trained, ["certify", model, "iris"]):
        console.print(f"$ ellzero {shlex.join(words)}", style="bold")
        context.find_root().command.main(words, prog_name="ellzero", standalone_mode=False)
        console.print()
    if terminal if browser is None else browser:
        _open(report)
    console.print(f"Your own data: `ellzero train data.csv --target NAME`. Report: {report}")


def _head(console: Any, i: int, title: str, text: str) -> None:
    from rich.rule import Rule

    console.print()
    console.print(Rule(f"{i} of {len(STEPS) + 1}: {title}", align="left"))
    console.print(text)
    console.print()


def _goes_on(console: Any) -> bool:
    """Wait for Enter; return whether the tour goes on."""
    try:
        return console.input("\nEnter goes on, q ends: ").strip().lower() not in ("q", "quit")
    except EOFError:
        return True


def _open(report: str) -> None:
    """Open the report in the browser of the user; without one, say where it is."""
    import webbrowser
    from pathlib import Path

    if not webbrowser.open(Path(report).resolve().as_uri()):
        say(f"No browser was found; open {report} in one.")
