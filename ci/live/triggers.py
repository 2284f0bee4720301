"""Which retraining triggers of a contract fire: pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.spec import DriftTrigger, NewData, PerformanceTrigger, Retraining


@dataclass(frozen=True)
class Trigger:
    """One trigger with its figure; `fired` can start a retraining alone."""

    name: str  # schedule | new_data | drift | performance
    fired: bool
    detail: str


@dataclass(frozen=True)
class Seen:
    """What the triggers look at; times are seconds since 1970."""

    now: float
    trained: float | None  # when the newest complete training began, None when there is none
    labelled_since: int  # labels that came since then
    drifted: tuple[str, ...]  # features over their threshold
    judged: int  # features with enough rows to be judged
    labelled: int  # labelled rows in the window that was monitored
    metrics: Mapping[str, float | None]  # on those


def decide(settings: Retraining, seen: Seen) -> list[Trigger]:
    """Return every trigger that the contract sets, in its order, fired or not."""
    found: list[Trigger] = []
    if settings.schedule is not None:
        found.append(schedule(settings.schedule, seen))
    if settings.new_data is not None:
        found.append(new_data(settings.new_data, seen))
    if settings.drift is not None:
        found.append(drift(settings.drift, seen))
    if settings.performance is not None:
        found.append(performance(settings.performance, seen))
    return found


def schedule(line: str, seen: Seen) -> Trigger:
    """Fire when a time of the cron line (UTC) has passed since the newest training."""
    from croniter import croniter

    due = croniter(line, datetime.fromtimestamp(seen.now, UTC)).get_prev(float)
    if seen.trained is None:
        return Trigger("schedule", True, f"'{line}': was never trained")
    fired = seen.trained < due
    times = f"last due {_utc(due)}, last trained {_utc(seen.trained)}"
    return Trigger("schedule", fired, f"'{line}': {times}")


def new_data(settings: NewData, seen: Seen) -> Trigger:
    """Fire when enough labels came since the newest training."""
    fired = seen.labelled_since >= settings.rows
    return Trigger(
        "new_data", fired, f"{seen.labelled_since} labelled rows since the last training, {settings.rows} fire"
    )


def drift(settings: DriftTrigger, seen: Seen) -> Trigger:
    """Fire when enough features drift at once."""
    names = f" ({', '.join(seen.drifted[:5])}{', …' if len(seen.drifted) > 5 else ''})" if seen.drifted else ""
    count = len(seen.drifted)
    judged = f"{count} of {seen.judged} judged features drifted" if seen.judged else "no feature could be judged"
    return Trigger("drift", count >= settings.features, f"{judged}{names}, {settings.features} fire")


def performance(settings: PerformanceTrigger, seen: Seen) -> Trigger:
    """Fire when the metric of the labelled rows is beyond its bound, with `min_rows` labels at least."""
    low = settings.min is not None
    bound = settings.min if settings.min is not None else settings.max
    name = f"{settings.metric} {'below' if low else 'above'} {bound:g}"
    if seen.labelled < settings.min_rows:
        return Trigger(
            "performance", False, f"{name}: not judged, {seen.labelled} labelled rows, {settings.min_rows} are needed"
        )
    value = seen.metrics.get(settings.metric)
    if value is None or bound is None:
        return Trigger("performance", False, f"{name}: not judged, the labelled rows do not give {settings.metric}")
    fired = value < bound if low else value > bound
    return Trigger("performance", fired, f"{name}: it is {value:.4f} on {seen.labelled} labelled rows")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
