"""What a data set was taken for: reader, guesses, number of records; to be said at the start, and kept with a run."""

import hashlib
from typing import Any

__all__ = ["as_text", "describe", "differences"]


def describe(**splits: Any) -> dict[str, dict[str, Any]]:
    """For each split what is known of it.

    Args:
        splits: records by index, or a stream.

    Returns:
        by name of the split: `reader`, `root` and `guesses` (what was taken for what, by option); `records`, and as
        `fingerprint` a hash of their ids in their order. What a reader does not know is absent.
    """
    return {name: _describe_split(dataset) for name, dataset in splits.items()}


def as_text(description: dict[str, dict[str, Any]]) -> str:
    """For people: each split, then what was guessed, once."""
    lines = []
    guesses: dict[str, None] = {}
    for name, known in description.items():
        number = f"{known['records']} records" if "records" in known else "a stream"
        lines.append(f"{name}: {number}, {known['reader']} {known.get('root', '')}".rstrip())
        guesses |= {f"  {what}: {meaning}": None for what, meaning in known.get("guesses", {}).items()}
    return "\n".join([*lines, *guesses])


def differences(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    """Where these are not the same records; that they lie in another place does not matter."""
    return [
        f"{what} of {split}: {before.get(split, {}).get(what)} before, {known.get(what)} now"
        for split, known in now.items()
        for what in ("reader", "records", "fingerprint")
        if before.get(split, {}).get(what) != known.get(what)
    ]


def _describe_split(dataset: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"reader": type(dataset).__name__}
    if hasattr(dataset, "root"):
        known["root"] = str(dataset.root)
    if getattr(dataset, "guesses", None):
        known["guesses"] = dict(dataset.guesses)
    if hasattr(dataset, "__len__"):
        known["records"] = len(dataset)
    if hasattr(dataset, "ids"):
        known["fingerprint"] = hashlib.sha256("\n".join(dataset.ids).encode()).hexdigest()[:16]
    return known
