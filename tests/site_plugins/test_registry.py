"""The registry: what is read while others write."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from site_plugins.registry import Registry


def test_who_reads_waits_for_no_transaction(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "site.db")
    registry.create("CREATE TABLE kept (name TEXT)")
    before = registry.version()
    with ThreadPoolExecutor(1) as pool:
        with registry.transaction() as connection:
            connection.execute("INSERT INTO kept VALUES (?)", ("soil",))
            # In another thread, as the event loop while a thread writes.
            assert pool.submit(registry.rows, "SELECT name FROM kept").result(60) == []
            assert pool.submit(registry.version).result(60) == before
        assert registry.rows("SELECT name FROM kept") == [("soil",)]
        assert registry.version() != before
    registry.close()
