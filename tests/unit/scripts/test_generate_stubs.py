"""The generation of the stubs, over a stand-in for the generator."""

from __future__ import annotations

import subprocess
from pathlib import Path

from scripts.check_static import ROOT

# Like protoc-gen-mypy it cannot do without a stdin.
GENERATOR = """#!/bin/sh
: <&0 || exit 1
for argument; do
    case $argument in
        --python_out=*) out=${argument#*=} ;;
    esac
done
mkdir -p "$out/tallystick/common"
echo fresh > "$out/tallystick/common/money_pb2.py"
"""


def test_stubs_are_generated_where_stdin_is_closed_and_old_ones_go(tmp_path: Path) -> None:
    (tmp_path / "protos").mkdir()
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(GENERATOR)
    python.chmod(0o755)
    old = tmp_path / "tallystick" / "common" / "gone_pb2.pyi"
    old.parent.mkdir(parents=True)
    old.touch()

    script = ROOT / "scripts" / "generate_stubs.sh"
    subprocess.run(["/bin/sh", "-c", f'"{script}" venv . <&-'], cwd=tmp_path, check=True, timeout=60)

    assert (tmp_path / "tallystick/common/money_pb2.py").read_text() == "fresh\n"
    assert (tmp_path / "tallystick/common/__init__.py").exists()
    assert not old.exists()
