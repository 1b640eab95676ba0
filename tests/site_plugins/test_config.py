from pathlib import Path

import msgspec
import pytest

from federated_dask.errors import ConfigurationError
from federated_dask.protocol.limits import Limits
from site_plugins.config import LimitsSection, SiteConfig, load_config, parse_config, parse_duration

MINIMAL = """
[site]
name = "north"
[endpoint]
certificate = "certificates/certificate.pem"
private_key = "certificates/private_key.pem"
[tokens]
private_key = "keys/issuer.pem"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with every file that `MINIMAL` names."""
    for name in ("certificates/certificate.pem", "certificates/private_key.pem", "keys/issuer.pem"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def load(folder: Path, text: str) -> SiteConfig:
    path = folder / "site.toml"
    path.write_text(text)
    return load_config(path)


def problems(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, text)
    return caught.value.message


ISSUER = """
[[issuers]]
name = "idp"
url = "https://idp.example/oauth2/"
audience = "urn:x"
"""


def test_issuers(folder: Path) -> None:
    [issuer] = load(folder, MINIMAL + ISSUER).issuers
    # With the slash at its end: tokens name the issuer letter for letter.
    assert issuer.url == "https://idp.example/oauth2/"
    assert issuer.max_lifetime == 86_400
    assert issuer.token_type == "at+jwt"
    assert (issuer.groups_claims, issuer.namespaces) == (("groups",), ())


@pytest.mark.parametrize(
    "url",
    ["http://idp.example", "https://", "https://a@idp.example", "https://idp.example?x", "idp"],
)
def test_an_issuer_has_an_address(folder: Path, url: str) -> None:
    text = ISSUER.replace("https://idp.example/oauth2/", url)
    assert "issuers[0].url: must be a URL" in problems(folder, MINIMAL + text)


def test_issuers_differ(folder: Path) -> None:
    assert "issuers need different names and URLs: https://idp.example/oauth2/, idp" in problems(
        folder, MINIMAL + ISSUER + ISSUER
    )


def test_defaults(folder: Path) -> None:
    config = load(folder, MINIMAL)
    assert config.name == "north"
    assert config.endpoint.private_key == folder / "certificates/private_key.pem"
    assert config.public_address() == "https://127.0.0.1:8786"
    assert config.token_issuer == config.token_audience == "urn:federated-dask:site:north"
    assert config.cluster.processes
    assert config.cluster.dashboard_address == "127.0.0.1:0"
    assert config.datasets == {}
    assert config.limits.protocol() == Limits()
    limits = config.limits
    assert limits.version_check_seconds == 2.0
    assert limits.lease_seconds == 3600
    assert limits.longest_lease_seconds == 86_400
    assert limits.leases_per_owner == 500
    assert limits.held_bytes_per_owner is None
    assert limits.heartbeat_seconds == 5


def test_everything_can_be_said(folder: Path) -> None:
    (folder / "ca.pem").touch()
    config = load(
        folder,
        MINIMAL
        + """
        issuer = "https://issuer.example"
        audience = "everyone"
        max_lifetime = "1w"
        [cluster]
        address = "tls://scheduler:8786"
        ca = "ca.pem"
        certificate = "ca.pem"
        private_key = "ca.pem"
        [[peers]]
        name = "south"
        address = "https://south.example:8786/"
        ca = "ca.pem"
        [datasets.a1b]
        path = "data/a1b.nc"
        engine = "netcdf4"
        open_options = { decode_timedelta = false }
        title = "A1B"
        keywords = ["temperature"]
        egress = "derived"
        share = 0.5
        version = "2024-01"
        [datasets."sst.daily"]
        path = "s3://bucket/sst.zarr"
        storage_options = { anon = true }
        [limits]
        buffer_bytes = "64MiB"
        tasks = 10
        lease_seconds = "2h"
        longest_lease_seconds = "2d"
        leases_per_owner = 3
        held_bytes_per_owner = "1GiB"
        """,
    )
    assert config.tokens.max_lifetime == 7 * 86_400
    assert config.token_issuer == "https://issuer.example"
    assert config.token_audience == "everyone"
    assert config.peers[0].address == "https://south.example:8786"
    assert config.peers[0].ca == folder / "ca.pem"
    assert config.datasets["a1b"].path == str(folder / "data/a1b.nc")
    assert config.datasets["sst.daily"].path == "s3://bucket/sst.zarr"
    assert config.limits.protocol().buffer_bytes == 64 * 2**20
    assert config.limits.protocol().tasks == 10
    assert config.limits.lease_seconds == 7200
    assert config.limits.longest_lease_seconds == 2 * 86_400
    assert config.limits.leases_per_owner == 3
    assert config.limits.held_bytes_per_owner == 2**30


def test_every_cap_of_the_protocol_can_be_set() -> None:
    for field in msgspec.structs.fields(Limits):
        if field.name != "task_bytes":  # Which depends on the workers.
            assert LimitsSection.model_fields[field.name].default == field.default


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("[sites]", "sites: is not a known key; did you mean 'site'?"),
        ("[datasets.a]\npaht = 'x'", "datasets.a.paht: is not a known key; did you mean 'path'?"),
        ("[datasets.a]\npaht = 'x'", "datasets.a.path: is missing"),
        ("[datasets.'a b']\npath = 'x'", "datasets.a b: is no name: only letters, digits,"),
        ("[datasets.'..']\npath = 'x'", "datasets...: cannot be a name"),
        (
            "[datasets.a]\npath = 'x'\negress = 'all'",
            "datasets.a.egress: input should be 'open', 'derived' or",
        ),
        ("[datasets.a]\npath = 'x'\nshare = 0.0", "datasets.a.share: input should be greater than"),
        (
            "[datasets.a]\npath = 'x'\nopen_options = {chunks = 1}",
            "datasets.a: open_options cannot hold chunks: the site sets it itself",
        ),
        ("[limits]\ntasks = 0", "limits.tasks: input should be greater than 0"),
        ("[limits]\nleases_per_owner = 0", "limits.leases_per_owner: input should be greater"),
        ("[limits]\ntask = 1", "limits.task: is not a known key; did you mean 'tasks'?"),
        ("[limits]\nlease_seconds = 'long'", "limits.lease_seconds: must be a duration"),
        ("[cluster]\naddress = 'http://x'", "cluster.address: must start with tls:// or tcp://"),
        (
            "[cluster]\naddress = 'tcp://x:1'\nn_workers = 2",
            "cluster: n_workers: belong to an embedded cluster and cannot be given",
        ),
        ("[cluster]\nca = 'keys/issuer.pem'", "cluster: ca: belong to an existing scheduler"),
        (
            "[cluster]\naddress = 'tls://x:1'\nca = 'keys/issuer.pem'",
            "cluster: certificate, private_key: needed beside ca",
        ),
        ("[[peers]]\nname = 'p'\naddress = 'http://p'", "peers[0].address: must be a URL of the"),
        ("[[peers]]\nname = 'north'\naddress = 'https://p'", "need different names: north"),
        (
            "[[peers]]\nname = 'p'\naddress = 'https://p'\nca = 'no'",
            "peers[0].ca: names a file that",
        ),
    ],
)
def test_each_problem_is_named(folder: Path, addition: str, expected: str) -> None:
    assert expected in problems(folder, MINIMAL + addition)


