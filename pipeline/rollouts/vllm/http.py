"""Requests to a vLLM server. Does not import torch, so that a launch can check the server first."""

from __future__ import annotations

import os
import time
from typing import Any

import httpx

KEY = "GRADUS_ROLLOUT_KEY"
"""Environment variable with the server's API key, where it has one."""
PAUSE_SECONDS = 1.0
"""Time before a request is repeated that reached no server, or a busy one."""
BUSY = (408, 429, 502, 503, 504)
"""Status codes after which a request is repeated."""


class ServerProblem(Exception):
    """A server refused a request, or did not answer it; the text says which."""


class Client:
    """A connection to one server, which threads can share."""

    def __init__(self, url: str, time_limit: float, at_a_time: int = 256):
        self.url, self.time_limit = url.rstrip("/"), time_limit
        key = os.environ.get(KEY)
        limits = httpx.Limits(max_connections=at_a_time, max_keepalive_connections=at_a_time)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy from the environment is for outside addresses; a server for rollouts is in the local network.
        self._http = httpx.Client(
            base_url=self.url, timeout=time_limit, limits=limits, headers=headers, trust_env=False
        )

    def get(self, path: str) -> Any:
        """The answer to a GET request. Raises: ServerProblem."""
        return self._asked("GET", path, None, patient=True)

    def post(self, path: str, content: dict[str, Any], patient: bool = True) -> Any:
        """The answer to a POST request. Raises: ServerProblem."""
        return self._asked("POST", path, content, patient)

    def _asked(self, method: str, path: str, content: dict[str, Any] | None, patient: bool) -> Any:
        """The answer to a request. A patient one is repeated while the server is away or busy, up to the time limit.

        Raises: ServerProblem.
        """
        deadline = time.monotonic() + (self.time_limit if patient else 0.0)
        while True:
            try:
                answer = self._http.request(method, path, json=content)
                if answer.status_code not in BUSY:
                    break
                problem = f"it answers {answer.status_code}"
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
            if time.monotonic() + PAUSE_SECONDS > deadline:
                raise ServerProblem(problem)
            time.sleep(PAUSE_SECONDS)
        if answer.is_error:
            raise ServerProblem(f"it answers {answer.status_code}: {_said(answer)}")
        try:
            return answer.json()
        except ValueError:
            raise ServerProblem("its answer is not JSON; it is not a vLLM server") from None

    def workers(self, method: str, *arguments: str, patient: bool = True) -> list[Any]:
        """Call a method of every vLLM worker; returns their results. Raises: ServerProblem."""
        content = {"method": method, "args": [*arguments]}
        return list((self.post("/collective_rpc", content, patient) or {}).get("results") or [])

    def state(self, patient: bool = True) -> dict[str, Any]:
        """The state of the workers; the digest is empty where they do not agree on one. Raises: ServerProblem."""
        states = self.workers("rollout_state", patient=patient)
        if not states or not isinstance(states[0], dict):
            raise ServerProblem("its workers do not report which weights they hold")
        agreed = len({state["digest"] for state in states}) == 1
        return states[0] if agreed else {**states[0], "digest": ""}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _said(answer: httpx.Response) -> str:
    """The error message in an answer."""
    try:
        content = answer.json()
        found = content.get("error", content.get("detail", content))
        text = found.get("message", found) if isinstance(found, dict) else found
    except (ValueError, AttributeError):
        text = answer.text
    return str(text).split("\n")[0][:300]
