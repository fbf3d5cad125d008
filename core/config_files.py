"""Reading the configuration files: TOML, overrides, validation, absolute paths."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from core.config import FederationConfig
from core.config_sections import Section
from core.coordinator_config import CoordinatorConfig
from core.errors import ConfigError
from core.site_config import LedgerSection, SiteConfig

Config = TypeVar("Config", FederationConfig, SiteConfig, CoordinatorConfig)


def load_config(kind: type[Config], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a TOML file, applies ``key=value`` overrides and validates the result.

    Paths inside the file become absolute, relative to the file's folder.

    Args:
        kind: Which file it is.
        path: The TOML file.
        overrides: ``section.key=value``; the value is a TOML value, or else a string.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or does not fit; all misfits are
            named at once.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"expected a configuration file at {path}, got: {error.strerror}",
            hint="check the path given to --config",
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or a bomb of brackets
        raise ConfigError(f"expected TOML in {path}, got: {error}") from error
    for override in overrides:
        _apply_override(document, override)
    return _resolve_paths(parse_config(kind, document, origin=str(path)), path.parent)


def config_of_overrides(
    kind: type[Config], overrides: Sequence[str], folder: Path, *, origin: str
) -> Config:
    """A configuration of nothing but overrides; paths become absolute, relative to ``folder``.

    Raises:
        ConfigError: It does not fit.
    """
    document: dict[str, Any] = {}
    for override in overrides:
        _apply_override(document, override)
    return _resolve_paths(parse_config(kind, document, origin=origin), folder)


def parse_config(kind: type[Config], document: Mapping[str, Any], *, origin: str) -> Config:
    """Validates a parsed document; ``origin`` names it in messages."""
    try:
        # By way of JSON: strict mode then takes arrays for tuples and strings for paths.
        return kind.model_validate_json(json.dumps(document, default=_refuse_date))
    except ConfigError as error:  # a section's own check of its values
        raise ConfigError(f"{origin} does not fit: {error.message}", hint=error.hint) from error
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise ConfigError(
            f"{origin} does not fit the schema:\n" + "\n".join(lines),
            hint="docs/reference/configuration.md lists every key",
        ) from error


def _refuse_date(value: Any) -> str:
    raise ConfigError(
        f"expected no date or time, got {value}", hint="put it in quotes where it is a text"
    )


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"expected --set section.key=value, got {override!r}",
            hint="for example --set federation.num_rounds=4",
        )
    *parents, last = (part.strip() for part in key.split("."))
    table = document
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"expected a section at {parent!r} in --set {override}, got a value")
    table[last] = _override_value(text)


def _override_value(text: str) -> Any:
    """A TOML value, or else the text itself."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    # More than one key: the text had lines of its own, and is no single value.
    return document["value"] if len(document) == 1 else text


def _resolve_paths(config: Config, folder: Path) -> Config:
    """A copy in which each path is absolute; the ledger's stays as it is written."""

    def resolve(value: Any) -> Any:
        if isinstance(value, LedgerSection):
            return value
        if isinstance(value, Path):
            return (folder / value).resolve()
        if isinstance(value, tuple):
            return tuple(resolve(item) for item in value)
        if isinstance(value, Section):
            return value.model_copy(
                update={name: resolve(getattr(value, name)) for name in type(value).model_fields}
            )
        return value

    resolved: Config = resolve(config)
    return resolved
