"""Settings from a folder of mounted secrets: one file per setting, with the name of its environment variable."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic_settings import BaseSettings, NestedSecretsSettingsSource, SettingsError

SECRETS_DIR = "TWINLENS_SECRETS_DIR"  #: the environment variable with the path of the folder


class SecretFiles(NestedSecretsSettingsSource):
    """Reads secrets that Kubernetes or Docker mount; ignores other files. Raises SettingsError without the folder."""

    def __init__(self, settings_cls: type[BaseSettings], prefix: str) -> None:
        super().__init__(
            settings_cls,  # type: ignore[arg-type]  # it accepts a settings class too
            secrets_dir=os.environ.get(SECRETS_DIR) or None,
            secrets_dir_missing="error",
            env_prefix=prefix,
        )

    @classmethod
    def load_secrets(cls, path: Path) -> dict[str, str]:
        """File contents by file name. Strips line ends, which editors add, but no spaces: a password may have some."""
        contents = {}
        for file in path.iterdir():
            if file.name.upper().startswith("TWINLENS_") and file.is_file():
                try:
                    contents[file.name] = file.read_text("utf-8").rstrip("\r\n")
                except (OSError, UnicodeDecodeError) as error:
                    reason = getattr(error, "strerror", None) or "it is not UTF-8"
                    raise SettingsError(f"{file.name} in the secrets folder cannot be read: {reason}") from None
        return contents
