"""Sites that hold and exchange values, and what passes between them."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from federated_dask.protocol.frames import FrameDecoder, encode_frame
from federated_dask.protocol.graph import Graph, Held, Reference
from federated_dask.protocol.messages import (
    DelegationReply,
    Failure,
    Finished,
    JobSubmission,
    Output,
    Result,
    delegation_key,
)
from site_plugins import LocalFederation
from site_plugins.certificates import write_certificates
from site_plugins.config import SiteConfig, parse_config
from site_plugins.endpoint import peering as module
from site_plugins.endpoint.peering import DELEGATION_HEADER
from site_plugins.statements import StatementSigner
from tests.site_plugins import graphs
from tests.site_plugins.graphs import block, call, template
from tests.site_plugins.helpers import Caller, as_message, value_of

LEASE = "0123456789abcdef" * 2
OWNER = "urn:federated-dask:site:south\nada"
SITES = ("north", "south", "ocean")


def config_of(folder: Path, name: str, authority: Any, **changes: Any) -> SiteConfig:
    own = folder / f"{name}-certificates"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    files = write_certificates(own, authority=authority)
    described = {
        "site": {"name": name},
        "endpoint": {"certificate": str(files.certificate), "private_key": str(files.private_key)},
        "tokens": {"private_key": str(folder / name / "key.pem")},
        "peers": [
            {
                "name": other,
                "address": f"https://127.0.0.1:{9000 + number}",
                "ca": str(folder / "ca.pem"),
                "public_key": str(folder / other / "public.pem"),
                **changes.get(other, {}),
            }
            for number, other in enumerate(SITES)
            if other != name
        ],
    }
    return parse_config(described, folder)


GOOD = {
    "iss": "south",
    "aud": "south",
    "owner": OWNER,
    "receiver": "north",
    "lease": LEASE,
    "outputs": [0],
    "bytes": 100,
}


def speaker(federation: LocalFederation, site: str) -> StatementSigner:
    return StatementSigner(federation._configs[site].tokens.private_key)


def delegated(federation: LocalFederation, lease: str = LEASE) -> dict[str, str]:
    """What south takes for a delegation of north."""
    claims = {"iss": "north", "aud": "north", "lease": lease, "outputs": [0]}
    text = speaker(federation, "north").sign(module.DELEGATION, claims, 60)
    return {delegation_key(lease, 0): text}


def credentials(
    federation: LocalFederation, delegation: str, site: str = "south"
) -> dict[str, str]:
    claims = {"iss": site, "aud": "north", "for": module._digest(delegation)}
    statement = speaker(federation, site).sign("peer+jwt", claims, 60)
    return {"Authorization": f"Bearer {statement}", DELEGATION_HEADER: delegation}


ONES = Graph(templates=(template(call("numpy.ones", graphs.Number(1000))),), blocks=(block(0),))


async def hold(caller: Caller, graph: Graph = ONES, *tasks: int) -> str:
    outputs = [Output(task=task, release=False, hold=True) for task in tasks or (0,)]
    _, last = await caller.run(graph, *outputs)
    assert isinstance(last, Finished)
    return str(last.lease)


async def ask(caller: Caller, lease: str, *outputs: int, receiver: str = "south") -> str:
    body = json.dumps({"receiver": receiver, "outputs": outputs or [0]})
    status, reply = await caller.read("POST", f"/leases/{lease}/delegations", data=body)
    assert status == 200, reply
    return msgspec.json.decode(reply, type=DelegationReply).delegation


FIRST = Output(task=0)


def use(*held: Held) -> Graph:
    """Takes the first of some held results, which has to be the first operand."""
    return Graph(held=held, templates=(template(Reference()),), blocks=(block(0, 0),))


def job(graph: Graph, delegations: dict[str, str], output: Output) -> bytes:
    message = JobSubmission(graph=graph, outputs=(output,), delegations=delegations)
    return b"".join(map(bytes, encode_frame(message)))


async def run(
    caller: Caller, graph: Graph, delegations: dict[str, str], output: Output = FIRST
) -> tuple[Any, Any]:
    """Run a job: its result and its last event; None and the failure where it is not admitted."""
    value = last = None
    async with caller.request("POST", "/jobs", data=job(graph, delegations, output)) as response:
        body = await response.read()
        if response.status != 200:
            return None, msgspec.json.decode(body, type=Failure)
    for frame in FrameDecoder().feed(body):
        last = as_message(frame)
        if isinstance(last, Result):
            value = value_of(last.value, frame)
    return value, last
