"""The operator's `site.toml`: what it may hold, and reading it.

Every section is a frozen pydantic model that refuses unknown keys.  Relative
paths are relative to the folder of the file.  `load_config` reports every
problem of a file at once, in the words of the file.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PositiveFloat,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails

from federated_dask.errors import ConfigurationError
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import Name as WireName
from site_plugins.grants import check_action, check_pattern, check_recipient

__all__ = [
    "ClusterSection",
    "DatasetSection",
    "EndpointSection",
    "FunctionsSection",
    "GrantSection",
    "IssuerSection",
    "LimitsSection",
    "PeerSection",
    "QuotasSection",
    "SiteConfig",
    "SiteSection",
    "TokensSection",
    "load_config",
    "parse_config",
    "parse_duration",
]

DAY = 86_400.0
SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": DAY, "w": 7 * DAY}
OWN_OPEN_OPTIONS = {"filename_or_obj", "engine", "chunks", "cache", "storage_options"}
NAME_PATTERN = get_args(WireName)[1].pattern
"""The one definition of a name is that of the wire."""


def parse_duration(text: str | float) -> float:
    """Turn a duration in words into seconds.

    Parameters
    ----------
    text : str or float
        A number of seconds, or a number with a unit: s, m, h, d or w.

    Returns
    -------
    float
        Seconds, more than 0.

    Raises
    ------
    ValueError
        If it is no duration.

    Examples
    --------
    >>> parse_duration("12h")
    43200.0
    """
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*([smhdw]?)\s*", str(text))
    seconds = float(match[1]) * SECONDS[match[2] or "s"] if match else 0.0
    if seconds <= 0:
        raise ValueError(
            "must be a duration: seconds, or a number with a unit such as '90s', '12h', '30d'"
        )
    return seconds


def _name(text: str) -> str:
    # The pattern of the wire admits these, but a URL path that ends in them means another one.
    if text in {".", ".."}:
        raise ValueError("cannot be a name")
    return text


def _file(path: Path, info: ValidationInfo) -> Path:
    path = _folder(info) / _expanded(path)
    try:
        is_there = path.is_file()
    except OSError:
        # Too long to be one, say.
        is_there = False
    if not is_there:
        raise ValueError(f"names a file that does not exist ({path})")
    return path


def _store(path: str, info: ValidationInfo) -> str:
    if "://" in path or "::" in path:
        return path
    return str(_folder(info) / _expanded(Path(path)))


def _folder(info: ValidationInfo) -> Path:
    context: Any = info.context or {}
    return Path(context.get("folder", ".")).absolute()


def _place(path: Path, info: ValidationInfo) -> Path:
    return _folder(info) / _expanded(path)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("names the home of a user who is not there") from None


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be a URL of the form https://host:port")
    return text.rstrip("/")


def _issuer(text: str) -> str:
    # Kept as it is, slash at the end included: a token has to name it letter for letter.
    parts = urlsplit(text)
    plain = text.isascii() and text.isprintable() and "@" not in parts.netloc
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or not plain:
        raise ValueError("must be a URL of the form https://host/path")
    return text


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, pattern=NAME_PATTERN),
    AfterValidator(_name),
]
File = Annotated[Path, AfterValidator(_file)]
Store = Annotated[str, StringConstraints(min_length=1), AfterValidator(_store)]
Address = Annotated[str, AfterValidator(_address)]
IssuerAddress = Annotated[str, AfterValidator(_issuer)]
Origin = Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.\[\]:-]+$")]
Duration = Annotated[float, BeforeValidator(parse_duration)]
DurationOrZero = Annotated[
    float, BeforeValidator(lambda value: 0.0 if value == 0 else parse_duration(value))
]
Count = Annotated[int, Field(gt=0)]
Bytes = Annotated[ByteSize, Field(gt=0)]


class Section(BaseModel):
    """Base of all sections: frozen, and every key must be known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SiteSection(Section):
    """``[site]``: how the site is called."""

    name: Name
    title: str = ""
    address: Address | None = None
    """URL under which others reach the endpoint; by default made of its host and port."""
    state: Annotated[Path, AfterValidator(_place)] = Field(Path("state"), validate_default=True)
    """Folder of what the site remembers: grants, budgets, quotas, the audit log."""


