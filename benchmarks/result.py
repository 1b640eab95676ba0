"""One line of a benchmark's table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    what: str
    value: float
    unit: str = ""
    target: float | None = None
    """Largest value that meets the target."""

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.value <= self.target

    @property
    def value_text(self) -> str:
        return (
            f"{self.value:,.3g}{self.unit}"
            if self.value < 1000
            else f"{self.value:,.0f}{self.unit}"
        )

    @property
    def target_text(self) -> str:
        return "" if self.target is None else f"≤ {self.target:g}{self.unit}"
