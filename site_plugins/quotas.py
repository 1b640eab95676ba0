"""Quotas: how much of a site one principal may use at a time, and in a day.

What counts for a day is written down in the registry, for all endpoint
processes; a day ends at midnight UTC.  Egress is written down before it leaves,
what a job took within a fifth of a second of its end: here it counts at once.
What counts at a time lives and ends with the requests of one endpoint process.
"""

from __future__ import annotations

import datetime
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable

from federated_dask.errors import NotPermitted, Reason
from federated_dask.protocol.grant_messages import Usage, UsageLine
from site_plugins.config import QuotasSection
from site_plugins.registry import Registry

__all__ = ["Quotas"]

logger = logging.getLogger(__name__)

TABLE = """
CREATE TABLE IF NOT EXISTS usage (
    principal TEXT NOT NULL,
    day TEXT NOT NULL,
    cpu_seconds REAL NOT NULL DEFAULT 0,
    egress INTEGER NOT NULL DEFAULT 0,
    jobs INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (principal, day)
) STRICT, WITHOUT ROWID
"""
BLOCK = 4 * 2**20
"""Bytes of egress that are written down at once, so that not every result waits for the disk."""
WRITE_SECONDS = 0.2
"""How long the end of a job may wait for others, to wait for the disk together."""
MOST_KEPT = 10_000
KEPT_DAYS = 90


