"""Data sets as records of an image and its run-length encoded objects; augmentation of both together."""

from sam_hf.data.augmentation import PhotometricJitter, RandomCropScaleFlip
from sam_hf.data.catalog import open_dataset, stream_dataset
from sam_hf.data.coco import CocoInstances
from sam_hf.data.faults import FaultLog, SoundRecords
from sam_hf.data.folders import LabelMapFolder, MaskFolder
from sam_hf.data.labelme import LabelmeFolder
from sam_hf.data.object_filter import ObjectFilter
from sam_hf.data.sa1b import Sa1bFolder, Sa1bTar
from sam_hf.data.scenes import SyntheticScenes
from sam_hf.data.schema import (
    FEATURES,
    Record,
    SegmentedObject,
    check_record,
    decode_masks,
    objects_from_label_map,
    objects_from_masks,
    objects_from_rles,
    rgb_array,
)
from sam_hf.data.stream import RecordStream
from sam_hf.data.tables import TableRecords

__all__ = [
    "FEATURES",
    "CocoInstances",
    "FaultLog",
    "LabelMapFolder",
    "LabelmeFolder",
    "MaskFolder",
    "ObjectFilter",
    "PhotometricJitter",
    "RandomCropScaleFlip",
    "Record",
    "RecordStream",
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
