"""How far live data moved from the training reference: effect sizes with p-values beside them, in plain numpy.

Everything is judged by an effect size, which does not grow with the number of rows; a p-value alone never makes a
feature drift (with 100,000 rows every difference is "significant"). It only holds back: an effect over its threshold
that chance explains (p above `ALPHA`, a small window) does not count.

| method | effect size                                   | range  | for                |
|--------|-----------------------------------------------|--------|--------------------|
| psi    | population stability index                    | 0 … ∞  | numbers, categories |
| ks     | Kolmogorov-Smirnov distance D of two samples  | 0 … 1  | numbers            |
| chi2   | Cramér's V of two samples weighted the same   | 0 … 1  | categories         |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Method = Literal["psi", "ks", "chi2"]

BINS = 10  # quantile bins of the reference
ALPHA = 0.01  # an effect that chance explains with a higher probability than this is not called drift
PSEUDO = 0.5  # added to each bin, so that an empty one gives a large and finite term
KS_ROWS = 50_000  # D of samples this large is off by less than 0.01 (its standard error is below 1/sqrt(n))
SEED = 20_061


@dataclass(frozen=True)
class Feature:
    """What to compare in one column.

    `threshold` None measures without judging; `levels` is the number of categories, coded 0 … levels-1, None for a
    number.
    """

    name: str
    method: Method
    threshold: float | None
    levels: int | None = None


@dataclass(frozen=True)
class FeatureDrift:
    """What was found in one column.

    `effect` is None when it was not judged, and `note` says why. `missing` are shares of NaN, which take no part in
    the effect. `drifted` means effect > threshold and p < ALPHA.
    """

    feature: str
    method: Method
    threshold: float | None
    effect: float | None
    p_value: float | None
    drifted: bool
    reference_rows: int
    current_rows: int
    reference_missing: float
    current_missing: float
    note: str = ""


def compare(
    reference: Floats, current: Floats, features: Sequence[Feature], *, min_rows: int, seed: int = SEED
) -> list[FeatureDrift]:
    """Compare the columns of `reference` [n, d] and `current` [m, d] and return one result a feature.

    NaN is missing: it is counted, and left out of the effect. A category is its code; any other code (say -1 for an
    unknown one) falls in a bin of its own. A column with fewer than `min_rows` values on either side is not judged.
    The Kolmogorov-Smirnov distance looks at `KS_ROWS` rows at most, the same for a given `seed`.
    Raises ValueError when the shapes do not fit `features`.
    """
    for name, matrix in (("reference", reference), ("current", current)):
        if matrix.ndim != 2 or matrix.shape[1] != len(features):
            raise ValueError(f"{name} has the shape {matrix.shape}, expected [rows, {len(features)}]")
    old, new = np.asfortranarray(reference, dtype=np.float64), np.asfortranarray(current, dtype=np.float64)
    picks = _pick(len(old), seed), _pick(len(new), seed + 1)
    return [_judge(feature, old[:, i], new[:, i], picks, min_rows, seed) for i, feature in enumerate(features)]


def _pick(rows: int, seed: int) -> Counts | None:
    """Return `KS_ROWS` of `rows` indices, drawn once for all columns; None when all fit."""
    if rows <= KS_ROWS:
        return None
    return np.sort(np.random.default_rng(seed).choice(rows, KS_ROWS, replace=False, shuffle=False))


def _judge(
    feature: Feature, a: Floats, b: Floats, picks: tuple[Counts | None, Counts | None], min_rows: int, seed: int
) -> FeatureDrift:
    present_a, present_b = a[~np.isnan(a)], b[~np.isnan(b)]
    rows_a, rows_b = len(present_a), len(present_b)
    effect: float | None = None
    p_value: float | None = None
    drifted, note = False, ""
    if min(rows_a, rows_b) < min_rows:
        side, rows = ("reference", rows_a) if rows_a < min_rows else ("window", rows_b)
        note = f"not judged: {rows} values in the {side}, {min_rows} are needed"
    else:
        if feature.method == "ks":
            present_a = _sampled(present_a, len(a), picks[0], seed)
            present_b = _sampled(present_b, len(b), picks[1], seed + 1)
        effect, p_value = effect_size(feature, present_a, present_b)
        beyond = feature.threshold is not None and effect > feature.threshold
        drifted = beyond and p_value < ALPHA
        if beyond and not drifted:
            note = f"above the threshold, but chance explains it (p = {p_value:.2g}): too few rows"
    return FeatureDrift(
        feature=feature.name,
        method=feature.method,
        threshold=feature.threshold,
        effect=effect,
        p_value=p_value,
        drifted=drifted,
        reference_rows=rows_a,
        current_rows=rows_b,
        reference_missing=1 - rows_a / len(a) if len(a) else 0.0,
        current_missing=1 - rows_b / len(b) if len(b) else 0.0,
        note=note,
    )


def _sampled(present: Floats, rows: int, pick: Counts | None, seed: int) -> Floats:
    """Return at most `KS_ROWS` of the values `present`, of a column of `rows` rows."""
    if len(present) < rows:  # some are missing: the shared pick does not apply
        pick = _pick(len(present), seed)
    return present if pick is None else present[pick]


def effect_size(feature: Feature, reference: Floats, current: Floats) -> tuple[float, float]:
    """Return (effect size, p-value) of two samples without NaN, each with one value at least."""
    if feature.method == "ks":
        return ks(reference, current)
    if feature.levels is not None:
        old, new = category_counts(reference, feature.levels), category_counts(current, feature.levels)
    else:
        old, new = quantile_counts(reference, current)
    return psi(old, new) if feature.method == "psi" else cramers_v(old, new)


def quantile_counts(reference: Floats, current: Floats, bins: int = BINS) -> tuple[Counts, Counts]:
    """Return how many values of each sample fall in the quantile bins of the reference, without NaN.

    A reference of at most `bins` different values has one bin a value, and one for all others: so a constant feature
    is compared too, and any new value in it is seen.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    # A feature with few values has few different quantiles; only then is it worth looking for all its values.
    if len(edges) < bins - 1:
        values = np.unique(reference)
        if len(values) <= bins:
            return _value_counts(reference, values), _value_counts(current, values)
    return _edge_counts(reference, edges), _edge_counts(current, edges)


