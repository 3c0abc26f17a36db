"""The switches of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from transformers import HfArgumentParser

from ..automatic import WAYS
from ..data import FaultLog, Records
from ..data.data_options import From, ReaderOptions, option, parse_known_options
from ..data.faults import left_out
from .protocols import PROTOCOLS, Protocol
from .traces import TRACES

EVERYTHING = "everything"
FOUND = "masks.json"


@dataclass
class EvaluationOptions(ReaderOptions):
    """All switches of `examples/evaluate.py`; the help of each is what `--help` prints.

    Raises:
        ValueError: for a value out of its range, or unless one of `model`, `compare` and `from_traces` is given alone,
            or `from_traces` is not the folder of an evaluation.
    """

    model: Annotated[str | None, From("taste")] = option(
        None,
        "what to evaluate: folder or Hub id of a model of this package or of transformers, grabcut, random_walker, or "
        "module:callable for a predictor of your own",
    )
    compare: Annotated[list[str] | None, From("taste")] = option(
        None,
        "two of them instead, on the same objects with a paired test; or folders of evaluations that have been made",
    )
    from_traces: Annotated[str | None, From("taste")] = option(
        None, "folder of an evaluation, whose numbers are computed again from its traces"
    )
    dataset: Annotated[str, From("taste")] = option(
        "scenes", '"scenes" (procedural), a folder or file in a known format, or a Hub data set'
    )
    protocol: Annotated[str, From("taste")] = option(
        "sam", "who prompts; docs/evaluation.md says how", choices=[*PROTOCOLS, EVERYTHING]
    )
    prompts: Annotated[str | None, From("taste")] = option(
        None,
        "how models of this package find everything; by instances, if they have an instance decoder, and else by the "
        "grid, if not given",
        choices=list(WAYS),
    )
    num_prompts: Annotated[int | None, From("taste", 1)] = option(
        None, "prompts of each object; those of the protocol if not given"
    )
    num_draws: Annotated[int | None, From("taste", 1)] = option(
        None, "simulated users, of protocols with chance; those of the protocol if not given"
    )
    max_images: Annotated[int | None, From("taste", 1)] = option(
        None, "evenly spaced images of the split; all if not given"
    )
    max_objects: Annotated[int, From("taste", 1)] = option(16, "objects of an image, drawn by its name")
    stretch_contrast: Annotated[bool | None, From("taste")] = option(
        None, "stretch the contrast of every image; as the model was trained if not given"
    )
    max_fault_share: Annotated[float, From("taste", 0, 1)] = option(0.0, "stop when more of the images cannot be used")
    mixed_precision: Annotated[str | None, From("taste")] = option(
        None, "that of `accelerate launch` if not given", choices=["no", "bf16"]
    )
    output_dir: Annotated[str, From("taste")] = option("runs/evaluation", "folder of the results")
    seed: Annotated[int, From("taste", 0)] = option(0, "of all chance")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: getattr(self, name) for name in ("model", "compare", "from_traces") if getattr(self, name)}
        if len(given) != 1:
            raise ValueError(f"got {given or 'no model'}, expected one of --model, --compare and --from_traces.")
        if self.compare and not len(self.compare) == len(set(self.compare)) == 2:
            raise ValueError(f"--compare {' '.join(self.compare)} should be two models or folders, not the same.")
        self.output_dir = self.from_traces or self.output_dir
        file = FOUND if self.protocol == EVERYTHING else TRACES
        if self.from_traces and not (Path(self.from_traces) / file).exists():
            raise ValueError(f"--from_traces {self.from_traces} holds no {file}: give the folder of an evaluation.")

    def folders(self) -> dict[str, Path]:
        """Where the results of each model go."""
        folder = Path(self.output_dir)
        if self.compare:
            return {name: folder / f"model_{number}" for number, name in enumerate(self.compare, start=1)}
        return {self.model or self.output_dir: folder}

    def is_stored(self, name: str) -> bool:
        """Whether a name stands for an evaluation that has been made, not for a model to evaluate."""
        return self.model is None and (Path(name) / (FOUND if self.protocol == EVERYTHING else TRACES)).exists()

    @property
    def user(self) -> Protocol:
        """The protocol, with what was given in place of its numbers."""
        return PROTOCOLS[self.protocol].shortened(self.num_prompts, self.num_draws)

    def open_records(self) -> tuple[Records, FaultLog]:
        """The split to evaluate on, and the log of what cannot be used.

        Raises:
            ValueError: if it cannot be opened, or too much does not fit.
        """
        dataset, faults = self.open(self.dataset, self.eval_split), FaultLog(self.max_fault_share)
        problems = left_out(dataset)
        faults.note(problems, len(dataset))
        return dataset, faults


def parse_evaluation_options(argv: list[str] | None, description: str | None = None) -> EvaluationOptions:
    """From the command line.

    Raises:
        ValueError: for an option that is unknown or out of its range.
    """
    parser = HfArgumentParser(cast(Any, EvaluationOptions), description=description, allow_abbrev=False)
    return parse_known_options(parser, argv)


__all__ = ["EVERYTHING", "FOUND", "EvaluationOptions", "parse_evaluation_options"]
