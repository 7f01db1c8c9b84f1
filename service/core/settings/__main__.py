"""`python -m service.core.settings` prints the reference page docs/settings.md."""

from pydantic import BaseModel

from service.core.settings.access import AccessSettings
from service.core.settings.limits import LimitSettings
from service.core.settings.listeners import ListenerSettings
from service.core.settings.models import ModelSettings
from service.core.settings.operation import OperationSettings
from service.core.settings.recording import RecordingSettings

_GROUPS: dict[str, type[BaseModel]] = {
    "Models and workers": ModelSettings,
    "Addresses and connections": ListenerSettings,
    "Who may call": AccessSettings,
    "Limits of calls": LimitSettings,
    "Operation": OperationSettings,
    "Recording": RecordingSettings,
}


def markdown() -> str:
    """Return the reference page docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "`make docs` generates this page from `service/core/settings/`.",
        "",
        "A setting can be given in three ways, in order of precedence:",
        "",
        "1. as an option of `mobilevision serve`, for the common settings;",
        "2. as `MOBILEVISION_<NAME>` in the environment, lists as JSON;",
        "3. in a TOML file: `mobilevision serve --config FILE`.",
    ]
    for title, group in _GROUPS.items():
        lines += ["", f"## {title}", "", "| name | default | meaning |", "| --- | --- | --- |"]
        for name, field in group.model_fields.items():
            default = "" if field.default is None else str(field.default) if field.default != () else "()"
            lines.append(f"| `{name}` | {default and f'`{default}`'} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
