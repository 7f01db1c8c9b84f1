"""All settings of the gateway, read once: command line, then environment (`MOBILEVISION_*`), then a TOML file.

In: what the operator gives. Out: a frozen `Settings` object, which `service.app` passes on in parts. No other module of
the gateway reads the environment. Each module here has the settings of one subject.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service.core.settings.access import AccessSettings
from service.core.settings.limits import LimitSettings
from service.core.settings.listeners import ListenerSettings
from service.core.settings.models import ModelSettings
from service.core.settings.operation import OperationSettings
from service.core.settings.recording import RecordingSettings

# Variables of the client, which may be set in the same shell. The server ignores them.
CLIENT_VARIABLES = frozenset({"MOBILEVISION_API_KEY"})


class SettingsError(ValueError):
    """A setting is unknown, has the wrong type or is out of its bounds. The message names it."""


class Settings(
    ModelSettings, ListenerSettings, AccessSettings, LimitSettings, OperationSettings, RecordingSettings, BaseSettings
):
    """The configuration of a server. Names contain the units. docs/settings.md is generated from this class."""

    model_config = SettingsConfigDict(env_prefix="MOBILEVISION_", frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in order of precedence: command line, environment, the TOML file named by `load`."""
        toml = TomlConfigSettingsSource(settings_cls, cls.model_config.get("toml_file"))
        return init_settings, env_settings, toml


def load(config: Path | None = None, **overrides: object) -> Settings:
    """Read the settings. `overrides` come from the command line; None means not given. Raises `SettingsError`."""
    if config is not None and not config.is_file():
        raise SettingsError(f"settings file {config} does not exist")

    class _FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    known = set(Settings.model_fields)
    unknown = [
        name
        for name in os.environ
        if name.startswith("MOBILEVISION_")
        and name.removeprefix("MOBILEVISION_").lower() not in known
        and name not in CLIENT_VARIABLES
    ]
    if unknown:
        raise SettingsError(f"unknown setting in the environment: {', '.join(sorted(unknown))}")
    try:
        return _FromFile(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config} is not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise SettingsError("; ".join(lines)) from error


def as_environment(settings: Settings) -> Mapping[str, str]:
    """Return environment variables from which `load` reads the same settings."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {
        f"{Settings.model_config['env_prefix']}{name}".upper(): value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


def child_environment(**extra: str) -> Mapping[str, str]:
    """Return the environment for child processes: this one without `MOBILEVISION_*`, plus `extra`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MOBILEVISION_")}
    return inherited | extra
