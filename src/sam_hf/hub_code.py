"""Saved folders that carry the code of their classes, for those who do not have the package.

transformers copies the files of a class whose `_auto_class` is set, and its Auto classes find the class to load in
`auto_map`. It sets the first for good, and fills the second for one Auto class only; here both hold for one call, and
for every Auto class.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class CarriesCode:
    """Adds the option `include_code` to `save_pretrained` and `push_to_hub`; goes before the class of transformers."""

    auto_classes: ClassVar[tuple[str, ...]] = ()

    def auto_references(self) -> dict[str, str]:
        """Which class each Auto class loads."""
        return {name: class_reference(type(self)) for name in self.auto_classes}

    def parts_with_code(self) -> list[Any]:
        """What is saved by one call, this object last."""
        return [self]

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, include_code: bool | None = None, **kwargs: Any
    ) -> Any:
        """Save as the method of the base class does, with or without the code.

        Args:
            include_code: True copies the source files, so that the Auto classes and `pipeline` load the folder with
                `trust_remote_code=True` where `sam_hf` is not installed. False does not: they need `import sam_hf`.
                None keeps what was loaded: code if the class itself came with `trust_remote_code=True`.
        """
        with code_included(self.parts_with_code(), include_code):
            return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]  # see the class

    def push_to_hub(self, repo_id: str, *args: Any, include_code: bool | None = None, **kwargs: Any) -> Any:
        """Upload as the method of the base class does; `include_code` as in `save_pretrained`."""
        with code_included(self.parts_with_code(), include_code):
            return super().push_to_hub(repo_id, *args, **kwargs)  # type: ignore[misc]  # see the class


@contextmanager
def code_included(parts: list[Any], include_code: bool | None) -> Iterator[None]:
    """Let transformers write the code and the `auto_map` of all parts (True), or neither; restored on leaving."""
    # By name, not by type: classes loaded with trust_remote_code have their own copy of this file.
    parts = [part for part in parts if getattr(part, "auto_classes", ())]
    include_code = parts[-1]._auto_class is not None if include_code is None else include_code
    auto_map = {name: reference for part in parts for name, reference in part.auto_references().items()}
    saved = [(part, type(part)._auto_class, vars(part).pop("auto_map", None)) for part in parts]
    try:
        for part, _, outer_map in saved:
            type(part)._auto_class = part.auto_classes[0] if include_code else None
            if include_code:
                # A model saves its config by a call of its own, which must not lose what the model has put there.
                part.auto_map = (outer_map or {}) | auto_map
        yield
    finally:
        for part, auto_class, outer_map in saved:
            type(part)._auto_class = auto_class
            vars(part).pop("auto_map", None)
            if outer_map is not None:
                part.auto_map = outer_map


def class_reference(cls: type) -> str:
    """How `auto_map` names a class: its file without folder and ending, and its name."""
    return f"{cls.__module__.rpartition('.')[-1]}.{cls.__name__}"


__all__ = ["CarriesCode", "class_reference"]
