"""Text, images and audio through randomly initialised models of every family."""

from __future__ import annotations

import pytest
import torch
from rows import assert_moments
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperModel,
)

import aniso
from aniso import reference
from aniso.experiments import layers

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2}


def bert():
    config = BertConfig(vocab_size=50, **SMALL, **HEADS)
    return BertModel(config, add_pooling_layer=False), text()


def gpt2():
    return GPT2Model(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50)), text()


def llama():
    return LlamaModel(LlamaConfig(vocab_size=50, num_key_value_heads=1, **SMALL, **HEADS)), text()


def t5():
    """The decoder's sequences are shorter than the encoder's, and padded in their own way."""
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
    decoder = {f"decoder_{name}": value for name, value in text(tokens=5).items()}
    return T5Model(config), text() | decoder


def vit():
    config = ViTConfig(image_size=16, patch_size=8, **SMALL, **HEADS)
    return ViTModel(config, add_pooling_layer=False), {"pixel_values": torch.randn(3, 3, 16, 16)}


def wav2vec2():
    """Two convolutions take 100 samples to 24 frames."""
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (4, 3), "conv_stride": (2, 2)}
    config = Wav2Vec2Config(
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        **convolutions,
        **SMALL,
        **HEADS,
    )
    lengths = torch.tensor([100, 60, 30])
    mask = (torch.arange(100) < lengths[:, None]).long()
    return Wav2Vec2Model(config), {
        "input_values": torch.randn(3, 100) * mask,
        "attention_mask": mask,
    }


def whisper():
    config = WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=9,
        vocab_size=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    mask = (torch.arange(20) < torch.tensor([20, 13, 6])[:, None]).long()
    inputs = {"input_features": torch.randn(3, 8, 20), "attention_mask": mask}
    return WhisperModel(config), inputs | {"decoder_input_ids": torch.randint(5, 50, (3, 4))}


def text(tokens=7):
    kept = torch.arange(tokens) < torch.tensor([[tokens], [tokens - 2], [tokens - 3]])
    return {"input_ids": torch.randint(5, 50, (3, tokens)), "attention_mask": kept.long()}


# Blocks of each stack, and the tokens that count.
FAMILIES = {
    bert: {"encoder.layer": 7 + 5 + 4},
    gpt2: {"h": 7 + 5 + 4},
    llama: {"layers": 7 + 5 + 4},
    t5: {"encoder.block": 7 + 5 + 4, "decoder.block": 5 + 3 + 2},
    vit: {"layers": 3 * 5},
    # (n − 4)//2 + 1 frames of n samples, (m − 3)//2 + 1 of those.
    wav2vec2: {"encoder.layers": 24 + 14 + 6},
    # ⌈n/2⌉ positions of n frames.
    whisper: {"encoder.layers": 10 + 7 + 3, "decoder.layers": 3 * 4},
}


def outputs(model, layer, inputs):
    """The output of one block."""
    seen = []

    def hook(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_captured(make):
    model, inputs = make()
    model.eval()
    with torch.no_grad(), aniso.capture(model) as run:
        model(**inputs)
    names = []
    for stack, tokens in FAMILIES[make].items():
        first = f"{stack}.embeddings" if names else "embeddings"
        names += [first, f"{stack}.0", f"{stack}.1"]
        for name in names[-3:]:
            assert run.states[name].moments.rows == tokens, name
    assert list(run.finished()) == names
    # Padding lies on the right: the first rows of every sequence count.
    for stack, tokens in FAMILIES[make].items():
        hidden = outputs(model, f"{stack}.1", inputs)
        keep = kept(make, hidden, decoder=stack.startswith("decoder"), inputs=inputs)
        assert int(keep.sum()) == tokens
        assert_moments(
            run.states[f"{stack}.1"].moments,
            reference.row_moments(hidden.flatten(0, 1), keep.flatten()),
        )


def kept(make, hidden, *, decoder, inputs):
    if make is wav2vec2:
        lengths = torch.tensor([24, 14, 6])
    elif make is whisper and not decoder:
        lengths = torch.tensor([10, 7, 3])
    else:
        mask = inputs.get("decoder_attention_mask" if decoder else "attention_mask")
        full = torch.full((len(hidden),), hidden.shape[1])
        lengths = full if mask is None or len(mask[0]) != hidden.shape[1] else mask.sum(1)
    return torch.arange(hidden.shape[1]) < lengths[:, None]


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_attached_and_detached(make):
    model, inputs = make()
    model.eval()
    for stack in FAMILIES[make]:
        layer = f"{stack}.1"
        plain = outputs(model, layer, inputs)
        keep = kept(make, plain, decoder=stack.startswith("decoder"), inputs=inputs)
        with aniso.attach(model, layer, aniso.SoftDecay(mode="continuous")) as handle:
            found = outputs(model, layer, inputs)
        assert handle.layers == (layer,)
        expected = aniso.soft_decay(plain, mode="continuous", mask=keep)
        assert torch.allclose(found, expected, atol=1e-5), layer
        assert torch.equal(found[~keep], plain[~keep])
        assert not torch.allclose(found, plain, atol=1e-3)
        assert torch.equal(outputs(model, layer, inputs), plain), "not detached"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_layers_side_by_side(make):
    """In batches of two what one call gives."""
    model, inputs = make()
    model.eval()
    report = layers({"m": model}, inputs, {}, batch_size=2, progress=False)
    with torch.no_grad(), aniso.capture(model) as run:
        model(**inputs)
    (found,) = report.models.values()
    for name, expected in run.compute().items():
        for key, value in found[name].items():
            assert value == pytest.approx(expected.metrics[key], rel=1e-4, abs=1e-5), (name, key)


def test_audio_padded_on_the_left_is_refused():
    model, inputs = wav2vec2()
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with aniso.capture(model.eval()), pytest.raises(aniso.InputError, match="pad audio on the"):
        model(**inputs)


def test_the_trained_one_attached_and_detached(minilm, demo_texts):
    inputs = minilm.tokenizer(demo_texts[:3], padding=True, return_tensors="pt")
    layer, keep = "encoder.layer.5", inputs["attention_mask"].bool()
    plain = outputs(minilm.model, layer, inputs)
    decay = aniso.attach(minilm.model, layer, aniso.SoftDecay(mode="continuous"))
    with decay, aniso.capture(minilm.model, layer) as run:
        found = outputs(minilm.model, layer, inputs)
    assert torch.allclose(found, aniso.soft_decay(plain, mode="continuous", mask=keep), atol=1e-5)
    assert run.states[layer].moments.rows == int(keep.sum())
    assert torch.equal(outputs(minilm.model, layer, inputs), plain)
