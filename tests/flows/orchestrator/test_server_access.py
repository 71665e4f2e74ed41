"""Who gets an answer from the loopback server: its own pages and its own user, and nobody else."""

from __future__ import annotations

import base64
import http.client
import json
import os
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from prefect_home import clean_environment, end_servers

from gradus.flows.orchestrator import server
from gradus.flows.orchestrator.password import (
    api_headers,
    login_hint,
    own_password,
    password_file,
    password_mark,
    prefect_command,
)
from gradus.flows.orchestrator.serve import LOGIN


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of these tests' own, and an environment that points at it until they are over."""
    home, saved = tmp_path_factory.mktemp("gradus"), dict(os.environ)
    os.environ.clear()
    os.environ.update(clean_environment(home))
    yield server.ensure_server()
    os.environ.clear()
    os.environ.update(saved)
    end_servers(home)


def asked(url: str, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> int:
    """The status that a request gets whose every header is given, as a browser's or a stranger's would be."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


def listing(url: str, **headers: str) -> int:
    return asked(url, "POST", "/api/flow_runs/filter", headers, b"{}")


def test_another_page_gets_no_answer_whatever_it_knows(url: str) -> None:
    port, known = urlsplit(url).port, api_headers(url)
    for host in ("evil.example.com", f"127.0.0.1.evil.example.com:{port}", f"localhost.:{port}", "[::1", "", "127.1"):
        assert listing(url, **known, Host=host) == 403, host
        assert asked(url, "GET", "/", {"Host": host}) == 403, host
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
        "Sec-WebSocket-Protocol": "prefect",
    }
    assert asked(url, "GET", "/api/events/in", handshake) == 101
    for origin in ("http://evil.example.com", "null", "http://127.0.0.1:1", f"https://localhost:{port}", "file://"):
        assert listing(url, **known, Origin=origin) == 403, origin
        assert asked(url, "GET", "/api/health", {"Origin": origin}) == 403, origin
        assert asked(url, "GET", "/api/events/in", {**handshake, "Origin": origin}) == 403, origin


def test_its_own_pages_get_one_under_both_names_and_through_a_tunnel(url: str) -> None:
    port, known = urlsplit(url).port, api_headers(url)
    assert listing(url, **known) == 200
    for name in ("127.0.0.1", "localhost"):
        assert listing(url, **known, Origin=f"http://{name}:{port}") == 200
        assert listing(url, **known, Host=f"{name}:4200", Origin=f"http://{name}:4200") == 200
        assert asked(url, "GET", "/", {"Host": f"{name}:{port}"}) == 200


def test_the_page_of_a_run_knows_the_way_to_the_login(url: str) -> None:
    page = urllib.request.Request(url.replace("/api", "/runs/flow-run/1"), headers={"Accept": "text/html"})
    with urllib.request.urlopen(page, timeout=60) as answer:
        assert LOGIN in answer.read().decode()


def test_another_user_gets_no_answer(url: str) -> None:
    wrong = "Basic " + base64.b64encode(b"gradus:guess").decode()
    known = api_headers(url)
    token = {name: value for name, value in known.items() if name != "Authorization"}
    for path in ("/api/flow_runs/filter", "/api/deployments/filter", "/api/work_pools/filter", "/api/admin/settings"):
        for headers in ({}, {"Authorization": wrong}, {"Authorization": "Bearer x"}):
            assert asked(url, "GET", path, headers) == 401, path
            assert asked(url, "POST", path, {**token, **headers}, b"{}") == 401, path
    assert listing(url, Authorization=known["Authorization"]) == 403, "with the password, but no CSRF token"
    assert listing(url, **{**known, "Prefect-Csrf-Token": "guess"}) == 403


def test_the_password_is_private_and_made_once(url: str) -> None:
    file = password_file()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    made = own_password()
    assert len(made) > 30 and made == own_password() == os.environ["PREFECT_API_AUTH_STRING"]
    assert made not in (file.parent / "server.json").read_text()
    assert made not in (file.parent / "server.log").read_text()
    file.chmod(0o644)
    assert own_password() == made and file.stat().st_mode & 0o777 == 0o600


def test_a_person_is_told_where_it_is_and_a_team_server_is_not_sent_it(url: str) -> None:
    assert str(password_file()) in login_hint(url)
    assert str(password_file()) in prefect_command(url) and own_password() not in prefect_command(url)
    assert server.server_status()["password"] == f"in {password_file()}"
    assert login_hint("http://team:4200/api") == ""
    assert prefect_command("http://team:4200/api").startswith("PREFECT_API_URL=http://team:4200/api /")


def test_a_server_that_does_not_know_the_password_is_replaced_on_its_port(url: str) -> None:
    file, known = password_file(), password_file().with_name("server.json")
    record, mark = json.loads(known.read_text()), password_mark()
    for damage in (lambda: file.unlink(), lambda: file.write_text("")):
        damage()
        assert password_mark() != mark
    known.write_text(json.dumps({name: value for name, value in record.items() if name != "password"}))
    assert server.ensure_server() == url, "nor one of an earlier version, which asks for none"
    assert server.server_status()["pid"] != record["pid"]
    assert listing(url, **api_headers(url)) == 200
