"""The checks of the gate. Each returns a `Check`; one that cannot run is a failed check with the reason."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ci.errors import Unavailable
from ci.gating.bootstrap import NOT_RESAMPLED, distribution, interval, kernel, percentiles
from ci.gating.evidence import Champion, Check, Interval
from ci.gating.scoring import Scored, part
from models.metrics import compute
from models.spec import METRICS, AgainstChampion, Gate, Slice

_WARM_UP = 30
_ROUNDS = 3
_CALLS = 200


@dataclass(frozen=True)
class Rival:
    """The champion on the same held-out rows; `scored` is None with the `reason` why it could not be scored."""

    champion: Champion
    scored: Scored | None
    reason: str = ""


def attempt(name: str, bound: float | None, check: Callable[[], Check]) -> Check:
    """Run `check`; whatever goes wrong in it is a failed check, except that MLflow cannot be reached."""
    try:
        return check()
    except Unavailable:
        raise
    except Exception as error:  # fail closed: no fault of a check may let a model pass
        return unrunnable(name, bound, f"{type(error).__name__}: {error}")


def attempt_all(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """Run a check that has many results; what goes wrong is one failed check called `name`."""
    found: list[Check] = []

    def one() -> Check:
        found.extend(check())
        return Check(name, None, None, True, "")

    outcome = attempt(name, None, one)
    return found if outcome.passed else [outcome]


def unseen(holdout: pd.DataFrame, reference: pd.DataFrame, name: str = "data.unseen") -> Check:
    """Check that no held-out row is among the training rows that a run kept (a sample of at most 10,000)."""
    columns = [str(column) for column in holdout.columns if column in reference.columns]
    if len(columns) < len(holdout.columns):
        return unrunnable(name, 0, "reference.parquet lacks columns of holdout.parquet")
    kept, held = (
        pd.util.hash_pandas_object(_comparable(frame[columns]), index=False) for frame in (reference, holdout)
    )
    both = int(held.isin(kept).sum())
    detail = f"{both} of {len(holdout)} held-out rows are among {len(reference)} training rows"
    return Check(name, float(both), 0, both == 0, detail)


def unseen_by(champion: Champion, holdout: pd.DataFrame, reference: pd.DataFrame) -> Check:
    """Check that the champion did not train on what its challenger is measured on; `reference` is the champion's.

    The seed, the input columns and `data.holdout` decide who is held out: when one changed between the two, the
    champion's figures on these rows would be those of its own training rows.
    """
    found = unseen(holdout, reference, "champion.unseen")
    reason = "" if found.passed else "; did seed, columns or holdout change since?"
    return replace(found, detail=f"{found.detail} of version {champion.version} in {champion.environment}{reason}")


def _comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with every number as float64: 1 and 1.0 are the same value."""
    numbers = [name for name in frame if pd.api.types.is_numeric_dtype(frame[name].dtype)]
    return frame.astype(dict.fromkeys(numbers, np.float64))


def unrunnable(name: str, bound: float | None, reason: str) -> Check:
    """Return the failed check of something that could not be checked."""
    first = (reason.strip().splitlines() or ["no reason given"])[0]
    return Check(name, None, bound, False, f"could not be checked: {first}")


def names_of(gate: Gate, has_rival: bool) -> list[tuple[str, float | None]]:
    """Return name and bound of every check that needs predictions: what fails when there are none."""
    names: list[tuple[str, float | None]] = [("predictions.finite", None)]
    for metric, rule in gate.metrics.items():
        names += [(f"metric.{metric}.min", rule.min)] if rule.min is not None else []
        names += [(f"metric.{metric}.max", rule.max)] if rule.max is not None else []
        if rule.champion and has_rival:
            names.append((f"metric.{metric}.champion", -rule.champion.max_drop))
    names += [(f"slice.{rule.column}.{rule.metric}", _bounds(rule)[0]) for rule in gate.slices]
    return [*names, ("latency.p99_ms", gate.latency_p99_ms)]


