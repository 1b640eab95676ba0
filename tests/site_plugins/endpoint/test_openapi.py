"""What the OpenAPI document says is so: requests made from it, against a real site."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federated_dask.protocol.messages import FRAMES_MEDIA_TYPE
from site_plugins import LocalFederation
from tests.site_plugins.helpers import dataset

# A frame, and what is none.
schemathesis.openapi.media_type(
    FRAMES_MEDIA_TYPE, st.binary(max_size=64) | st.binary(max_size=16).map(b"FDF1".__add__)
)

CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]
REAL = {"datasets": {"name": "a1b", "variable": "air"}, "functions": {"name": "add"}}
"""Of the parameters in paths: what the site has."""


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    """A site of its own: what is made up here may well be done."""
    north = {
        "datasets": {"a1b": dataset()},
        "functions": {"modules": ["tests.site_plugins.published"]},
        "limits": {"heartbeat_seconds": "0.2s"},
    }
    with LocalFederation({"north": north}) as running:
        yield running


@pytest.fixture(scope="module")
def document(federation: LocalFederation) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=federation.verify)
    address = federation.addresses["north"] + "/openapi.json"
    with urllib.request.urlopen(address, context=context) as response:  # noqa: S310
        found: dict[str, Any] = json.load(response)
    return found


@pytest.fixture(scope="module")
def schema(document: dict[str, Any]) -> Any:
    return schemathesis.openapi.from_dict(document)


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method.upper()} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            assert "default" in operation["responses"], where
            for parameter in operation.get("parameters", []):
                assert parameter["description"], f"{where}: {parameter['name']}"
            for status, response in operation["responses"].items():
                assert response["description"], f"{where}: {status}"


def operations() -> list[tuple[str, str]]:
    from site_plugins.endpoint.app import ROUTERS

    return sorted(
        (method, route.path_format)
        for router in ROUTERS
        for route in router.routes
        for method in getattr(route, "methods", ())
    )


def check(schema: Any, federation: LocalFederation, method: str, path: str, examples: int) -> None:
    operation = schema[path][method]
    address = federation.addresses["north"]
    headers = {"Authorization": f"Bearer {federation.token['north']}"}

    def run(case: Any, real: bool) -> None:
        if real and case.path_parameters:
            # What exists is not found by chance.
            real_ones = REAL.get(path.split("/")[1], {})
            case.path_parameters.update(
                {name: real_ones[name] for name in case.path_parameters if name in real_ones}
            )
        response = case.call(
            base_url=address, headers=headers, verify=federation.verify, timeout=60
        )
        case.validate_response(response, checks=CHECKS)

    strategy = operation.as_strategy()
    bounded = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    bounded(given(strategy, st.booleans())(run))()


@pytest.mark.parametrize(("method", "path"), operations())
def test_requests_made_from_the_document(
    schema: Any, federation: LocalFederation, method: str, path: str
) -> None:
    check(schema, federation, method, path, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), operations())
def test_many_requests_made_from_the_document(
    schema: Any, federation: LocalFederation, method: str, path: str
) -> None:
    check(schema, federation, method, path, 200)