class EndpointSection(Section):
    """``[endpoint]``: where the site listens."""

    host: str = "127.0.0.1"
    port: int = Field(default=8786, ge=0, le=65535)
    """0 takes any free port."""
    certificate: File
    private_key: File
    origins: tuple[Origin, ...] = ()
    """Of web pages elsewhere that may ask this site, such as "https://portal.example"."""
    ca: File | None = None
    """Certificates to trust for this endpoint; public authorities if None.

    Told to new peers, who tell them to their own users: these need no file.
    """


class ClusterSection(Section):
    """``[cluster]``: an existing scheduler, or the size of an embedded `LocalCluster`."""

    address: str | None = Field(default=None, pattern=r"^(tls|tcp)://.+")
    ca: File | None = None
    certificate: File | None = None
    private_key: File | None = None
    n_workers: Count | None = None
    threads_per_worker: Count | None = None
    memory_limit: str | int | float = "auto"
    processes: bool = True
    dashboard_address: str | None = "127.0.0.1:0"
    resources: dict[Name, PositiveFloat] = {}
    """What each worker of an embedded cluster has, such as ``GPU = 1``, for tasks that ask."""

    @model_validator(mode="after")
    def _one_kind(self) -> ClusterSection:
        tls = {"ca", "certificate", "private_key"}
        if self.address is None:
            other, why = tls, "belong to an existing scheduler, whose `address` is not given"
        else:
            other = set(ClusterSection.model_fields) - tls - {"address"}
            why = "belong to an embedded cluster and cannot be given beside `address`"
        if wrong := sorted(other & self.model_fields_set):
            raise ValueError(f"{', '.join(wrong)}: {why}")
        if given := tls & self.model_fields_set:
            if missing := sorted(tls - given):
                raise ValueError(f"{', '.join(missing)}: needed beside {', '.join(sorted(given))}")
            if str(self.address).startswith("tcp://"):
                raise ValueError("TLS files are given, so `address` must start with tls://")
        return self


class TokensSection(Section):
    """``[tokens]``: the site's own issuer of tokens."""

    private_key: File
    issuer: str | None = Field(default=None, min_length=1)
    audience: str | None = Field(default=None, min_length=1)
    max_lifetime: Duration = 90 * DAY
    """Seconds."""


class IssuerSection(Section):
    """``[[issuers]]``: an OpenID provider whose tokens the site accepts."""

    name: Name
    """Its groups are called ``group@name`` here."""
    url: IssuerAddress
    """What ``iss`` must be; its keys are found from here."""
    audience: str = Field(min_length=1)
    """What ``aud`` must hold."""
    keys: IssuerAddress | None = None
    """Where its key set is; by default its discovery document says so."""
    ca: File | None = None
    token_type: Literal["at+jwt", "JWT"] = "at+jwt"  # noqa: S105
    max_lifetime: Duration = DAY
    """Seconds."""
    groups_claims: tuple[str, ...] = ("groups",)
    """Claims that hold names of groups."""
    entitlement_claims: tuple[str, ...] = ("entitlements", "eduperson_entitlement")
    """Claims that hold entitlements by AARC-G069."""
    namespaces: tuple[str, ...] = ()
    """Namespaces of entitlements that count."""
    client_id: str | None = Field(default=None, min_length=1)
    """Of the public client by which ``federated-dask login`` asks for tokens."""
    scopes: tuple[str, ...] = ("openid", "offline_access")


class ProjectsSection(Section):
    """``[projects]``: groups that users make themselves."""

    may_create: tuple[Annotated[str, AfterValidator(check_recipient)], ...] = ()
    """Who may make projects, as in grants; besides those with a grant to administer them."""


class PeerSection(Section):
    """``[[peers]]``: another site of the federation."""

    name: Name
    address: Address
    ca: File | None = None
    public_key: File | None = None
    """Of its tokens' issuer; with it, values are exchanged directly."""


class GrantSection(Section):
    """``[[grants]]``: who may do what with what."""

    to: Annotated[str, AfterValidator(check_recipient)]
    may: Annotated[tuple[Annotated[str, AfterValidator(check_action)], ...], Field(min_length=1)]
    on: Annotated[tuple[Annotated[str, AfterValidator(check_pattern)], ...], Field(min_length=1)]


