"""Whether the rows of a table are what a network computes: the same bits, or no further off than its rounding noise.

A table is filled in large batches, by compiled code perhaps, or on another machine. What the network computes now may
therefore differ in its last bits, and how far depends on network, head and precision: 1e-6 of a logit in one case, a
tenth of it in another. No fixed tolerance holds for all of them. So the difference is compared with the rounding noise
of the very rows, which `numerics.rounding_noise` measures.

1. A few rows are computed again. If they have the bits that the same computation gave when the table was made, then
   network, preprocessing, pictures and views are the same.
2. Otherwise the table's distance from the network's answers is compared with the distance that rounding errors cause.
   `NOISE_ALLOWED` times that is allowed. Where rounding errors are far below what tells pictures apart, more is
   allowed, up to `NOISE_ALLOWED_AT_MOST` times: the limit then lies half-way, on a logarithmic scale, between rounding
   and another view of a picture.
3. The nearer rounding noise is to what tells pictures apart, the more rows are computed for the comparison. Where it is
   too near, no comparison can tell, and the table is neither believed nor refused.

Distances are root mean squares over rows and outputs. docs/reliability.md has the error rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

# The rows that are compared bit by bit. Distances need this many outputs of rows, and they need `MANY_ROWS` where noise
# is within `CLEAR` times of the spread over pictures.
CONTROL_ROWS = 4
OUTPUTS = 128
MANY_ROWS = 64
CLEAR = 100.0

# Two right computations differ by 1.3 times the measured noise at most. Where pictures have large areas of one colour,
# it was up to 3.1 times, since rounding errors there are the same at all positions and don't average out.
NOISE_ALLOWED = 2.0
NOISE_ALLOWED_AT_MOST = 5.0

# Another view of a picture is at least this share of the spread away.
VIEW = 0.2

# Below this ratio of spread to noise, another view's answers could pass as this one's.
TELLS_APART = 16.0

# Below this ratio, a network's answers are hardly worth learning from.
POOR = 4.0

# Heads compute in float32, whatever the precision of the rest, and round their sums to it.
HEAD_ROUNDOFF = 2.0**-24

# A table of features is kept in fp16, which rounds to this.
HALF_ROUNDOFF = 2.0**-11

# The spread over pictures is taken from this many rows.
SPREAD_ROWS = 1024


@dataclass(frozen=True)
class Asked:
    """A network that is asked for single rows.

    Attributes:
        plain: Row indices (B,) int64 -> outputs (B, n_outputs), computed plainly: not compiled, in one batch.
        shaken: The same with random rounding errors in each layer.
    """

    plain: Callable[[Tensor], Tensor]
    shaken: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """How far a table's rows are from what the network computes now.

    Attributes:
        distance: Between the table's rows and the network's answers now; NaN if one of them isn't finite.
        noise: The distance that rounding errors cause.
        spread: The distance of the table's rows from their mean: what tells pictures apart.
    """

    distance: float
    noise: float
    spread: float

    @property
    def agrees(self) -> bool:
        """Whether the distance is no more than rounding errors explain. NaN and infinity don't agree."""
        room = math.sqrt(NOISE_ALLOWED * self.noise * VIEW * self.spread)
        allowed = max(NOISE_ALLOWED * self.noise, min(room, NOISE_ALLOWED_AT_MOST * self.noise))
        return math.isfinite(self.distance) and self.distance <= allowed

    @property
    def tells(self) -> bool:
        """Whether the noise is small enough for wrong rows to be noticed."""
        return self.spread == 0 or self.spread >= TELLS_APART * self.noise

    @property
    def poor(self) -> bool:
        """Whether the noise is so large that little is left of what the network says."""
        return 0 < self.spread < POOR * self.noise


def control_rows(n: int) -> Tensor:
    """Returns the indices of the rows, of `n`, whose answers are kept with a table to be compared bit by bit."""
    return _spaced(n, CONTROL_ROWS)


def compare(table: Tensor, control: Tensor | None, network: Asked) -> Comparison | None:
    """Compares a table with the network that is said to have computed it.

    Args:
        table: (n, n_outputs).
        control: The network's plain answers to the control rows when the table was made; None if they weren't kept.
        network: The network, to be asked again.

    Returns:
        None if the bits are the same, else the distances.
    """
    rows = control_rows(len(table))
    if torch.equal(network.plain(rows).cpu(), table[rows] if control is None else control):
        return None
    return distances(table, network)


def distances(table: Tensor, network: Asked) -> Comparison:
    """Returns how far a table (n, n_outputs) is from what a network computes now, and how far noise would take it."""
    few = max(CONTROL_ROWS, math.ceil(OUTPUTS / table.shape[1]))
    found = _distances(table, few, network)
    near = found.spread < CLEAR * found.noise and few < min(MANY_ROWS, len(table))
    return _distances(table, MANY_ROWS, network) if near else found


def _distances(table: Tensor, n_rows: int, network: Asked) -> Comparison:
    """Returns the distances, taken over some of the rows."""
    rows = _spaced(len(table), n_rows)
    now = network.plain(rows).cpu()
    roundoff = HALF_ROUNDOFF if table.dtype == torch.float16 else HEAD_ROUNDOFF
    noise = math.hypot(_rms(network.shaken(rows).cpu() - now), roundoff * _rms(now))
    return Comparison(_rms(table[rows] - now), noise, _spread(table[_spaced(len(table), SPREAD_ROWS)]))


def _spaced(n: int, most: int) -> Tensor:
    return torch.linspace(0, n - 1, min(most, n), dtype=torch.float64).long()


def _rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def _spread(rows: Tensor) -> float:
    return _rms(rows.double() - rows.double().mean(0))
