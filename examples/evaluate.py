"""Find out how good a model is that answers clicks and boxes, whoever made it.

    accelerate launch examples/evaluate.py --model runs/mine/best --dataset my/folder
    accelerate launch examples/evaluate.py --model facebook/sam2.1-hiera-tiny --dataset my/folder --protocol people
    accelerate launch examples/evaluate.py --compare facebook/sam-vit-base runs/mine/best --dataset my/folder

Plain `python examples/evaluate.py` works as well. The output folder then holds

- `report.md`: tables, as they are printed; `numbers.json`: all numbers;
- `curves.png`: mean IoU after each prompt; `cases.png`: the best, middle and worst objects;
- `traces.parquet`: every prompt, mask and time, from which `--from_traces FOLDER` computes all numbers again.

With `--protocol everything` it finds all masks of every image without prompts, and compares them with the objects.
`docs/evaluation.md` says what the numbers mean, and how to evaluate a model of your own.
"""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from sam_hf.evaluation import (
    EVERYTHING,
    TRACES,
    ClickSummary,
    EvaluationOptions,
    Protocol,
    comparison_table,
    draw_cases,
    evaluate,
    evaluation_numbers,
    load_traces,
    names_of,
    open_predictor,
    parse_evaluation_options,
    report_everything,
    save_traces,
    write_report,
)
from sam_hf.training import share_cores


def main(argv: list[str] | None = None) -> None:
    options = parse_evaluation_options(argv, __doc__)
    transformers.logging.disable_progress_bar()  # that of loading
    # The others wait while the main one writes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=3))
    accelerator = Accelerator(mixed_precision=options.mixed_precision, kwargs_handlers=[patience])
    share_cores()
    if options.protocol == EVERYTHING:
        report_everything(options, accelerator)
        return
    found = {name: summary_of(name, folder, options, accelerator) for name, folder in options.folders().items()}
    if not accelerator.is_main_process:
        return
    abouts = {name: about for name, (_, about) in found.items()}
    protocols = list(dict.fromkeys(Protocol(**about["protocol"]) for about in abouts.values()))
    if len(protocols) > 1:
        told = " and ".join(map(str, protocols))
        raise ValueError(f"{' and '.join(found)} were evaluated by different protocols: {told}.")
    (protocol,), settings = protocols, next(iter(abouts.values()))
    names = names_of({name: about["model"] for name, about in abouts.items()})
    compared = {names[name]: summary for name, (summary, _) in found.items()}
    results = {name: evaluation_numbers(summary, protocol) for name, summary in compared.items()}
    text = comparison_table(compared, protocol) if len(compared) == 2 else ""
    print(write_report(Path(options.output_dir), results, protocol, settings, text))


def summary_of(
    name: str, folder: Path, options: EvaluationOptions, accelerator: Accelerator
) -> tuple[ClickSummary, dict[str, Any]]:
    """Evaluate a model, or load the traces of an evaluation, and the settings that it was made with."""
    if options.is_stored(name):
        return load_traces(Path(name) / TRACES)
    settings = asdict(options) | {"model": name, "protocol": asdict(options.user)}
    dataset, faults = options.open_records()
    predictor = open_predictor(name, accelerator.device)
    summary = evaluate(
        predictor,
        dataset,
        faults,
        options.max_images,
        accelerator=accelerator,
        protocol=options.user,
        max_objects=options.max_objects,
        seed=options.seed,
        stretch_contrast=options.stretch_contrast,
        show_progress=True,
    )
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_traces(folder / TRACES, summary, settings)
        stretch = predictor.stretch_contrast if options.stretch_contrast is None else options.stretch_contrast
        draw_cases(summary, dataset, stretch_contrast=stretch).save(folder / "cases.png")
    return summary, settings


if __name__ == "__main__":
    main()
