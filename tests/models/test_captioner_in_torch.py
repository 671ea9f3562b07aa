"""Decoders and finer grids beside PyTorch's and transformers' own layers."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig as HubBertConfig
from transformers import BertLMHeadModel

from edje_jax.models.upsampling import STEPS
from edje_jax.weights import edje
from edje_jax.weights.mapping import to_theirs
from tests.models.test_captioner import BERT, LENGTHS, SUM, found, stored_tokens, text_ids, weights
from tests.models.test_upsampling import SIDE, WIDTH, maps, upsampled, upsampler_params


@torch.no_grad()
def test_layers_are_those_of_a_language_model_of_transformers_with_cross_attention():
    """Both directions, each as a `BertLMHeadModel` of the exported tensors."""
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    kept += ("num_attention_heads", "max_position_embeddings", "layer_norm_eps", "pad_token_id")
    shape: dict[str, Any] = {name: getattr(BERT, name) for name in kept}
    shape["attn_implementation"] = "eager"
    config = HubBertConfig(**shape, is_decoder=True, add_cross_attention=True)
    tensors = to_theirs(edje.rules(SUM), weights())
    for number, direction in enumerate(("forward", "backward")):
        theirs = BertLMHeadModel(config).eval()
        state = {}
        for name, value in tensors.items():
            for ours, hub in (
                (f"{direction}_decoder.", "bert.encoder."),
                ("language_model.", ""),
            ):
                if name.startswith(ours):
                    state[hub + name.removeprefix(ours)] = torch.tensor(value)
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
        state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
        theirs.load_state_dict(state)
        for row, (ids, length) in enumerate(zip(text_ids(), LENGTHS, strict=True)):
            caption = ids[:length] if direction == "forward" else ids[:length][::-1]
            caption = torch.tensor(caption.copy()).long()[None]
            image = torch.tensor(stored_tokens()[row : row + 1])
            logits = theirs(caption[:, :-1], encoder_hidden_states=image).logits
            expected = logits.log_softmax(-1).gather(2, caption[:, 1:, None])[0, :, 0]
            ours = found().values[number, row, : length - 1]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_bilinear_upsampling_is_pytorch_s(factor):
    """With nothing of the earlier map and no convolution, a step is the norm of `up`."""
    steps = STEPS[factor]
    params = jax.tree.map(np.zeros_like, upsampler_params(steps))
    for step in range(1, steps + 1):
        params[f"shares_{step}"] = np.array([1.0, 0.0], np.float32)
        params[f"norm_{step}"]["scale"] = np.ones(WIDTH, np.float32)
    tokens = maps(steps)
    ours = upsampled(steps, params, tokens)
    expected = torch.tensor(tokens[..., :WIDTH]).reshape(2, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
    for _ in range(steps):
        expected = F.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
        expected = expected * (1.0001 / 1.0002)
        expected = F.layer_norm(expected.permute(0, 2, 3, 1), (WIDTH,), eps=1e-6)
        expected = expected.permute(0, 3, 1, 2)
    expected = expected.permute(0, 2, 3, 1).reshape(2, -1, WIDTH)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
