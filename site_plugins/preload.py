"""Make any Dask scheduler a site's scheduler.

::

    dask scheduler --preload site_plugins.preload --site-config site.toml

or with the path in the environment variable ``FEDERATED_DASK_SITE_CONFIG``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from site_plugins.config import load_config
from site_plugins.scheduler_plugin import SitePlugin

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

__all__ = ["dask_setup"]

VARIABLE = "FEDERATED_DASK_SITE_CONFIG"


@click.command()
@click.option(
    "--site-config",
    envvar=VARIABLE,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"The site.toml of the site; also taken from the environment variable {VARIABLE}.",
)
async def dask_setup(scheduler: Scheduler, site_config: Path) -> None:
    """Register the `SitePlugin` on the scheduler; called by Dask."""
    plugin = SitePlugin.from_config(load_config(site_config))
    await scheduler.register_scheduler_plugin(plugin, name=plugin.name, idempotent=True)
