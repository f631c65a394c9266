"""The pages that a browser sees: `/ui`, to try images and to see and change tasks, and `/docs`, Swagger UI.

`/` is the same page as `/ui`. Each page is a fixed file that loads nothing from elsewhere. What it shows of tasks and
answers its scripts ask for, as any client does, and write as text, so nothing of it can become markup.
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

MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""The types of the files beside the pages. Python would ask the machine, and some know `.js` by another name."""

ASSETS = {
    **{path.name: path for path in sorted(WEB.iterdir()) if path.suffix in MEDIA_TYPES},
    **{name: SWAGGER / name for name in ("swagger-ui.css", "swagger-ui-bundle.js")},
}

BASIC_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

# Where no policy of trusted types can be made, a browser takes no text for markup or for a script.
UI_POLICY = f"{BASIC_POLICY}; require-trusted-types-for 'script'; trusted-types 'none'"

# Swagger UI writes markup, and styles into its elements, and has icons in its styles.
DOCS_POLICY = BASIC_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace("blob:", "data:")


def add_pages(app: FastAPI) -> None:
    """Add the pages and their files to the app."""
    for path, page in (("/", read_ui), ("/ui", read_ui), ("/docs", read_docs), ("/web/{name}", read_asset)):
        app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)(page)


async def read_ui() -> FileResponse:
    """What this service is, what it serves, forms to try it, and for admins what changes tasks."""
    return _page("ui.html", UI_POLICY)


async def read_docs() -> FileResponse:
    """The API's description, to read and to try."""
    return _page("docs.html", DOCS_POLICY)


async def read_asset(name: str) -> FileResponse:
    """A style or a script of the pages."""
    if name not in ASSETS:
        raise RequestError(404, unknown_name("file", shown(name), ASSETS))
    path = ASSETS[name]
    # Scripts of two releases of ours must not be mixed.
    headers = {
        "cache-control": "no-cache" if path.parent == WEB else "max-age=3600",
        "x-content-type-options": "nosniff",
    }
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=headers)


def _page(name: str, policy: str) -> FileResponse:
    headers = {
        "content-security-policy": policy,
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return FileResponse(WEB / name, media_type="text/html; charset=utf-8", headers=headers)
