"""MLflow's server with its assistant kept shut: ``mlflow server --app-name gradus`` finds it as a plugin.

On a loopback address MLflow's UI opens the panel of its assistant at the first visit, over a quarter of the page. No
option prevents that; the UI only remembers in the browser that it has done so. This server's page says that it has. The
button that opens the assistant stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

SHUT = "<script>localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')</script>"


def create_app() -> FastAPI:
    """MLflow's application, whose page has a line that runs before its program does."""
    from fastapi.responses import HTMLResponse
    from fastapi.routing import APIRoute
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app

    def index() -> HTMLResponse:
        html = Path(str(pages.static_folder), "index.html").read_text(encoding="utf-8")
        return HTMLResponse(html.replace("<head>", f"<head>{SHUT}", 1))

    app.router.routes.insert(
        0, APIRoute("/", index, response_class=HTMLResponse)
    )  # before MLflow's own; its checks of a request still come first
    return app
