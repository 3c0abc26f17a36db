"""What a run leaves on disk: its options, where it ran, checkpoints and reports."""

import json
import platform
import shutil
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import accelerate
import torch
import transformers
from accelerate import Accelerator
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import AutoModel, AutoProcessor

from ..data import FaultLog
from ..evaluation import ClickSummary
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from .adapters import save_model
from .checkpoints import BEST, LAST, find_folder, replace_file, replace_folder, starting_point
from .ema import WeightAverage
from .model_card import build_model_card
from .options import Options, command_line, options_yaml
from .publishing import create_repository
from .state import TrainingState
from .validation import evaluate

LIBRARIES = ("torchvision", "transformers", "accelerate", "datasets", "peft", "numpy", "pillow", "scipy")


class RunFolder:
    """The folder of a run.

    Args:
        options: of the run.
        card_template: of the model card, see `build_model_card`.

    Attributes:
        checkpoint: what the run starts from; None for a new one.

    Raises:
        ValueError: see `starting_point`.
    """

    def __init__(self, options: Options, card_template: Path):
        self.path = Path(options.output_dir)
        self.options, self.card_template = options, card_template
        self.checkpoint = starting_point(self.path, options.resume)

    def record(self, accelerator: Accelerator) -> None:
        """Write `options.yaml`, with the full name of the repository to push to, and `environment.json`."""
        options = self.options
        if options.push_to_hub:
            # Created before the training, which a missing login would waste.
            options.hub_model_id = create_repository(options.hub_model_id or self.path.name)
        replace_file(self.path / "options.yaml", options_yaml(options))
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "libraries": {name: version(name) for name in LIBRARIES} | {"torch": torch.__version__},  # with CUDA's
            "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "mixed_precision": accelerator.mixed_precision,
        }
        replace_file(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def save(
        self,
        model: SamHfModel | PeftModel,
        processor: SamHfProcessor,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        average: WeightAverage | None,
        summary: ClickSummary | None = None,
    ) -> None:
        """Write `last`, and `best` if it is; `summary` is an evaluation of just these weights."""
        is_best = False
        if summary is not None:
            if not (self.path / LAST).exists():
                # A process that is killed in what follows would leave `best` alone, which cannot be resumed.
                self.save(model, processor, optimizer, state, average)
            is_best = summary.score > state.best_score
            state.best_score = max(summary.score, state.best_score)
            state.evaluated_step = state.step
        with average.applied() if average else nullcontext() as trained:
            for name in (BEST, LAST) if is_best else (LAST,):
                keep = self.options.keep_checkpoints if name == LAST else 0
                with replace_folder(self.path / name, state.step, keep) as folder:
                    saved = save_model(model, folder)
                    processor.save_pretrained(folder)
                    if summary is not None:
                        self.report(folder, saved, processor, summary, state.step)
                    if name == LAST:
                        state.save(folder, optimizer, trained)

    def evaluate_best(self, dataset: Dataset, faults: FaultLog, device: torch.device) -> ClickSummary:
        """Evaluate `best` on `final_eval_images` images, and put the result in place of that on the way.

        Raises:
            ValueError: if it is missing or damaged.
        """
        best = find_folder(self.path / BEST)
        if best is None:
            raise ValueError(f"there is no intact {self.path / BEST} to evaluate; `last` holds the newest weights.")
        model, processor = AutoModel.from_pretrained(best).to(device), AutoProcessor.from_pretrained(best)
        summary = evaluate(model, processor, dataset, faults, self.options.final_eval_images)
        step = json.loads((best / "metrics.json").read_text())["step"]
        with replace_folder(self.path / BEST, step) as folder:
            shutil.copytree(best, folder, dirs_exist_ok=True)
            self.report(folder, model, processor, summary, step)
        return summary

    def report(
        self, folder: Path, model: SamHfModel, processor: SamHfProcessor, summary: ClickSummary, step: int
    ) -> None:
        """Write `metrics.json`, `predictions.png` and the model card."""
        options = self.options
        image_size = processor.image_processor.size["longest_edge"]
        metrics = {"dataset": Path(options.dataset).name, "split": "validation", "step": step, **summary.metrics()}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        summary.picture().save(folder / "predictions.png")
        card = build_model_card(
            self.card_template,
            model_name=(options.hub_model_id or self.path.name).split("/")[-1],
            model_id=options.hub_model_id or f"{options.output_dir}/{BEST}",
            dataset_name=metrics["dataset"],
            license=options.license,
            iou_per_click=summary.iou_per_click,
            num_parameters=model.num_parameters(),
            num_images=summary.num_images,
            num_objects=len(summary.iou),
            table=summary.table(),
            step=step,
            command=command_line(options),
            options=options_yaml(options).strip(),
            rounds=options.num_rounds,
            image_size=image_size,
            grid_size=f"{4 * image_size // model.config.vision_config.patch_size}²",
            software=", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, accelerate)),
        )
        card.save(folder / "README.md")


__all__ = ["RunFolder"]
