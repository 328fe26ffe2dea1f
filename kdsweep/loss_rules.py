"""Rules for the settings of the losses. They need no torch, so a wrong alpha is refused before torch is imported.

A rule has the name of its loss in `losses.py`, and takes the loss's settings. A loss needs none: its settings are then
tried by calling it once before a run starts.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from kdsweep.system.errors import UserError, require, require_number

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTIONS = ("forward", "reverse", "js")
DISTANCES = ("cosine", "mse")

# What the value of a setting that changes from epoch to epoch is made of, and how it can change.
PLAN = ("start", "end", "shape", "until")
SHAPES = ("linear", "cosine", "step")


def kd(*, alpha: float, tau: float, direction: str = "forward", standardize: bool = False) -> None:
    """Refuses alpha outside of [0, 1], tau unless it is finite and > 0, and unknown directions."""
    _share(alpha, "alpha")
    _temperature(tau)
    require(direction in DIRECTIONS, f"direction in {DIRECTIONS}", direction, "direction")
    require(type(standardize) is bool, "standardize is true or false", standardize, "standardize")


def label_smoothing(*, smoothing: float) -> None:
    """Refuses smoothing outside of [0, 1]."""
    _share(smoothing, "smoothing")


def tf_kd(*, alpha: float, tau: float, correct: float) -> None:
    """Refuses alpha and correct outside of [0, 1], and tau unless it is finite and > 0."""
    _share(alpha, "alpha")
    _temperature(tau)
    _share(correct, "correct")


def mse(*, alpha: float) -> None:
    """Refuses alpha outside of [0, 1]."""
    _share(alpha, "alpha")


def dkd(*, ce_weight: float, target_weight: float, others_weight: float, tau: float) -> None:
    """Refuses weights unless they are finite and >= 0, and tau unless it is finite and > 0."""
    _weight(ce_weight, "ce_weight")
    _weight(target_weight, "target_weight")
    _weight(others_weight, "others_weight")
    _temperature(tau)


def nkd(*, ce_weight: float, target_weight: float, others_weight: float, tau: float) -> None:
    """Refuses weights unless they are finite and >= 0, and tau unless it is finite and > 0."""
    dkd(ce_weight=ce_weight, target_weight=target_weight, others_weight=others_weight, tau=tau)


def dist(*, ce_weight: float, inter_weight: float, intra_weight: float, tau: float) -> None:
    """Refuses weights unless they are finite and >= 0, and tau unless it is finite and > 0."""
    _weight(ce_weight, "ce_weight")
    _weight(inter_weight, "inter_weight")
    _weight(intra_weight, "intra_weight")
    _temperature(tau)


def wttm(*, ce_weight: float, weight: float, tau: float) -> None:
    """Refuses weight unless it is finite and >= 0, and tau unless it is finite and > 0."""
    _weight(ce_weight, "ce_weight")
    _weight(weight, "weight")
    _temperature(tau)


def feature(*, ce_weight: float, weight: float, distance: str) -> None:
    """Refuses weights unless they are finite and >= 0, and unknown distances."""
    _weight(ce_weight, "ce_weight")
    _weight(weight, "weight")
    require(distance in DISTANCES, f"distance in {DISTANCES}", distance, "distance")


def rkd(*, ce_weight: float, distance_weight: float, angle_weight: float) -> None:
    """Refuses weights unless they are finite and >= 0."""
    _weight(ce_weight, "ce_weight")
    _weight(distance_weight, "distance_weight")
    _weight(angle_weight, "angle_weight")


def sp(*, ce_weight: float, weight: float) -> None:
    """Refuses weights unless they are finite and >= 0."""
    _weight(ce_weight, "ce_weight")
    _weight(weight, "weight")


def weighted_sum(*, terms: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a sum without terms, weights unless they are finite and >= 0, and wrong settings of a term's loss."""
    several = isinstance(terms, Mapping) and len(terms) > 0
    require(several, "a sum has terms", terms, "terms", "Each has a name, a weight and a loss (of).")
    for name, term in terms.items():
        whole = isinstance(term, Mapping) and {*term} == {"weight", "of"}
        require(whole, "a term has a weight and a loss (of), and no more", term, f"terms.{name}")
        _within(f"terms.{name}", partial(_weight, term["weight"], "weight"))
        _within(f"terms.{name}.of", partial(check, term["of"]))


