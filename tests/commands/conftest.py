"""An endpoint whose functions this process runs itself; see `tests.client.conftest`."""

from tests.client.conftest import (  # noqa: F401
    address,
    authority,
    ca,
    sample_data,
    server_thread,
    server_tls,
    stub,
)