def size(megabytes: float, bound: float) -> Check:
    """Check the artifact's size in MB (10^6 bytes)."""
    return Check("artifact.size_mb", round(megabytes, 6), bound, megabytes <= bound, f"{megabytes:.3f} MB")


def finite(scored: Scored) -> Check:
    """Check that no prediction for a held-out row is NaN or infinite."""
    bad = scored.rows - scored.finite
    detail = f"{bad} of {scored.rows} rows got NaN or infinite predictions" if bad else f"all {scored.rows} rows"
    return Check("predictions.finite", float(bad), 0, bad == 0, detail)


def measure(gate: Gate, scored: Scored) -> dict[str, Interval]:
    """Return every metric of the gate with its 95 % bootstrap interval; one that cannot be computed is nan."""
    found: dict[str, Interval] = {}
    for metric in gate.metrics:
        try:
            value = compute(scored.task, metric, scored.y_true, scored.outputs)
        except ValueError:  # NaN predictions: the checks of this metric fail and say so
            found[metric] = Interval(math.nan)
            continue
        if (scored.task, metric) in NOT_RESAMPLED or not math.isfinite(value):
            found[metric] = Interval(value)
        else:
            weighted = kernel(scored.task, metric, scored.y_true, scored.outputs)
            found[metric] = interval(value, distribution(weighted, scored.rows))
    return found


def threshold(metric: str, kind: str, bound: float, measured: Interval) -> Check:
    """Check a metric against its `min` or `max`."""
    name = f"metric.{metric}.{kind}"
    if not math.isfinite(measured.value):
        return unrunnable(name, bound, f"{metric} is not defined on the held-out rows")
    passed = measured.value >= bound if kind == "min" else measured.value <= bound
    words = ("at least" if kind == "min" else "at most") if passed else ("below" if kind == "min" else "above")
    spread = "" if measured.low is None else f" [{measured.low:.4f}, {measured.high:.4f}]"
    return Check(name, measured.value, bound, passed, f"{measured.value:.4f}{spread} is {words} {bound:g}")


def against_champion(metric: str, rule: AgainstChampion, scored: Scored, rival: Rival | None) -> Check:
    """Check that the run is not worse than the champion by more than `max_drop`.

    The figure is the lower end of the two-sided paired-bootstrap interval of the difference, turned so that more is
    better; it must be at least -max_drop.
    """
    name, bound = f"metric.{metric}.champion", -rule.max_drop
    if rival is None:
        return Check(name, None, bound, True, "no version is released yet, there is nothing to compare with")
    who = f"version {rival.champion.version} in {rival.champion.environment}"
    if rival.scored is None:
        return unrunnable(name, bound, f"{who}: {rival.reason}")
    old = rival.scored
    values = [compute(one.task, metric, one.y_true, one.outputs) for one in (scored, old)]
    sign = 1.0 if METRICS[scored.task][metric] else -1.0
    difference = sign * (values[0] - values[1])
    if not math.isfinite(difference):
        return unrunnable(name, bound, f"{metric} is not defined on the held-out rows")
    if (scored.task, metric) in NOT_RESAMPLED:
        bounds = (difference, difference)
    else:
        ours, theirs = (
            distribution(kernel(one.task, metric, one.y_true, one.outputs), one.rows) for one in (scored, old)
        )
        bounds = percentiles(sign * (ours - theirs), rule.confidence)
        if bounds is None:
            return unrunnable(name, bound, f"{metric} is undefined on too many resamples of {scored.rows} rows")
    detail = (
        f"{values[0]:.4f} against {values[1]:.4f} of {who}: difference {difference:+.4f}, "
        f"{rule.confidence:.0%} interval [{bounds[0]:+.4f}, {bounds[1]:+.4f}] (more is better), "
        f"a drop of {rule.max_drop:g} is allowed"
    )
    return Check(name, bounds[0], bound, bounds[0] >= bound, detail)


