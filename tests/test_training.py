from __future__ import annotations

import csv
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

import aniso
from aniso.integrations.hf_trainer import MetricCallback
from aniso.integrations.training import MetricLogger, tensorboard, wandb


@pytest.fixture
def model():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 50}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes, **dropout)
    return BertForMaskedLM(config)


def batches(count):
    return [{"input_ids": torch.randint(5, 50, (3, 7))} for _ in range(count)]


def train(model, optimizer, inputs):
    optimizer.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()


def hooks(model):
    """How many there are; transformers leaves some of its own."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_plain_loop(model, tmp_path):
    """Every third step, of the weights before it; what happens between steps does not count."""
    optimizer, data, expected, seen = torch.optim.SGD(model.parameters(), 0.5), batches(7), {}, {}
    metrics = ("mean_cosine", "rankme")
    files = [tmp_path / "m.csv", str(tmp_path / "m.jsonl")]
    logger = MetricLogger(model, [*files, seen.__setitem__], every=3, metrics=metrics)
    model(**data[0], output_hidden_states=True)
    before = hooks(model)
    for step, inputs in enumerate(data):
        if step % 3 == 0:
            with torch.no_grad():
                hidden = model(**inputs, output_hidden_states=True).hidden_states
            expected[step] = [aniso.cosine_stats(h.flatten(0, 1)).mean for h in hidden]
        with logger:
            assert (hooks(model) == before) == (step % 3 != 0)
            train(model, optimizer, inputs)
        model(**inputs)
    assert hooks(model) == before and logger.step == 7 and list(seen) == [0, 3, 6]
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    assert list(rows[0]) == ["step", "layer", *metrics] and len(rows) == 9
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    for line, (step, cosines) in zip(lines, expected.items(), strict=True):
        found = [layer["mean_cosine"] for layer in line["layers"].values()]
        assert line["step"] == step and found == pytest.approx(cosines, rel=1e-5, abs=1e-6)
        assert line["layers"] == seen[step]
        written = [float(row["mean_cosine"]) for row in rows if row["step"] == str(step)]
        assert written == found
        assert all(layer["rankme"] > 1 for layer in line["layers"].values())


def test_a_step_that_raises_writes_nothing(model, tmp_path):
    logger = MetricLogger(model, tmp_path / "m.csv", every=1)
    with pytest.raises(ZeroDivisionError), logger:
        model(**batches(1)[0])
        raise ZeroDivisionError
    assert hooks(model) == 0 and not (tmp_path / "m.csv").exists()
    with logger:
        model(**batches(1)[0])
    assert (tmp_path / "m.csv").read_text().splitlines()[1].startswith("1,embeddings,")


def test_the_trainer(model, tmp_path):
    """Gradient accumulation: two batches per step; evaluation and resumed steps."""
    data = [{"input_ids": x, "labels": x} for x in torch.randint(5, 50, (16, 7))]
    seen = {}
    callback = MetricCallback([seen.__setitem__, tmp_path / "m.jsonl"], every=2, layers=[0, -1])
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        **options,
    )
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset=data[:3], callbacks=[callback]
    )
    trainer.train()
    assert list(seen) == [0, 2] and list(seen[0]) == ["embeddings", "bert.encoder.layer.1"]
    assert seen[0] != seen[2] and hooks(model) == 0
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 2


def test_trackers_get_flat_names(monkeypatch):
    logged, scalars = [], []

    class SummaryWriter:
        def __init__(self, folder):
            scalars.append(folder)

        def add_scalar(self, *scalar):
            scalars.append(scalar)

        def flush(self):
            scalars.append("flushed")

    class Run:
        def log(self, values):
            logged.append(values)

    wandb(Run())(3, {"a": {"mean_cosine": 0.5}})
    assert logged == [{"a/mean_cosine": 0.5, "aniso/step": 3}]
    board = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    tensorboard("runs")(3, {"a": {"mean_cosine": 0.5}})
    assert scalars == ["runs", ("a/mean_cosine", 0.5, 3), "flushed"]
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    with pytest.raises(aniso.InputError, match="no current wandb run"):
        wandb()
    for name, sink in (("wandb", wandb), ("tensorboard", lambda: tensorboard("x"))):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(aniso.InputError, match=f"{name} is not installed"):
            sink()


def test_every_metric_can_be_logged(model):
    seen = {}
    for metrics in [aniso.METRICS, *([key] for key in aniso.METRICS)]:
        with MetricLogger(model, seen.__setitem__, metrics=metrics, layers=[1]):
            model(input_ids=torch.arange(5, 26).reshape(3, 7))
        (found,) = seen[0].values()
        assert list(found) == list(metrics)


@pytest.mark.parametrize(
    ("to", "options", "words"),
    [
        ("m.txt", {}, "neither .csv nor .jsonl"),
        ("nowhere/m.csv", {}, "there is no folder nowhere"),
        ("m.csv", {"every": 0}, "every is 0"),
        ("m.csv", {"metrics": ["anisotropy"]}, "no metric 'anisotropy'"),
        ("m.csv", {"metrics": []}, "no metric was named"),
        ("m.csv", {"layers": "layer.9"}, "layer.9"),
    ],
)
def test_refusals_are_one_sentence(model, to, options, words):
    with pytest.raises(aniso.InputError, match=words):
        MetricLogger(model, to, **options)
