"""Effect sizes: known values by hand, agreement with scipy, and what must never make a feature drift."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from ci.live import drift
from ci.live.drift import Feature, compare

RNG = np.random.default_rng(5)


def one(reference: object, current: object, method: str = "psi", threshold: float | None = 0.2, **more: object):
    feature = Feature("x", method, threshold, more.pop("levels", None))
    a, b = (np.asarray(side, dtype=np.float64)[:, None] for side in (reference, current))
    (found,) = compare(a, b, [feature], min_rows=more.pop("min_rows", 10), **more)
    return found


def test_psi_by_hand() -> None:
    value, _ = drift.psi(np.array([5000, 5000]), np.array([8000, 2000]))
    assert value == pytest.approx(0.3 * math.log(1.6) - 0.3 * math.log(0.4), abs=2e-3)


@pytest.mark.parametrize("method", ["psi", "ks"])
def test_zero_for_the_same_sample(method: str) -> None:
    sample = RNG.normal(size=1000)
    found = one(sample, sample, method)
    assert (found.effect, found.drifted) == (0.0, False)
    assert found.p_value == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["psi", "ks"])
def test_grows_with_the_shift(method: str) -> None:
    base = RNG.normal(size=4000)
    effects = [one(base, RNG.normal(shift, size=4000), method).effect for shift in (0, 0.25, 0.5, 1, 2)]
    assert effects == sorted(effects)
    assert effects[0] < 0.05 < 0.2 < effects[-1]


def test_psi_is_about_the_same_in_both_directions() -> None:
    a, b = RNG.normal(size=5000), RNG.normal(0.4, size=5000)
    assert one(a, b).effect == pytest.approx(one(b, a).effect, rel=0.2)


def test_psi_of_equal_counts_is_symmetric() -> None:
    a, b = np.array([10, 40, 50]), np.array([30, 30, 40])
    assert drift.psi(a, b) == pytest.approx(drift.psi(b, a))


def test_psi_is_finite_with_empty_bins() -> None:
    found = one(np.linspace(0, 1, 500), np.full(500, 7.0))
    assert found.drifted and 2 < found.effect < 20


@pytest.mark.parametrize("shape", [(300, 500), (1000, 1000), (40, 2000)])
@pytest.mark.parametrize("discrete", [False, True])
def test_ks_is_that_of_scipy(shape: tuple[int, int], discrete: bool) -> None:
    a, b = RNG.normal(size=shape[0]), RNG.normal(0.2, size=shape[1])
    if discrete:
        a, b = np.round(a), np.round(b)
    expected = scipy.stats.ks_2samp(a, b, method="asymp")
    value, p = drift.ks(a, b)
    assert value == pytest.approx(expected.statistic, abs=1e-12)
    assert p == pytest.approx(expected.pvalue, abs=0.03)


def test_cramers_v_is_that_of_scipy_for_samples_of_one_size() -> None:
    a, b = np.array([30, 20, 50]), np.array([10, 40, 50])
    expected = scipy.stats.chi2_contingency(np.stack([a, b]), correction=False)
    value, p = drift.cramers_v(a, b)
    assert value == pytest.approx(math.sqrt(expected.statistic / 200))
    assert p == pytest.approx(expected.pvalue)


def test_cramers_v_does_not_depend_on_the_length_of_the_window() -> None:
    a, b = np.array([300, 200, 500]), np.array([100, 400, 500])
    assert drift.cramers_v(a, b)[0] == pytest.approx(drift.cramers_v(a, b * 100)[0])


@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 9, 64, 301])
@pytest.mark.parametrize("x", [0.01, 1.0, 9.0, 80.0, 900.0])
def test_chi2_tail_is_that_of_scipy(x: float, freedom: int) -> None:
    assert drift.chi2_tail(x, freedom) == pytest.approx(scipy.stats.chi2.sf(x, freedom), rel=1e-9, abs=1e-300)


def test_kolmogorov_tail_is_that_of_scipy() -> None:
    for x in (0.1, 0.3, 0.8, 1.5, 3.0):
        assert drift.kolmogorov_tail(x) == pytest.approx(scipy.stats.kstwobign.sf(x), abs=1e-10)


def test_a_small_p_value_alone_is_no_drift() -> None:
    found = one(RNG.normal(size=60_000), RNG.normal(0.05, size=60_000), threshold=0.2)
    assert found.p_value < 1e-6
    assert not found.drifted


def test_an_effect_that_chance_explains_is_no_drift() -> None:
    """Twelve values of the same distribution easily differ by more than the threshold."""
    found = one(np.arange(12.0), np.arange(12.0) * 1.3, threshold=0.1)
    assert found.effect > 0.1
    assert not found.drifted
    assert "chance explains it" in found.note


def test_false_alarms_are_rare_on_unchanged_traffic() -> None:
    base = RNG.normal(size=(398, 30))
    features = [Feature(str(i), "psi" if i % 2 else "ks", 0.25 if i % 2 else 0.2) for i in range(30)]
    found = [f for _ in range(20) for f in compare(base, RNG.normal(size=(250, 30)), features, min_rows=200)]
    assert sum(one.drifted for one in found) == 0


def test_few_rows_are_not_judged_and_said_so() -> None:
    found = one(np.arange(300.0), np.arange(60.0) + 1000, min_rows=200)
    assert (found.effect, found.p_value, found.drifted) == (None, None, False)
    assert found.note == "not judged: 60 values in the window, 200 are needed"
    assert "in the reference" in one(np.arange(60.0), np.arange(300.0), min_rows=200).note


def test_nan_is_missing_and_takes_no_part() -> None:
    base = RNG.normal(size=1000)
    holed = np.where(np.arange(1000) % 4 == 0, np.nan, base)
    for method in ("psi", "ks"):
        found = one(base, holed, method)
        assert found.current_missing == pytest.approx(0.25)
        assert found.current_rows == 750
        assert found.effect < 0.05
    assert one(base, np.full(1000, np.nan)).note.startswith("not judged: 0 values in the window")


@pytest.mark.parametrize("method", ["psi", "ks"])
def test_constant_features(method: str) -> None:
    same, other = one(np.zeros(300), np.zeros(300), method), one(np.zeros(300), np.full(300, -1.0), method)
    assert (same.effect, same.drifted) == (0.0, False)
    assert other.drifted


@pytest.mark.parametrize("method", ["psi", "ks"])
def test_infinite_values_do_not_break_it(method: str) -> None:
    base = RNG.normal(size=500)
    found = one(np.append(base, [np.inf, -np.inf]), np.append(base, np.full(400, np.inf)), method)
    assert found.drifted and math.isfinite(found.effect)


def test_a_new_value_of_a_feature_with_few_values_is_seen() -> None:
    base = np.tile([0.0, 1.0, 2.0], 200)
    assert one(base, np.where(base == 1, 1.5, base)).drifted


def test_categories_and_unknown_codes() -> None:
    base = np.tile([0.0, 1.0], 500)
    for method in ("psi", "chi2"):
        assert one(base, base, method, levels=2).effect == 0.0
        assert one(base, np.where(base == 1, -1, base), method, levels=2).drifted
        assert one(base, np.where(base == 1, 0, base), method, levels=2).drifted


def test_without_a_threshold_nothing_is_judged() -> None:
    found = one(np.zeros(300), np.ones(300), threshold=None)
    assert found.effect > 1 and not found.drifted


def test_sampling_is_the_same_each_time_and_close(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = RNG.normal(size=30_000), RNG.normal(0.3, size=30_000)
    whole = one(a, b, "ks").effect
    monkeypatch.setattr(drift, "KS_ROWS", 5000)
    first, second = one(a, b, "ks"), one(a, b, "ks")
    assert first == second
    assert first.effect != whole
    assert first.effect == pytest.approx(whole, abs=0.03)
    holed = np.where(np.arange(30_000) < 100, np.nan, b)
    assert one(a, holed, "ks").effect == pytest.approx(whole, abs=0.03)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"current has the shape \(5, 2\), expected \[rows, 1\]"):
        compare(np.zeros((5, 1)), np.zeros((5, 2)), [Feature("x", "psi", 0.2)], min_rows=2)
