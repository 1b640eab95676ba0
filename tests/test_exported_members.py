"""The public names, pinned: adding or removing one is a decision."""

import importlib

import pytest

PUBLIC = {
    "federated_dask": [
        "FederatedClient",
        "FederatedError",
        "FederatedFuture",
        "__version__",
        "as_completed",
        "progress",
        "wait",
    ],
    "federated_dask.errors": [
        "ConfigurationError",
        "DatasetUnreadable",
        "FederatedError",
        "NotAuthenticated",
        "NotFound",
        "NotPermitted",
        "Reason",
        "RequestRefused",
        "SiteUnavailable",
        "TaskFailed",
        "VersionChanged",
    ],
    "site_plugins": [
        "LocalFederation",
        "SitePlugin",
        "publish",
        "publish_dataset",
        "report_progress",
        "unpublish",
    ],
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(module.__all__) == PUBLIC[name]
    for member in PUBLIC[name]:
        assert getattr(module, member) is not None


@pytest.mark.parametrize("name", PUBLIC)
def test_other_names_are_no_attributes(name: str) -> None:
    module = importlib.import_module(name)
    with pytest.raises(AttributeError, match="has no attribute"):
        module.nonsense  # noqa: B018
