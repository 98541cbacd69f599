"""Tables and figures of a study."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from .cells import SUPERVISED
from .study import WHO, Options, Result, spread


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table of test accuracies, means and standard deviations over seeds."""
    base = _supervised(results)
    learned = any(run.weights for result in results for run in result.runs.values())
    head = ["cell", "weight", "student, last", "best", "teacher, last", "best", "over supervised"]
    head += ["weight of known", "of foreign"] if learned else []
    head += ["s a run"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        row = [result.cell.name, f"{result.weight:g}" if result.weight else ""]
        for who in WHO:
            row += [_cell(result.last(who)), _cell(result.best(who))]
        gain = (
            None
            if base is None
            else [a - b for a, b in zip(result.last("teacher"), base.last("teacher"), strict=True)]
        )
        row.append("" if gain is None or result is base else _cell(gain, sign=True))
        if learned:
            row += _weights(result)
        seconds = [run.seconds for run in result.runs.values()]
        row.append(f"{spread(seconds)[0]:.1f}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def heading(options: Options) -> str:
    """Return a description of the table."""
    protocol = options.protocol
    text = (
        f"{options.dataset}, {options.labels} labels, {len(options.seeds)} seeds, "
        f"{protocol.steps} steps of Adam at {protocol.lr:g}; test accuracy in percent, mean ± "
        "standard deviation. Student: the network as trained; teacher: its exponential moving "
        f"average ({protocol.decay:g}). last: at the end; best: where validation was best. Over "
        "supervised: the teacher at the end, seed by seed."
    )
    if options.weight is None:
        text += (
            f" Weights chosen by the teacher's accuracy on {protocol.validation} validation "
            f"samples, over {options.tuning_seeds} other splits."
        )
    if options.foreign_share is not None:
        text += (
            f" A share of {options.foreign_share:g} of the unlabelled pool is of classes that "
            "have no labels and are not tested."
        )
    return text


def accuracy_bars(results: Sequence[Result]) -> Figure:
    """Return the accuracies of student and teacher at the end, with their standard deviations."""
    figure = Figure(figsize=(7, 1 + 0.28 * len(results)), layout="constrained")
    axes = figure.subplots()
    names = [result.cell.name for result in results]
    for offset, who in zip((-0.2, 0.2), WHO, strict=True):
        found = [spread(result.last(who)) for result in results]
        places = [i + offset for i in range(len(results))]
        axes.barh(places, [m for m, _ in found], 0.38, xerr=[s for _, s in found], label=who)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    base = _supervised(results)
    if base is not None:
        axes.axvline(spread(base.last("teacher"))[0], color="black", linewidth=0.8)
    low = min(min(result.last(who)) for result in results for who in WHO)
    axes.set_xlim(max(0.0, low - 5), 100)
    axes.set_xlabel("test accuracy at the end, %")
    axes.legend()
    return figure


def curves(results: Sequence[Result]) -> Figure:
    """Return the mean test accuracy of the teacher over the run, a line for each cell."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for result in results:
        runs = list(result.runs.values())
        rows = [run.test["teacher"] for run in runs]
        means = [spread(column)[0] for column in zip(*rows, strict=True)]
        bold = result.cell.method == SUPERVISED
        axes.plot(runs[0].steps, means, label=result.cell.name, linewidth=2.5 if bold else 1.0)
    axes.set_xlabel("step")
    axes.set_ylabel("test accuracy of the teacher, %")
    axes.legend(fontsize="x-small", ncols=2)
    return figure


def _supervised(results: Sequence[Result]) -> Result | None:
    return next((r for r in results if r.cell.method == SUPERVISED), None)


def _cell(values: Sequence[float], *, sign: bool = False) -> str:
    mean, deviation = spread(values)
    return f"{mean:+.1f} ± {deviation:.1f}" if sign else f"{mean:.1f} ± {deviation:.1f}"


def _weights(result: Result) -> list[str]:
    found = [run.weights for run in result.runs.values() if run.weights is not None]
    if not found:
        return ["", ""]
    return [_cell([weights[key] for weights in found]) for key in ("known", "foreign")]
