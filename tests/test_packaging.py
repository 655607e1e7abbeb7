from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import files
from pathlib import Path

import pytest
import triton

import aniso

ROOT = Path(__file__).parent.parent


def run(code, cwd):
    return subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_installed_package_is_tested():
    assert Path(aniso.__file__).is_relative_to(sysconfig.get_path("purelib"))


def test_the_name_triton_kernels_is_left_to_triton(tmp_path):
    """vLLM looks it up with find_spec: no folder of ours may answer."""
    code = "import importlib.util as u; s = u.find_spec('triton_kernels'); print(s and s.origin)"
    found = run(code, tmp_path).stdout.strip()
    ours = str(Path(aniso.__file__).parent)
    assert not found.startswith(ours)
    assert importlib.util.find_spec("aniso.triton_kernels") is not None
    assert not any(str(f).startswith("triton_kernels") for f in files("aniso"))


def test_the_source_folder_refuses_to_be_triton_kernels():
    result = run(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import triton_kernels", ROOT)
    assert result.returncode != 0 and "ImportError" in result.stderr


def test_extension_links_neither_torch_nor_the_cuda_driver():
    from aniso import _native

    listed = subprocess.run(
        ["ldd", _native.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert not any(name in listed for name in ("torch", "c10", "libcuda", "cublas", "libcudart"))


def test_extension_loads_without_torch(tmp_path):
    code = "import sys; from aniso import _native; sys.exit('torch' in sys.modules)"
    assert run(code, tmp_path).returncode == 0


def test_compiled_cuda_kernels_use_no_local_memory_but_for_the_band():
    """Spilled registers and indexed arrays show as stack; a build without nvcc has no kernels.

    Blocks of 512 threads have 128 registers each. The banded factorisation fills them in its inner
    loops, and lets the state of outer ones wait in up to 64 bytes of stack.
    """
    from aniso import _native

    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run(
        [tool, "--dump-resource-usage", _native.__file__],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    kernels = re.findall(r"Function ([^:]+):\s+REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage)
    assert bool(kernels) == _native.has_cuda
    banded = re.compile(r"factorizeINS\w*5ShapeILi16ELi(352|512)ELb0E")
    assert any(banded.search(name) for name, *_ in kernels) == _native.has_cuda
    most = {name: 64 if banded.search(name) else 0 for name, *_ in kernels}
    assert not [name for name, _, stack, local in kernels if int(stack) + int(local) > most[name]]


def test_kernels_import_nothing_of_aniso():
    for path in (ROOT / "triton_kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            roots = {name.split(".")[0] for name in names}
            assert roots <= {"torch", "triton", *sys.stdlib_module_names}, (path, roots)


@pytest.mark.parametrize(
    ("room", "allowed"),
    [("common", {"common"}), ("cpu", {"common", "cpu"}), ("cuda", {"common", "cuda"})],
)
def test_directions_of_the_compiled_rooms(room, allowed):
    """common ← {cpu, cuda} ← bindings; Python only in bindings."""
    for path in (ROOT / "csrc" / room).iterdir():
        for line in path.read_text().splitlines():
            if line.startswith('#include "'):
                assert line.split('"')[1].split("/")[0] in allowed, (path, line)
            assert "pybind11" not in line and "Python.h" not in line, (path, line)


def test_wheel_holds_what_is_needed():
    names = {str(f) for f in files("aniso")}
    for needed in (
        "aniso/py.typed",
        "aniso/_native.pyi",
        "aniso/cli/demo_text.txt",
        "aniso/report/template.html.j2",
        "aniso/triton_kernels/row_moments.py",
    ):
        assert needed in names
    assert not any(name.startswith(("tests", "benches", "csrc")) for name in names)
