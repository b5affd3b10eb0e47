"""Settings from a folder of mounted secrets: one file per setting, named like its variable."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic_settings import BaseSettings, NestedSecretsSettingsSource, SettingsError

SECRETS_DIR = "TWINLENS_SECRETS_DIR"  #: the variable that names the folder


class SecretFiles(NestedSecretsSettingsSource):
    """What Kubernetes and Docker mount. Files of other names are left alone; SettingsError without the folder."""

    def __init__(self, settings_cls: type[BaseSettings], prefix: str) -> None:
        super().__init__(
            settings_cls,  # type: ignore[arg-type]  # it takes this, too
            secrets_dir=os.environ.get(SECRETS_DIR) or None,
            secrets_dir_missing="error",
            env_prefix=prefix,
        )

    @classmethod
    def load_secrets(cls, path: Path) -> dict[str, str]:
        """Contents by name, without the line end that editors add; spaces may be part of a password."""
        contents = {}
        for file in path.iterdir():
            if file.name.upper().startswith("TWINLENS_") and file.is_file():
                try:
                    contents[file.name] = file.read_text("utf-8").rstrip("\r\n")
                except (OSError, UnicodeDecodeError) as error:
                    reason = getattr(error, "strerror", None) or "it is not UTF-8"
                    raise SettingsError(f"{file.name} in the secrets folder cannot be read: {reason}") from None
        return contents
