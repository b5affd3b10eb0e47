"""A token server on the loopback interface that answers as a test has written down."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

Answer = tuple[int, Any]  #: status, and a JSON value or text; of a redirect its headers
Request = tuple[Message, str]  #: headers and body


class TokenServer:
    """`answers` are used up in order, or made by `answer` where one is given. With a `certificate` it speaks https."""

    def __init__(self, answer: Callable[[Request], Answer] | None = None, certificate: Path | None = None) -> None:
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self._answer = answer or (lambda _: self.answers.pop(0))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = (self.headers, self.rfile.read(int(self.headers["Content-Length"])).decode())
                outer.requests.append(request)
                status, content = outer._answer(request)
                self.send_response(status)
                if 300 <= status < 400:
                    for name, value in content.items():
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write((content if isinstance(content, str) else json.dumps(content)).encode())

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
