"""Figures of a run and of a study: accuracies come in as fractions and are drawn as per cent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]
Array = NDArray[np.float64]

# Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = "viridis"
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#222222"
# An arm's name starts with one of these. The line styles keep two arms apart that lie on each other.
ARM_STYLES = {"teacher": (BLACK, "--"), "scratch": (BLUE, "-"), "label": (GREEN, "-."), "distill": (ORANGE, "-")}

# A surface through fewer points than this would be drawn from the prior alone.
SURFACE_TRIALS = 5
SURFACE_POINTS = 120
# Blank where the surface's own standard deviation is more than this share of the trials' standard deviation.
DOUBT = 0.7


def learning_curve(history: Mapping[str, Curve], title: str) -> Figure:
    """Loss, accuracy and learning rate of one run, a panel each, as far as `history` has them.

    Args:
        history: (epoch, value) by metric: train/loss, val/nll, train/accuracy, val/accuracy, lr; others are not drawn.
        title: Printed as it is, whatever characters it holds.
    """
    panels = {
        # A distilled run's objective is another quantity than NLL, so the two lines are named for what they are.
        "loss": {"train/loss": "training objective", "val/nll": "validation NLL"},
        "accuracy (%)": {"train/accuracy": "training (augmented)", "val/accuracy": "validation"},
        "learning rate": {"lr": ""},
    }
    drawn = {ylabel: names for ylabel, names in panels.items() if any(history.get(name) for name in names)}
    figure, axes = _figure(4.2 * max(len(drawn), 1), 3.6, max(len(drawn), 1))
    figure.suptitle(title, fontsize=11, parse_math=False)
    for axis, (ylabel, names) in zip(axes, drawn.items(), strict=False):
        for (name, label), colour in zip(names.items(), (BLUE, ORANGE), strict=False):
            epochs, values = _columns(history.get(name, []))
            scale = 100 if ylabel.startswith("accuracy") else 1
            axis.plot(epochs, scale * values, color=colour, label=label, marker=_marker(epochs), markersize=3.5)
        _epoch_axis(axis, ylabel, max(epoch for name in names for epoch, _ in history.get(name, [])))
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=9)
    return figure


def arm_curves(curves: Mapping[str, Sequence[Curve]], ylabel: str, target: float | None = None) -> Figure:
    """Accuracy against the epoch: per arm the mean over its runs, and a band from the lowest to the highest run.

    An arm whose name starts with "teacher" is a horizontal line. From four epochs on a second panel enlarges the last
    half, where the arms differ by less than the first epochs' rise.

    Args:
        curves: Arm ("scratch", "distill, best of 12 trials") to its runs' (epoch, accuracy as a fraction).
        ylabel: What the accuracy is of: "validation accuracy"; " (%)" is added.
        target: An accuracy drawn as a dotted line, or None.
    """
    last = max((epoch for runs in curves.values() for curve in runs for epoch, _ in curve), default=1)
    figure, axes = _figure(10.5 if last >= 4 else 6.5, 4.4, 2 if last >= 4 else 1)
    late: list[float] = []
    for arm, runs in curves.items():
        epochs, low, mean, high = _over_runs(runs)
        label = arm if len(runs) == 1 else f"{arm}, mean of {len(runs)} runs"
        colour, line = next((style for name, style in ARM_STYLES.items() if arm.startswith(name)), (PURPLE, "-"))
        for axis in axes:
            if arm.startswith("teacher"):
                axis.axhline(mean[-1], color=colour, linestyle=line, label=label)
            else:
                axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
                axis.plot(epochs, mean, line, color=colour, label=label, marker=_marker(epochs), markersize=3.5)
        if not arm.startswith("teacher"):
            late += [*low[epochs >= last / 2], *high[epochs >= last / 2]]
    for axis in axes:
        if target is not None:
            axis.axhline(100 * target, color="grey", linestyle=":", linewidth=1, label=f"threshold {target:.1%}")
        _epoch_axis(axis, f"{ylabel} (%)", last)
    if len(axes) == 2:
        margin = max(0.08 * (max(late) - min(late)), 0.1)
        axes[0].set_title("all epochs", fontsize=10)
        axes[1].set(xlim=(last / 2, 1.02 * last), ylim=(min(late) - margin, max(late) + margin), ylabel="")
        axes[1].set_title("last half, enlarged", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    bands = any(len(runs) > 1 for runs in curves.values())
    figure.suptitle("Learning curves" + (" (band: lowest to highest run)" if bands else ""), fontsize=11)
    return figure


def alpha_tau_surface(
    alpha: Sequence[float],
    tau: Sequence[float],
    value: Sequence[float],
    best: int,
    baseline: tuple[float, float] | None,
    numbers: Sequence[int] | None = None,
) -> Figure:
    """Validation accuracy over alpha and tau: the trials as numbered points, and a smooth surface through their noise.

    The surface is the mean of a Gaussian process, which takes scatter between neighbours for noise: a flat surface says
    that the trials show no trend. It is drawn from `SURFACE_TRIALS` trials on, if they differ in alpha, tau and value,
    and only where they tell more than their own scatter does; elsewhere the figure is blank.

    Args:
        alpha: Distillation share of each trial, in [0, 1].
        tau: Temperature of each trial, > 0.
        value: Validation accuracy of each trial, a finite fraction.
        best: Position of the best trial in these lists.
        baseline: Mean and standard deviation over seeds (NaN where there is one seed) of scratch, fractions; or None.
        numbers: The trials' numbers; positions in the lists where None.
    """
    alphas, taus, values = np.array(alpha, float), np.array(tau, float), 100 * np.array(value, float)
    names = list(range(len(values))) if numbers is None else list(numbers)
    figure, (axis,) = _figure(7.6, 5.2, 1)
    low, high = _colour_range(values)
    margin = max(1.2, math.sqrt(2 * taus.min() / taus.max()))
    axis.set_yscale("log")
    axis.set(xlim=(-0.04, 1.04), ylim=(taus.min() / margin, taus.max() * margin))
    caption = ""
    if len(values) >= SURFACE_TRIALS and np.ptp(alphas) > 0 and np.ptp(taus) > 0 and np.ptp(values) > 0:
        x = np.linspace(alphas.min(), alphas.max(), SURFACE_POINTS)
        y = np.geomspace(taus.min(), taus.max(), SURFACE_POINTS)
        surface = _smooth(alphas, np.log(taus), np.clip(values, low, high), x, np.log(y))
        high = max(high, float(surface.filled(high).max()))
        axis.contourf(x, y, surface, np.linspace(low, high, 15), vmin=low, vmax=high, cmap=COLOURS, extend="both")
        if baseline is not None and surface.min() < 100 * baseline[0] < surface.max():
            line = axis.contour(x, y, surface, [100 * baseline[0]], colors=BLACK, linestyles="--")
            axis.clabel(line, fmt="scratch", fontsize=9)
        if surface.mask.any():
            caption = "\nblank: too few trials to tell"
    up = np.argsort(values, kind="stable")  # where points overlap, the better one lies on top
    size = 190 if len(values) <= 20 else 140
    points = axis.scatter(
        alphas[up], taus[up], size, values[up], cmap=COLOURS, vmin=low, vmax=high, edgecolors="white", zorder=3
    )
    axis.scatter(alphas[best], taus[best], 1.7 * size, facecolors="none", edgecolors=ORANGE, linewidths=2.6, zorder=5)
    _number_points(axis, alphas, taus, values, names, best, (low + high) / 2)
    axis.set_xlabel("alpha (weight of the distillation term)" + caption)
    axis.set_ylabel("tau (softmax temperature)")
    _plain_log_ticks(axis)
    bar = figure.colorbar(points, ax=axis, extend="min" if values.min() < low else "neither")
    bar.set_label("validation accuracy (%)")
    title = f"Best: trial {names[best]}, alpha {alphas[best]:.2f}, tau {taus[best]:.2f}: {values[best]:.2f}%"
    if baseline is not None:
        title += "\n" + _mark_baseline(bar, 100 * baseline[0], 100 * baseline[1], low, high)
    axis.set_title(title, fontsize=10.5)
    return figure


def _figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels, sizes in inches; it belongs to no pyplot state, so it needs no closing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _columns(curve: Curve) -> tuple[Array, Array]:
    pairs = np.array(curve, float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _over_runs(runs: Sequence[Curve]) -> tuple[Array, Array, Array, Array]:
    """Epochs, and lowest, mean and highest accuracy (%) over the runs that have the epoch."""
    values: dict[int, list[float]] = {}
    for curve in runs:
        for epoch, value in curve:
            values.setdefault(epoch, []).append(100 * value)
    epochs = sorted(values)
    rows = [(min(values[epoch]), float(np.mean(values[epoch])), max(values[epoch])) for epoch in epochs]
    low, mean, high = np.array(rows, float).reshape(-1, 3).T
    return np.array(epochs, float), low, mean, high


def _marker(epochs: Array) -> str:
    # Without markers a run of one epoch would be invisible; with them one of 100 epochs would be a thick band.
    return "o" if len(epochs) <= 15 else ""


def _epoch_axis(axis: Axes, ylabel: str, last: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.set_ylabel(ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if last <= 1:
        axis.set(xlim=(0.5, 1.5), xticks=[1])
    axis.grid(alpha=0.25)


def _colour_range(values: Array) -> tuple[float, float]:
    """From the lowest to the highest value; one that is far below the rest does not take the colours from the rest."""
    high, median = float(values.max()), float(np.median(values))
    low = max(float(values.min()), high - 4 * (high - median)) if high > median else float(values.min())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _smooth(alphas: Array, log_taus: Array, values: Array, x: Array, y: Array) -> np.ma.MaskedArray:
    """Mean of a Gaussian process fitted to the trials, on the grid x (alpha) by y (log tau): (len(y), len(x)).

    Masked where its doubt is large.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    offset, span = log_taus.min(), np.ptp(log_taus)
    kernel = ConstantKernel(1.0, (0.05, 20)) * Matern([0.5, 0.5], (0.25, 5), nu=2.5) + WhiteKernel(0.3, (0.01, 2))
    process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        # A kernel parameter at its bound is an answer here: "no trend along tau", "no noise".
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(np.stack([alphas, (log_taus - offset) / span], axis=1), values)
    grid_x, grid_y = np.meshgrid(x, (y - offset) / span)
    mean, sd = process.predict(np.stack([grid_x.ravel(), grid_y.ravel()], axis=1), return_std=True)
    # `sd` includes the noise of one more trial, in units of the values; what is left is doubt about the mean itself.
    scatter = float(values.std())
    noise = process.kernel_.k2.noise_level * scatter**2
    doubt = np.sqrt(np.maximum(sd**2 - noise, 0))
    return np.ma.masked_where(doubt > DOUBT * scatter, mean).reshape(grid_x.shape)


