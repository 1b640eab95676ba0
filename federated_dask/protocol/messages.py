"""Messages between a client and a site's endpoint.

Every message is a frozen, keyword-only struct; msgspec checks types and bounds
while it decodes, so a message that parses is well formed.  Messages that carry
arrays hold `federated_dask.protocol.values.Value` trees whose buffers travel
behind the message in the same frame (`federated_dask.protocol.frames`).
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from federated_dask.errors import FederatedError, from_reason
from federated_dask.protocol.graph import Graph
from federated_dask.protocol.trees import Value

__all__ = [
    "DELEGATED_OUTPUTS",
    "FRAMES_MEDIA_TYPE",
    "PROJECT_HEADER",
    "PROTOCOL_VERSION",
    "Accepted",
    "AnyJobEvent",
    "Budget",
    "Catalogue",
    "Content",
    "DatasetDescription",
    "DatasetSummary",
    "DelegationReply",
    "DelegationRequest",
    "Egress",
    "Failure",
    "Finished",
    "Heartbeat",
    "JobEvent",
    "JobSubmission",
    "LeaseTerms",
    "LicenseAcceptance",
    "LicenseTerms",
    "Operations",
    "Output",
    "Peer",
    "Progress",
    "Result",
    "SiteDescription",
    "VariableDescription",
    "delegation_key",
]

PROTOCOL_VERSION = 1
"""Raised whenever an older peer would misread a message."""

FRAMES_MEDIA_TYPE = "application/vnd.federated-dask.frames"
"""Media type of bodies made of frames; everything else is JSON."""

PROJECT_HEADER = "Federated-Project"
"""Names the project for which a request is made, ``name@host``."""

DELEGATED_OUTPUTS = 500
"""Outputs that one delegation may be for."""

PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*\Z"
"""Text that is safe to show: nothing that ends lines, steers terminals, or turns text around."""

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.\-]+$")]
"""Name of a site or dataset: letters, digits, dot, dash, underscore."""

Size: TypeAlias = Annotated[int, Meta(ge=0)]
"""A number of bytes, tasks or elements."""


Seconds: TypeAlias = Annotated[float, Meta(ge=0)]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Base of all messages: unknown fields of a newer peer are ignored."""


class Peer(Message, frozen=True, kw_only=True):
    """Another site of the federation, as a site knows it."""

    name: Name
    address: str
    exchanges: bool = False
    """Whether the site fetches values from this peer, and lets it fetch."""
    ca: Annotated[str, Meta(max_length=16 * 1024)] | None = None
    """Certificates that the site trusts for this peer and no other host, as PEM text; None for
    those of the system."""


class SiteDescription(Message, frozen=True, kw_only=True):
    """What a site says of itself (``GET /site``)."""

    name: Name
    title: str = ""
    protocol_version: int = PROTOCOL_VERSION
    versions: dict[str, str] = {}
    """Library name to version, of the site's scheduler."""
    operations_digest: str = ""
    """Of the names of the operations that this site has; `Operations` lists them."""
    peers: tuple[Peer, ...] = ()
    dashboard_link: str | None = None
    workers: Size = 0
    threads: Size = 0
    memory: Size = 0
    """Memory limit of all workers together, bytes."""
    resources: dict[str, float] = {}
    """What one worker has of each resource that tasks may ask for, at most."""
    limits: dict[str, int] = {}
    """Caps a submission must respect; see `federated_dask.protocol.limits`."""


class Operations(Message, frozen=True, kw_only=True):
    """The operations that a site has (``GET /operations``): its libraries may be other ones."""

    names: tuple[Annotated[str, Meta(max_length=256)], ...]


class Egress(Message, frozen=True, kw_only=True):
    """What may leave a site of one dataset.

    ``open``: anything.  ``derived``: a budget of bytes derived from the dataset.
    ``functions-only``: nothing but what published functions return.
    """

    tier: Annotated[str, Meta(pattern="^(open|derived|functions-only)$")] = "open"
    limit: Size | None = None
    """Bytes that are left of the budget for who asks; None where nothing sets a limit."""


class Budget(Message, frozen=True, kw_only=True):
    """What has left of a dataset for who asks (``GET /datasets/{name}/budget``)."""

    dataset: Name
    tier: str = "open"
    project: str | None = None
    """Project that shares the budget; None for who asks alone."""
    total: Size | None = None
    """Bytes that may ever leave; None for no limit."""
    used: Size = 0
    """Bytes that have left, or are set aside for what runs now."""


class LicenseTerms(Message, frozen=True, kw_only=True):
    """The licence of a dataset (``GET /datasets/{name}/license``)."""

    dataset: Name
    license: str = ""
    required: bool = False
    """Whether it has to be accepted before the dataset is used."""
    accepted: bool = False


class LicenseAcceptance(Message, frozen=True, kw_only=True):
    """Acceptance of a licence by who asks (``POST /datasets/{name}/license``)."""

    license: str
    """As it was shown: another one by now is not accepted."""


class DatasetSummary(Message, frozen=True, kw_only=True):
    """One line of a site's catalogue."""

    name: Name
    title: str = ""
    description: str = ""
    keywords: tuple[str, ...] = ()
    license: str = ""
    egress: Egress = Egress()


class Catalogue(Message, frozen=True, kw_only=True):
    """The datasets a site advertises (``GET /datasets``)."""

    site: Name
    datasets: tuple[DatasetSummary, ...]


Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class Content(Message, frozen=True, kw_only=True):
    """What the values of a variable are like, judged by a few small parts of it.

    Told of datasets that are open only: it is a fact of what they contain.
    """

    left: Share
    """Share of the bytes that compression leaves."""
    missing: Share = 0.0
    """Share of the elements that are missing (NaN, NaT)."""
    ever_missing: Share = 0.0
    """Share of the places at which something is missing, anywhere along the first dimension."""


