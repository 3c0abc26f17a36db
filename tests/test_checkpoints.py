"""Folders that are complete or absent."""

import json
import shutil
from pathlib import Path

import pytest

from sam_hf.training.checkpoints import find_damage, find_folder, replace_folder, starting_point


class Interrupted(Exception):
    pass


def test_half_written_folder_never_counts(tmp_path):
    target = tmp_path / "last"
    with pytest.raises(Interrupted), replace_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise Interrupted
    assert find_folder(target) is None
    with pytest.raises(ValueError, match="no intact checkpoint"):
        starting_point(tmp_path, resume=True)

    for version in ("first", "second"):
        with replace_folder(target) as folder:
            assert not any(folder.iterdir()), "something is left of the interrupted one"
            (folder / "weights").write_text(version)
    with pytest.raises(Interrupted), replace_folder(target) as folder:
        raise Interrupted
    assert (find_folder(target) / "weights").read_text() == "second"


def test_folder_survives_a_kill_between_the_renames(tmp_path, monkeypatch):
    target = tmp_path / "last"
    with replace_folder(target) as folder:
        (folder / "weights").write_text("first")
    rename = Path.rename

    def killed(self, to):
        if to == target:
            raise Interrupted
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(Interrupted), replace_folder(target) as folder:
            (folder / "weights").write_text("second")
    assert not target.exists() and (find_folder(target) / "weights").read_text() == "first"
    with replace_folder(target) as folder:
        (folder / "weights").write_text("third")
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert (target / "weights").read_text() == "third"


def test_a_full_disk_says_what_it_needs_and_leaves_what_was_there(tmp_path, monkeypatch):
    write(tmp_path / "last", 1)
    free = shutil.disk_usage(tmp_path).free
    message = f"last could not be written: .*No space left.* takes {2 * free / 2**20:,.0f} MB, .* MB are free"
    with pytest.raises(OSError, match=message), replace_folder(tmp_path / "last", 2, num_bytes=2 * free):
        pytest.fail("nothing is written if there is no room")
    # A library of which the error does not say so, as torch.save.
    message = "last could not be written: unexpected pos 64 vs 0.*is intact"
    with pytest.raises(OSError, match=message), replace_folder(tmp_path / "last", 2) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError("unexpected pos 64 vs 0")
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert find_folder(tmp_path / "last") is not None and "of 1" in (tmp_path / "last" / "weights").read_text()
    write(tmp_path / "last", 3)
    assert "of 3" in (tmp_path / "last" / "weights").read_text()


def test_one_command_starts_and_continues(tmp_path):
    assert starting_point(tmp_path / "run", "auto") is None
    write(tmp_path / "run" / "last", 1)
    assert (
        starting_point(tmp_path / "run", "auto") == starting_point(tmp_path / "run", "true") == tmp_path / "run/last"
    )
    (tmp_path / "run" / "last" / "weights").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no intact checkpoint"):
        starting_point(tmp_path / "run", "auto")  # nor is the damaged run overwritten


def write(target: Path, step: int, keep: int = 0) -> None:
    with replace_folder(target, step, keep) as folder:
        (folder / "sub").mkdir()
        (folder / "weights").write_text(f"weights of {step}")
        (folder / "sub" / "more").write_text("more")


def test_manifest_names_every_file(tmp_path):
    write(tmp_path / "last", step=7)
    manifest = json.loads((tmp_path / "last" / "manifest.json").read_text())
    assert manifest["step"] == 7 and manifest["files"].keys() == {"weights", "sub/more"}
    assert manifest["files"]["weights"]["bytes"] == len("weights of 7")
    assert find_damage(tmp_path / "last") is None


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda last: (last / "weights").write_text("weights of 2"), "weights is not as it was written"),
        (lambda last: (last / "weights").write_text("weig"), "weights is not as it was written"),
        (lambda last: (last / "sub" / "more").unlink(), "sub/more is missing"),
        (lambda last: (last / "manifest.json").unlink(), "no readable manifest"),
        (lambda last: (last / "manifest.json").write_text('{"step": 3, "fil'), "no readable manifest"),
    ],
    ids=["changed", "truncated", "missing", "no manifest", "half a manifest"],
)
def test_damaged_checkpoint_gives_way_to_an_earlier_one(tmp_path, damage, reason):
    for step in (1, 2, 3):
        write(tmp_path / "last", step, keep=2)
    damage(tmp_path / "last")
    with pytest.warns(UserWarning, match=f"last is not used: .*{reason}"):
        found = starting_point(tmp_path, resume=True)
    assert found == tmp_path / "earlier" / "step_00000002"
    write(tmp_path / "last", 3, keep=2)
    assert find_folder(tmp_path / "last") == tmp_path / "last"
    # The damaged one is gone and has pushed nothing out.
    assert [path.name for path in sorted((tmp_path / "earlier").iterdir())] == ["step_00000001", "step_00000002"]
    damage(tmp_path / "last")
    for folder in (tmp_path / "earlier").iterdir():
        (folder / "weights").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no intact checkpoint"):
        starting_point(tmp_path, resume=True)
    with pytest.raises(ValueError, match="already holds a run"):
        starting_point(tmp_path, resume=False)


def test_earlier_checkpoints_are_kept_and_counted(tmp_path):
    """A checkpoint that is written twice is no earlier one."""
    for step in (2, 4, 6, 8, 8):
        write(tmp_path / "last", step, keep=2)
    assert sorted(path.name for path in (tmp_path / "earlier").iterdir()) == ["step_00000004", "step_00000006"]
    assert (tmp_path / "earlier" / "step_00000006" / "weights").read_text() == "weights of 6"
    assert find_folder(tmp_path / "last") == tmp_path / "last"
