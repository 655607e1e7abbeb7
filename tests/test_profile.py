"""The profile of real kernels, and of kernels made slow and wrong on purpose."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from dump_helpers import shared_cli, strict_json

import aniso
from aniso import _native
from aniso.profile import (
    Ceilings,
    Kernel,
    Measurement,
    ProfileReport,
    Timing,
    changes,
    kernel,
    measure_ceilings,
    profile,
    registered_kernels,
)
from aniso.profile import builtin as builtin_module
from aniso.profile import kernel as kernel_decorator
from aniso.profile.kernels import random_rows, relative_error
from aniso.profile.timing import replayable
from aniso.report._table import plain_text

CEILINGS = Ceilings(read=10e9, copy=9e9, matmul={"float32": 100e9, "float64": 50e9})
MACHINE = {"device": "cpu", "name": "a processor", "threads": 2, "aniso": "0", "torch": "2"}


def row_sum(run, op="row_sum", **more):
    return Kernel(
        op=op,
        run=run,
        reference=lambda x: x.double().sum(1),
        nbytes=lambda x: x.nbytes,
        flops=lambda x: x.numel(),
        shapes=((2000, 64),),
        dtypes=(torch.float32,),
        tolerance=1e-5,
        **more,
    )


def measured(seconds, spread=0.02, op="k", dtype="float32", **more):
    timing = Timing(seconds, seconds * (1 - spread), seconds * (1 + spread), 7)
    return Measurement(op, "b", dtype, "9x9", 1e9, 1e9, 1e-9, 1e-6, timing, **more)


def report(*rows):
    return ProfileReport(MACHINE, CEILINGS, rows)


def verdict(now, before):
    (change,) = changes(report(now), report(before).results())
    return change.verdict


def tiny(entry):
    """The same kernel on its smallest dims and few rows."""
    few = {2: (240, 48), 3: (2, 40, 48)}
    return replace(entry, shapes=(few[len(entry.shapes[0])],))


def test_every_op_is_profiled_and_right():
    known = tuple(tiny(entry) for entry in builtin_module.builtin_kernels())
    found = profile(kernels=known, budget=0.0)
    assert found.correct, [row for row in found.rows if not row.correct]
    assert {row.op for row in found.rows} == {entry.op for entry in known}
    assert len(found.rows) >= sum(len(entry.dtypes) for entry in known)
    for row in found.rows:
        assert row.timing.p20 <= row.timing.median <= row.timing.p80
        assert row.timing.rounds == 3
        assert row.speedup > 0 and row.share(found.ceilings) > 0
        assert row.nbytes > 0 and row.flops > 0
    chosen = aniso.select_backend("row_moments", torch.empty(0, 4)).name
    backends = {row.backend for row in found.rows if row.op == "row_moments"}
    expected = {chosen} | ({"cpu-avx2"} if _native.isa == "avx512" else set())
    assert backends == expected


def test_every_registered_op_has_a_kernel():
    from aniso.ops.backend import _CHOOSERS

    covered = {"svdvals": "batched_svd", "svd": "batched_svd", "soft_decay": "spectral_map"}
    names = {covered.get(entry.op, entry.op) for entry in builtin_module.builtin_kernels()}
    assert names == set(_CHOOSERS)


def test_a_wrong_kernel_has_no_speed():
    wrong = profile(kernels=[row_sum(lambda x: x.sum(1) * 1.001)], budget=0.0)
    (row,) = wrong.rows
    assert not wrong.correct and row.timing is None and row.peer is None
    assert row.error == pytest.approx(1e-3, rel=0.1)
    facts = wrong.results()["kernels"][0]
    speeds = ("seconds", "gb_per_s", "tflop_per_s", "speedup", "share_of_ceiling", "bound")
    assert all(facts[name] is None for name in speeds)
    assert "WRONG" in plain_text(wrong.table(80))


@pytest.mark.parametrize("found", [torch.full((2000,), math.nan), torch.zeros(7)])
def test_nan_and_other_shapes_are_wrong(found):
    (row,) = profile(kernels=[row_sum(lambda x: found)], budget=0.0).rows
    assert row.error == math.inf and not row.correct
    strict_json(report(row).to_json())


def test_a_slowed_kernel_is_called_slow():
    def slowed(x):
        time.sleep(0.3)  # longer than other work takes the cores away
        return x.sum(1)

    quick, slow = (
        profile(kernels=[row_sum(run)], budget=0.2) for run in (lambda x: x.sum(1), slowed)
    )
    assert [change.verdict for change in changes(slow, quick.results())] == ["SLOW"]
    assert [change.verdict for change in changes(quick, slow.results())] == ["FAST"]


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (measured(1.0), measured(1.0), "SAME"),
        (measured(1.05, 0.001), measured(1.0, 0.001), "SAME"),
        (measured(1.3), measured(1.0), "SLOW"),
        (measured(1.0), measured(1.3), "FAST"),
        (measured(1.3, 0.25), measured(1.0, 0.2), "NOISY"),
        (measured(1.5, 0.16), measured(1.0, 0.16), "NOISY"),
        (measured(9.0, 0.3), measured(1.0, 0.2), "SLOW"),
        (measured(2.0, peer=8.0), measured(1.0, peer=4.0), "NOISY"),
        (measured(2.0, peer=4.0), measured(1.0, peer=4.0), "SLOW"),
        (measured(1.0, peer=4.0), measured(2.0, peer=8.0), "NOISY"),
        (measured(1.0, peer=4.0), measured(2.0, peer=4.0), "FAST"),
    ],
)
def test_verdicts(now, before, expected):
    assert verdict(now, before) == expected


def test_only_what_both_got_right_is_compared():
    wrong = replace(measured(1.0, op="w"), timing=None, error=1.0)
    old = report(measured(1.0), wrong, measured(1.0, op="gone")).results()
    found = changes(report(measured(1.0), measured(1.0, op="w"), measured(1.0, op="new")), old)
    assert [change.key[0] for change in found] == ["k"]


def test_another_machine_is_not_compared():
    old = report(measured(1.0)).results() | {"machine": MACHINE | {"threads": 64}}
    with pytest.raises(aniso.InputError, match="threads 64, this one with 2; compare runs"):
        changes(report(measured(1.0)), old)


def test_what_bounds_a_kernel():
    assert CEILINGS.floor(10e9, 1e9, "float32") == (1.0, "memory")
    assert CEILINGS.floor(1e9, 200e9, "float32") == (2.0, "compute")
    assert CEILINGS.floor(1e9, 200e9, "float64")[0] == 4.0
    assert CEILINGS.ridge("float32") == 10.0
    row = measured(0.2)
    assert row.share(CEILINGS) == pytest.approx(0.5) and row.bound(CEILINGS) == "memory"
    assert measured(1.0).bound(CEILINGS) == "neither"
    assert replace(row, flops=15e9).bound(CEILINGS) == "compute"
    assert row.gb_per_s == pytest.approx(5.0) and row.tflop_per_s == pytest.approx(0.005)
    assert replace(row, peer=0.5).speedup == pytest.approx(2.5)


def test_ceilings_are_those_of_this_machine():
    """A copy and a product timed by hand come to the same order of magnitude."""
    found = measure_ceilings("cpu", [torch.float32])
    x, a = torch.ones(1 << 26), torch.randn(1024, 1024)
    target, seconds = torch.empty_like(x), []
    for call in (lambda: target.copy_(x), lambda: a @ a):
        call()
        rounds, start = [], time.perf_counter()
        while time.perf_counter() < start + 0.5:
            began = time.perf_counter()
            call()
            rounds.append(time.perf_counter() - began)
        seconds.append(min(rounds))
    # Bits for bytes would be eightfold; a core shared with others costs up to half or more.
    assert 1 / 5 < found.copy / (2 * x.nbytes / seconds[0]) < 5
    assert 1 / 5 < found.matmul["float32"] / (2 * 1024**3 / seconds[1]) < 5
    assert found.read > 0


@pytest.mark.parametrize(
    ("found", "exact", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([math.inf], [1.0], math.inf),
        ([], [], 0.0),
        ([0.25], [0.0], 0.25),
    ],
)
def test_relative_error(found, exact, error):
    assert relative_error(torch.tensor(found), torch.tensor(exact)) == error
    assert relative_error((1.0, torch.tensor(found)), (1.0, torch.tensor(exact))) == error


def test_random_rows_are_the_same_every_time_and_not_zero():
    x, y = (random_rows((50, 8), torch.bfloat16, "cpu") for _ in range(2))
    assert torch.equal(x, y) and x.dtype == torch.bfloat16
    assert bool(x.any(dim=1).all())


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setattr("aniso.profile.kernels._KERNELS", {})


@pytest.mark.usefixtures("no_kernels")
def test_the_decorator_registers_and_returns_the_callable():
    cost = {"nbytes": lambda x: x.nbytes, "flops": lambda x: x.numel()}

    @kernel("mine", reference=lambda x: x.double().sum(1), shapes=[(9, 4)], **cost)
    def mine(x):
        return x.sum(1)

    assert mine(torch.ones(2, 3)).tolist() == [3.0, 3.0]
    assert [entry.op for entry in registered_kernels()] == ["mine"]
    found = profile(["mine"], budget=0.0)
    assert [(row.op, row.backend, row.shape, row.correct) for row in found.rows] == [
        ("mine", "user", "9x4", True)
    ]
    with pytest.raises(aniso.InputError, match="'mine' already; choose"):
        kernel_decorator("mine", reference=mine, shapes=[(1,)], **cost)(mine)
    with pytest.raises(aniso.InputError, match="no shapes or no dtypes"):
        kernel_decorator("other", reference=mine, shapes=[], **cost)(mine)


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_table_fits(width):
    rows = [measured(1.2345e-3, op="pair_histogram", dtype="bfloat16", peer=0.01), measured(2e-6)]
    text = plain_text(report(*rows).table(width, ()), width)
    assert max(map(len, text.splitlines())) <= width
    assert "1.23 ms" in text and "2 µs" in text and "bf16" in text
    assert ("p20" in text) == (width >= 120)


def test_table_of_nothing_and_verdicts():
    assert plain_text(report().table(80)).strip() == ""
    now = report(measured(2.0))
    text = plain_text(now.table(80, changes(now, report(measured(1.0)).results())))
    assert "SLOW 0.50" in text


def test_roofline_is_one_svg_with_axes_and_every_kernel():
    svg = report(measured(1.0), measured(2.0, op="other", dtype="float64")).roofline()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    for text in ("FLOP per byte", "GFLOP/s", "k float32", "other float64", "matmul float32"):
        assert text in svg
    with pytest.raises(aniso.InputError, match="no kernel was right"):
        report(replace(measured(1.0), timing=None)).roofline()


USER = """
from aniso.profile import kernel

