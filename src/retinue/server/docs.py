"""``/docs`` and ``/redoc``, from our own disk: they render with the network cut off.

The scripts and styles are the asset files of the ``fastapi_offline`` package, found without
importing it. The pages carry a Content-Security-Policy that lets nothing come from elsewhere, and
the one picture that ReDoc's bundle would fetch from its maker is replaced by our own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from retinue.errors import NotFound

ASSETS = "/docs/assets/"

_PACKAGE = "fastapi_offline"
_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
_TYPES = {
    "favicon.png": "image/png",
    "init.js": "text/javascript",
    "redoc.standalone.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_INIT = b"""\
window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
"""
_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Retinue: {title}</title>
<link rel="icon" href="{assets}favicon.png">
"""
_SWAGGER = (
    _HEAD
    + """\
<link rel="stylesheet" href="{assets}swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{assets}swagger-ui-bundle.js"></script>
<script src="{assets}init.js"></script>
</body>
</html>
"""
)
_REDOC = (
    _HEAD
    + """\
<style>body {{ margin: 0; padding: 0; }}</style>
</head>
<body>
<redoc spec-url="/openapi.json"></redoc>
<script src="{assets}redoc.standalone.js"></script>
</body>
</html>
"""
)


@functools.cache
def asset(name: str) -> tuple[bytes, str]:
    """Return an asset and its entity tag.

    Raises:
        NotFound: there is none of that name.
    """
    if name not in _TYPES:
        raise NotFound(f"there is no {ASSETS}{name}")
    if name == "init.js":
        content = _INIT
    else:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise NotFound(f"the package {_PACKAGE} is not installed")
        static = Path(spec.submodule_search_locations[0]) / "static"
        content = (static / name).read_bytes().replace(_LOGO, f"{ASSETS}favicon.png".encode())
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


async def _asset(request: Request) -> Response:
    name: str = request.path_params["name"]
    content, tag = asset(name)
    headers = {"etag": tag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_TYPES[name], headers=headers)


def _page(text: str) -> Response:
    headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff"}
    return Response(text, media_type="text/html", headers=headers)


async def _swagger(_: Request) -> Response:
    return _page(_SWAGGER.format(title="API", assets=ASSETS))


async def _redoc(_: Request) -> Response:
    return _page(_REDOC.format(title="API reference", assets=ASSETS))


ROUTES = (
    Route("/docs", _swagger, include_in_schema=False),
    Route("/redoc", _redoc, include_in_schema=False),
    Route(ASSETS + "{name}", _asset, include_in_schema=False),
)
