"""Streams: the same records as by index, dealt to processes and workers, and where a resumed run finds them."""

from itertools import chain

import datasets
import pytest
from accelerate import Accelerator
from data_files import mask_table, write_parquet, write_sa1b, write_tars
from torch.utils.data import DataLoader

from sam_hf import SamHfConfig, SamHfImageProcessor, SamHfProcessor
from sam_hf.data import FaultLog, ObjectFilter, RecordStream, open_dataset, stream_dataset
from sam_hf.data.reader import ImageSource
from sam_hf.data.sa1b import MAX_WAITING, Sa1bShard
from sam_hf.training import Options, TrainingState, draw_windows

pytestmark = pytest.mark.usefixtures("no_common_cache")


def one_epoch(stream: RecordStream) -> list[str]:
    """Names in the order of storage (with a buffer of one record) until the first comes again."""
    stream.buffer_size = 1
    names = []
    for record in stream:
        if record["image_id"] in names:
            return names
        names.append(record["image_id"])


@pytest.mark.parametrize("write", [write_tars, write_parquet])
def test_a_stream_has_the_records_of_the_data_set_by_index(tmp_path, write):
    root = write(tmp_path / "data", 5)
    by_index, stream = open_dataset(root, None, min_area=200), stream_dataset(root, None, min_area=200)
    records = stream.first(9)
    assert len(records) == len(by_index) == 5 and len(one_epoch(stream)) == 5
    for record, other in zip(records, by_index, strict=True):
        assert record["image"].tobytes() == other["image"].tobytes() and record["objects"] == other["objects"]


def test_compressed_tars_and_streams_of_datasets(tmp_path):
    root = write_tars(tmp_path / "data", 3, 3, "w:gz", ".tar.gz")
    assert sorted(one_epoch(stream_dataset(root, None))) == ["sa_0", "sa_1", "sa_2"]
    with pytest.raises(ValueError, match=r"damaged or compressed: sa_000.tar.gz"):
        open_dataset(root, None)
    table = mask_table(6).add_column("id", [f"n{k}" for k in range(6)])
    stream = stream_dataset(datasets.IterableDatasetDict(test=table.to_iterable_dataset(num_shards=2)), "test")
    # A column of names may repeat itself, which no one sees who lists nothing.
    assert sorted(one_epoch(stream)) == [f"{k // 3}-{k % 3:08d}-n{k}" for k in range(6)]
    assert stream.first(1)[0]["objects"] == open_dataset(table, None)[0]["objects"]


def test_rows_of_a_stream_have_unique_names_and_both_splits():
    table = mask_table(60).add_column("name", ["benign", "malignant"] * 30)
    parts = [one_epoch(stream_dataset(table.to_iterable_dataset(num_shards=3), split)) for split in ("train", "val")]
    assert len({*parts[0], *parts[1]}) == 60 and len(parts[0]) + len(parts[1]) == 60 and 1 <= len(parts[1]) <= 15


def test_splits_of_streams_are_those_by_index(tmp_path):
    root = write_tars(tmp_path / "data", 30, 10)
    for split in ("train", "validation"):
        assert sorted(one_epoch(stream_dataset(root, split))) == open_dataset(root, split).ids
    with pytest.raises(ValueError, match="no record for worker 0 of 1"):
        next(iter(stream_dataset(root, "test")))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        stream_dataset(root, "test").first(1)
    (root / "splits.csv").write_text("id,split\nsa_0,train\n")
    with pytest.raises(ValueError, match=r"splits.csv is not used with streams"):
        stream_dataset(root, "train")
    assert len(one_epoch(stream_dataset(root, None))) == 30


