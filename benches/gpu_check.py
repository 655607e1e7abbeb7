"""Builds, tests and measures on a GPU machine without a network: `python benches/gpu_check.py`.

Writes benches/results/<gpu>-<commit>.json after every step, whatever happens: a step that fails
or hangs is reported in it with the figures it had, and the next one runs. The steps together end
within eight minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUDGET_S = 470.0
TAIL = 6000
# The lines of the goals for pairwise cosines come before all tests and other benches.
FIRST = ("row_moments", "gram", "pair_histogram")


def main() -> int:
    """Runs all steps; exits with 0 when every one passed."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    began = time.monotonic()
    report: dict[str, Any] = {"commit": commit(), "machine": machine(), "steps": {}}
    if report["machine"].get("gpu") in ("none", "unknown"):
        sys.stderr.write(f"there is no CUDA device to check: {report['machine']}\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "results.jsonl"
        for name, (limit, command, environment) in plan(report["machine"], lines).items():
            left = BUDGET_S - (time.monotonic() - began)
            report["steps"][name] = step(command, environment, min(limit, left))
            report["benchmarks"] = read_lines(lines)
            write(report)
    path = write(report)
    for name, result in report["steps"].items():
        sys.stdout.write(f"{name}: {result['status']} in {result['seconds']:.0f} s\n")
    for entry in report["benchmarks"]:
        sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.write(f"{path}\n")
    return 0 if all(r["status"] == "passed" for r in report["steps"].values()) else 1


def plan(
    machine: dict[str, str], lines: Path
) -> dict[str, tuple[float, list[str], dict[str, str]]]:
    """Steps by name: seconds at most, command, environment. Benches append figures to `lines`."""
    python = [sys.executable, "-P", "-m"]
    install = ["pip", "install", "--no-build-isolation", "--no-deps", "--force-reinstall", "."]
    if "architecture" in machine:  # one instead of all: a third of the time
        install.append(f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={machine['architecture']}")
    files = sorted(str(f) for f in (ROOT / "benches").glob("bench_*.py"))
    first = [str(ROOT / "benches" / f"bench_{op}.py") for op in FIRST]
    on_gpu = {"ANISO_BENCH_DEVICE": "cuda", "ANISO_BENCH_RESULTS": str(lines)}
    tests = [*python, "pytest", "-q", "-m", "gpu", *gpu_test_files()]
    bench = [*python, "pytest", "-q"]
    return {
        "build": (180, [*python, *install], {"ANISO_CUDA": "ON"}),
        "cosine benches": (150, [*bench, *first], on_gpu),
        "tests": (150, tests, {"ANISO_REQUIRE_GPU": "1"}),
        "benches": (240, [*bench, *(f for f in files if f not in first)], on_gpu),
    }


def step(command: list[str], environment: dict[str, str], limit: float) -> dict[str, Any]:
    """Runs one command; its status, duration and the end of its output."""
    began = time.monotonic()
    if limit < 5:
        return {"status": "no time left", "seconds": 0.0, "output": ""}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit,
            check=False,
        )
        status = "passed" if done.returncode == 0 else f"failed with {done.returncode}"
        output = done.stdout
    except subprocess.TimeoutExpired as error:
        status = f"stopped after {limit:.0f} s"
        output = (error.stdout or b"").decode(errors="replace")
    except OSError as error:
        status, output = "could not start", str(error)
    return {"status": status, "seconds": time.monotonic() - began, "output": output[-TAIL:]}


def gpu_test_files() -> list[str]:
    """Test files with gpu-marked tests; others may need packages that are not there."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(f) for f in files if "mark.gpu" in f.read_text(encoding="utf-8")]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What the benches have recorded so far; a last line that was cut off is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def machine() -> dict[str, str]:
    """Names and versions of what the figures depend on."""
    code = (
        "import json, torch, platform; g = torch.cuda.is_available(); print(json.dumps({"
        "'gpu': torch.cuda.get_device_name() if g else 'none', 'torch': torch.__version__, "
        "'architecture': '%d%d' % torch.cuda.get_device_capability() if g else '', "
        "'cuda': str(torch.version.cuda), 'python': platform.python_version(), "
        "'triton': __import__('triton').__version__}))"
    )
    result = step([sys.executable, "-P", "-c", code], {}, 60)
    last = result["output"].strip().splitlines()[-1:] or ["{}"]
    try:
        found = dict(json.loads(last[0]))
        if found.get("architecture") == "90":
            found["architecture"] = "90a"
        return found
    except json.JSONDecodeError:
        return {"gpu": "unknown", "error": result["output"][-500:]}


def commit() -> str:
    """Short hash of the commit that is measured, with + when the tree differs from it."""
    described = step(["git", "describe", "--always", "--dirty=+"], {}, 20)
    return described["output"].strip() if described["status"] == "passed" else "unknown"


def write(report: dict[str, Any]) -> Path:
    """Writes the report under benches/results, or beside $OUT's other files where that is set."""
    folder = Path(os.environ.get("OUT", ROOT / "benches" / "results"))
    folder.mkdir(parents=True, exist_ok=True)
    gpu = report["machine"].get("gpu", "unknown").lower().replace(" ", "-")
    path = folder / f"{gpu}-{report['commit']}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
