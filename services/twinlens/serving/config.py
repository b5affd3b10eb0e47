"""Reads a Ray Serve config file and checks it for errors that Serve does not report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from twinlens.autoscaling import AutoscalingSettings
from twinlens.errors import AskUser
from twinlens.settings import Settings

IMPORT_PATH = "twinlens.app:build"
LAG_POLICY = "twinlens.autoscaling:LagPolicy"


def read_config(path: Path) -> dict[str, Any]:
    """Read a Ray Serve config file. Raises AskUser if it is not one."""
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise AskUser(f"The config file {path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise AskUser(f"The config file {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list) or not config["applications"]:
        raise AskUser(f"The config file {path} has no `applications`; deploy/serve.yaml is a model.")
    return config


def read_application(path: Path, name: str | None = None) -> dict[str, Any]:
    """Read one application of a config file; `args` is always present. Raises AskUser unless exactly one matches."""
    applications = read_config(path)["applications"]
    chosen = [each for each in applications if name is None or each.get("name") == name]
    if len(chosen) != 1:
        names = ", ".join(str(each.get("name")) for each in applications)
        raise AskUser(f"The config file {path} has the applications {names}; choose one with --app.")
    return {**chosen[0], "args": chosen[0].get("args") or {}}


def check_autoscaling(application: dict[str, Any], settings: Settings) -> None:
    """Raise AskUser if the autoscaling of the replicas cannot work.

    Serve would accept it: without a policy it counts requests, and it passes wrong arguments to its controller. Also,
    after scaling down, Serve gives ranks to other replicas, and static members are named by their rank.
    """
    for deployment in application.get("deployments") or ():
        config = deployment.get("autoscaling_config") or {}
        if deployment.get("name") != "Replica" or not (config or deployment.get("num_replicas") == "auto"):
            continue
        if settings.kafka.static_membership:
            raise AskUser("kafka.static_membership does not go with an autoscaling_config. See docs/operations.md.")
        policy = config.get("policy") or {}
        if "policy_function" not in policy:
            raise AskUser(
                "The autoscaling_config of deployment Replica has no policy, and Serve's own one counts requests, of "
                f"which there are none. Add `policy: {{policy_function: {LAG_POLICY}}}`. See docs/operations.md."
            )
        if policy["policy_function"] == LAG_POLICY:
            try:
                AutoscalingSettings.of(policy.get("policy_kwargs") or {})
            except ValueError as error:
                raise AskUser(f"Wrong policy_kwargs of deployment Replica: {error}. See docs/operations.md.") from None
