"""Former names of settings, which stay valid in every source."""

from __future__ import annotations

from typing import Any

from pydantic_settings import EnvSettingsSource

from twinlens.settings.secret_files import SecretFiles


def with_present_names(predict: Any) -> Any:
    """The section `predict` with the old `mode: audited` and `audit_share` renamed. The old names stay valid.

    Each source is renamed before they are merged, so that a later source wins under either name. Where one source has
    both names, they stay.
    """
    if not isinstance(predict, dict):
        return predict
    present = dict(predict)
    if present.get("mode") == "audited":
        present["mode"] = "sampled"
    if "audit_share" in present and "sample_share" not in present:
        present["sample_share"] = present.pop("audit_share")
    return present


class Environment(EnvSettingsSource):
    """The environment, with settings under their present names."""

    def __call__(self) -> dict[str, Any]:
        return renamed(super().__call__())


class Secrets(SecretFiles):
    """The secrets folder, with settings under their present names."""

    def __call__(self) -> dict[str, Any]:
        return renamed(super().__call__())


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """The whole tree, with settings under their present names."""
    return {**values, "predict": with_present_names(values["predict"])} if "predict" in values else values
