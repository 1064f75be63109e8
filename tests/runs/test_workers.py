"""What lies beside a run while workers compute it."""

from __future__ import annotations

from featpipe.runs._workers import _scratch


def test_what_a_killed_run_left_is_taken_away(tmp_path):
    for name in (".run[1].dask-abc", ".run1.dask-abc", ".run[1].dask"):
        (tmp_path / name / "samples").mkdir(parents=True)
    with _scratch(str(tmp_path / "run[1]")) as folder:
        assert folder.is_dir()
        assert not (tmp_path / ".run[1].dask-abc").exists()
    assert {path.name for path in tmp_path.iterdir()} == {".run1.dask-abc", ".run[1].dask"}