class DatasetSection(Section):
    """``[datasets.<name>]``: one dataset that the site stores."""

    path: Store
    engine: str | None = Field(default=None, min_length=1)
    open_options: dict[str, Any] = {}
    storage_options: dict[str, Any] = {}
    title: str = ""
    description: str = ""
    keywords: tuple[str, ...] = ()
    license: str = ""
    accept_license: bool = False
    """Whether the licence has to be accepted before first use."""
    egress: Literal["open", "derived", "functions-only"] = "open"
    functions: tuple[Name, ...] = ()
    """Of a ``functions-only`` dataset: the functions that may read it."""
    share: float = Field(default=0.01, gt=0, le=1)
    """Of a ``derived`` dataset: the part of its bytes that may ever leave for one project."""
    embargo: date | None = None
    """Until this day it is for those only to whom it was granted by its name."""
    version: str | None = Field(default=None, pattern=r"^[\x21-\x7e]{1,128}$")

    @model_validator(mode="after")
    def _license_named(self) -> DatasetSection:
        if self.accept_license and not self.license.strip():
            raise ValueError("accept_license: needs a `license` that can be accepted")
        return self

    @model_validator(mode="after")
    def _open_options(self) -> DatasetSection:
        if wrong := sorted(OWN_OPEN_OPTIONS & self.open_options.keys()):
            raise ValueError(
                f"open_options cannot hold {', '.join(wrong)}: the site sets it itself"
            )
        return self


class FunctionsSection(Section):
    """``[functions]``: Python modules whose functions the site publishes."""

    modules: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*$")], ...] = ()
    path: tuple[Annotated[Path, AfterValidator(_place)], ...] = Field(
        default=(Path("."),), validate_default=True
    )
    """Folders in which they are looked for; by default that of `site.toml`."""
    seconds: Duration = 3600.0
    """Longest time that a call may run, where the function sets none of its own."""
    result_bytes: Bytes = ByteSize(2**32)
    """Largest result, where the function sets none of its own."""


_CAPS = Limits()


class LimitsSection(Section):
    """``[limits]``: caps on messages (see `Limits`), and the intervals of the site."""

    header_bytes: Bytes = ByteSize(_CAPS.header_bytes)
    buffer_bytes: Bytes = ByteSize(_CAPS.buffer_bytes)
    parts: Count = _CAPS.parts
    buffers: Count = _CAPS.buffers
    tasks: Count = _CAPS.tasks
    nodes: Count = _CAPS.nodes
    depth: Count = _CAPS.depth
    outputs: Count = _CAPS.outputs
    task_bytes: Bytes | None = None
    """By default half of the memory of a worker."""
    version_check_seconds: Duration = 2.0
    lease_seconds: Duration = 3600.0
    longest_lease_seconds: Duration = DAY
    """End of a lease, however often it is renewed."""
    cache_seconds: DurationOrZero = 0.0
    """How long results of finished jobs are kept for equal ones; 0 for not at all."""
    cache_bytes: Bytes | None = None
    """Bytes kept for one owner; by default a twentieth of the memory of all workers."""
    leases_per_owner: Count = 500
    held_bytes_per_owner: Bytes | None = None
    """By default a quarter of the memory of all workers."""
    heartbeat_seconds: Duration = 5.0

    def protocol(self) -> Limits:
        """Return the caps that the protocol checks."""
        given = {name: getattr(self, name) for name in Limits.__struct_fields__}
        return Limits(**{name: int(value) for name, value in given.items() if value is not None})


class QuotasSection(Section):
    """``[quotas]``: what one principal may use of the site."""

    concurrent_jobs: Count = 64
    """Jobs and calls at a time, of one endpoint process."""
    running_tasks: Count = 4_000_000
    """Tasks of these together."""
    result_bytes: Bytes = ByteSize(256 * 2**30)
    """Of all results of one job."""
    cpu_seconds_per_day: float = Field(default=2_000_000.0, gt=0)
    egress_per_day: Bytes = ByteSize(2 * 2**40)
    """Bytes of results and reads."""


