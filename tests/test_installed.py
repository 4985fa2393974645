"""What holds for seglib wherever it is installed: where outputs go, how light the import is."""

import os
import subprocess
import sys

from seglib import files


def test_outputs_are_the_checkouts_own(monkeypatch, tmp_path):
    monkeypatch.delenv("SEGLIB_OUTPUTS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert files.outputs_dir() == files.PROJECT / "outputs"


def test_an_installed_seglib_writes_where_one_stands(monkeypatch, tmp_path):
    monkeypatch.delenv("SEGLIB_OUTPUTS", raising=False)
    monkeypatch.setattr(files, "PROJECT", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    assert files.outputs_dir() == tmp_path / "outputs"


def test_the_environment_names_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGLIB_OUTPUTS", str(tmp_path / "elsewhere"))
    assert files.outputs_dir() == tmp_path / "elsewhere"
    monkeypatch.delenv("SEGLIB_CACHE", raising=False)
    assert files.cache_dir() == tmp_path / "elsewhere" / ".cache"


def test_import_seglib_brings_neither_torch_nor_numpy():
    code = "import sys, seglib; print([name for name in ('torch', 'numpy', 'pandas', 'matplotlib') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, cwd=files.PROJECT
    )
    assert done.stdout.strip() == "[]", done.stderr