def scheduled(*, of: object) -> None:
    """Refuses incomplete schedules, and settings that are out of range at the start or at the end of one."""
    settings = _settings(of)
    plans = {name: plan for name, plan in settings.items() if is_plan(plan)}
    remedy = "Write {start: 4, end: 1, shape: linear, until: 1} for one."
    require(len(plans) > 0, "a setting has a schedule", {**settings}, "of", remedy)
    for name, plan in plans.items():
        _within(f"of.{name}", partial(_plan, **plan))
    for end in ("start", "end"):
        ends = {name: plan[end] for name, plan in plans.items()}
        try:
            _check(_target(of), {**settings, **ends})
        except UserError as error:
            faulty = f"{error.key}.{end}" if error.key in plans else error.key
            raise UserError(error.message, faulty).within("of") from error


RULES: dict[str, Callable[..., None]] = {
    rule.__name__: rule
    for rule in (kd, label_smoothing, tf_kd, mse, dkd, nkd, dist, wttm, feature, rkd, sp, weighted_sum, scheduled)
}


def rule_of(target: str) -> Callable[..., None] | None:
    """Returns the rule for the loss with this full name ("kdsweep.losses.kd"); None if it has none."""
    module, _, name = target.rpartition(".")
    return RULES.get(name) if module == "kdsweep.losses" else None


def check(loss: object) -> None:
    """Refuses wrong settings of one of our losses. The loss itself reports missing and unknown settings.

    Args:
        loss: The configuration of a loss, as plain values, or the loss with its settings (a partial). Other losses
            have no rule.
    """
    _check(_target(loss), _settings(loss))


def is_plan(value: object) -> bool:
    """Returns whether the value of a setting is a schedule: a mapping with a start, as `scheduled` takes it."""
    return isinstance(value, Mapping) and "start" in value


def _check(target: str, settings: Mapping[str, Any]) -> None:
    rule = rule_of(target)
    if rule is None:
        return
    parameters = inspect.signature(rule).parameters
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    if required <= settings.keys():
        rule(**{name: value for name, value in settings.items() if name in parameters})


def _target(loss: object) -> str:
    """Returns the full name of a loss."""
    if isinstance(loss, Mapping):
        return str(loss.get("_target_"))
    function = getattr(loss, "func", loss)
    return f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', None)}"


def _settings(loss: object) -> Mapping[str, Any]:
    """Returns the settings of a loss."""
    found = loss if isinstance(loss, Mapping) else getattr(loss, "keywords", {})
    return {name: value for name, value in found.items() if not name.startswith("_")}


def _plan(**plan: Any) -> None:
    remedy = f"A schedule has {', '.join(PLAN)}."
    for name in plan:
        require(name in PLAN, f"each key in {PLAN}", name, name)
    for name in PLAN:
        require(name in plan, f"{name} is set", None, name, remedy)
    for name in ("start", "end"):
        require_number(plan[name], f"{name} is a number", name)
    require(plan["shape"] in SHAPES, f"shape in {SHAPES}", plan["shape"], "shape")
    require_number(plan["until"], "0 < until <= 1", "until")
    require(0 < plan["until"] <= 1, "0 < until <= 1", plan["until"], "until", "It is a share of the training.")


def _share(value: float, key: str) -> None:
    require_number(value, f"0 <= {key} <= 1", key)
    require(0 <= value <= 1, f"0 <= {key} <= 1", value, key)


def _weight(value: float, key: str) -> None:
    require_number(value, f"0 <= {key} < inf", key)
    require(0 <= value < math.inf, f"0 <= {key} < inf", value, key)


def _temperature(tau: float) -> None:
    require_number(tau, "0 < tau < inf", "tau")
    require(0 < tau < math.inf, "0 < tau < inf", tau, "tau")


def _within(group: str, rule: Callable[[], None]) -> None:
    try:
        rule()
    except UserError as error:
        raise error.within(group) from error
