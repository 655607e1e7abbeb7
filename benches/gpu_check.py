"""Builds, tests and measures on a GPU machine without a network: `python benches/gpu_check.py`.

Writes benches/results/<gpu>-<commit>.json whatever happens: a step that fails or hangs is
reported in it, and the next one runs. The steps together end within eight minutes.
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


def main() -> int:
    """Runs all steps; exits with 0 when every one passed."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    began = time.monotonic()
    report: dict[str, Any] = {"commit": commit(), "machine": machine(), "steps": {}}
    if report["machine"].get("gpu") in ("none", "unknown"):
        sys.stderr.write(f"there is no CUDA device to check: {report['machine']}\n")
        return 2
    python = [sys.executable, "-P", "-m"]
    with tempfile.TemporaryDirectory() as folder:
        benchmarks = Path(folder) / "benchmarks.json"
        require = {"ANISO_REQUIRE_GPU": "1"}
        install = ["pip", "install", "--no-build-isolation", "--no-deps", "--force-reinstall", "."]
        steps = {
            "build": (180, [*python, *install], {"ANISO_CUDA": "ON"}),
            "tests": (150, [*python, "pytest", "-q", "-m", "gpu", *gpu_test_files()], require),
            "benches": (
                240,
                [*python, "pytest", "-q", "benches", f"--benchmark-json={benchmarks}"],
                {"ANISO_BENCH_DEVICE": "cuda"},
            ),
        }
        for name, (limit, command, environment) in steps.items():
            left = BUDGET_S - (time.monotonic() - began)
            report["steps"][name] = step(command, environment, min(limit, left))
        report["benchmarks"] = read_benchmarks(benchmarks)
    path = write(report)
    for name, result in report["steps"].items():
        sys.stdout.write(f"{name}: {result['status']} in {result['seconds']:.0f} s\n")
    for entry in report["benchmarks"]:
        sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.write(f"{path}\n")
    return 0 if all(r["status"] == "passed" for r in report["steps"].values()) else 1


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


def read_benchmarks(path: Path) -> list[dict[str, Any]]:
    """What the benches recorded; empty when they did not get that far."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return []
    return [{"name": b["name"], **b["extra_info"]} for b in loaded["benchmarks"]]


def machine() -> dict[str, str]:
    """Names and versions of what the figures depend on."""
    code = (
        "import json, torch, platform; g = torch.cuda.is_available(); print(json.dumps({"
        "'gpu': torch.cuda.get_device_name() if g else 'none', 'torch': torch.__version__, "
        "'cuda': str(torch.version.cuda), 'python': platform.python_version(), "
        "'triton': __import__('triton').__version__}))"
    )
    result = step([sys.executable, "-P", "-c", code], {}, 60)
    last = result["output"].strip().splitlines()[-1:] or ["{}"]
    try:
        return dict(json.loads(last[0]))
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
