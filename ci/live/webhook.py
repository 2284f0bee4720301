"""Tell a webhook about alerts: one JSON POST to WHARF_ALERT_WEBHOOK (https, or http on this machine)."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ci.errors import Mistake, Unavailable

if TYPE_CHECKING:
    from ci.monitor import DriftReport

VARIABLE = "WHARF_ALERT_WEBHOOK"
_TIMEOUT_S = 10.0


def deliver(report: DriftReport) -> str | None:
    """POST the alerts and return the host they went to, None when no webhook is set.

    The address may hold a secret, so only its host is ever shown. Raises Mistake for an address that is not allowed,
    Unavailable when it does not answer with 2xx; redirects are not followed.
    """
    address = os.environ.get(VARIABLE, "").strip()
    if not address:
        return None
    host = _checked(address)
    import requests

    body = {
        "model": report.model,
        "environment": report.environment,
        "version": report.version,
        "created": report.created,
        "alerts": report.alerts,
        "drifted": report.drifted,
        "report": report.path,
    }
    try:
        answer = requests.post(address, json=body, timeout=_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        raise Unavailable(
            f"{VARIABLE}: {host} was not reached ({type(error).__name__}): the alerts are not delivered"
        ) from None
    if not 200 <= answer.status_code < 300:
        raise Unavailable(f"{VARIABLE}: {host} answered {answer.status_code}: the alerts are not delivered")
    return host


def _checked(address: str) -> str:
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        _ = parts.port  # a port that is no number is refused here
    except ValueError:
        raise Mistake(f"{VARIABLE}: is not a usable address: the alerts are not delivered") from None
    if host and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
        return host
    raise Mistake(f"{VARIABLE}: must be an https address, or http on this machine: the alerts are not delivered")


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine by its address or name, without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