def slices(rule: Slice, scored: Scored, frame: pd.DataFrame) -> list[Check]:
    """Check a metric in each part of the held-out rows: a value of a category, or a quantile bin of a number.

    A part with fewer than min_rows rows is reported and not judged; when no part can be judged the check fails.
    """
    found: list[Check] = []
    judged = 0
    for label, rows in parts(frame[rule.column], rule.bins):
        y_true, outputs, count = part(scored, frame, rows)
        name = f"slice.{rule.column}.{label}.{rule.metric}"
        if count < rule.min_rows:
            detail = f"not judged: {count} rows, min_rows is {rule.min_rows}"
            found.append(Check(name, None, _bounds(rule)[0], True, detail))
            continue
        judged += 1
        found.append(attempt(name, _bounds(rule)[0], lambda n=name, y=y_true, o=outputs: _judge(n, rule, scored, y, o)))
    if not judged:
        reason = f"no part of {rule.column} has the {rule.min_rows} rows of min_rows"
        found.append(unrunnable(f"slice.{rule.column}.{rule.metric}", _bounds(rule)[0], reason))
    return found


def _judge(name: str, rule: Slice, scored: Scored, y_true: Any, outputs: Any) -> Check:
    value = compute(scored.task, rule.metric, y_true, outputs)
    bound = _bounds(rule)[0]
    if not math.isfinite(value):
        return unrunnable(name, bound, f"{rule.metric} is not defined on these {len(y_true)} rows")
    if rule.min is not None and value < rule.min:
        return Check(name, value, rule.min, False, f"{value:.4f} is below {rule.min:g} in {len(y_true)} rows")
    if rule.max is not None and value > rule.max:
        return Check(name, value, rule.max, False, f"{value:.4f} is above {rule.max:g} in {len(y_true)} rows")
    return Check(name, value, bound, True, f"{value:.4f} in {len(y_true)} rows")


def _bounds(rule: Slice) -> tuple[float, ...]:
    return tuple(bound for bound in (rule.min, rule.max) if bound is not None)


def parts(values: pd.Series[Any], bins: int) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return the parts of a column, each with a label and its row mask [n]; missing values are a part of their own."""
    missing = values.isna().to_numpy(bool)
    found: list[tuple[str, NDArray[np.bool_]]] = []
    if pd.api.types.is_numeric_dtype(values.dtype):
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        edges = np.unique(np.quantile(numbers[~missing], np.linspace(0, 1, bins + 1))) if not missing.all() else []
        if len(edges) == 1:
            found.append((f"{edges[0]:.4g}", ~missing))
        for i in range(len(edges) - 1):
            last = i == len(edges) - 2
            upper = numbers <= edges[i + 1] if last else numbers < edges[i + 1]
            found.append((f"{edges[i]:.4g}..{edges[i + 1]:.4g}", (numbers >= edges[i]) & upper))
    else:
        names = values.astype("object").map(str).to_numpy()
        found += [(_plain(name), (names == name) & ~missing) for name in sorted(set(names[~missing]))]
    return [*found, ("missing", missing)] if missing.any() else found


def _plain(name: str) -> str:
    return re.sub(r"\s+", "_", name)


def latency(scored: Scored, bound: float) -> Check:
    """Check the 99th percentile of the time for one row, in ms, called in this process after a warm-up.

    The best of three rounds counts: what another process takes from this one is not the model's.
    """
    one = scored.inputs[:1]
    call: Callable[[NDArray[Any]], Any] = scored.predictor.predict
    if scored.task == "ranking":
        call = lambda users: scored.predictor.recommend(users, 10)  # noqa: E731
    for _ in range(_WARM_UP):
        call(one)
    rounds = [_p99(call, scored.inputs) for _ in range(_ROUNDS)]
    value = round(min(rounds), 4)
    detail = f"one row, p99 of {_CALLS} calls, best of {_ROUNDS} rounds"
    return Check("latency.p99_ms", value, bound, value <= bound, detail)


def _p99(call: Callable[[NDArray[Any]], Any], inputs: NDArray[Any]) -> float:
    taken = np.empty(_CALLS)
    for i in range(_CALLS):
        row = i % len(inputs)
        one = inputs[row : row + 1]
        begun = time.perf_counter()
        call(one)
        taken[i] = time.perf_counter() - begun
    return float(np.quantile(taken, 0.99)) * 1000
