"""The pages that a browser sees: `/`, to try an image, and `/docs`, Swagger UI. They load nothing from elsewhere.

Each page is a fixed file. What it shows of tasks and answers its script asks for, as any client does, and writes as
text, so nothing of it can become markup.
"""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

from mosa_deploy.errors import unknown_name
from serving.errors import RequestError, shown

WEB = Path(__file__).parent / "web"

SWAGGER = Path(str(files("fastapi_offline"))) / "static"
"""Swagger UI, as the package ships it."""

ASSETS = {
    **{name: WEB / name for name in ("index.css", "index.js", "docs.js", "icon.svg")},
    **{name: SWAGGER / name for name in ("swagger-ui.css", "swagger-ui-bundle.js")},
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

# Swagger UI writes styles into its elements.
DOCS_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")


def add_pages(app: FastAPI) -> None:
    """Add the pages and their files to the app."""
    for path, page in (("/", read_index), ("/docs", read_docs), ("/web/{name}", read_asset)):
        app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)(page)


async def read_index() -> FileResponse:
    """What this service is, what it serves, and a form to try it."""
    return _page("index.html", POLICY)


async def read_docs() -> FileResponse:
    """The API's description, to read and to try."""
    return _page("docs.html", DOCS_POLICY)


async def read_asset(name: str) -> FileResponse:
    """A style or a script of the pages."""
    if name not in ASSETS:
        raise RequestError(404, unknown_name("file", shown(name), ASSETS))
    return FileResponse(ASSETS[name], headers={"cache-control": "max-age=3600", "x-content-type-options": "nosniff"})


def _page(name: str, policy: str) -> FileResponse:
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return FileResponse(WEB / name, media_type="text/html; charset=utf-8", headers=headers)
