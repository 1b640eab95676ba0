"""Sites that exchange values."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from site_plugins import LocalFederation
from site_plugins.certificates import new_authority
from site_plugins.config import SiteConfig
from site_plugins.keys import new_issuer_key, public_key_of
from tests.site_plugins.helpers import Caller
from tests.site_plugins.peers import SITES, config_of


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, SiteConfig]:
    """Three sites that list one another; nothing runs."""
    authority = new_authority()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in SITES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "key.pem").write_bytes(new_issuer_key())
        (tmp_path / name / "public.pem").write_bytes(public_key_of(tmp_path / name / "key.pem"))
    return {name: config_of(tmp_path, name, authority) for name in SITES}


@pytest.fixture
def south(federation: LocalFederation) -> Iterator[Caller]:
    caller = Caller(federation, "south", federation.token["south"])
    yield caller
    caller.wait_until_idle()
