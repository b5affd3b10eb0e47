"""What `twinlens serve` tells of an application that does not run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from twinlens.serving.deploy import UNHEALTHY_S, failure_of

REASON = "The broker refuses User:tweeter."


def application(status: str, **messages: str) -> SimpleNamespace:
    deployments = {name: SimpleNamespace(message=message) for name, message in messages.items()}
    return SimpleNamespace(status=status, message="", deployments=deployments)


def test_an_unhealthy_deployment_is_given_time_for_a_reason() -> None:
    """The monitor, say, fails its health check while the replica still tries to start."""
    unhealthy = application("UNHEALTHY", Monitor="A replica's health check failed.", Replica="")
    assert failure_of("tweets", unhealthy, 1.0) is None
    assert "health check failed" in str(failure_of("tweets", unhealthy, UNHEALTHY_S + 1))


@pytest.mark.parametrize("status", ["DEPLOYING", "UNHEALTHY", "DEPLOY_FAILED"])
def test_the_reason_is_told_as_soon_as_it_is_known(status: str) -> None:
    trace = f"Traceback ...\ntwinlens.errors.AskUser: {REASON}\n"
    assert failure_of("tweets", application(status, Monitor="A health check failed.", Replica=trace), 0.0) == REASON


def test_a_failed_deployment_is_told_at_once() -> None:
    failed = application("DEPLOY_FAILED", Replica="The process was killed.")
    assert "The process was killed." in str(failure_of("tweets", failed, 0.0))
    assert failure_of("tweets", application("DEPLOYING", Replica=""), 0.0) is None