class Quotas:
    """Keeps account of what principals use.

    Parameters
    ----------
    registry : Registry
        Where days are written down.
    section : QuotasSection, optional
        The limits.
    site : str, optional
        Name of the site, shown in errors.
    now : callable, optional
        Tells the time.

    Examples
    --------
    >>> quotas = Quotas(Registry(None), QuotasSection(concurrent_jobs=1), "north")
    >>> quotas.enter("ada", tasks=10)
    >>> quotas.enter("ada", tasks=10)
    Traceback (most recent call last):
    federated_dask.errors.NotPermitted: [north] ... 1 of your jobs ... (quota_exceeded)
    >>> quotas.leave("ada", tasks=10, cpu_seconds=2.5)
    >>> [(line.name, line.used) for line in quotas.usage("ada").lines][:3]
    [('concurrent_jobs', 0), ('running_tasks', 0), ('cpu_seconds_per_day', 2.5)]
    """

    def __init__(
        self,
        registry: Registry,
        section: QuotasSection | None = None,
        site: str = "site",
        *,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self.section = section or QuotasSection()
        self.site = site
        self._registry = registry
        self._now = now
        self._jobs: Counter[str] = Counter()
        self._tasks: Counter[str] = Counter()
        self._ahead: Counter[tuple[str, str]] = Counter()
        """Bytes that are written down as egress and have not left yet, by principal and day."""
        self._ended: dict[tuple[str, str], tuple[float, int]] = {}
        """CPU seconds and jobs that are not written down yet, by principal and day."""
        self._writing: threading.Timer | None = None
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        """Never held while anything waits for the disk."""
        self._flushing = threading.Lock()
        registry.create(TABLE)

    def enter(self, principal: str, *, tasks: int) -> None:
        """Begin a job; every `enter` that does not raise has its `leave`.

        Raises
        ------
        NotPermitted
            ``quota_exceeded``.
        """
        self.require(principal, tasks=tasks)
        with self._counting:
            self._jobs[principal] += 1
            self._tasks[principal] += tasks

    def require(self, principal: str, *, tasks: int) -> None:
        """Raise where a principal may not begin a job now."""
        limits = self.section
        if self._jobs[principal] >= limits.concurrent_jobs:
            raise self._refusal(
                "concurrent_jobs", f"{self._jobs[principal]} of your jobs are running"
            )
        if self._tasks[principal] + tasks > limits.running_tasks:
            raise self._refusal(
                "running_tasks",
                f"your running jobs would have {self._tasks[principal] + tasks:,} tasks",
            )
        if (used := self._today(principal)[0]) >= limits.cpu_seconds_per_day:
            raise self._refusal("cpu_seconds_per_day", f"you used {used:,.0f} CPU seconds today")

    def is_full(self, principal: str) -> bool:
        """Say whether as many jobs of a principal are running as may."""
        return self._jobs[principal] >= self.section.concurrent_jobs

    def require_seconds(self, principal: str, running: float) -> None:
        """Raise where a running job uses up the CPU seconds of the day."""
        used = self._today(principal)[0] + running
        if used > self.section.cpu_seconds_per_day:
            raise self._refusal("cpu_seconds_per_day", f"you used {used:,.0f} CPU seconds today")

    def leave(self, principal: str, *, tasks: int, cpu_seconds: float) -> None:
        """End a job; what it took counts from now on, and is written down soon."""
        with self._counting:
            self._jobs[principal] -= 1
            self._tasks[principal] -= tasks
            # Counters count what they never heard of as 0.
            if not self._jobs[principal]:
                del self._jobs[principal], self._tasks[principal]
            key = (principal, self._day())
            seconds, jobs = self._ended.get(key, (0.0, 0))
            self._ended[key] = seconds + max(0.0, cpu_seconds), jobs + 1
            if self._writing is None:
                self._writing = threading.Timer(WRITE_SECONDS, self._write_behind)
                self._writing.daemon = True
                self._writing.start()

    def write(self) -> None:
        """Write down what ended jobs took; once this returns, it is on the disk."""
        # One at a time, so that none returns while another has what it should have written.
        with self._flushing:
            with self._counting:
                if self._writing is not None:
                    self._writing.cancel()
                    self._writing = None
                ended = dict(self._ended)
            if not ended:
                return
            oldest = self._now().date() - datetime.timedelta(days=KEPT_DAYS)
            with self._registry.transaction() as connection:
                connection.executemany(
                    "INSERT INTO usage VALUES (?, ?, ?, 0, ?) ON CONFLICT DO UPDATE SET "
                    "cpu_seconds = cpu_seconds + excluded.cpu_seconds, jobs = jobs + excluded.jobs",
                    [(*key, seconds, jobs) for key, (seconds, jobs) in ended.items()],
                )
                connection.execute("DELETE FROM usage WHERE day < ?", (oldest.isoformat(),))
            with self._counting:
                # Counted here until now: for a moment twice rather than not at all.
                for key, (seconds, jobs) in ended.items():
                    all_seconds, all_jobs = self._ended.pop(key)
                    if all_jobs > jobs:
                        self._ended[key] = max(0.0, all_seconds - seconds), all_jobs - jobs

    def _write_behind(self) -> None:
        try:
            self.write()
        except sqlite3.Error:
            # It still counts here; the next job that ends tries again.
            logger.exception("What jobs took cannot be written down")

    def spend(self, principal: str, size: int) -> None:
        """Count bytes of the day's egress, before they leave.

        Raises
        ------
        NotPermitted
            ``quota_exceeded``.
        """
        with self._lock:
            key = (principal, self._day())
            missing = size - self._ahead[key]
            if missing > 0:
                self._ahead[key] += self._take(principal, missing)
            self._ahead[key] -= size
            if len(self._ahead) > MOST_KEPT:
                self._ahead = Counter({key: self._ahead[key]})

    def is_ahead(self, principal: str, size: int) -> bool:
        """Say whether `spend` will not have to wait for the disk."""
        return self._ahead[principal, self._day()] >= size

    def _take(self, principal: str, size: int) -> int:
        limit = int(self.section.egress_per_day)
        day = self._day()
        with self._registry.transaction() as connection:
            row = connection.execute(
                "SELECT egress FROM usage WHERE principal = ? AND day = ?", (principal, day)
            ).fetchone()
            used = 0 if row is None else int(row[0])
            taken = max(size, min(BLOCK, limit // 64, limit - used))
            if used + size > limit:
                raise self._refusal(
                    "egress_per_day", f"you would have received {used + size:,} bytes today"
                )
            connection.execute(
                "INSERT INTO usage VALUES (?, ?, 0, ?, 0) ON CONFLICT DO UPDATE SET "
                "egress = egress + excluded.egress",
                (principal, day, taken),
            )
        return taken

    def require_result(self, size: int) -> None:
        """Raise where one job releases too much."""
        if size > self.section.result_bytes:
            raise self._refusal("result_bytes", f"the job would release {size:,} bytes")

    def usage(self, principal: str) -> Usage:
        """Tell what a principal uses and may use."""
        limits = self.section
        seconds, egress, jobs = self._today(principal)
        egress -= self._ahead[principal, self._day()]
        resets = self._resets()
        return Usage(
            site=self.site,
            jobs_today=jobs,
            lines=(
                UsageLine(
                    name="concurrent_jobs",
                    used=self._jobs[principal],
                    limit=limits.concurrent_jobs,
                ),
                UsageLine(
                    name="running_tasks", used=self._tasks[principal], limit=limits.running_tasks
                ),
                UsageLine(
                    name="cpu_seconds_per_day",
                    used=seconds,
                    limit=limits.cpu_seconds_per_day,
                    resets=resets,
                ),
                UsageLine(
                    name="egress_per_day",
                    used=egress,
                    limit=int(limits.egress_per_day),
                    resets=resets,
                ),
            ),
        )

    def _today(self, principal: str) -> tuple[float, int, int]:
        # Asked for first: what is written down meanwhile counts twice rather than not at all.
        seconds, jobs = self._ended.get((principal, self._day()), (0.0, 0))
        rows = self._registry.rows(
            "SELECT cpu_seconds, egress, jobs FROM usage WHERE principal = ? AND day = ?",
            (principal, self._day()),
        )
        written = rows[0] if rows else (0.0, 0, 0)
        return float(written[0]) + seconds, int(written[1]), int(written[2]) + jobs

    def _day(self) -> str:
        return self._now().date().isoformat()

    def _resets(self) -> str:
        tomorrow = self._now().date() + datetime.timedelta(days=1)
        return f"{tomorrow.isoformat()}T00:00:00Z"

    def _refusal(self, quota: str, what: str) -> NotPermitted:
        limit = getattr(self.section, quota)
        when = (
            f"It begins anew at {self._resets()}."
            if quota.endswith("_per_day")
            else "Wait for jobs of yours to end, or ask for less at once."
        )
        return NotPermitted(
            f"Quota {quota} = {limit:,.0f}: {what}.",
            reason=Reason.QUOTA_EXCEEDED,
            site=self.site,
            hint=f"{when} fed.usage() shows what you use.",
        )
