"""Every metric of this project, one row each: what it is called, which way is better, and how it is printed.

This is the one home of that knowledge. The objectives that a search may have, the columns of the report, the numbers of
the model card and what `kdsweep-reproduce` compares are all derived from these rows. A test holds that each metric that
a run logs has its row. Everybody may import this module, so it imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["maximize", "minimize"]
# A student's teacher, classes enough for a top five, or epochs, which a teacher that comes trained has none of.
Need = Literal["teacher", "classes", "epochs"]

DEFAULT_OBJECTIVE = "val/accuracy"
EPOCHS_TO_TARGET = "epochs_to_target"

# MLflow can log the machine's load beside our metrics, under names that start with this.
MACHINE = "system/"


@dataclass(frozen=True)
class Column:
    """A column of the report's table of arms.

    Attributes:
        heading: Its heading in three lines, to keep the table narrow.
        decimals: How many are printed; they may be fewer than elsewhere, to keep the table narrow.
    """

    heading: str
    decimals: int


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name in MLflow.
        label: Its name in words, without its unit.
        direction: Which way is better; None where neither is.
        unit: "%" for fractions: they are logged in [0, 1] and printed as per cent. "" for plain numbers.
        objective: Whether a search may optimise it. The test split is never searched on.
        needs: What a run must have for it; None if every run has it.
        counted: Whether it is a share of pictures, so that its values have steps of one picture.
        clock: Whether it depends on the machine's speed, so that two equal runs differ in it.
        column: Its column in the report's table of arms, if it has one.
        card: Its name in the model card, for readers who don't know this project; empty where the card leaves it out.
    """

    name: str
    label: str
    direction: Direction | None = None
    unit: str = ""
    objective: bool = False
    needs: Need | None = None
    counted: bool = False
    clock: bool = False
    column: Column | None = None
    card: str = ""

    @property
    def scale(self) -> int:
        """What values are multiplied by to be printed: 100 for fractions."""
        return 100 if self.unit == "%" else 1

    @property
    def heading(self) -> str:
        """The label with its unit: "validation accuracy %"."""
        return f"{self.label} {self.unit}".rstrip()

    @property
    def difference_unit(self) -> str:
        """The unit of a difference of two values: "points" for fractions."""
        return "points" if self.unit == "%" else self.unit

    def shown(self, value: float) -> str:
        """Prints a value without its unit: per cent with two decimals, other numbers with four digits."""
        return f"{self.scale * value:.2f}" if self.unit == "%" else f"{value:.4g}"


METRICS = (
    # Logged in each epoch. The training loss of a distilled run is not an NLL, so it isn't called one.
    Metric("train/loss", "training objective", "minimize"),
    Metric("train/accuracy", "training accuracy", "maximize", "%"),
    # The gradient on the student's logits, of each epoch's last batch; `kdsweep.gradients` has the formulas.
    Metric("train/teacher_share", "teacher's share of the gradient", unit="%", needs="teacher"),
    Metric("train/gradient_ratio", "gradient against cross-entropy's", needs="teacher"),
    Metric("lr", "learning rate"),
    Metric("images_per_second", "images per second", clock=True),
    Metric("epoch_seconds", "seconds per epoch", clock=True),
    # A teacher's run logs this one for each weight decay that is tried for its head.
    Metric("head/weight_decay", "weight decay of the teacher's head"),
    # Logged in each epoch, on the validation split.
    Metric(
        *("val/accuracy", "validation accuracy", "maximize", "%"),
        objective=True,
        counted=True,
        column=Column("\nvalidation\naccuracy %", 2),
        card="validation accuracy",
    ),
    Metric("val/nll", "validation NLL", "minimize", objective=True, card="validation NLL"),
    Metric("val/ece", "validation ECE", "minimize", "%", objective=True),
    Metric("val/top5", "validation top-5 accuracy", "maximize", "%", objective=True, needs="classes", counted=True),
    Metric("val/agreement", "validation agreement", "maximize", "%", objective=True, needs="teacher", counted=True),
    Metric("val/teacher_kl", "validation KL to the teacher", "minimize", objective=True, needs="teacher"),
    # Logged at the end, on the test split.
    Metric(
        *("test/accuracy", "test accuracy", "maximize", "%"),
        counted=True,
        column=Column("\ntest\naccuracy %", 2),
        card="test accuracy",
    ),
    Metric("test/top5", "test top-5 accuracy", "maximize", "%", counted=True, card="test top-5 accuracy"),
    Metric("test/nll", "test NLL", "minimize", column=Column("\ntest\nNLL", 3), card="test NLL"),
    Metric(
        *("test/ece", "test ECE", "minimize", "%"),
        column=Column("\ntest\nECE %", 1),
        card="test expected calibration error",
    ),
    Metric(
        *("test/agreement", "test agreement", "maximize", "%"),
        counted=True,
        column=Column("\nagree-\nment %", 1),
        card="test agreement with the teacher",
    ),
    Metric("test/teacher_kl", "test KL to the teacher", "minimize"),
    # Logged at the end, about the run as a whole.
    Metric(
        *("best/val_accuracy", "best validation accuracy", "maximize", "%"),
        objective=True,
        needs="epochs",
        counted=True,
    ),
    Metric("best/epoch", "best epoch"),
    # The report computes this one from the validation accuracy of each epoch; no run logs it.
    Metric(EPOCHS_TO_TARGET, "epochs to the target accuracy", "minimize", column=Column("epochs\nto\ntarget", 1)),
    Metric("seconds", "seconds per run", clock=True, column=Column("\nseconds\na run", 1)),
    Metric("teacher_seconds", "seconds for the teacher's passes", clock=True),
)

ROWS = {metric.name: metric for metric in METRICS}

# The metrics that a search may optimise, and those in the report's table of arms, in the order of the rows.
OBJECTIVES = tuple(metric.name for metric in METRICS if metric.objective)
COLUMNS = {metric.name: metric.column for metric in METRICS if metric.column is not None}
# What the model card shows: first the test split, then validation.
CARD = tuple(sorted((metric for metric in METRICS if metric.card), key=lambda metric: metric.name.startswith("val/")))


def row(name: str) -> Metric:
    """Returns the row of a metric; for a name that isn't ours, a row without direction and unit."""
    return ROWS.get(name) or Metric(name, name)


def direction(objective: str) -> Direction:
    """Returns which way an objective is better; a metric without a direction is maximised."""
    return row(objective).direction or "maximize"


def is_of_the_clock(name: str) -> bool:
    """Returns whether a metric depends on the machine's speed or load, so that equal runs differ in it."""
    return row(name).clock or name.startswith(MACHINE)
