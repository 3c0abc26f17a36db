"""The model card of a run, from its template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

TASK = "mask-generation"


def build_model_card(
    template: str | Path,
    *,
    model_name: str,
    dataset_name: str,
    license: str,
    iou_per_click: Sequence[float],
    dataset_split: str = "validation",
    **fields: Any,
) -> ModelCard:
    """Fill a Jinja template, metadata included.

    Args:
        template: file such as `model_card.md` of the repository; metadata goes where it says `{{ card_data }}`.
        model_name: heading of the card.
        dataset_name: what `iou_per_click` was measured on.
        license: identifier of the Hub, such as "apache-2.0".
        iou_per_click: mean IoU after 1, 2, ... clicks; become the `model-index` of the metadata.
        dataset_split: the split of it.
        fields: what else the template asks for.
    """
    data = ModelCardData(
        model_name=model_name,
        library_name="transformers",
        pipeline_tag=TASK,
        license=license,
        tags=["sam_hf", "segment-anything", "interactive-segmentation"],
        eval_results=_eval_results(dataset_name, dataset_split, iou_per_click),
    )
    return ModelCard.from_template(
        data,
        template_path=str(template),
        model_name=model_name,
        dataset_name=dataset_name,
        **fields,
    )


def _eval_results(dataset_name: str, dataset_split: str, iou_per_click: Sequence[float]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=dataset_name,
            dataset_name=dataset_name,
            dataset_split=dataset_split,
            metric_type=f"mean_iou_{count}",
            metric_name=f"mean IoU after {count} click{'s' if count > 1 else ''}",
            metric_value=round(value, 4),
        )
        for count, value in enumerate(iou_per_click, start=1)
    ]


__all__ = ["build_model_card"]
