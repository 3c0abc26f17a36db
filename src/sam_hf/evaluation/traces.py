"""Traces of an evaluation as a file, from which every number can be computed again."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..data.schema import decode_rles
from ..losses import mask_iou
from .interactive import ClickTrace
from .summary import ClickSummary, summarise_clicks

TRACES = "traces.parquet"
ABOUT = b"sam_hf.evaluation"
SCHEMA = pa.schema(
    {
        "trace": pa.int32(),
        "image_id": pa.string(),
        "index": pa.int64(),
        "draw": pa.int32(),
        "size": pa.list_(pa.int32(), 2),
        "object": pa.string(),
        "ignored": pa.string(),
        "answers": pa.list_(pa.string()),
        "points": pa.list_(pa.list_(pa.float32(), 2)),
        "labels": pa.list_(pa.int32()),
        "box": pa.list_(pa.float32(), 4),
        "iou": pa.list_(pa.float32()),
        "predicted_iou": pa.list_(pa.float32()),
        "oracle_iou": pa.float32(),
        "object_score": pa.float32(),
        "encode_seconds": pa.float64(),
        "decode_seconds": pa.list_(pa.float64()),
    }
)


def save_traces(path: str | Path, summary: ClickSummary, about: dict[str, Any]) -> None:
    """Write traces as Parquet, a row for each object and user.

    Masks are `counts` of COCO's compressed run lengths of `size` [height, width]; the seconds of an image and of the
    prompts of all its objects are in each of its rows.

    Args:
        about: what else to keep, as JSON.
    """
    table = pa.Table.from_pylist(
        [row for index, trace in enumerate(summary.traces) for row in _rows(index, trace)], SCHEMA
    )
    about = {"about": about, "negatives": summary.negatives.tolist()}
    pq.write_table(table.replace_schema_metadata({ABOUT: json.dumps(about).encode()}), path, compression="zstd")


def _rows(index: int, trace: ClickTrace) -> Iterator[dict[str, Any]]:
    for place, item in enumerate(trace.objects):
        yield {
            "trace": index,
            "image_id": trace.image_id,
            "index": trace.index,
            "draw": trace.draw,
            "size": item["size"],
            "object": item["counts"],
            "ignored": trace.ignored and trace.ignored["counts"],
            "answers": [masks[place]["counts"] for masks in trace.answers],
            "points": trace.points[place].tolist(),
            "labels": trace.labels[place].tolist(),
            "box": None if trace.boxes is None else trace.boxes[place].tolist(),
            "iou": trace.iou[place].tolist(),
            "predicted_iou": trace.predicted_iou[place].tolist(),
            "oracle_iou": trace.oracle_iou[place].item(),
            "object_score": trace.object_scores[place].item(),
            "encode_seconds": trace.encode_seconds,
            "decode_seconds": trace.decode_seconds,
        }


def load_traces(path: str | Path) -> tuple[ClickSummary, dict[str, Any]]:
    """Undo `save_traces`, but for the images: the evaluation, and what else was kept. IoU is that of the masks.

    Raises:
        ValueError: if it is no such file, or a mask of it is none, or its IoU is not that of its masks.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}): give {TRACES} of an evaluation") from error
    written = (table.schema.metadata or {}).get(ABOUT)
    if written is None or not set(SCHEMA.names) <= set(table.schema.names):
        raise ValueError(
            f"{path} holds no traces: its columns are {table.schema.names}. Give {TRACES} of an evaluation."
        )
    groups = groupby(table.to_pylist(), key=lambda row: row["trace"])
    traces = [_trace(list(rows)) for _, rows in groups]
    for trace in traces:
        try:
            told, trace.iou = trace.iou, iou_of_masks(trace)
        except ValueError as error:
            raise ValueError(
                f"{path}: {trace.image_id!r} has a mask that is none ({error}): evaluate again."
            ) from error
        if not np.allclose(told, trace.iou, atol=1e-6):
            raise ValueError(
                f"{path}: the IoU of {trace.image_id!r} is not that of its masks, so that one of them was changed: "
                "evaluate again."
            )
    kept = json.loads(written)
    return summarise_clicks(traces, kept["negatives"]), kept["about"]


def _trace(rows: list[dict[str, Any]]) -> ClickTrace:
    first = rows[0]

    def mask(counts: str) -> dict[str, Any]:
        return {"size": first["size"], "counts": counts}

    def column(name: str, dtype: Any = np.float32) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=dtype)

    return ClickTrace(
        image_id=first["image_id"],
        draw=first["draw"],
        image=None,
        objects=[mask(row["object"]) for row in rows],
        ignored=None if first["ignored"] is None else mask(first["ignored"]),
        answers=[[mask(row["answers"][turn]) for row in rows] for turn in range(len(first["answers"]))],
        points=column("points").reshape(len(rows), -1, 2),
        labels=column("labels", np.int64),
        boxes=None if first["box"] is None else column("box"),
        iou=column("iou"),
        predicted_iou=column("predicted_iou"),
        oracle_iou=column("oracle_iou"),
        object_scores=column("object_score"),
        encode_seconds=first["encode_seconds"],
        decode_seconds=first["decode_seconds"],
        index=first["index"],
    )


def iou_of_masks(trace: ClickTrace) -> np.ndarray:
    """float32 [N, P], of the answers of a trace."""
    target, valid = torch.from_numpy(trace.target), torch.from_numpy(trace.valid)
    # One prompt at a time, for memory.
    found = [mask_iou(torch.from_numpy(decode_rles(masks)), target, valid) for masks in trace.answers]
    return torch.stack(found, dim=1).numpy()


__all__ = ["TRACES", "iou_of_masks", "load_traces", "save_traces"]