def test_all_problems_are_listed_at_once(folder: Path) -> None:
    text = problems(folder, "[site]\ntitle = 3\n[endpoint]\nport = 70000\ncertificate = 'no.pem'")
    assert text.splitlines()[0] == f"{folder / 'site.toml'} has 6 problems:"
    for line in (
        "  site.name: is missing",
        "  site.title: input should be a valid string",
        "  endpoint.port: input should be less than or equal to 65535",
        f"  endpoint.certificate: names a file that does not exist ({folder / 'no.pem'})",
        "  endpoint.private_key: is missing",
        "  tokens: is missing",
    ):
        assert line in text.splitlines()


def test_a_secret_in_the_storage_options_is_not_shown(folder: Path) -> None:
    text = MINIMAL + "[datasets.a]\npath = 1\nstorage_options = {key = 'hunter2'}\nshare = 7"
    assert "hunter2" not in problems(folder, text)


def test_a_file_that_is_no_toml(folder: Path) -> None:
    assert "is not TOML: " in problems(folder, "[site\n")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere.toml does not exist"):
        load_config(tmp_path / "nowhere.toml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("::1", 8786, "https://[::1]:8786"),
        ("0.0.0.0", 443, "https://localhost:443"),  # noqa: S104
        ("north.example", 1, "https://north.example:1"),
    ],
)
def test_public_address(folder: Path, host: str, port: int, address: str) -> None:
    config = load(folder, MINIMAL.replace("[endpoint]", f"[endpoint]\nhost = '{host}'\nport = 0"))
    assert config.public_address(port) == address


def test_a_configured_address_wins(folder: Path) -> None:
    config = load(
        folder, MINIMAL.replace("[endpoint]", "address = 'https://n.example'\n[endpoint]")
    )
    assert config.public_address(1234) == "https://n.example"


def test_parse_config_takes_python_data(folder: Path) -> None:
    config = parse_config(
        {
            "site": {"name": "north"},
            "endpoint": {
                "certificate": folder / "certificates/certificate.pem",
                "private_key": "certificates/private_key.pem",
            },
            "tokens": {"private_key": "keys/issuer.pem"},
        },
        folder,
    )
    assert config.endpoint.private_key.is_absolute()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (1.5, 1.5), ("30d", 2_592_000), ("1.5h", 5400), ("2 w", 1_209_600)],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "0", "1y", "nan", "inf", "1e3", True])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)
