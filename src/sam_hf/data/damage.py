"""Files of others can be wrong in more ways than anyone lists: whatever is raised becomes an error that names them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["fault_of", "refusing_damage"]


def fault_of(error: Exception) -> str:
    """What is wrong, for people; with the kind of error where that is of Python, such as a key that is absent."""
    return str(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"


@contextmanager
def refusing_damage(file: Path | str) -> Iterator[None]:
    """Make a ValueError that names the file of whatever reading it raises, but of an OSError that names one itself."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        what = fault_of(error)
        raise ValueError(what if str(file) in what else f"{file}: {what}") from error
