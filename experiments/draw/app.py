"""The page's routes, and who may request them."""

import contextlib
import io
import ipaddress
from typing import Any
from urllib.parse import urlsplit

# Flask: the best-kept small web library; it bounds bodies before it reads them, and its
# test client needs no socket.
from flask import Flask, Response, abort, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from experiments.draw.reader import Reader
from experiments.errors import RunError
from experiments.images import ImageError

MAX_BODY = 12 * 1024 * 1024
"""Bytes of a picture: a phone's photo."""

_OWN_NAMES = ["127.0.0.1", "localhost", "::1"]
_PICTURES = ("image/png", "image/jpeg")
_HEADERS = {
    # No content from elsewhere, and no embedding in other pages.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src "
    "'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action "
    "'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def require_host(flag: str, host: str) -> None:
    """Raises a RunError if it is neither a name nor an address, or has a port."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return
    if not _is_of_dns(host) or _name_in(host) != host.lower():
        raise RunError(
            f"{flag}: expected a name or an address, without port or brackets, got "
            f"{host!r}"
        )


def create_app(reader: Reader, hosts: list[str]) -> Flask:
    """The page's WSGI application.

    A page of another site must not reach it through a name that leads here (DNS
    rebinding), so the Host header must be one of `hosts` or a name of this machine
    for itself, and a picture must come from this page or no page.

    Args:
        reader: answers.
        hosts: names and addresses, without ports.
    """
    app = Flask(__name__, static_folder="page", static_url_path="/page")
    app.json.sort_keys = False  # type: ignore[attr-defined]
    # Each once, in this order.
    trusted = list(dict.fromkeys([*_OWN_NAMES, *map(str.lower, hosts)]))
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY)

    @app.before_request
    def require_own_host() -> None:
        # Flask's TRUSTED_HOSTS knows no IPv6 addresses.
        host = request.headers.get("Host", "")
        name = _name_in(host)
        if name not in trusted:
            advice = f"; --allow_host={name} allows it" if name else ""
            expected = ", ".join(trusted)
            abort(400, f"Host: expected one of {expected}, got {host!r}{advice}")

    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.get("/api/model")
    def model() -> dict[str, Any]:
        return reader.about()

    @app.get("/api/hardest")
    def hardest() -> list[dict[str, Any]]:
        return reader.hardest()

    @app.get("/api/test/<int:index>")
    def test(index: int) -> dict[str, Any]:
        try:
            return reader.read_test(index)
        except IndexError as error:
            abort(404, str(error))

    @app.post("/api/read")
    def read() -> dict[str, Any]:
        _require_own_origin()
        if request.mimetype not in _PICTURES:
            expected = " or ".join(_PICTURES)
            got = request.mimetype or "nothing"
            abort(415, f"Content-Type: expected {expected}, got {got}")
        # A body in chunks would be cut off at the limit instead of refused.
        if "Transfer-Encoding" in request.headers:
            abort(411, "Content-Length: expected the number of bytes, got chunks")
        try:
            return reader.read_picture(io.BytesIO(request.get_data()), "the picture")
        except ImageError as error:
            abort(422, str(error))

    @app.errorhandler(HTTPException)
    def failed(error: HTTPException) -> tuple[dict[str, str], int]:
        return {"error": _one_line(error)}, error.code or 500

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    return app


def _require_own_origin() -> None:
    origin = request.headers.get("Origin")
    if origin is not None and origin not in (
        f"http://{request.host}",
        f"https://{request.host}",
    ):
        abort(403, f"Origin: expected {request.host}, got {origin}")


def _one_line(error: HTTPException) -> str:
    if isinstance(error, RequestEntityTooLarge):
        return f"expected a picture of at most {MAX_BODY:,} bytes"
    if error is request.routing_exception:
        return f"{error.name}: {request.method} {request.path}"
    return " ".join(str(error.description).split())


def _is_of_dns(host: str) -> bool:
    """Whether it can be looked up: no part of it is empty or too long."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def _name_in(host: str) -> str | None:
    """Without the port, and an IPv6 address without its brackets."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
