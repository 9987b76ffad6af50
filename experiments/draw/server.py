"""Listening on an address until Ctrl-C."""

import logging
import signal
import socket

from flask import Flask
from werkzeug.serving import make_server

from experiments.ending import end
from experiments.errors import RunError

_EVERY_ADDRESS = ("0.0.0.0", "::")


def serve(app: Flask, host: str, port: int) -> None:
    """Prints the page's address and answers requests, each in a thread.

    Raises:
        RunError: the address can't be listened on.
    """
    # werkzeug's server: for a person or a few, which is what a loopback page has.
    # It is given a socket, since it would end the process if it could not bind.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise RunError(
            f"--host, --port: can't listen on {host}, port {port}: {error}"
        ) from error
    # No line for each request, nor for what is no request of HTTP (a port scan).
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with listening:
        port = listening.getsockname()[1]
        server = make_server(host, port, app, threaded=True, fd=listening.fileno())
        shown = f"[{host}]" if ":" in host else host
        _end_on_interrupt()
        print(f"Draw at http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)
        if host in _EVERY_ADDRESS:
            print(
                f"--host={host} listens on every address of this machine; browsers "
                f"elsewhere need --allow_host with the name or address that they use",
                flush=True,
            )
        try:
            server.serve_forever()
        finally:
            server.server_close()


def _end_on_interrupt() -> None:
    """Ctrl-C is how the page is meant to be ended: no error, and no message."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return  # Ignored by whoever started this in the background.

    def handle(number, frame):
        del number, frame
        # At once: Python's own end stops threads inside of XLA, which aborts.
        end("", 0)

    signal.signal(signal.SIGINT, handle)