class SiteConfig(Section):
    """All of a `site.toml`."""

    site: SiteSection
    endpoint: EndpointSection
    cluster: ClusterSection = ClusterSection()
    tokens: TokensSection
    issuers: tuple[IssuerSection, ...] = ()
    peers: tuple[PeerSection, ...] = ()
    grants: tuple[GrantSection, ...] = ()
    datasets: dict[Name, DatasetSection] = {}
    functions: FunctionsSection = FunctionsSection()
    limits: LimitsSection = LimitsSection()
    projects: ProjectsSection = ProjectsSection()
    quotas: QuotasSection = QuotasSection()

    @model_validator(mode="after")
    def _peers_differ(self) -> SiteConfig:
        names = [self.site.name, *(peer.name for peer in self.peers)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"peers and the site itself need different names: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _issuers_differ(self) -> SiteConfig:
        named = [issuer.name for issuer in self.issuers]
        named += [self.token_issuer, *(issuer.url for issuer in self.issuers)]
        if twice := sorted({each for each in named if named.count(each) > 1}):
            raise ValueError(f"issuers need different names and URLs: {', '.join(twice)}")
        return self

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.site.name

    @property
    def token_issuer(self) -> str:
        """Issuer of the site's own tokens."""
        return self.tokens.issuer or f"urn:federated-dask:site:{self.name}"

    @property
    def token_audience(self) -> str:
        """Audience that a token for this site must name."""
        return self.tokens.audience or f"urn:federated-dask:site:{self.name}"

    def public_address(self, port: int | None = None) -> str:
        """URL under which others reach the endpoint.

        Parameters
        ----------
        port : int, optional
            The port that the endpoint really listens on; the configured one by default.
        """
        if self.site.address is not None:
            return self.site.address
        host = self.endpoint.host
        host = {"0.0.0.0": "localhost", "": "localhost", "::": "localhost"}.get(host, host)  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        return f"https://{host}:{self.endpoint.port if port is None else port}"


def load_config(path: str | Path) -> SiteConfig:
    """Read a `site.toml`.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    SiteConfig
        Its content, paths made absolute.

    Raises
    ------
    ConfigurationError
        With every problem: the file, the key and what is wrong with it.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} does not exist.", hint="`federated-dask site init DIR` writes one."
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    return parse_toml(content, path.absolute().parent, source=str(path))


def parse_toml(content: bytes, folder: Path, *, source: str = "site.toml") -> SiteConfig:
    """Read the content of a `site.toml`; as `parse_config`."""
    try:
        data = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{source} is not TOML: {error}.") from error
    return parse_config(data, folder, source=source)


def parse_config(data: Mapping[str, Any], folder: Path, *, source: str = "site.toml") -> SiteConfig:
    """Check what a `site.toml` holds.

    Parameters
    ----------
    data : mapping
        The sections.
    folder : Path
        Where relative paths start.
    source : str, optional
        What to call the file in an error.

    Raises
    ------
    ConfigurationError
        With every problem: the file, the key and what is wrong with it.
    """
    try:
        return SiteConfig.model_validate(dict(data), context={"folder": folder})
    except ValidationError as error:
        problems = [_in_words(details) for details in error.errors(include_url=False)]
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = "\n".join(f"  {problem}" for problem in problems)
    raise ConfigurationError(f"{source} has {count}:\n{lines}")


def _in_words(details: ErrorDetails) -> str:
    location = [part for part in details["loc"] if part != "[key]"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return f"{where.lstrip('.') or 'the whole file'}: {_what(details, location)}"


def _what(details: ErrorDetails, location: list[str | int]) -> str:
    match details["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            known = sorted(_known_keys(location[:-1]))
            close = difflib.get_close_matches(str(location[-1]), known, n=1)
            guess = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            return f"is not a known key; {guess}"
        case "string_pattern_mismatch" if details["ctx"]["pattern"] == NAME_PATTERN:
            return "is no name: only letters, digits, dot, dash and underscore"
        case "string_pattern_mismatch" if location[-1] == "address":
            return "must start with tls:// or tcp://"
        case "value_error":
            # pydantic puts its own words before those of the validator.
            return str(details["ctx"]["error"])
    message = details["msg"]
    return message[0].lower() + message[1:]


def _known_keys(location: list[str | int]) -> Iterator[str]:
    annotation: Any = SiteConfig
    for part in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(part)].annotation
        else:
            annotation = next(item for item in get_args(annotation) if item not in (Name, ...))
    yield from annotation.model_fields
