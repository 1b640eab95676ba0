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
    at_least: bool = False
    """The target is the smallest value that meets it."""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    @property
    def value_text(self) -> str:
        return (
            f"{self.value:,.3g}{self.unit}"
            if self.value < 1000
            else f"{self.value:,.0f}{self.unit}"
        )

    @property
    def target_text(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return "" if self.target is None else f"{sign} {self.target:g}{self.unit}"
