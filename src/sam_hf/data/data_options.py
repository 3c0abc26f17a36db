"""The switches of a data set: how its files are read, for a run and for `python -m sam_hf.data` alike."""

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple, get_type_hints

from transformers import HfArgumentParser

from .catalog import open_dataset, stream_dataset
from .faults import FaultLog, left_out
from .overlap import refuse_shared
from .schema import Records
from .splits import split_aliases
from .stream import RecordStream

__all__ = [
    "DataOptions",
    "From",
    "ReaderOptions",
    "check_range",
    "option",
    "origins",
    "parse_known_options",
    "refuse_one_split",
]


class From(NamedTuple):
    """Where a default is from: "paper", "measured" (docs/training.md, docs/log.md) or "taste"; and its range."""

    source: str
    low: float | None = None
    high: float | None = None


def option(default: Any, description: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": description, **metadata})


def parse_known_options(parser: HfArgumentParser, words: list[str] | None) -> Any:
    """The dataclass of a parser that has one, from a command line.

    Raises:
        ValueError: for a word that is no option, with the option that is most like it.
    """
    options, unknown = parser.parse_args_into_dataclasses(
        words, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        similar = get_close_matches(unknown[0].split("=")[0], known, n=1)
        raise ValueError(
            f"{unknown[0]} is no option. " + (f"Did you mean {similar[0]}?" if similar else "See --help.")
        )
    return options


@dataclass
class ReaderOptions:
    """How files are read: what `open_dataset` takes, under the same names.

    Raises:
        ValueError: for a value out of its range.
    """

    train_split: Annotated[str, From("taste")] = option("train", "name of the split that is trained on")
    eval_split: Annotated[str, From("taste")] = option(
        "validation", "name of the split that is evaluated on, such as test"
    )
    images: Annotated[str | None, From("taste")] = option(
        None, "folder of the images, where they are not beside their masks or annotations"
    )
    layout: Annotated[str | None, From("taste")] = option(
        None, "name of the layout of images and masks, where several fit: see docs/data.md"
    )
    masks: Annotated[str | None, From("taste")] = option(
        None,
        "what the values of masks mean: a number for each object (labels), or one object each, from the middle of the "
        "range up (binary); told by the values if not given",
        choices=["labels", "binary"],
    )
    background: Annotated[int | None, From("taste", -1)] = option(
        None, "the label that is no object in label maps; 0 if not given, and -1 where every label is an object"
    )
    ignore_label: Annotated[int | None, From("taste", 0)] = option(
        None, "the label of a region to ignore, such as 255, which says that masks are label maps"
    )
    crowd_as_objects: Annotated[bool, From("taste")] = option(
        False, "take what COCO files mark by `iscrowd` or `ignore` for objects"
    )
    take_stuff: Annotated[bool, From("taste")] = option(False, "take what COCO panoptic files call stuff for objects")
    exif: Annotated[str | None, From("taste")] = option(
        None,
        "masks are made for images as their EXIF orientation shows them, or as they are stored; told by sizes if not "
        "given",
        choices=["shown", "stored"],
    )
    image_column: Annotated[str | None, From("taste")] = option(None, "of a table with several columns of images")
    mask_column: Annotated[str | None, From("taste")] = option(None, "of a table with several columns of images")
    min_area: Annotated[int, From("taste", 0)] = option(10, "leave out objects of fewer pixels")
    max_area: Annotated[int | None, From("taste", 1)] = option(None, "leave out objects of more pixels")
    min_share: Annotated[float, From("taste", 0, 1)] = option(0.0, "leave out objects below this share of the image")
    max_share: Annotated[float, From("paper: SAM, appendix A", 1e-6, 1)] = option(
        0.9, "leave out objects above this share of the image"
    )
    split_regions: Annotated[bool, From("taste")] = option(
        False, "make unconnected pieces of an object objects of their own"
    )

    def __post_init__(self) -> None:
        for name, origin in origins(type(self)).items():
            check_range(name, getattr(self, name), origin)

    def given(self) -> dict[str, Any]:
        """Keyword arguments of `open_dataset`: no more than is said, as not every reader has all."""
        names = (item.name for item in fields(ReaderOptions) if item.name not in ("train_split", "eval_split"))
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    def open(self, source: str, split: str | None) -> Records:
        """One split of a data set; files that do not fit together are left out and listed in `problems`.

        Raises:
            ValueError: if it cannot be opened, or has no such option.
        """
        if source != "scenes":
            return open_dataset(source, split, strict=False, **self.given())
        defaults = {item.name: item.default for item in fields(self)}
        changed = [f"--{name} {value}" for name, value in self.given().items() if value != defaults[name]]
        if changed:
            raise ValueError(
                f"scenes take no {', '.join(changed)}: they have exact masks of at least 64 pixels, and nothing to be "
                "read otherwise. Leave it out, or `python -m sam_hf.data convert scenes FOLDER`, and open that"
            )
        return open_dataset(source, split)


@dataclass
class DataOptions(ReaderOptions):
    """The data of a run, and how much of it may be damaged."""

    dataset: Annotated[str, From("taste")] = option(
        "scenes", '"scenes" (procedural), a folder or file in a known format, or a Hub data set'
    )
    streaming: Annotated[bool, From("taste")] = option(
        False, "read tar files of SA-1B, Parquet or a Hub data set in order, without listing it"
    )
    max_fault_share: Annotated[float, From("taste", 0, 1)] = option(
        0.2, "stop when more of the records cannot be used; others stand for fewer"
    )

    def open_data(self, num_evaluated: int) -> tuple[Records | RecordStream, Records, FaultLog]:
        """The data of training and of validation, and the log of what cannot be used.

        Files that do not fit together are left out and noted.

        Args:
            num_evaluated: records of the validation data, if it is streamed.

        Raises:
            ValueError: if too many do not fit, the data cannot be opened, or validation images are training images.
        """
        names = self.train_split, self.eval_split
        refuse_one_split(*names)
        faults = FaultLog(self.max_fault_share)
        if self.streaming:
            if self.dataset == "scenes":
                raise ValueError("scenes are painted, not read, so that --streaming is for nothing: leave it out")
            stream, validation_stream = (stream_dataset(self.dataset, name, **self.given()) for name in names)
            return stream, validation_stream.first(num_evaluated), faults
        train, validation = (self.open(self.dataset, name) for name in names)
        opening = FaultLog(self.max_fault_share)  # of its own, as nothing has been read yet
        refuse_shared(train, validation)
        share_frame(train, validation)
        opening.note(left_out(train, validation), len(train) + len(validation))
        return train, validation, faults


def refuse_one_split(train: str, validation: str) -> None:
    """
    Raises:
        ValueError: if both names are those of one split.
    """
    if split_aliases(train) == split_aliases(validation):
        raise ValueError(
            f"--train_split {train} and --eval_split {validation} are one split, so the evaluation would be on "
            "training images: name two"
        )


def share_frame(*datasets: Any) -> None:
    """Take the EXIF frame that one split proves for another, whose own images prove none.

    Raises:
        ValueError: if splits prove different ones.
    """
    told = {dataset.exif: dataset for dataset in datasets if getattr(dataset, "exif", None)}
    if len(told) > 1:
        roots = ", ".join(f"{frame} in {dataset.root}" for frame, dataset in told.items())
        raise ValueError(
            f"splits contradict each other in the frame that masks are made for: {roots}. Turn the files upright, "
            "with their masks, or say --exif shown or --exif stored"
        )
    for frame in told:
        for dataset in datasets:
            if getattr(dataset, "exif", None) is None and "exif" in getattr(dataset, "guesses", {}):
                dataset.exif = frame
                dataset.guesses["exif"] = f"{frame}, as another split tells"


def origins(cls: type[ReaderOptions]) -> dict[str, From]:
    """Range and source of every option."""
    hints = get_type_hints(cls, include_extras=True)
    parts = {item.name: getattr(hints[item.name], "__metadata__", ()) for item in fields(cls)}
    return {name: next((part for part in found if isinstance(part, From)), From("")) for name, found in parts.items()}


def check_range(name: str, value: Any, origin: From) -> None:
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if origin.low is not None and not number >= origin.low:
            raise ValueError(f"--{name} {number} should be at least {origin.low}.")
        if origin.high is not None and not number <= origin.high:
            raise ValueError(f"--{name} {number} should be at most {origin.high}.")
