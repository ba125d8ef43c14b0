"""How far a download is, read from the hub's cache."""

from __future__ import annotations

from pathlib import Path

from millrace_launcher.fetching import Download, Report, told

SIZES = {"config.json": 10, "one.safetensors": 3 << 20, "two.safetensors": 5 << 20}


def test_a_download_is_counted_in_files_and_bytes(tmp_path: Path) -> None:
    download = Download(tmp_path, "abc", SIZES)
    assert download.report() == Report("downloading 0 of 3 files, 0 of 8 MiB", 0, sum(SIZES.values()))
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (snapshot / "one.safetensors").touch()
    (blobs / "5f.incomplete").write_bytes(bytes(2 << 20))
    assert download.report() == Report("downloading 2 of 3 files, 5 of 8 MiB", 10 + (5 << 20), sum(SIZES.values()))
    (blobs / "finished-in-this-moment.incomplete").symlink_to("nothing")
    assert download.report().done == 10 + (5 << 20)
    (blobs / "left-by-another.incomplete").write_bytes(bytes(9 << 20))
    assert download.report().done == sum(SIZES.values())


def test_large_ones_are_counted_in_gigabytes(tmp_path: Path) -> None:
    assert Download(tmp_path, "abc", {"a": 12_340_000_000}).report().words == (
        "downloading 0 of 1 files, 0.00 of 12.34 GB"
    )


def test_it_is_told_at_least_once_and_never_after_its_end(tmp_path: Path) -> None:
    heard: list[Report] = []
    with told(Download(tmp_path, "abc", SIZES), heard.append):
        pass
    count = len(heard)
    assert count >= 1
    assert len(heard) == count
