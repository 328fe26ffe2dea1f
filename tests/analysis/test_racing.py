"""Claims about analysis/racing.py: which setting of a search is to be run again."""

from __future__ import annotations

import numpy as np

from kdsweep.analysis.racing import contenders, next_of


def test_without_repeats_each_could_be_the_best() -> None:
    """Nothing is known of the noise. The best mean comes first, in the direction of the objective."""
    values = {0: [0.5], 1: [0.9], 2: [0.1]}
    assert contenders(values) == [1, 0, 2]
    assert contenders(values, maximise=False) == [2, 0, 1]


def test_who_is_behind_by_more_than_noise_drops_out() -> None:
    """The noise is pooled: a setting with one run is judged by the others' repeats."""
    values = {0: [0.80, 0.82], 1: [0.81, 0.80], 2: [0.50, 0.51], 3: [0.2]}
    assert contenders(values) == [0, 1]
    assert contenders({0: [0.6, 1.0], 1: [0.81, 0.80], 2: [0.6, 0.8], 3: [0.9]}) == [3, 1, 0, 2]


def test_one_with_the_fewest_runs_is_next() -> None:
    """Of these the first; without any there is none."""
    assert next_of([4, 2, 7], {4: 3, 2: 2, 7: 2}) == 2
    assert next_of([], {}) is None


def test_a_race_finds_a_better_setting_than_equal_replicates() -> None:
    """Eight settings, eight further runs: in simulated searches it loses less of the best one's value."""

    def regret(seed: int, *, race: bool) -> float:
        rng = np.random.default_rng(seed)
        true = rng.normal(0, 2, 8)
        scores = {setting: [float(value)] for setting, value in enumerate(true + rng.standard_normal(8))}
        for _ in range(8):
            runs = {setting: len(own) for setting, own in scores.items()}
            chosen = next_of(contenders(scores) if race else list(scores), runs)
            assert chosen is not None
            scores[chosen].append(float(true[chosen] + rng.standard_normal()))
        best = max(scores, key=lambda setting: sum(scores[setting]) / len(scores[setting]))
        return float(true.max() - true[best])

    lost = [[regret(seed, race=race) for seed in range(150)] for race in (True, False)]
    assert np.mean(lost[0]) < 0.75 * np.mean(lost[1])
