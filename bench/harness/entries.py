"""Entries of a result, as they stand in its JSON."""

from __future__ import annotations

from typing import Any

from fastmix.app.console import first_line

Entry = dict[str, Any]


def failure(error: Exception) -> Entry:
    """In place of what was to be measured."""
    return {"error": f"{type(error).__name__}: {first_line(error)[:200]}"}


def median(entry: Entry, provider: str) -> float | None:
    """Microseconds of a provider of a case, or None where it did not run."""
    return entry["providers"].get(provider, {}).get("median_us")
