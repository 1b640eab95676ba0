"""What an institute runs: the scheduler plugin, the endpoint, and everything around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from site_plugins.calling import report_progress
    from site_plugins.functions import publish
    from site_plugins.local_federation import LocalFederation
    from site_plugins.publishing import publish_dataset, unpublish
    from site_plugins.scheduler_plugin import SitePlugin

__all__ = [
    "LocalFederation",
    "SitePlugin",
    "publish",
    "publish_dataset",
    "report_progress",
    "unpublish",
]

# Lazily, so that the command line and a preload start without what they do not use.
_HOMES = {
    "LocalFederation": "site_plugins.local_federation",
    "SitePlugin": "site_plugins.scheduler_plugin",
    "publish": "site_plugins.functions",
    "publish_dataset": "site_plugins.publishing",
    "report_progress": "site_plugins.calling",
    "unpublish": "site_plugins.publishing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
