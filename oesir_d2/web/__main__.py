"""Search an index in the browser: drop a photo, draw a box around what you doubt, see where it comes from."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from oesir_d2.engine.command_line import ToolParser, add_config_arguments, run_tool, whole_number
from oesir_d2.web.settings import WebSettings

EXAMPLES = """examples:
  python -m oesir_d2.web --index photos.index
      then open the address that is printed; only this machine can reach it
  python -m oesir_d2.web --index photos.index --allow-add added/
      users may add photos to the index; they are kept in added/
  curl -F file=@suspicious.jpg -F box=120,80,360,300 -F top_k=5 http://127.0.0.1:7860/api/search
      the same as JSON, for programs (docs/web.md)

With --host other machines can reach the app. It has no passwords: put a proxy that has in front of it.
"""


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse_arguments(argv)
    try:
        import uvicorn

        from oesir_d2.web.app import WebApp
        from oesir_d2.web.server import configure_server
    except ModuleNotFoundError as error:
        raise ValueError(f"the web app needs the package {error.name}; run: pip install 'oesir_d2[web]'") from None

    # What clients send wrongly is told to them.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    listener = listen(settings.host, settings.port)
    with listener, WebApp(settings) as web:
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"http://{name}:{listener.getsockname()[1]}/", flush=True)
        if not settings.is_loopback:
            print("web: other machines can reach this app, and it asks for no password", file=sys.stderr)
        uvicorn.Server(configure_server(web.asgi)).run(sockets=[listener])


def parse_arguments(argv: Sequence[str] | None = None) -> WebSettings:
    defaults = WebSettings(Path())
    parser = ToolParser(__doc__, EXAMPLES)
    parser.prog = "python -m oesir_d2.web"
    parser.add_argument("--index", required=True, metavar="INDEX", type=Path, help="folder that build_index.py wrote")
    parser.add_argument("--host", default=defaults.host, help="address to listen on")
    parser.add_argument("--port", type=whole_number(0), default=defaults.port, help="port to listen on; 0: a free one")
    parser.add_argument(
        "--max-upload-mb", type=whole_number(1), default=defaults.max_upload_mb, metavar="N",
        help="largest photo taken, in MiB",
    )  # fmt: skip
    parser.add_argument(
        "--max-megapixels", type=whole_number(1), default=defaults.max_megapixels, metavar="N",
        help="a photo of more million pixels is refused",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=seconds, default=defaults.timeout, metavar="S",
        help="seconds from a request to its answer; what takes longer is ended",
    )  # fmt: skip
    parser.add_argument(
        "--max-waiting", type=whole_number(1), default=defaults.max_waiting, metavar="N",
        help="searches that may wait; one more is refused",
    )  # fmt: skip
    parser.add_argument("--allow-add", type=Path, metavar="DIR", help="let users add photos, and keep these in DIR")
    parser.add_argument("--hide-paths", action="store_true", help="do not tell where the index's photos lie")
    add_config_arguments(parser, default=None)
    args = parser.parse_args(argv)
    return WebSettings(
        index=args.index,
        opts=tuple(args.opts),
        host=args.host,
        port=args.port,
        max_upload_mb=args.max_upload_mb,
        max_megapixels=args.max_megapixels,
        timeout=args.timeout,
        max_waiting=args.max_waiting,
        add_folder=args.allow_add,
        hide_paths=args.hide_paths,
    )


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed, expected seconds, more than 0")
    return value


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; before the model is loaded, so that a port in use is told at once.

    Raises:
        OSError: the port is in use, or the address is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"host {host!r} is not an address of this machine: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
    return listener


if __name__ == "__main__":
    sys.argv[0] = "web"  # what messages begin with
    run_tool(main)
