"""Sites without cluster and endpoint, for what sites say to each other."""

from pathlib import Path
from typing import Any

from site_plugins.certificates import write_certificates
from site_plugins.config import SiteConfig, parse_config
from site_plugins.invitations import Invitations
from site_plugins.keys import new_issuer_key
from site_plugins.peers import PeerList
from site_plugins.registry import Registry
from site_plugins.statements import StatementSigner


class SiteAlone:
    """What a site consists of as far as invitations go."""

    def __init__(self, folder: Path, name: str, **more: Any) -> None:
        files = write_certificates(folder)
        (folder / "issuer.pem").write_bytes(new_issuer_key())
        described = {
            "site": {"name": name, "address": f"https://{name}.example:8786"},
            "endpoint": {
                "certificate": str(files.certificate),
                "private_key": str(files.private_key),
                "ca": str(files.ca),
            },
            "tokens": {"private_key": "issuer.pem"},
            **more,
        }
        self.config: SiteConfig = parse_config(described, folder)
        self.registry = Registry(None)
        self.peers = PeerList(self.config, self.registry)
        self.invitations = Invitations(self.config, self.registry, self.peers)

    @property
    def signer(self) -> StatementSigner:
        return StatementSigner(self.config.tokens.private_key)
