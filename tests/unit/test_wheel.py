"""The published wheel: it holds the stubs and nothing of the services, and imports alone."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Imports every module of the installed package, and shows that no server came with it.
_USE = """
import importlib, pkgutil, sys
import tallystick
assert tallystick.__file__.startswith(sys.argv[1]), tallystick.__file__
names = [module.name for module in pkgutil.walk_packages(tallystick.__path__, "tallystick.")]
for name in names:
    importlib.import_module(name)
assert "tallystick.metering.v1.metering_service_pb2_grpc" in names, names
for stranger in ("services", "sandbox"):
    try:
        importlib.import_module(stranger)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{stranger} came with the wheel")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # Without isolation: the builder is one of the pinned requirements.
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("tallystick-*.whl")
    return built


def test_the_wheel_ships_only_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        names = set(archive.namelist())
    version = wheel.name.split("-")[1]
    assert tops == {"tallystick", f"tallystick-{version}.dist-info"}
    assert "tallystick/py.typed" in names
    assert f"tallystick-{version}.dist-info/licenses/LICENSE" in names


def test_the_command_line_is_an_extra(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        scripts = archive.read(entry_points).decode()
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        requires = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), flags=re.MULTILINE)
    assert "tallystick = tallystick.cli:main" in scripts
    needed = {re.split(r"[<>=]", one)[0] for one in requires if "extra ==" not in one}
    assert needed == {"grpcio", "protobuf"}
    assert {re.split(r"[<>=]", one)[0] for one in requires if "extra == 'cli'" in one} == {
        *("typer", "rich"),
        # For `tallystick verify`.
        "cryptography",
        # For `tallystick prices`.
        "pyyaml",
    }


def test_the_wheel_imports_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _USE, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
