"""Whether a team's Prefect server takes us, asked before a launch; no Prefect is imported for it.

A server that does not answer is no reason to stop, since the run can do without. One that refuses would show nothing of
the run, and only the user can put that right.
"""

from __future__ import annotations

import base64
import urllib.error
import urllib.request

from gradus.flows.orchestrator.settings import users_api_url, users_credentials
from gradus.pipeline.common.addresses import holds_secret, redacted
from gradus.pipeline.common.errors import UserError

TIME_LIMIT = 3.0
"""Seconds to wait for the server's answer."""


def check_prefect(engine: str) -> None:
    """Ask the user's Prefect server, where there is one and it will be used. Raises: UserError where it says no."""
    url = users_api_url()
    if engine != "prefect" or url is None:
        return
    if holds_secret(url):
        raise UserError(
            "the address of the Prefect server must not hold a password",
            where="PREFECT_API_URL",
            got="an address with a password, which records and pages would repeat",
            expected="the address alone, such as http://HOST:4200/api",
            fix="set PREFECT_API_AUTH_STRING to USER:PASSWORD",
        )
    auth, key = users_credentials()
    request = urllib.request.Request(f"{url.rstrip('/')}/flows/count", b"{}", {"Content-Type": "application/json"})
    if auth or key:
        shown = "Basic " + base64.b64encode(auth.encode()).decode() if auth else f"Bearer {key}"
        request.add_unredirected_header("Authorization", shown)  # to this server alone
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(request, timeout=TIME_LIMIT).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 401:
            said = (
                "with what PREFECT_API_AUTH_STRING says" if auth else "with an API key" if key else "without a password"
            )
            raise UserError(
                "the Prefect server refuses access",
                where=f"PREFECT_API_URL, {redacted(url)}",
                got=f"401 {error.reason}, asked {said}",
                fix="set PREFECT_API_AUTH_STRING to USER:PASSWORD as the server has it; --engine none needs no server",
            ) from None
    except (OSError, ValueError):
        return
