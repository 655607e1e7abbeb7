"""Damaged and hostile dumps by the million, over every reader.

python tests/fuzz_readers.py --inputs 1000000 --seed 0

A reader gives rows or one sentence that names the dump; it never ends the process, takes more than
a second of processor time, or memory beyond ten times the input and a fixed allowance. Input i of
a seed is always the same: `--first I --inputs 1` repeats one. Exits with 1 on a finding.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

# Processor seconds of one input, and seconds without a sign of life.
SECONDS, SILENCE = 1.0, 20.0
# Beside ten times the input: a block of rows, a chunk that is decoded whole, threads' stacks.
ALLOWANCE = 96 << 20
BATCH = 20_000


@dataclass
class Found:
    """What a batch of inputs showed."""

    first: int
    inputs: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        self.inputs += other.inputs
        self.read += other.read
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.largest = max(self.largest, other.largest)
        self.findings += other.findings


def one_input(seed: int, i: int, folder: Path, originals: dict[str, dict[str, bytes]]):
    """Writes input i; returns the reader's name, the path to open and the size."""
    from damage import damaged

    chance = random.Random(f"{seed}/{i}")
    kind = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    name = chance.choice([name for name in originals if kind_of(name) == kind])
    files = damaged(originals[name], chance)
    shutil.rmtree(folder, ignore_errors=True)
    for inner, data in files.items():
        path = folder / name / inner if inner else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    # A description beside the file: {name}.json in the same folder.
    top = folder / name
    if not inner_folder(originals[name]):
        top = folder / name / next(iter(originals[name]))
    return kind, top, sum(map(len, files.values()))


def inner_folder(files: dict[str, bytes]) -> bool:
    """Whether the dump is the folder, not a file and its description."""
    first = next(iter(files))
    return not all(name in (first, f"{first}.json") for name in files)


def kind_of(name: str) -> str:
    return name.partition("-")[0]


# Zarr and parquet are the slowest to open; every reader gets tens of thousands of a million.
WEIGHTS = {
    "safetensors": 22, "index": 12, "npy": 18, "raw": 8, "parquet": 10, "arrow": 14, "dataset": 6,
    "pt": 8, "zarr": 2,
}  # fmt: skip


def read_all(path: Path) -> int:
    """Reads every row; returns how many, or -1 for a refusal in one sentence that names it."""
    from aniso import InputError, open_dump

    try:
        count = 0
        for block in open_dump(path):
            if block.rows.ndim != 2 or block.rows.isnan().numel() != block.rows.numel():
                raise AssertionError(f"rows of shape {list(block.rows.shape)}")
            count += len(block.rows)
    except InputError as error:
        if path.name not in str(error) and path.parent.name not in str(error):
            raise AssertionError(f"the sentence names no file: {error}") from error
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from error
        return -1
    return count


def memory() -> tuple[int, int]:
    """Address space at its largest, and now, in bytes."""
    text = Path("/proc/self/status").read_bytes()
    return tuple(int(text.split(key)[1].split()[0]) << 10 for key in (b"VmPeak:", b"VmSize:"))


def batch(seed: int, first: int, count: int, sign: Path, out: Path) -> None:
    """Tries inputs and writes what they showed; the sign of life is the number of the input."""
    from fuzz_originals import originals

    warnings.simplefilter("ignore")
    found, good = Found(first), originals()
    with sign.open("r+b") as file, TemporaryDirectory(dir=memory_folder()) as temporary:
        shown = mmap.mmap(file.fileno(), 8)
        for i in range(first, first + count):
            shown[:] = struct.pack("<q", i)
            kind, path, size = one_input(seed, i, Path(temporary) / "in", good)
            before, began = memory()[1], time.process_time()
            try:
                read = read_all(path)
            except BaseException as error:  # noqa: BLE001
                found.findings.append(f"input {i}, {path.name}: {type(error).__name__}: {error}")
                read = -1
            seconds, grown = time.process_time() - began, memory()[0] - before
            found.inputs[kind] += 1
            found.read[kind] += read >= 0
            found.seconds[kind] += seconds
            found.slowest = max(found.slowest, seconds)
            if seconds > SECONDS:
                found.findings.append(f"input {i}, {path.name}: {seconds:.1f} s")
            # The largest size is never forgotten: a process that showed a finding ends here.
            found.largest = max(found.largest, grown - 10 * size)
            if grown > 10 * size + ALLOWANCE:
                found.findings.append(f"input {i}, {path.name}: {grown >> 20} MiB for {size} bytes")
                break
        out.write_text(json.dumps(vars(found)))


def memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def watched(seed: int, first: int, count: int, folder: Path) -> tuple[Found, int]:
    """A batch in a process of its own; returns what it showed and the input to go on with."""
    sign, out = folder / "sign", folder / "found.json"
    sign.write_bytes(struct.pack("<q", first))
    out.unlink(missing_ok=True)
    command = [sys.executable, "-P", __file__, "--batch", str(sign), str(out)]
    command += ["--seed", str(seed), "--first", str(first), "--inputs", str(count)]
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        seen, since = first, time.monotonic()
        while process.poll() is None:
            time.sleep(0.05)
            (now,) = struct.unpack("<q", sign.read_bytes())
            seen, since = (seen, since) if now == seen else (now, time.monotonic())
            # The first input waits for the imports.
            if time.monotonic() - since > SILENCE * (1 if seen > first else 6):
                process.kill()
        (last,) = struct.unpack("<q", sign.read_bytes())
        said = process.stderr.read()[-300:] if process.stderr else ""
    if out.exists():
        found = json.loads(out.read_text())
        for key in ("inputs", "read", "seconds"):
            found[key] = Counter(found[key])
        return Found(**found), last + 1
    ended = f"input {last}: the process ended with {process.returncode} {said!r}"
    return Found(first, findings=[ended]), last + 1


# One arena and plain malloc: what the address space grows by is what was asked for.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parent),
}


def fuzz(inputs: int, seed: int = 0, first: int = 0, *, show: bool = False) -> Found:
    """Tries inputs `first` and on of a seed, in processes of their own."""
    total, at, began = Found(first), first, time.monotonic()
    with TemporaryDirectory() as folder:
        while at < first + inputs:
            found, at = watched(seed, at, min(BATCH, first + inputs - at), Path(folder))
            total.add(found)
            if show:
                seconds = time.monotonic() - began
                print(f"{at - first:,} of {inputs:,} inputs, {seconds:.0f} s", file=sys.stderr)
                print(*found.findings, sep="\n", end="\n" * bool(found.findings), flush=True)
    return total


def main() -> None:
    """Prints inputs, those read to the end and the time per input of every reader."""
    parser = argparse.ArgumentParser(description="Damaged and hostile dumps over every reader.")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--batch", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.batch:
        batch(given.seed, given.first, given.inputs, *given.batch)
        return
    began = time.monotonic()
    found = fuzz(given.inputs, given.seed, given.first, show=True)
    print(f"{given.inputs:,} inputs of seed {given.seed} in {time.monotonic() - began:.0f} s")
    for kind, count in sorted(found.inputs.items()):
        each = found.seconds[kind] / count * 1e6
        print(f"{kind:<12} {count:>9,} inputs, {found.read[kind]:>8,} read, {each:6,.0f} µs each")
    print(f"slowest {found.slowest:.2f} s, most memory beside ten times the input "
          f"{max(0, found.largest) >> 20} MiB, {len(found.findings)} findings")  # fmt: skip
    raise SystemExit(bool(found.findings))


if __name__ == "__main__":
    main()
