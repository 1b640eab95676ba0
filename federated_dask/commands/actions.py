"""Actions on the command line."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, cast, get_args

import click

if TYPE_CHECKING:
    from federated_dask.protocol.grant_messages import Action

__all__ = ["ActionList"]


class ActionList(click.ParamType):  # type: ignore[type-arg]
    """Actions with commas between them.

    Examples
    --------
    >>> ActionList().convert("compute,call", None, None)
    ('compute', 'call')
    """

    name = "actions"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Action, ...]:
        """Read what was given on the command line."""
        from federated_dask.protocol.grant_messages import Action

        known = get_args(Action)
        for each in (parts := str(value).split(",")):
            if each not in known:
                close = difflib.get_close_matches(each, known, n=1)
                meant = f" Did you mean {close[0]!r}?" if close else ""
                self.fail(f"{each!r} is no action; there are {', '.join(known)}.{meant}", param)
        return tuple(cast(Action, each) for each in parts)
