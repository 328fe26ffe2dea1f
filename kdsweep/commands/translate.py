"""`kdsweep-translate`: says which overrides are the same training as another code base's alpha, gamma, weights and T.

alpha means the share of the labels in one code base and that of the teacher in another; KLDivLoss averages over the
classes too unless it is told not to; tau^2 is missing here and there; and weights needn't add up to one. Each code base
has a `Source` here, whose formula is that of its published code.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsweep.system import exit_status
from kdsweep.system.errors import UserError, require

if TYPE_CHECKING:
    from collections.abc import Sequence

Values = Mapping[str, float]

# What KLDivLoss divides the sum over all examples and classes by.
REDUCTIONS = {"batchmean": "the examples", "mean": "the examples times the classes", "sum": "nothing"}
TRUTHS = {"true": 1.0, "false": 0.0}

# Columns of what is printed, apart from commands.
WIDTH = 100

# How far a factor may be from 1 by rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Same:
    """The same training in kdsweep.

    Attributes:
        overrides: The overrides that choose and set the loss.
        factor: Their loss divided by ours.
        exact: Overrides of a sum whose loss is theirs without a factor, where that is another one.
        notes: What else has to be known, in sentences.
    """

    overrides: tuple[str, ...]
    factor: float = 1.0
    exact: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def scaled(self) -> bool:
        """Whether the two losses differ by a factor."""
        return abs(self.factor - 1) > ROUNDING

    def optimizer(self, lr: float | None, weight_decay: float | None) -> tuple[str, ...]:
        """Returns overrides for SGD that make up for the factor; None stands for what isn't known."""
        factor = self.factor if self.scaled else 1.0
        rate = () if lr is None else (f"optimizer.lr={number(lr * factor)}",)
        decay = () if weight_decay is None else (f"optimizer.weight_decay={number(weight_decay / factor)}",)
        return rate + decay