@pytest.mark.parametrize(("num_shards", "num_ranks"), [(5, 1), (5, 2), (2, 2), (2, 5), (1, 3)])
def test_processes_share_every_epoch(tmp_path, num_shards, num_ranks):
    stream = stream_dataset(write_tars(tmp_path / "data", 10, 10 // num_shards), None)
    shares = [one_epoch(stream.share(rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
    assert sorted(sum(shares, [])) == sorted(f"sa_{k}" for k in range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 10 // num_shards


def draws(stream: RecordStream, num_workers: int, number: int, **share) -> list[list[tuple[str, int]]]:
    loader = DataLoader(
        stream.share(seed=3, batch_size=2, **share),
        batch_size=2,
        num_workers=num_workers,
        collate_fn=lambda records: [(item["image_id"], item["draw"], item.get("faults", [])) for item in records],
    )
    return [batch for _, batch in zip(range(number), loader, strict=False)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_goes_on_from_any_batch_and_decodes_nothing_before(tmp_path, monkeypatch, num_workers):
    root = write_tars(tmp_path / "data", 8, 2)
    spoilt = root / "sa_002.tar"  # a record that is replaced must be so again
    spoilt.write_bytes(spoilt.read_bytes().replace(b"IHDR", b"XHDR"))
    stream = stream_dataset(root, None)
    stream.buffer_size = 8
    whole = draws(stream, num_workers, 13)
    assert any(faults for batch in whole for *_, faults in batch)
    assert len({tuple(name for name, *_ in batch) for batch in whole}) > 6
    for start in (1, 4, 7):
        assert draws(stream, num_workers, 13 - start, start=start) == whole[start:]
    opened, open_image = [], ImageSource.open
    monkeypatch.setattr(ImageSource, "open", lambda source: opened.append(source) or open_image(source))
    sound = stream_dataset(write_tars(tmp_path / "sound", 8, 2), None)
    assert len(draws(sound, 0, 2, start=50)) == 2 and len(opened) <= 6


@pytest.mark.usefixtures("on_cpu")
def test_a_stream_goes_on_where_a_phase_ends_and_a_resumed_run_where_it_was(tmp_path, monkeypatch):
    stream, reads, read = stream_dataset(write_tars(tmp_path / "data", 30, 10), None), [], RecordStream._read
    stream.buffer_size = 4
    monkeypatch.setattr(RecordStream, "_read", lambda *given: (reads.append(None) or item for item in read(*given)))
    options = Options(max_steps=8, crop_size=[32, 48], crop_share=[0.5, 0.25], batch_size=1, whole_batch_size=2)
    options.num_workers, options.gradient_accumulation_steps = 0, 2
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64}))

    def names(step: int) -> list[list[str]]:
        given = processor, TrainingState(step), FaultLog(), options, Accelerator(), SamHfConfig()
        return [[*chain(*(batch["image_ids"] for batch in window))] for window in draw_windows(stream, *given)]

    whole = names(0)
    assert [len(step) for step in whole] == [2] * 6 + [4] * 2
    assert len({*chain(*whole)}) == 20, "records come again before all were drawn"
    assert 20 <= len(reads) <= 20 + stream.buffer_size + 1
    for step in (1, 4, 6, 7):
        assert names(step) == whole[step:]


@pytest.mark.parametrize("write", [write_tars, write_parquet])
def test_more_workers_than_shards_have_all_records(tmp_path, write):
    stream = stream_dataset(write(tmp_path / "data", 4, **({"per_tar": 4} if write is write_tars else {})), None)
    assert len(stream.shards) == 1
    stream.buffer_size = 1
    names = {name for batch in draws(stream, 2, 6) for name, *_ in batch}
    assert len(names) == len(stream.first(9))


def test_a_shard_that_breaks_off_is_named_and_left(tmp_path):
    root = write_tars(tmp_path / "data", 6, 3)
    broken = root / "sa_001.tar"
    broken.write_bytes(broken.read_bytes()[:20_000])
    stream = stream_dataset(root, None)
    stream.buffer_size = 1
    records = [record for _, record in zip(range(12), stream, strict=False)]
    faults = {fault for record in records for fault in record.get("faults", ())}
    assert any("sa_001.tar: ReadError: unexpected end of data" in fault for fault in faults)
    assert {record["image_id"] for record in records} >= {"sa_0", "sa_1", "sa_2"}
    with pytest.raises(ValueError, match="damaged or compressed: sa_001.tar"):
        open_dataset(root, None)
    assert {*open_dataset(root, None, strict=False).ids} >= {"sa_0", "sa_1", "sa_2"}


def test_members_without_a_partner_are_named_and_do_not_fill_the_memory(tmp_path, monkeypatch):
    root = write_tars(tmp_path / "data", 4, 4)
    tar = root / "sa_000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"./sa_2.json", b"./sa_2.nosj"))  # an anagram has the checksum
    with pytest.raises(ValueError, match="1 member.s. have no partner: sa_2"):
        open_dataset(root, None)
    reads = dict(Sa1bShard(tar, ObjectFilter()))
    with pytest.raises(OSError, match="record 'sa_2': sa_000.tar holds no JSON file of it"):
        reads["sa_2"]()
    assert MAX_WAITING > 100
    monkeypatch.setattr("sam_hf.data.sa1b.MAX_WAITING", 0)
    with pytest.raises(ValueError, match="must be near each other"):
        dict(Sa1bShard(tar, ObjectFilter()))


def test_what_cannot_be_streamed_says_so(tmp_path):
    with pytest.raises(ValueError, match="neither .tar nor .parquet"):
        stream_dataset(write_sa1b(tmp_path / "data"))
    with pytest.raises(ValueError, match="at least one shard"):
        RecordStream([])
    with pytest.raises(ValueError, match="smallest"):
        stream_dataset(tmp_path, smallest=1)
