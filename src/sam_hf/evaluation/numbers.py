"""All numbers of an evaluation, from its traces alone, and as tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .intervals import bootstrap
from .markdown import markdown_table
from .metrics import BoundaryIou, ClickIou, IouCalibration, ObjectScore
from .metrics.click_numbers import TARGETS
from .protocols import Protocol
from .summary import ClickSummary

PERCENT = [f"{100 * target:g}" for target in TARGETS]  # as the metric names them


def evaluation_numbers(summary: ClickSummary, protocol: Protocol) -> dict[str, Any]:
    """What `ClickSummary` holds, by the metrics of `evaluate` in `evaluation/metrics`.

    Returns:
        - `mean`, `low`, `high`: mean IoU after 1, 2, ... prompts, and its interval of 95 % (`bootstrap`); `spread`:
          its standard deviation over the users of the protocol, if there are several.
        - `clicks`: of `ClickIou`: clicks to a target, failures, drops. A box counts as a click.
        - `boundary`: mean boundary IoU by the number of prompts that the protocol reports.
        - `oracle`: mean IoU after the first prompt if the best of all candidates were the answer.
        - `calibration`: of `IouCalibration`, over all prompts; `object_score`: of `ObjectScore`. None without.
        - `seconds`: medians: `encode` an image, `decode` a prompt of all objects of an image, and `decode_object`,
          that over the number of objects. Reading and comparing are not in it.
        - `num_images`, `num_objects`, `num_draws`.
    """
    traces = summary.traces
    num_draws = 1 + max(trace.draw for trace in traces)
    draws = [np.concatenate([trace.iou for trace in traces if trace.draw == draw]) for draw in range(num_draws)]
    mean, low, high = bootstrap(_per_image(summary))
    numbers: dict[str, Any] = {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}
    if num_draws > 1:
        numbers["spread"] = np.std([iou.mean(axis=0) for iou in draws], axis=0, ddof=1).tolist()
    return numbers | {
        "clicks": ClickIou(keep_in_memory=True).compute(
            predictions=np.round(summary.iou.astype(np.float64), 6)
        ),  # 0.9 is 0.9
        "boundary": {str(count): boundary_iou(summary, count) for count in protocol.reported},
        "oracle": float(np.concatenate([trace.oracle_iou for trace in traces]).mean(dtype=np.float64)),
        "calibration": calibration(summary),
        "object_score": object_scores(summary),
        "seconds": seconds(summary),
        "num_images": summary.num_images,
        "num_objects": len(draws[0]),
        "num_draws": num_draws,
    }


def _per_image(summary: ClickSummary) -> list[np.ndarray]:
    """IoU [N, P] of each image, of all of its users."""
    found: list[np.ndarray] = []
    for trace in summary.traces:
        if trace.draw == 0:
            found.append(trace.iou)
        else:
            found[-1] = np.concatenate([found[-1], trace.iou])
    return found


def boundary_iou(summary: ClickSummary, count: int) -> float:
    """Mean over objects after so many prompts."""
    metric = BoundaryIou(keep_in_memory=True)
    for trace in summary.traces:
        given = {} if trace.ignored is None else {"valid": trace.valid}
        metric.add_batch(predictions=trace.answers[count - 1], references=trace.objects, **given)
    return computed(metric)["boundary_iou"]


def computed(metric: Any) -> dict[str, Any]:
    """What a metric that no other process shares comes to."""
    result = metric.compute()
    assert result is not None, "only processes besides the first one get none"
    return result


def calibration(summary: ClickSummary) -> dict[str, Any] | None:
    """Of the answers to all prompts; None where the model does not predict their IoU."""
    predicted = np.concatenate([trace.predicted_iou for trace in summary.traces]).ravel()
    if np.isnan(predicted).any():
        return None
    return IouCalibration(keep_in_memory=True).compute(predictions=predicted, references=summary.iou.ravel())


def object_scores(summary: ClickSummary) -> dict[str, Any] | None:
    """Of first prompts on objects, and on images without; None for a model without object score."""
    scores = np.concatenate([trace.object_scores for trace in summary.traces])
    if np.isnan(scores).any():
        return None
    classes = np.repeat([1, 0], [len(scores), len(summary.negatives)])
    metric = ObjectScore(keep_in_memory=True)
    return metric.compute(predictions=np.concatenate([scores, summary.negatives]), references=classes)


def seconds(summary: ClickSummary) -> dict[str, float]:
    """Medians over images and prompts."""
    traces = summary.traces
    decode = np.array([trace.decode_seconds for trace in traces])
    objects = np.array([len(trace.objects) for trace in traces])[:, None]
    return {
        "encode": float(np.median([trace.encode_seconds for trace in traces if trace.draw == 0])),
        "decode": float(np.median(decode)),
        "decode_object": float(np.median(decode / objects)),
    }


def tables(results: Mapping[str, Mapping[str, Any]], protocol: Protocol) -> str:
    """Markdown of the numbers of one or several models, by their names."""
    counts = protocol.reported
    several = any("spread" in numbers for numbers in results.values())
    prompts = "prompts" if protocol.first != "click" else "clicks"
    head = [f"IoU after {count} {prompts}" if place == 0 else str(count) for place, count in enumerate(counts)]
    quality, boundary, clicks, other = [], [], [], []
    for name, numbers in results.items():
        means = [_with_margin(numbers, count - 1, several) for count in counts]
        quality.append([name, *means, f"{numbers['oracle']:.3f}"])
        boundary.append([name, *(f"{numbers['boundary'][str(count)]:.3f}" for count in counts)])
        found = numbers["clicks"]
        reached = [
            f"{found[f'noc_{target}']:.2f} ({100 * found[f'failure_rate_{target}']:.0f} %)" for target in PERCENT
        ]
        falls = f"{100 * found['drop_rate']:.0f} %, {found['mean_drop']:.3f}" if protocol.num_prompts > 1 else "-"
        clicks.append([name, *reached, falls])
        other.append([name, *_other(numbers)])
    limit = protocol.num_prompts
    margin = "± over users" if several else "with the interval of 95 % over images"
    return "\n\n".join(
        [
            markdown_table([["model", *head, "best candidate, 1"], *quality]) + f"\n\n{margin}.",
            markdown_table([["model", *(text.replace("IoU", "boundary IoU") for text in head)], *boundary]),
            markdown_table([["model", *(f"NoC@{target}" for target in PERCENT), "IoU falls, by"], *clicks])
            + f"\n\nNoC: {prompts} to that IoU in %, {limit} where it is never reached; in brackets their share.",
            markdown_table([["model", "error of predicted IoU", "correlation", "AUROC of objects", *SECONDS], *other]),
        ]
    )


SECONDS = ("encoder, ms an image", "decoder, ms a prompt", "decoder, ms an object")


def _with_margin(numbers: Mapping[str, Any], place: int, several: bool) -> str:
    mean = f"{numbers['mean'][place]:.3f}"
    if several:
        return f"{mean} ± {numbers['spread'][place]:.3f}" if "spread" in numbers else mean
    return f"{mean} ({numbers['low'][place]:.3f} to {numbers['high'][place]:.3f})"


def _other(numbers: Mapping[str, Any]) -> list[str]:
    calibration, scores = numbers["calibration"], numbers["object_score"]
    error = ["-", "-"]
    if calibration:
        error = [f"{calibration['mean_absolute_error']:.3f}", f"{calibration['correlation']:.2f}"]
    auroc = "-" if not scores or scores["auroc"] is None else f"{scores['auroc']:.3f}"
    times = (numbers["seconds"][name] for name in ("encode", "decode", "decode_object"))
    return [*error, auroc, *(f"{1000 * value:.1f}" for value in times)]


__all__ = ["boundary_iou", "computed", "evaluation_numbers", "tables"]
