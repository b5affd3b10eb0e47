"""Ray for `twinlens demo`, `twinlens serve` and the tests: a new one on this machine, or one that already runs."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from twinlens.errors import AskUser

OBJECT_STORE_BYTES = 100 * 1024 * 1024  #: twinlens stores nothing there


@contextlib.contextmanager
def local_cluster(num_cpus: int | None = None, *, verbose: bool = False) -> Iterator[None]:
    """Run a new Ray on this machine until the block ends, with `num_cpus` logical CPUs (default: all of them)."""
    # A separate token keeps other users of the machine out. It also stops Ray from writing one into the home folder.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "1" if verbose else "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415 - takes a second; `twinlens --help` should not wait for it
    from ray import serve  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp(prefix="twinlens-"))
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with _ctrl_c_held_back():
            ray.init(
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=verbose,
                logging_level=logging.WARNING if verbose else logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder),
                namespace="twinlens",
            )
        signal.signal(signal.SIGTERM, terminate)  # ray.init() sets its own handler, and what it started would stay
        yield
        # Deleting the applications lets replicas finish and commit. The controller ends with the cluster. Shutting
        # Serve down first would take seconds, and Ray would report calls to a controller that no longer exists.
        for name in list(serve.status().applications):
            serve.delete(name)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def connected_cluster(address: str, *, verbose: bool) -> Iterator[None]:
    """Connect to a Ray cluster that already runs. Raises AskUser if none answers."""
    import ray  # noqa: PLC0415

    terminate = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(
                address=address,
                namespace="twinlens",
                log_to_driver=verbose,
                logging_level=logging.WARNING if verbose else logging.ERROR,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise AskUser(f"No Ray cluster answers at {address} ({str(error).splitlines()[0]}).") from None
        signal.signal(signal.SIGTERM, terminate)  # ray.init() sets its own handler, which aborts the process
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Use it while Ray starts: Ctrl-C takes effect when that has ended, a second Ctrl-C at once.

    An interrupt in the middle of `ray.init` crashes the process or is lost (Ray 2.60).
    """
    held = False
    before = signal.getsignal(signal.SIGINT)

    def hold(_signal: int, _frame: FrameType | None) -> None:
        nonlocal held
        if held:
            raise KeyboardInterrupt
        held = True

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


def terminate_like_ctrl_c() -> None:
    """Make SIGTERM end the command like Ctrl-C, so that everything it started is stopped."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
