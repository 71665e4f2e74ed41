"""Checks before a launch that the user's Prefect server grants access. Prefect is not imported for it.

A server that does not answer is no reason to stop, because a run also works without it. A server that refuses access
would show nothing of the run, and only the user can correct that.
"""

from __future__ import annotations

import base64
import importlib.util
import urllib.error
import urllib.request

from gradus.flows.orchestrator.settings import users_api_url, users_credentials
from gradus.pipeline.common.addresses import holds_secret, redacted
from gradus.pipeline.common.errors import UserError

ANSWER_TIMEOUT_SECONDS = 3.0


def check_prefect(engine: str) -> None:
    """Check that Prefect is installed and that the user's server grants access, if they will be used.

    Raises: UserError.
    """
    if engine != "prefect":
        return
    if importlib.util.find_spec("prefect") is None:
        raise UserError(
            "Prefect is not installed in this Python",
            where="--engine prefect",
            got="no package prefect",
            fix="pip install prefect, or give --engine none: the same stages, without Prefect's pages",
        )
    url = users_api_url()
    if url is None:
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
        opener.open(request, timeout=ANSWER_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 401:
            shown_with = "PREFECT_API_AUTH_STRING" if auth else "an API key" if key else None
            asked = f"asked with {shown_with}" if shown_with else "asked without a password"
            raise UserError(
                "the Prefect server refuses access",
                where=f"PREFECT_API_URL, {redacted(url)}",
                got=f"401 {error.reason}, {asked}",
                fix="set PREFECT_API_AUTH_STRING to USER:PASSWORD as the server has it; --engine none needs no server",
            ) from None
    except (OSError, ValueError):
        return
