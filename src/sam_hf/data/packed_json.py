"""Many small JSON values in one block of memory."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["PackedJson"]


class PackedJson:
    """A sequence of JSON values as text in one array, each parsed when it is asked for.

    Millions of annotations as Python objects take many times the memory, are slow to send to worker processes, and
    forked workers copy them page by page as they count references.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        texts = [json.dumps(value, separators=(",", ":")).encode() for value in values]
        self._ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        self._text = np.frombuffer(b"".join(texts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return json.loads(self._text[start : self._ends[index]].tobytes())
