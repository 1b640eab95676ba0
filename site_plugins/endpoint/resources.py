"""Resources that tasks ask for, as with `dask.annotate(resources=…)`."""

from __future__ import annotations

from collections.abc import Mapping

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.graph import Graph

__all__ = ["require_resources", "resources_asked"]


def resources_asked(graph: Graph) -> dict[str, float]:
    """Most that one task of a graph asks for of each resource."""
    asked: dict[str, float] = {}
    for name, amount in (pair for template in graph.templates for pair in template.resources):
        asked[name] = max(amount, asked.get(name, 0.0))
    return asked


def require_resources(asked: Mapping[str, float], has: Mapping[str, float], site: str) -> None:
    """Refuse tasks that ask for what no worker has: they would wait for ever.

    Raises
    ------
    RequestRefused
        ``limit_exceeded``.
    """
    short = sorted(name for name, amount in asked.items() if has.get(name, 0.0) < amount)
    if short:
        raise RequestRefused(
            f"A task asks for {', '.join(short)}; no worker of this site has as much.",
            reason=Reason.LIMIT_EXCEEDED,
            site=site,
            hint="Ask for less in dask.annotate(resources=...), or call fed.refresh() if the "
            "site had it before.",
        )
