"""Data sets as records of an image and its run-length encoded objects; augmentation of both together."""

from .augmentation import PhotometricJitter, RandomCropScaleFlip
from .catalog import open_dataset, stream_dataset
from .coco import CocoInstances
from .faults import FaultLog, SoundRecords
from .folders import LabelMapFolder, MaskFolder
from .labelme import LabelmeFolder
from .object_filter import ObjectFilter
from .sa1b import Sa1bFolder, Sa1bTar
from .scenes import SyntheticScenes
from .schema import (
    FEATURES,
    DrawnRecord,
    Record,
    Records,
    SegmentedObject,
    check_record,
    decode_masks,
    objects_from_label_map,
    objects_from_masks,
    objects_from_rles,
    rgb_array,
)
from .stream import RecordStream
from .tables import TableRecords

__all__ = [
    "FEATURES",
    "CocoInstances",
    "DrawnRecord",
    "FaultLog",
    "LabelMapFolder",
    "LabelmeFolder",
    "MaskFolder",
    "ObjectFilter",
    "PhotometricJitter",
    "RandomCropScaleFlip",
    "Record",
    "RecordStream",
    "Records",
    "Sa1bFolder",
    "Sa1bTar",
    "SegmentedObject",
    "SoundRecords",
    "SyntheticScenes",
    "TableRecords",
    "check_record",
    "decode_masks",
    "objects_from_label_map",
    "objects_from_masks",
    "objects_from_rles",
    "open_dataset",
    "rgb_array",
    "stream_dataset",
]
