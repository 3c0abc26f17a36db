"""A run and the folder that it leaves on disk: checkpoints, evaluations, card, options, and where it ran."""

import json
import platform
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import accelerate
import torch
import transformers
from accelerate import Accelerator
from huggingface_hub import HfApi
from peft import PeftModel
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from ..data import FaultLog, Records, RecordStream
from ..data.description import as_text, describe, differences
from ..evaluation import ClickSummary, SamHfPredictor, evaluate, fit_thresholds, simulate_clicks
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from .card import build_model_card
from .checkpoints import BEST, LAST, MANIFEST, TrainingState, find_folder, replace_file, replace_folder
from .models import has_weights, save_model
from .optimization import WeightAverage
from .options import Options, command_line, options_yaml, run_options
from .process import StopSignals
from .reporting import RunLog, TrainingProgress
from .step import StepResult, find_non_finite

LIBRARIES = ("torchvision", "transformers", "accelerate", "datasets", "peft", "numpy", "pillow", "scipy")
START = "start.json"
THRESHOLDS = "automatic_masks"
CARD_TEMPLATE = Path(__file__).with_name("model_card.md")


class Run:
    """What goes on around the steps of a run. Its methods are to be called by all processes.

    Args:
        options: of the run.
        checkpoint: what the run continues, see `starting_point`; None for a new one.
        accelerator: of `start_accelerator`.
        model, processor: in training.
        optimizer: prepared.
        validation_set: records to evaluate on; faults: takes note of those that cannot be used.
        card_template: of the model card, a Jinja file; see `build_model_card`.

    Attributes:
        path: the folder.
        state: where the run stands.
    """

    def __init__(
        self,
        options: Options,
        checkpoint: Path | None,
        accelerator: Accelerator,
        model: SamHfModel | PeftModel,
        processor: SamHfProcessor,
        optimizer: torch.optim.Optimizer,
        validation_set: Records,
        faults: FaultLog,
        card_template: Path = CARD_TEMPLATE,
    ):
        self.options, self.path, self.card_template = options, Path(options.output_dir), card_template
        self.accelerator, self.model, self.processor, self.optimizer = accelerator, model, processor, optimizer
        self.validation_set, self.faults = validation_set, faults
        self.average = WeightAverage(model, options.ema_decay) if options.ema_decay else None
        self.state = TrainingState.load(checkpoint, optimizer, self.average) if checkpoint else TrainingState()
        self.grad_norm = torch.zeros(())
        self.log = RunLog(accelerator, self.path, self.state, run_options(options))
        accelerator.wait_for_everyone()  # all have read what the main one may replace now
        if accelerator.is_main_process:
            self.record()
        if self.state.step == 0:
            self.try_evaluation()
            self.evaluate_start()
        self.progress = TrainingProgress(accelerator, self.log, options.max_steps, options.log_every, self.state.step)
        if self.is_due:  # a signal or a kill came before the evaluation
            self.save(self.evaluate())

    @property
    def is_due(self) -> bool:
        """Whether an evaluation belongs here that has not been made."""
        return self.state.is_due(self.options.max_steps, self.options.eval_every)

    @property
    def is_over(self) -> bool:
        """Whether `early_stop` evaluations in a row were no better than one before."""
        return self.options.early_stop is not None and self.state.evaluations_since_best >= self.options.early_stop

    def record(self) -> None:
        """Write `options.yaml`, with the full name of the repository to push to, and `environment.json`."""
        options, accelerator = self.options, self.accelerator
        if options.push_to_hub:
            # Created before the training, which a missing login would waste.
            name = options.hub_model_id or self.path.name
            options.hub_model_id = HfApi().create_repo(name, exist_ok=True).repo_id
        replace_file(self.path / "options.yaml", options_yaml(options))
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "command": shlex.join(sys.argv),
            "commit": git_commit(Path(sys.argv[0]).parent),
            "libraries": {name: version(name) for name in LIBRARIES} | {"torch": torch.__version__},  # with CUDA's
            "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "mixed_precision": accelerator.mixed_precision,
        }
        replace_file(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def record_data(self, train_set: Records | RecordStream) -> None:
        """Say what the data was taken for, write it to `data.json`, and warn where a run goes on with other data."""
        if not self.accelerator.is_main_process:
            return
        found, path = describe(train=train_set, validation=self.validation_set), self.path / "data.json"
        print(as_text(found), flush=True)
        if self.state.step > 0 and path.exists() and (changed := differences(json.loads(path.read_text()), found)):
            warnings.warn(
                f"the run goes on with other data than it had: {'; '.join(changed)}. What it is evaluated on may have "
                "been trained on, and its numbers do not compare with those before",
                stacklevel=2,
            )
        replace_file(path, json.dumps(found, indent=2) + "\n")

    def try_evaluation(self) -> None:
        """Evaluate one image before the first step, so that what fails there fails now.

        Raises:
            ValueError: if there is no object in the validation data.
        """
        self.model.eval()
        # A log of its own: what cannot be used is counted and named when it is evaluated.
        records = FaultLog(1.0).sound(self.validation_set, range(len(self.validation_set)))
        with self.accelerator.autocast():
            traces = simulate_clicks(cast(SamHfModel, self.model), self.processor, records, num_clicks=1)
            trace = next(traces, None)
        if trace is None:
            raise ValueError(
                "no record of the validation data has an object to click on: there is no way to evaluate."
            )
        self.model.train()

    def evaluate_start(self) -> None:
        """Evaluate trained weights before their first step, on the images of the last evaluation, to `start.json`."""
        (self.path / START).unlink(missing_ok=True)  # of another run that was here
        if not has_weights(self.options.model):
            return
        summary = self.evaluate_weights(self.options.final_eval_images, show_progress=True)
        assert summary is not None, "nothing interrupts it"
        if self.accelerator.is_main_process:
            replace_file(self.path / START, json.dumps(summary.metrics(), indent=2) + "\n")
            print(f"before training: {summary.num_images} images\n{summary.table()}", flush=True)

    def evaluate_weights(self, num_images: int | None, **given: Any) -> ClickSummary | None:
        """Evaluate the model as it is; see `evaluate`."""
        self.model.eval()
        # Adapters leave the methods of the model as they are.
        predictor = SamHfPredictor(cast(SamHfModel, self.model), self.processor)
        data = self.validation_set, self.faults, num_images
        summary = evaluate(predictor, *data, accelerator=self.accelerator, **given)
        self.model.train()
        return summary

    def steps(self, windows: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
        """The batches of one step after the other, until there are no more or the run `is_over`."""
        windows = self.progress.timed(windows)
        while not self.is_over and (window := next(windows, None)):
            yield window

    def may_step(self, window: list[dict[str, Any]], result: StepResult, grad_norm: Tensor) -> bool:
        """Whether loss and gradient are finite; the same on all processes. If not, the step is counted as skipped.

        Raises:
            FloatingPointError: if more steps than `skip_nonfinite` would be left out.
        """
        self.grad_norm = grad_norm
        found = find_non_finite(self.accelerator, window, result.losses, grad_norm)
        if found is None:
            return True
        allowed, message = self.options.skip_nonfinite, f"step {self.state.step + 1}: {found}"
        self.state.skipped_steps += 1
        if self.state.skipped_steps > allowed:
            raise FloatingPointError(
                f"{message} The last checkpoint is from before; continue it with --resume and a lower "
                "--learning_rate, without mixed precision, or with --skip_nonfinite to leave some steps out."
            )
        self.accelerator.print(f"{message} Left out, {self.state.skipped_steps} of at most {allowed}.")
        return False

    def end_step(self, window: list[dict[str, Any]], result: StepResult, learning_rate: float) -> None:
        """Count a step, take its weights into the average, and report it."""
        num_images = sum(len(batch["labels"]) for batch in window) * self.accelerator.num_processes
        self.state.step += 1
        self.state.draws += num_images
        if self.average:
            self.average.update(self.state.step)
        values = result.values | {"grad_norm": self.grad_norm}
        self.progress.update(self.state.step, values, learning_rate, num_images, self.state.skipped_steps)

    def keep(self, stop: StopSignals) -> None:
        """Evaluate and save where that is due; after a signal save, and leave with the status that it asks for.

        A signal during an evaluation ends that, which is made when the run is resumed.
        """
        signal, save_every = stop.agreed(self.accelerator), self.options.save_every
        if signal or self.is_due or (save_every and self.state.step % save_every == 0):
            self.save()  # before an evaluation, which takes a while, and may fail
        if self.is_due and not signal:
            summary = self.evaluate(lambda: stop.received is not None)
            if summary is not None:
                self.save(summary)
            signal = stop.agreed(self.accelerator)
        if signal:
            self.progress.write(f"signal {signal}: saved after step {self.state.step}, go on with --resume")
            self.accelerator.wait_for_everyone()  # torchrun ends all when one has ended
            sys.exit(128 + signal)

    def evaluate(self, is_interrupted: Callable[[], bool] = lambda: False) -> ClickSummary | None:
        """Evaluate the weights of now, or their average, on `eval_images` images; report it, if not interrupted."""
        with self.average.applied() if self.average else nullcontext():
            summary = self.evaluate_weights(self.options.eval_images, is_interrupted=is_interrupted)
        if summary is not None:
            self.log.evaluation(summary, self.state.step)
        return summary

    def save(self, summary: ClickSummary | None = None) -> None:
        """Write `last`, and `best` if it is; `summary` is an evaluation of just these weights."""
        is_best = summary is not None and self.state.take_score(summary.score)
        if self.accelerator.is_main_process:
            self.write((BEST, LAST) if is_best else (LAST,), summary)

    def write(self, names: Sequence[str], summary: ClickSummary | None) -> None:
        """Write the folders `best` and `last`, or one of them."""
        with self.average.applied() if self.average else nullcontext() as trained:
            for name in names:
                keep = self.options.keep_checkpoints if name == LAST else 0
                with replace_folder(self.path / name, self.state.step, keep, self.num_bytes(name)) as folder:
                    saved = save_model(self.model, folder)
                    self.processor.save_pretrained(folder)
                    if summary is not None:
                        self.report(folder, saved, self.processor, summary, self.state.step)
                    if name == LAST:
                        self.state.save(folder, self.optimizer, trained)

    def num_bytes(self, name: str) -> int:
        """What `last` or `best` takes on the disk, but for small files."""
        written = [self.model.state_dict()]
        if name == LAST:
            written += [self.average.averages] if self.average else []
            written += self.optimizer.state_dict()["state"].values()
        return sum(part.nbytes for values in written for part in values.values() if isinstance(part, Tensor))

    def finish(self) -> None:
        """Draw the curves, evaluate `best` on `final_eval_images` images, and push it if that was asked for."""
        self.progress.close()
        self.accelerator.wait_for_everyone()  # `best` is complete
        summary = self.evaluate_best()
        if self.accelerator.is_main_process:
            self.log.plot()
            num_objects = len(summary.iou)
            print(f"{self.path / BEST}: {num_objects} objects in {summary.num_images} images\n{summary.table()}")
            if self.options.push_to_hub:
                push(self.path / BEST, self.options.hub_model_id or self.path.name)
        self.accelerator.end_training()

    def evaluate_best(self) -> ClickSummary:
        """Evaluate `best` on all processes.

        Raises:
            ValueError: if it is missing or damaged.
        """
        best = find_folder(self.path / BEST)
        if best is None:
            raise ValueError(f"there is no intact {self.path / BEST} to evaluate; `last` holds the newest weights.")
        model = AutoModel.from_pretrained(best).to(self.accelerator.device)
        processor = AutoProcessor.from_pretrained(best)
        given = self.validation_set, self.faults, self.options.final_eval_images
        summary = evaluate(SamHfPredictor(model, processor), *given, accelerator=self.accelerator)
        assert summary is not None, "nothing interrupts it"
        if self.accelerator.is_main_process:
            self.replace_best(best, model, processor, summary)
        return summary

    def replace_best(self, best: Path, model: SamHfModel, processor: SamHfProcessor, summary: ClickSummary) -> None:
        """Put the last evaluation of `best` in place of that on the way, and thresholds that suit it."""
        written = json.loads((best / "metrics.json").read_text())
        # Once: a run that is finished again keeps them.
        fitted = written.get(THRESHOLDS) or self.fit_thresholds(model, processor)
        with replace_folder(self.path / BEST, written["step"], num_bytes=self.num_bytes(BEST)) as folder:
            shutil.copytree(best, folder, dirs_exist_ok=True)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            self.report(folder, model, processor, summary, written["step"], fitted)

    def fit_thresholds(self, model: SamHfModel, processor: SamHfProcessor) -> dict[str, Any] | None:
        """Fit thresholds of automatic masks, and a temperature of predicted IoU, in place, to validation images."""
        count = self.options.threshold_images
        if not count:
            return None
        print(f"thresholds of automatic masks from at most {count} validation images", flush=True)
        return asdict(fit_thresholds(model, processor, self.validation_set, num_images=count, show_progress=True))

    def report(
        self,
        folder: Path,
        model: SamHfModel,
        processor: SamHfProcessor,
        summary: ClickSummary,
        step: int,
        thresholds: dict[str, Any] | None = None,
    ) -> None:
        """Write `metrics.json`, `predictions.png` and the model card."""
        options = self.options
        image_size = processor.image_processor.size["longest_edge"]
        dataset = Path(options.dataset).name
        metrics = {"dataset": dataset, "split": options.eval_split, "step": step, **summary.metrics()}
        metrics |= {THRESHOLDS: thresholds} if thresholds else {}
        before = self.measured_before(summary)
        metrics |= {"iou_per_click_before": before} if before else {}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        summary.picture().save(folder / "predictions.png")
        card = build_model_card(
            self.card_template,
            model_name=(options.hub_model_id or self.path.name).split("/")[-1],
            model_id=options.hub_model_id or f"{options.output_dir}/{BEST}",
            dataset_name=dataset,
            dataset_split=options.eval_split,
            license=options.license,
            iou_per_click=summary.iou_per_click,
            num_parameters=model.num_parameters(),
            num_images=summary.num_images,
            num_objects=len(summary.iou),
            table=summary.table(before),
            thresholds=thresholds,
            step=step,
            command=command_line(options),
            options=options_yaml(options).strip(),
            rounds=options.num_rounds,
            image_size=image_size,
            tile_size=options.tile_size,
            grid_size=f"{4 * image_size // model.config.vision_config.stride}²",
            software=", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, accelerate)),
        )
        card.save(folder / "README.md")

    def measured_before(self, summary: ClickSummary) -> list[float] | None:
        """Mean IoU per click before training, if it was of the same objects."""
        start = self.path / START
        before = json.loads(start.read_text()) if start.exists() else {}
        same = all(before.get(name) == value for name, value in summary.metrics().items() if name.startswith("num_"))
        return before["iou_per_click"] if same else None


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out in the repository of a folder, and "-dirty" if files differ; None without."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def push(folder: Path, repo_id: str) -> None:
    """Upload a copy of the folder that carries the code, so that it loads where `sam_hf` is not installed."""
    with TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        (Path(copy) / MANIFEST).unlink(missing_ok=True)
        for part in (AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)):
            part.save_pretrained(copy, include_code=True)
        print(f"pushed to {HfApi().upload_folder(repo_id=repo_id, folder_path=copy)}")


__all__ = ["Run", "push"]
