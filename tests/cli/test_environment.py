"""What the command line sets up before a command runs, and how a signal ends it early."""

from __future__ import annotations

import subprocess
import sys

import pytest

WARN = """
import sys, warnings
from PIL import Image
warnings.warn("Image size (9 pixels) exceeds limit of 8 pixels", Image.DecompressionBombWarning)
warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 1, "PIL.TiffImagePlugin")
warnings.warn("something else")
"""


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_warnings_of_pillow_are_ignored_here_and_in_worker_processes() -> None:
    before = "from tagmask.cli import _prepare_environment; _prepare_environment()"
    here = run_python(f"{before}\n{WARN}").stderr
    worker = run_python(f"{before}\nimport subprocess, sys\nsubprocess.run([sys.executable, '-c', {WARN!r}])").stderr
    for messages in (here, worker):
        assert "something else" in messages
        assert "Image size" not in messages
        assert "Corrupt EXIF data" not in messages


def test_the_environment_of_the_user_is_kept() -> None:
    program = """
import os
from tagmask.cli import _prepare_environment
os.environ |= {"THP_MEM_ALLOC_ENABLE": "0", "PYTHONWARNINGS": "error::ResourceWarning"}
_prepare_environment(); _prepare_environment()
print(os.environ["THP_MEM_ALLOC_ENABLE"], os.environ["PYTHONWARNINGS"])
"""
    value, filters = run_python(program).stdout.split(" ", 1)
    assert value == "0"
    assert filters.strip().split(",")[-1] == "error::ResourceWarning"
    assert filters.count("Image size") == 1


@pytest.mark.parametrize(("argument", "hint"), [("", ""), ("--redo", ", with --redo,")])
def test_ctrl_c_during_the_imports_gives_no_traceback(argument: str, hint: str) -> None:
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    program = f"""
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            {interrupt}
sys.meta_path.insert(0, Interrupt())
sys.argv.append({argument!r})
from tagmask.cli import main
main()
"""
    process = run_python(program)
    assert process.returncode == 130
    assert process.stderr == f"tagmask: stopped; run the same command again{hint} to resume.\n"