class VariableDescription(Message, frozen=True, kw_only=True):
    """One variable of a dataset, decoded as xarray shows it at the site."""

    dimensions: tuple[str, ...]
    shape: tuple[Size, ...]
    dtype: str
    """numpy's ``dtype.str``, or ``object`` and the codec behind a colon: ``object:cftime``."""
    attributes: dict[str, Any] = {}
    encoding: dict[str, Any] = {}
    """The plain-data part of the variable's encoding (units, calendar, fill value, packing …)."""
    chunks: tuple[Size, ...] | None = None
    """Shape of a storage chunk; None where the variable is stored in one piece."""
    coordinate: bool = False
    value: Value | None = None
    """The values themselves, sent along for index coordinates and small coordinates."""
    content: Content | None = None
    """What to expect of its size on a link, where the site tells."""


class DatasetDescription(Message, frozen=True, kw_only=True):
    """All that is needed to open a dataset lazily (``GET /datasets/{name}``)."""

    site: Name
    name: Name
    version: str
    """Digest of what the site stores under this name."""
    variables: dict[str, VariableDescription]
    attributes: dict[str, Any] = {}
    encoding: dict[str, Any] = {}
    egress: Egress = Egress()
    size: Size = 0
    """Bytes of all variables, decoded."""


class Output(Message, frozen=True, kw_only=True):
    """What is to be done with the result of one task of a submitted graph."""

    task: Size
    """Position of the task among the tasks of the graph."""
    release: bool = True
    """Send the result to the client."""
    hold: bool = False
    """Keep the result at the site under the job's lease."""


class JobSubmission(Message, frozen=True, kw_only=True):
    """One site's share of a plan (``POST /jobs``)."""

    graph: Graph
    outputs: tuple[Output, ...]
    label: Annotated[str, Meta(max_length=200, pattern=PRINTABLE)] = ""
    """Name shown in the site's dashboard."""
    delegations: dict[str, str] = {}
    """With which the site may fetch from its peers; the keys are those of `delegation_key`."""
    reserve: dict[str, Size] = {}
    """Dataset to the bytes derived from it that the job is expected to release."""


class JobEvent(Message, frozen=True, kw_only=True, tag_field="event"):
    """Base of what a site streams back while it runs a job."""


class Accepted(JobEvent, frozen=True, kw_only=True, tag="accepted"):
    """The job passed admission and was handed to the scheduler."""

    job: str
    tasks: Size
    """Tasks after the site's own optimisation."""


class Progress(JobEvent, frozen=True, kw_only=True, tag="progress"):
    """How far the job is."""

    done: Size
    total: Size


class Heartbeat(JobEvent, frozen=True, kw_only=True, tag="heartbeat"):
    """The site is alive and the job goes on."""


class Result(JobEvent, frozen=True, kw_only=True, tag="result"):
    """The result of one released output."""

    output: Size
    """Position in `JobSubmission.outputs`."""
    value: Value


class Failure(JobEvent, frozen=True, kw_only=True, tag="failure"):
    """Why a request was refused or a job failed; also the body of every HTTP error."""

    reason: str
    message: str
    site: str | None = None
    hint: str | None = None
    argument: str | None = None
    """Name of the argument that does not fit, of a function's call."""
    exception: str | None = None
    """Qualified name of the exception that a task raised."""
    traceback: str | None = None

    @classmethod
    def from_error(cls, error: FederatedError) -> Failure:
        """Describe `error` for the wire."""
        return cls(
            reason=error.reason.value, message=error.message, site=error.site, hint=error.hint
        )

    def to_error(self) -> FederatedError:
        """Make the error that this message stands for."""
        return from_reason(self.reason, self.message, site=self.site, hint=self.hint)


class Finished(JobEvent, frozen=True, kw_only=True, tag="finished"):
    """Last event of a job that did what it was asked."""

    lease: str | None = None
    """Lease under which the held outputs stay at the site."""
    lease_seconds: Seconds | None = None
    """Time after which the lease ends, unless it is used or renewed before."""
    compute_seconds: float = 0.0
    """Time workers spent in the job's tasks."""
    read_bytes: Size = 0
    """Bytes of the chunks that the job's source tasks produced, decoded."""
    pulled_bytes: dict[str, int] = {}
    """Peer to the bytes of the values that were fetched from it."""


class LeaseTerms(Message, frozen=True, kw_only=True):
    """How long a lease that was renewed lasts (``POST /leases/{lease}``)."""

    lease_seconds: Seconds
    """Time after which it ends, unless it is used or renewed before."""


class DelegationRequest(Message, frozen=True, kw_only=True):
    """Let another site fetch held outputs (``POST /leases/{lease}/delegations``)."""

    receiver: Name
    outputs: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=DELEGATED_OUTPUTS)]


def delegation_key(lease: str, output: int) -> str:
    """Give the key in `JobSubmission.delegations` of that for one output.

    One delegation is for at most `DELEGATED_OUTPUTS` neighbours, so that it fits into a header.

    Examples
    --------
    >>> delegation_key("1f", 499), delegation_key("1f", 500)
    ('1f/0', '1f/1')
    """
    return f"{lease}/{output // DELEGATED_OUTPUTS}"


class DelegationReply(Message, frozen=True, kw_only=True):
    """The delegation, to be handed to the receiver with the job."""

    delegation: str


AnyJobEvent: TypeAlias = Accepted | Progress | Heartbeat | Result | Failure | Finished