@kernel("user_sum", reference=lambda x: x.double().sum(1){wrong}, shapes=[(500, 64)],
        nbytes=lambda x: x.nbytes, flops=lambda x: x.numel(), peer=lambda x: x.sum(1))
def user_sum(x):
    return x.sum(1)
"""


def test_command_profiles_a_users_file_and_compares(tmp_path):
    cli = shared_cli()
    (tmp_path / "mine.py").write_text(USER.format(wrong=""))
    arguments = ["profile", "--load", "mine.py", "--op", "user_*", "--device", "cpu"]
    first = cli.run(*arguments, "--json", cwd=tmp_path)
    assert first.code == 0, first.err
    result = strict_json(first.out)
    assert result["schema"] == 1
    assert result["kernels"][0]["op"] == "user_sum"
    assert result["kernels"][0]["speedup"] > 0
    assert set(result["ceilings"]["matmul_tflop_per_s"]) == {"float64", "float32", "bfloat16"}
    (tmp_path / "old.json").write_text(first.out)
    more = ["--compare", "old.json", "--plot", "roof.svg"]
    second = cli.run(*arguments, *more, cwd=tmp_path)
    assert second.code == 0, second.err
    assert any(word in second.out for word in ("SAME", "FAST", "SLOW", "NOISY"))
    assert "\x1b" not in second.out
    assert "user_sum" in (tmp_path / "roof.svg").read_text()
    again = strict_json(cli.run(*arguments, "--json", "--compare", "old.json", cwd=tmp_path).out)
    assert again["kernels"][0]["verdict"] in ("SAME", "FAST", "SLOW", "NOISY")


def test_command_exits_with_1_when_a_result_is_wrong(tmp_path):
    (tmp_path / "mine.py").write_text(USER.format(wrong=" * 2"))
    arguments = ["profile", "--load", "mine.py", "--op", "user_sum", "--device", "cpu"]
    done = shared_cli().run(*arguments, cwd=tmp_path)
    assert done.code == 1
    assert "WRONG" in done.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--op nix", "no op matches 'nix'; the ops are row_moments, "),
        ("--load gone.py", r"there is no file gone\.py; pass"),
        ("--compare gone.json", r"gone\.json cannot be read \(No such file"),
        ("--compare odd.json", r"odd\.json is no profile; pass what"),
        ("--compare future.json", r"future\.json has schema 9, not 1; measure"),
        ("--device cuda:99", "there is no device 'cuda:99' here; use"),
    ],
)
def test_bad_arguments_get_one_sentence(tmp_path, arguments, sentence):
    (tmp_path / "odd.json").write_text('{"schema": 1, "kernels": [{}]}')
    (tmp_path / "future.json").write_text(json.dumps({"schema": 9}))
    done = shared_cli().run("profile", *arguments.split(), cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("aniso: ") and done.err.count("\n") == 1
    assert re.search(sentence, done.err), done.err


def test_long_calls_and_those_of_a_cpu_are_no_graphs(monkeypatch):
    def call():
        return None

    assert replayable(call, "cpu") is call
    monkeypatch.setattr("aniso.profile.timing.seconds_of", lambda call, device: 1.0)
    assert replayable(call, "cuda") is call


@pytest.mark.gpu
def test_short_calls_on_a_gpu_are_graphs_and_give_the_same():
    x = torch.randn(64, 64, device="cuda")
    out = torch.empty_like(x)
    replay = replayable(lambda: torch.mul(x, 2, out=out), "cuda")
    assert replay.__name__ == "replay"
    out.zero_()
    replay()
    assert torch.equal(out, 2 * x)

    def waits():
        return float(x.sum())

    assert replayable(waits, "cuda") is waits
    assert float(x.sum()) == pytest.approx(waits())
