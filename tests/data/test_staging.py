"""Copies on a node's own disk: one for all processes, verified, and made anew when they or their source change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sst2.config.settings import Settings
from sst2.data.staging import local_copy, stage
from sst2.utils.errors import UserError
from tests.support.processes import results
from tests.support.running import Finished


def write(folder: Path, name: str = "weights.bin", content: str = "1234") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder


def test_a_folder_is_copied_once_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sst2")
    source = write(write(tmp_path / "model"), "nested/deeper.txt", "below")
    copy = local_copy(source, str(tmp_path / "node"))
    assert copy.name == "model"
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()} == {
        "weights.bin",
        "nested/deeper.txt",
    }
    first = (copy / "weights.bin").stat().st_ino
    assert local_copy(source, str(tmp_path / "node")) == copy
    assert (copy / "weights.bin").stat().st_ino == first
    assert caplog.text.count("copying ") == 1


def test_a_damaged_or_outdated_copy_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / "model")
    copy = local_copy(source, str(tmp_path / "node"))
    (copy / "weights.bin").write_text("12x4")  # as long as before
    assert (local_copy(source, str(tmp_path / "node")) / "weights.bin").read_text() == "1234"
    assert "another SHA-256" in caplog.text
    write(source, content="5678")
    os.utime(source / "weights.bin", (1, 1))
    assert (local_copy(source, str(tmp_path / "node")) / "weights.bin").read_text() == "5678"
    write(source, "added.txt")
    assert (local_copy(source, str(tmp_path / "node")) / "added.txt").exists()


def test_sources_of_the_same_name_have_copies_of_their_own(tmp_path: Path) -> None:
    copies = [local_copy(write(tmp_path / name, "data.tsv", name) / "data.tsv", str(tmp_path / "n")) for name in "ab"]
    assert [copy.read_text() for copy in copies] == ["a", "b"]


def test_links_are_followed_as_the_hubs_cache_has_them(tmp_path: Path) -> None:
    blob = write(tmp_path / "blobs") / "weights.bin"
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "pytorch_model.bin").symlink_to(blob)
    copy = local_copy(snapshot, str(tmp_path / "node"), ("*.safetensors",))
    assert [path.name for path in copy.iterdir()] == ["model.safetensors"]
    assert not (copy / "model.safetensors").is_symlink()


def test_a_link_keeps_its_name_and_so_what_a_suffix_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = write(tmp_path / "blobs", "0a1b", "sentence\tlabel\n") / "0a1b"
    (tmp_path / "train.tsv").symlink_to(blob)
    copy = local_copy(tmp_path / "train.tsv", str(tmp_path / "node"))
    assert (copy.name, copy.read_text()) == ("train.tsv", blob.read_text())
    monkeypatch.chdir(blob.parent)
    assert local_copy(Path(".."), str(tmp_path / "other")).name == tmp_path.name


def copy_in_process(source: Path, stage_dir: str) -> int:
    return (local_copy(source, stage_dir) / "weights.bin").stat().st_ino


def test_processes_of_a_node_share_one_copy(tmp_path: Path) -> None:
    source = write(tmp_path / "model", content="x" * 5_000_000)
    assert len(set(results(copy_in_process, source, str(tmp_path / "node"), count=3))) == 1


def test_the_folder_is_looked_up_on_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_OF_NODE", str(tmp_path / "scratch"))
    copy = local_copy(write(tmp_path / "model"), "$SCRATCH_OF_NODE/sst2")
    assert copy.is_relative_to(tmp_path / "scratch" / "sst2")
    with pytest.raises(UserError, match=r"\$NOT_SET_HERE/sst2: NOT_SET_HERE is not set on "):
        local_copy(tmp_path / "model", "$NOT_SET_HERE/sst2")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--stage_dir .*/file/x on .* cannot be written"):
        local_copy(tmp_path / "model", str(tmp_path / "file" / "x"))


def test_a_vocabulary_of_sentencepiece_is_copied_with_the_model(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "spiece.model").write_bytes(b"pieces")
    staged = stage(Settings(model_name_or_path=str(model), stage_dir=str(tmp_path / "node")))
    assert (Path(staged.model_name_or_path) / "spiece.model").read_bytes() == b"pieces"


def test_without_the_flag_nothing_is_copied() -> None:
    settings = Settings()
    assert stage(settings) is settings


def test_a_job_reads_its_copies_and_keeps_its_settings(
    small_job: list[object], train_here: Callable[..., Finished], tmp_path: Path
) -> None:
    plain = train_here(*small_job)
    staged = train_here(*small_job, "--stage_dir", tmp_path / "node", run_dir=tmp_path / "staged")
    assert staged.code == 0, staged.stderr
    names = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "node").iterdir() if path.is_dir()}
    assert {"tiny-distilbert", "train.tsv", "dev.tsv"} < names
    assert any(name.endswith(".tokens") for name in names)
    assert staged.logged("train")[-1]["loss"] == plain.logged("train")[-1]["loss"]
    config = (staged.run_dir / "resolved.yaml").read_text()
    assert f"model_name_or_path: {small_job[1]}\n" in config
