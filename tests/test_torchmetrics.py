"""LayerMetric as torchmetrics' own checks hold a metric: pickle, clone, forward, sync."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torchmetrics import MetricCollection

import aniso
from aniso import InputError
from aniso.integrations.torchmetrics import LayerMetric
from aniso.metrics import METRICS

KEYS = tuple(METRICS)


def blocks(count=4, n=50, d=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, d, generator=generator) + 0.3 * i).to(dtype) for i in range(count)]


def same(found, parts, rel=1e-9):
    state = aniso.LayerState(parts[0].shape[-1])
    for part in parts:
        state.update(part)
    expected = state.compute().metrics
    assert set(found) <= set(expected)
    for key, value in found.items():
        assert value.dtype == torch.float64 and value.ndim == 0
        assert float(value) == pytest.approx(expected[key], rel=rel, abs=1e-12, nan_ok=True), key


def filled(parts, **options):
    metric = LayerMetric(6, KEYS, **options)
    for part in parts:
        metric.update(part)
    return metric


def test_updates_add_up():
    same(filled(blocks()).compute(), blocks())


def test_forward_gives_the_batch_and_keeps_all():
    metric = LayerMetric(6, KEYS)
    for part in blocks():
        same(metric(part), [part])
    same(metric.compute(), blocks(), rel=1e-8)


def test_a_mask_and_leading_axes():
    x = torch.stack(blocks())
    mask = torch.rand(4, 50) > 0.5
    metric = LayerMetric(6, KEYS)
    metric.update(x, mask)
    same(metric.compute(), [x[mask]])


@pytest.mark.parametrize("copy", [lambda m: pickle.loads(pickle.dumps(m)), LayerMetric.clone])
def test_a_copy_goes_on_by_itself(copy):
    metric = filled(blocks()[:2])
    other = copy(metric)
    for part in blocks()[2:]:
        other.update(part)
    same(other.compute(), blocks())
    same(metric.compute(), blocks()[:2])


def test_merge_state_of_a_metric_and_of_its_dict():
    metric, other = filled(blocks()[:1]), filled(blocks()[1:])
    metric.merge_state(other)
    same(metric.compute(), blocks())
    again = filled(blocks()[:1])
    again.merge_state(dict(other.metric_state))
    same(again.compute(), blocks())
    empty = filled([])
    empty.merge_state(other)
    with pytest.warns(UserWarning, match="before the ``update``"):
        same(empty.compute(), blocks()[1:])


def test_reset_forgets_and_keeps_its_default():
    metric = filled(blocks())
    metric.reset()
    assert metric.layer_state().moments.rows == 0
    metric.update(blocks()[2])
    same(metric.compute(), [blocks()[2]])
    metric.reset()
    assert torch.equal(metric.sums, LayerMetric(6, KEYS).sums)


def test_dtypes_of_the_module_leave_the_sums_alone():
    metric = filled(blocks()[:2]).half().float().to("cpu")
    metric.update(blocks()[2])
    assert metric.sums.dtype == torch.float64
    same(metric.compute(), blocks()[:3])


def test_in_a_collection_and_alone():
    collection = MetricCollection(
        {"all": LayerMetric(6, KEYS), "cosine": LayerMetric(6, "mean_cosine", gram=False)}
    )
    for part in blocks():
        collection.update(part)
    found = collection.compute()
    one = found["cosine"] if "cosine" in found else found["cosine_mean_cosine"]
    assert float(one) == pytest.approx(aniso.cosine_stats(torch.cat(blocks())).mean, rel=1e-12)


def test_persistent_states_go_through_a_state_dict():
    metric = filled(blocks())
    metric.persistent(True)
    other = LayerMetric(6, KEYS)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    with pytest.warns(UserWarning, match="before the ``update``"):
        same(other.compute(), blocks())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"metrics": "anisotropy"}, "there is no metric 'anisotropy'"),
        ({"metrics": "rankme", "gram": False}, "rankme needs second moments"),
        ({"dim": 0}, "dim is 0"),
    ],
)
def test_what_it_refuses(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        LayerMetric(**{"dim": 6} | arguments)


def run_rank(rank, port):
    """One of two processes: what it computes alone in step and together, as JSON."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    # Unequal shares, another pilot row on each rank.
    metric = filled(blocks()[:1] if rank == 0 else blocks()[1:])
    synced = {k: float(v) for k, v in metric.compute().items()}
    local = metric.layer_state().moments.rows
    metric.update(blocks()[0])
    again = {k: float(v) for k, v in metric.compute().items()}
    step = LayerMetric(6, KEYS, dist_sync_on_step=True)
    batch = {k: float(v) for k, v in step(blocks()[rank]).items()}
    dist.destroy_process_group()
    print(json.dumps([local, synced, again, batch]))


def test_two_ranks_sync_to_the_metric_of_all_rows():
    from dump_helpers import free_port

    command = [sys.executable, __file__, str(free_port())]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*command, str(rank)], **pipes) for rank in (0, 1)]
    found = [worker.communicate(timeout=200)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    answers = [json.loads(text) for text in found]
    assert [answer[0] for answer in answers] == [50, 150]
    for _, synced, again, batch in answers:
        for values, parts in (
            (synced, blocks()),
            (again, [*blocks(), blocks()[0], blocks()[0]]),
            (batch, blocks()[:2]),
        ):
            same({k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()}, parts, 1e-8)


if __name__ == "__main__":
    run_rank(int(sys.argv[2]), int(sys.argv[1]))
