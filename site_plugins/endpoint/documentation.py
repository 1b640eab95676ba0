"""The page at ``/docs``: the OpenAPI document as plain HTML, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["documentation_page"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
h2 { border-top: 1px solid #ccc; margin-top: 2rem; padding-top: 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #ddd; padding: 0.3rem 0.6rem; text-align: left;
         vertical-align: top; }
"""


def documentation_page(document: Mapping[str, Any]) -> str:
    """Render an OpenAPI document.

    Examples
    --------
    >>> info = {"title": "north", "version": "1"}
    >>> page = documentation_page({"info": info, "paths": {"/site": {"get": {"summary": "It"}}}})
    >>> "<h2 id='get-/site'><code>GET /site</code> It</h2>" in page
    True
    """
    return "".join(_page(document))


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    title = escape(document["info"]["title"])
    yield f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
    yield f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
    yield _prose(document["info"].get("description", ""))
    yield "<p>For programs: <a href='openapi.json'>openapi.json</a></p>"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from _operation(path, method, operation)
    yield "</body></html>"


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    name = escape(f"{method}-{path}")
    summary = escape(operation.get("summary", ""))
    yield f"<h2 id='{name}'><code>{method.upper()} {escape(path)}</code> {summary}</h2>"
    yield _prose(operation.get("description", ""))
    rows = [
        (f"{item['name']} ({item['in']})", item.get("description", ""))
        for item in operation.get("parameters", [])
    ]
    if "requestBody" in operation:
        rows.append(("body", operation["requestBody"].get("description", "")))
    if rows:
        yield _table(("Parameter", "Meaning"), rows)
    replies = [
        (f"{status} {', '.join(reply.get('content', {}))}", reply.get("description", ""))
        for status, reply in sorted(operation.get("responses", {}).items())
    ]
    yield _table(("Reply", "Meaning"), replies)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{_inline(a)}</td><td>{_inline(b)}</td></tr>" for a, b in rows)
    return f"<table><tr><th>{head[0]}</th><th>{head[1]}</th></tr>{body}</table>"


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.strip().split("\n\n") if part)


def _inline(text: str) -> str:
    parts = escape(text).split("`")
    return "".join(
        f"<code>{part}</code>" if position % 2 else part for position, part in enumerate(parts)
    )
