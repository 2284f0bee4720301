"""The token in each request to an API server: those of credential plugins (EKS: 15 minutes) end before a Job does."""

from __future__ import annotations

from collections.abc import Callable, Generator

import httpx


class Bearer(httpx.Auth):
    """Sends a token, and asks `renew` for a new one when the server accepts it no more."""

    def __init__(self, token: str, renew: Callable[[], str | None]) -> None:
        self._token, self._renew = token, renew

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """Send `request`, and once more where there is another token by now; raises what `renew` raises."""
        tried = self._token
        request.headers["Authorization"] = f"Bearer {tried}"
        response = yield request
        if response.status_code != 401:
            return
        if self._token == tried:  # else another thread was quicker
            self._token = self._renew() or tried
        if self._token != tried:
            request.headers["Authorization"] = f"Bearer {self._token}"
            yield request
