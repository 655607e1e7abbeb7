"""Live capture of the packaged MiniLM against its forward pass alone, eager and compiled.

    pytest benches/bench_capture.py -s

Both take turns in one process. All layers, moments and both Grams unless said; MiniLM has 7 and
takes 64 x 128 tokens.
"""

from __future__ import annotations

import os
import time
from statistics import median

import pytest
import torch

import aniso

BATCH, TOKENS, ROUNDS = 64, 128, int(os.environ.get("ANISO_BENCH_ROUNDS", "7"))
# Of the forward pass: the goal of the design.
GOAL = 0.10

pytest.importorskip("transformers")


def network():
    """The packaged MiniLM."""
    from aniso.models import load_network, packaged_model

    return load_network(str(packaged_model()))


def llama():
    """A Llama of 110 million random parameters: 12 blocks of 768."""
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 768, "intermediate_size": 2048, "vocab_size": 32000}
    return LlamaModel(LlamaConfig(num_hidden_layers=12, num_attention_heads=12, **sizes)).eval()


def inputs(sentences=BATCH, tokens=TOKENS):
    """A batch of random tokens, none of them padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (sentences, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def seconds(call):
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def overheads(model, batch, options, calls=1):
    """Median time of forward passes, and of what each capture adds to them, taking turns."""

    def forward():
        for _ in range(calls):
            model(**batch)

    plain, added = [], {name: [] for name in options}
    runs = {name: aniso.capture(model, **given) for name, given in options.items()}
    for round_ in range(ROUNDS + 1):
        times = {"": seconds(forward)}
        for name, run in runs.items():
            with run:
                times[name] = seconds(forward)
        if round_:
            plain.append(times.pop(""))
            for name, took in times.items():
                added[name].append(took - plain[-1])
    return median(plain), {name: median(values) for name, values in added.items()}


OPTIONS = {"moments": {"gram": False}, "moments and both Grams": {}}


def report(what, record_property, forward, added):
    """Prints and records what each capture adds, as a share of the forward pass."""
    for name, took in added.items():
        record_property(name, took / forward)
        print(f"capture, {what}, {name}: forward {forward:.3f} s, {took / forward:+.1%}")


@torch.inference_mode()
def test_eager(record_property):
    """Hooks that Python runs, after every block."""
    others = {"no rows": {"layers": [0], "gram": False}, "outliers too": {"max_norm_multiple": 10}}
    forward, added = overheads(network(), inputs(), OPTIONS | others)
    report("eager", record_property, forward, added)
    assert added["moments and both Grams"] / forward < 4 * GOAL


@torch.inference_mode()
def test_llama(record_property):
    """Wider rows and fewer of them, 8 x 128: an indication of larger models."""
    report("Llama of 110M", record_property, *overheads(llama(), inputs(8), OPTIONS))


@torch.inference_mode()
def test_short_calls(record_property):
    """A sentence of 16 tokens a call, 48 calls a turn: their rows wait for one another."""
    report("48 × 16 tokens", record_property, *overheads(network(), inputs(1, 16), OPTIONS, 48))


@torch.inference_mode()
def test_compiled(record_property):
    """One capture that stays on: entering another drops the compiled code."""
    model, batch = network(), inputs()
    plain = torch.compile(model)
    other = network()
    with aniso.capture(other) as run:
        compiled = torch.compile(other, fullgraph=True)
        for call in (plain, compiled):
            call(**batch)
        took = {"plain": [], "captured": []}
        for _ in range(ROUNDS):
            took["plain"].append(seconds(lambda: plain(**batch)))
            took["captured"].append(seconds(lambda: compiled(**batch)))
    forward = median(took["plain"])
    pairs = zip(took["captured"], took["plain"], strict=True)
    share = median(captured - alone for captured, alone in pairs) / forward
    record_property("compiled", share)
    assert run.states["embeddings"].moments.rows == (ROUNDS + 1) * BATCH * TOKENS
    print(f"capture, compiled, moments and both Grams: forward {forward:.3f} s, {share:+.1%}")