def _number_points(
    axis: Axes, alphas: Array, taus: Array, values: Array, names: Sequence[int], best: int, middle: float
) -> None:
    """Writes the trial's number on each point, from the best down, leaving out those that would cover another's."""
    order = [best, *(index for index in np.argsort(-values) if index != best)]
    places = np.stack([alphas, np.log(taus) / max(np.ptp(np.log(taus)), 1e-9)], axis=1)
    written: list[int] = []
    for index in order:
        if all(math.dist(places[index], places[other]) > 0.03 for other in written):
            colour = "black" if values[index] > middle else "white"
            axis.annotate(
                str(names[index]),
                (alphas[index], taus[index]),
                ha="center",
                va="center",
                fontsize=7.5,
                color=colour,
                zorder=6,
            )
            written.append(int(index))


def _plain_log_ticks(axis: Axes) -> None:
    """Temperatures as plain numbers (1, 2, 5, 10, 20), not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda tau, _: f"{tau:g}"))


def _mark_baseline(bar: Colorbar, mean: float, sd: float, low: float, high: float) -> str:
    """Marks scratch on the colour bar where it lies inside; returns the title's line about it."""
    if low <= mean <= high:
        bar.ax.axhline(mean, color=BLACK, linestyle="--", linewidth=1.6)
    return f"scratch: {mean:.2f}%" if math.isnan(sd) else f"scratch: {mean:.2f}% ±{sd:.2f} over seeds"