def _edge_counts(values: Floats, edges: Floats) -> Counts:
    # A value equal to an edge belongs to the bin below it, as the quantile itself does.
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)


def _value_counts(values: Floats, known: Floats) -> Counts:
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.bincount(np.where(known[at] == values, at, len(known)), minlength=len(known) + 1)


def category_counts(codes: Floats, levels: int) -> Counts:
    """Return the number of rows of each category 0 … levels-1, and of all other codes as the last entry."""
    known = (codes >= 0) & (codes < levels) & (codes == np.floor(codes))
    return np.bincount(np.where(known, codes, levels).astype(np.int64), minlength=levels + 1)


def psi(reference: Counts, current: Counts) -> tuple[float, float]:
    """Return the population stability index of two histograms over the same bins, and its p-value.

    PSI = Σ (q - p) ln(q / p) with the shares p of the reference and q of the current sample (N. Siddiqi, Credit Risk
    Scorecards, 2006; the symmetric Kullback-Leibler divergence of Jeffreys). Below 0.1 is read as stable, above 0.25
    as a shift. Bins that are empty in both are dropped; `PSEUDO` is added to the others. Under no change PSI is about
    (1/n + 1/m) χ² with bins-1 degrees of freedom (B. Yurdakul, J. Naranjo, Journal of Risk Model Validation 14(4),
    2020), which gives the p-value.
    """
    used = (reference + current) > 0
    old, new = reference[used].astype(np.float64), current[used].astype(np.float64)
    n, m, bins = old.sum(), new.sum(), len(old)
    if bins < 2:
        return 0.0, 1.0
    p, q = (old + PSEUDO) / (n + PSEUDO * bins), (new + PSEUDO) / (m + PSEUDO * bins)
    value = float(np.sum((q - p) * np.log(q / p)))
    return value, chi2_tail(value / (1 / n + 1 / m), bins - 1)


def ks(reference: Floats, current: Floats) -> tuple[float, float]:
    """Return the two-sample Kolmogorov-Smirnov distance D and its asymptotic p-value.

    D is the largest distance between the two empirical distribution functions. The p-value is Kolmogorov's limit
    with the small-sample correction of M. A. Stephens (1970), as in Numerical Recipes, 14.3.3.
    """
    a, b = np.sort(reference), np.sort(current)
    n, m = len(a), len(b)
    # The distance can only be largest at a value of one of the samples, just after all its ties.
    at_a = np.abs(_ecdf_at_own(a) - np.searchsorted(b, a, side="right") / m).max()
    at_b = np.abs(_ecdf_at_own(b) - np.searchsorted(a, b, side="right") / n).max()
    distance = float(max(at_a, at_b))
    root = math.sqrt(n * m / (n + m))
    return distance, kolmogorov_tail((root + 0.12 + 0.11 / root) * distance)


def _ecdf_at_own(ordered: Floats) -> Floats:
    """Return the share of values at or below each value of the sorted sample `ordered`."""
    return np.searchsorted(ordered, ordered, side="right") / len(ordered)


def cramers_v(reference: Counts, current: Counts) -> tuple[float, float]:
    """Return Cramér's V between sample and category, and the p-value of the chi-squared test of homogeneity.

    V is taken with both samples weighted the same, V² = ½ Σ (p - q)² / (p + q): the usual V = sqrt(χ² / N) shrinks
    when one sample is much larger than the other, so the same shift would look smaller in a longer window. For samples
    of one size the two are equal (H. Cramér, Mathematical Methods of Statistics, 1946, 21.9).
    """
    used = (reference + current) > 0
    old, new = reference[used].astype(np.float64), current[used].astype(np.float64)
    n, m, bins = old.sum(), new.sum(), len(old)
    if bins < 2:
        return 0.0, 1.0
    p, q = old / n, new / m
    value = math.sqrt(0.5 * float(np.sum((p - q) ** 2 / (p + q))))
    statistic = float(n * m * np.sum((p - q) ** 2 / (old + new)))
    return min(value, 1.0), chi2_tail(statistic, bins - 1)


def chi2_tail(x: float, freedom: int) -> float:
    """Return P(χ² with `freedom` ≥ 1 degrees > x), by its finite sum (Abramowitz and Stegun, 26.4.4 and 26.4.5)."""
    if x <= 0:
        return 1.0
    half, log_half = x / 2, math.log(x / 2)
    if freedom % 2 == 0:
        terms = [math.exp(i * log_half - half - math.lgamma(i + 1)) for i in range(freedom // 2)]
        return min(math.fsum(terms), 1.0)
    terms = [math.exp((i + 0.5) * log_half - half - math.lgamma(i + 1.5)) for i in range((freedom - 1) // 2)]
    return min(math.erfc(math.sqrt(half)) + math.fsum(terms), 1.0)


def kolmogorov_tail(x: float) -> float:
    """Return P(K > x) of Kolmogorov's distribution: 2 Σ (-1)^(k-1) exp(-2 k² x²)."""
    if x < 0.2:  # the sum converges slowly there, and the result is 1 to twelve digits
        return 1.0
    total = 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))
    return min(max(total, 0.0), 1.0)