@dataclass(frozen=True)
class Parameter:
    """A parameter of another code base.

    Attributes:
        default: Its value there if nothing is said; None if it has to be given.
        meaning: What it is, in the words of kdsweep.
        words: The words that it may be, in the order of their numbers; none if it is a number.
    """

    default: float | None
    meaning: str
    words: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Source:
    """Another code base.

    Attributes:
        title: Its name, and where the formula stands in it.
        formula: Its loss, with KL the divergence of the teacher's softmax from the student's, both at temperature T,
            summed over the classes and averaged over the batch.
        parameters: Its parameters by name.
        same: Returns the same training for values of all parameters.
    """

    title: str
    formula: str
    parameters: Mapping[str, Parameter]
    same: Callable[[Values], Same]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command `kdsweep-translate`."""
    exit_status.command("kdsweep-translate", lambda: _main(arguments))


def translation(source: str, given: Mapping[str, str | float]) -> Same:
    """Returns the same training for parameters of another code base, whose defaults hold for those that aren't given.

    Args:
        source: A name in `SOURCES`.
        given: Parameter -> its value, as a number or as it is written on a command line.

    Raises:
        UserError: A parameter is unknown, missing or out of range.
    """
    known = SOURCES[source].parameters
    for name in given:
        require(name in known, f"each parameter in {tuple(known)}", name, name, f"{source} has no other.")
    values = {name: _value(name, parameter, given.get(name, parameter.default)) for name, parameter in known.items()}
    return SOURCES[source].same({name: value for name, value in values.items() if value is not None})


def number(value: float) -> str:
    """Returns a number as an override says it, with 12 digits at most."""
    return f"{value:.12g}"


# ----------------------------------------------------------------------------------------------------- what is the same


def weighted(ce: float, kl: float, tau: float, *, standardize: bool = False) -> Same:
    """The training whose loss is `ce * CE + kl * KL`, without any tau^2.

    Raises:
        UserError: Both weights are 0, or one is negative.
    """
    share = kl / tau**2
    require(
        min(ce, share) >= 0, "each weight is >= 0", number(min(ce, share)), "weights", "No training subtracts a loss."
    )
    factor = ce + share
    require(factor > 0, "a weight is > 0", 0, "weights", "Nothing would be trained.")
    chosen = "loss=kd_variants" if standardize else "loss=kd"
    more = ("loss.standardize=true",) if standardize else ()
    of = ("+loss.terms.kd.of.standardize=true",) if standardize else ()
    weights = f"loss.terms.ce.weight={number(ce)}", f"loss.terms.kd.weight={number(share)}"
    return Same(
        (chosen, f"loss.alpha={number(share / factor)}", f"loss.tau={number(tau)}", *more),
        factor,
        ("loss=sum", "'~loss.terms.dist'", *weights, f"loss.terms.kd.of.tau={number(tau)}", *of),
    )


def _torchdistill(values: Values) -> Same:
    alpha, tau = values.get("alpha", 0.0), values["temperature"]
    shrunk = _reduced(values)
    if alpha == 0:
        note = "torchdistill leaves out temperature^2 and beta where alpha is 0 or None, and trains on the KL alone."
        same = weighted(0.0, shrunk, tau)
        return Same(same.overrides, same.factor, same.exact, (note,))
    summed = values["batch_size"] if values["reduction"] == REDUCTION_NUMBERS["sum"] else 1.0
    return weighted(alpha * summed, values.get("beta", 1 - alpha) * tau**2 * shrunk, tau)


def _formula(values: Values) -> Same:
    tau = values["temperature"]
    factor = tau**2 if values["tau_squared"] else 1.0
    return weighted(values["ce_weight"], values["kd_weight"] * factor * _reduced(values), tau)


def _reduced(values: Values) -> float:
    """Returns what KLDivLoss gives, divided by the KL that is summed over classes and averaged over the batch."""
    reduction = next(word for word, n in REDUCTION_NUMBERS.items() if n == values["reduction"])
    needed = {"mean": "classes", "sum": "batch_size"}.get(reduction)
    if needed is not None and needed not in values:
        raise UserError(f"reduction={reduction} depends on {needed}. Give it: {needed}=10.", needed)
    return {"batchmean": 1.0, "mean": 1 / values.get("classes", 1), "sum": values.get("batch_size", 1)}[reduction]


def _dkd(values: Values) -> Same:
    ends = {"target_weight": values["alpha"], "others_weight": values["beta"]}
    others = f"{number(values['ce_weight'])}", f"{number(values['T'])}"
    if values["warmup"] <= 1:
        weights = (f"loss.{name}={number(value)}" for name, value in ends.items())
        return Same(("loss=dkd", f"loss.ce_weight={others[0]}", *weights, f"loss.tau={others[1]}"))
    require(values["epochs"] >= values["warmup"], "epochs >= warmup", number(values["epochs"]), "epochs")
    # Their first epoch has the number 1, so it has the weight 1 / warmup, and the epoch `warmup` has the whole.
    until = (values["warmup"] - 1) / (values["epochs"] - 1)
    weights = (
        f"loss.of.{name}.{key}={number(value)}"
        for name, end in ends.items()
        for key, value in (("start", end / values["warmup"]), ("end", end), ("until", until))
    )
    chosen = "loss=dkd_warmup", f"epochs={number(values['epochs'])}", f"loss.of.ce_weight={others[0]}"
    return Same((*chosen, *weights, f"loss.of.tau={others[1]}"))


def _virtual(values: Values) -> Same:
    share = values["alpha"] * values["multiplier"] / values["classes"]
    factor = 1 - values["alpha"] + share
    require(factor > 0, "a weight is > 0", 0, "multiplier", "Nothing would be trained.")
    settings = f"loss.alpha={number(share / factor)}", f"loss.tau={number(values['temperature'])}"
    return Same(("loss=tf_kd", "teacher=none", *settings, "loss.correct=0.99"), factor)


REDUCTION_NUMBERS = {word: float(n) for n, word in enumerate(REDUCTIONS)}

CLASSES = Parameter(None, "number of classes, where KLDivLoss averages over them")
TEMPERATURE = "temperature of both softmaxes"

SOURCES: dict[str, Source] = {
    "torchdistill": Source(
        "torchdistill's KDLoss (torchdistill/losses/mid_level.py)",
        "alpha * CE + beta * temperature^2 * KL",
        {
            "alpha": Parameter(math.nan, "weight of CE: the labels' share, not the teacher's (None: 0)"),
            "beta": Parameter(math.nan, "weight of KL (default: 1 - alpha)"),
            "temperature": Parameter(None, TEMPERATURE),
            "reduction": Parameter(0.0, "of KLDivLoss", REDUCTION_NUMBERS),
            "classes": Parameter(math.nan, "number of classes, for reduction=mean"),
            "batch_size": Parameter(math.nan, "examples in a batch, for reduction=sum"),
        },
        _torchdistill,
    ),
    "mdistiller": Source(
        "mdistiller's KD (mdistiller/distillers/KD.py)",
        "CE_WEIGHT * CE + KD_WEIGHT * TEMPERATURE^2 * KL",
        {
            "ce_weight": Parameter(0.1, "KD.LOSS.CE_WEIGHT"),
            "kd_weight": Parameter(0.9, "KD.LOSS.KD_WEIGHT"),
            "temperature": Parameter(4.0, "KD.TEMPERATURE"),
        },
        lambda v: weighted(v["ce_weight"], v["kd_weight"] * v["temperature"] ** 2, v["temperature"]),
    ),
    "mdistiller_dkd": Source(
        "mdistiller's DKD (mdistiller/distillers/DKD.py)",
        "CE_WEIGHT * CE + min(epoch / WARMUP, 1) * T^2 * (ALPHA * TCKD + BETA * NCKD)",
        {
            "ce_weight": Parameter(1.0, "DKD.CE_WEIGHT"),
            "alpha": Parameter(1.0, "DKD.ALPHA, the weight of the label's part"),
            "beta": Parameter(8.0, "DKD.BETA, the weight of the other classes' part"),
            "T": Parameter(4.0, "DKD.T"),
            "warmup": Parameter(20.0, "DKD.WARMUP, in epochs"),
            "epochs": Parameter(240.0, "SOLVER.EPOCHS"),
        },
        _dkd,
    ),
    "repdistiller": Source(
        "RepDistiller with --distill kd and -b 0 (distiller_zoo/KD.py, helper/loops.py)",
        "gamma * CE + alpha * kd_T^2 * KL",
        {
            "gamma": Parameter(1.0, "-r, the weight of CE"),
            "alpha": Parameter(None, "-a, the weight of KL"),
            "kd_T": Parameter(4.0, TEMPERATURE),
        },
        lambda v: weighted(v["gamma"], v["alpha"] * v["kd_T"] ** 2, v["kd_T"]),
    ),
    "pytorch_tutorial": Source(
        "PyTorch's knowledge distillation tutorial (train_knowledge_distillation)",
        "ce_loss_weight * CE + soft_target_loss_weight * T^2 * KL",
        {
            "soft_target_loss_weight": Parameter(0.25, "weight of KL"),
            "ce_loss_weight": Parameter(0.75, "weight of CE"),
            "T": Parameter(2.0, TEMPERATURE),
        },
        lambda v: weighted(v["ce_loss_weight"], v["soft_target_loss_weight"] * v["T"] ** 2, v["T"]),
    ),
    "timm": Source(
        "timm's train.py with --kd-model-name (timm/task/distillation.py, LogitDistillationTask)",
        "task_loss_weight * CE + distill_loss_weight * kd_temperature^2 * KL",
        {
            "task_loss_weight": Parameter(math.nan, "weight of CE (default: 1)"),
            "distill_loss_weight": Parameter(math.nan, "weight of KL (default: 1 - task_loss_weight, or 1)"),
            "kd_temperature": Parameter(4.0, TEMPERATURE),
        },
        lambda v: weighted(
            v.get("task_loss_weight", 1.0),
            v.get("distill_loss_weight", 1 - v.get("task_loss_weight", 0.0)) * v["kd_temperature"] ** 2,
            v["kd_temperature"],
        ),
    ),
    "logit_standardization": Source(
        "logit-standardization-KD's KD with --logit-stand (mdistiller/distillers/KD.py)",
        "CE_WEIGHT * CE + kd_weight * base_temp^2 * KL of standardized logits",
        {
            "ce_weight": Parameter(0.1, "KD.LOSS.CE_WEIGHT"),
            "kd_weight": Parameter(9.0, "--kd-weight"),
            "base_temp": Parameter(2.0, "--base-temp"),
        },
        lambda v: weighted(v["ce_weight"], v["kd_weight"] * v["base_temp"] ** 2, v["base_temp"], standardize=True),
    ),
    "teacher_free": Source(
        "Teacher-free-Knowledge-Distillation's loss_kd and loss_kd_self (my_loss_function.py)",
        "(1 - alpha) * CE + alpha * multiplier * temperature^2 * KL / classes",
        {
            "alpha": Parameter(None, "weight of KL"),
            "temperature": Parameter(None, TEMPERATURE),
            "multiplier": Parameter(1.0, "further factor of KL; loss_kd has none"),
            "classes": CLASSES,
        },
        lambda v: weighted(
            1 - v["alpha"],
            v["alpha"] * v["multiplier"] * v["temperature"] ** 2 / v["classes"],
            v["temperature"],
        ),
    ),
    "teacher_free_reg": Source(
        "Teacher-free-Knowledge-Distillation's loss_kd_regularization (my_loss_function.py)",
        "(1 - reg_alpha) * CE + reg_alpha * multiplier * KL(virtual teacher || student) / classes",
        {
            "alpha": Parameter(None, "reg_alpha"),
            "temperature": Parameter(None, "reg_temperature, of the virtual teacher"),
            "multiplier": Parameter(1.0, "further factor of KL"),
            "classes": CLASSES,
        },
        _virtual,
    ),
    "formula": Source(
        "your own code",
        "ce_weight * CE + kd_weight * KLDivLoss, times temperature^2 if tau_squared",
        {
            "ce_weight": Parameter(None, "weight of CE"),
            "kd_weight": Parameter(None, "weight of KLDivLoss"),
            "temperature": Parameter(None, TEMPERATURE),
            "tau_squared": Parameter(1.0, "whether the divergence is multiplied by temperature^2", TRUTHS),
            "reduction": Parameter(0.0, "of KLDivLoss; torch's own default is mean", REDUCTION_NUMBERS),
            "classes": Parameter(math.nan, "number of classes, for reduction=mean"),
            "batch_size": Parameter(math.nan, "examples in a batch, for reduction=sum"),
        },
        _formula,
    ),
}


# ---------------------------------------------------------------------------------------------------------- the command


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    given = dict(_pair(word) for word in options.parameters)
    optimizer = {name: _value(name, Parameter(None, ""), given.pop(name, math.nan)) for name in ("lr", "weight_decay")}
    source = SOURCES[options.source]
    same = translation(options.source, given)
    print(f"{source.title}:\n  loss = {source.formula}\n")
    print("The same training in kdsweep:")
    print(f"  kdsweep {' '.join((*same.overrides, *same.optimizer(**optimizer)))}\n")
    paragraphs = [*same.notes, *_about_factor(same, optimizer["lr"] is not None)]
    for text in (*paragraphs, "Epochs, batch size, schedule and augmentation are other keys: `kdsweep --help`."):
        print(textwrap.fill(text, WIDTH))
    if same.scaled and same.exact:
        print("\nWith the loss as it is there, and the optimizer too:")
        print(f"  kdsweep {' '.join(same.exact)}")


def _about_factor(same: Same, has_rate: bool) -> list[str]:
    if not same.scaled:
        return ["The two losses are the same number."]
    factor = number(same.factor)
    return [
        f"Their loss is {factor} times ours. With SGD it is the same training where optimizer.lr is {factor} times "
        f"theirs, and optimizer.weight_decay theirs divided by {factor}{', as above' if has_rate else ''}. Adam and "
        "AdamW divide the factor out, so AdamW's lr and weight_decay stay as they are."
    ]


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    require(equals == "=" and name != "", "each parameter as name=value", word, "parameters")
    return name, value


def _value(name: str, parameter: Parameter, value: str | float | None) -> float | None:
    """Returns the number of a value; None for one that wasn't given and needn't be."""
    if value is None:
        raise UserError(f"{name} has to be given ({parameter.meaning}). Write {name}=1.", name)
    unset = value == "None" and parameter.default is not None and math.isnan(parameter.default)
    if unset or (isinstance(value, float) and math.isnan(value)):
        return None
    if parameter.words is not None and isinstance(value, str):
        require(value.lower() in parameter.words, f"{name} in {tuple(parameter.words)}", value, name)
        return parameter.words[value.lower()]
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    rule = f"{name} > 0" if name in POSITIVE else f"{name} >= 0"
    fits = math.isfinite(found) and (found > 0 or (found == 0 and name not in POSITIVE))
    require(fits, rule, value, name, "It is a number.")
    return found


# What is divided by, and what makes no sense at 0.
POSITIVE = ("temperature", "T", "kd_T", "kd_temperature", "base_temp", "classes", "batch_size", "epochs", "lr")


def _parser() -> argparse.ArgumentParser:
    lines = []
    for name, source in SOURCES.items():
        lines.append(f"\n{name}: {source.title}\n  {source.formula}")
        lines += [f"    {key:<24} {_told(parameter)}" for key, parameter in source.parameters.items()]
    parser = argparse.ArgumentParser(
        prog="kdsweep-translate",
        description=textwrap.fill(
            "Says which overrides are the same training as another code base's alpha, gamma, weights and temperature. "
            "CE is the cross-entropy with the labels; KL is KL(teacher || student) of the two softmaxes at the "
            "temperature, summed over the classes and averaged over the batch.",
            WIDTH,
        ),
        epilog="Code bases and their parameters:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from", dest="source", metavar="CODE", choices=SOURCES, required=True, help=f"one of {', '.join(SOURCES)}"
    )
    parser.add_argument(
        "parameters", nargs="*", metavar="NAME=VALUE", help="its parameters, and lr and weight_decay of its SGD"
    )
    return parser


def _told(parameter: Parameter) -> str:
    if parameter.default is None or math.isnan(parameter.default):
        return parameter.meaning
    words = {value: word for word, value in (parameter.words or {}).items()}
    return f"{parameter.meaning} (default: {words.get(parameter.default, number(parameter.default))})"


if __name__ == "__main__":
    main()
