"""Parts of an EDJE or a captioner: backbone, tokenizer, loaded parameters, teacher."""

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from edje_jax.config.model import (
    JOINT_HEADS,
    UNMEASURED,
    AdapterConfig,
    BertConfig,
    EdjeConfig,
    SimilarityPrior,
    TextRecipe,
)
from edje_jax.config.parts import ModelSpec
from edje_jax.config.run import DataConfig, EdjeRun
from edje_jax.data.bad_records import BadRecords, left_out
from edje_jax.data.exclusion import without
from edje_jax.data.sources.registry import open_captioned, open_source
from edje_jax.data.sources.subset import Subset, merge_by_id
from edje_jax.data.text import JointTokenizer, train_wordpiece
from edje_jax.training.captioner_start import captioner_config, shared_decoders
from edje_jax.training.edje_teacher import (
    check_frames,
    check_scores,
    check_texts,
    check_vision,
    with_layers_of_both,
)
from edje_jax.training.losses.table import check_terms
from edje_jax.training.processes import is_first, main_process_first, wait_for_all
from edje_jax.training.similarity_prior import known_prior
from edje_jax.training.vision_positions import KnownFrames, known_frames, with_vision_positions
from edje_jax.types import Source
from edje_jax.weights import bert, edje
from edje_jax.weights.backbone import Backbone, load_backbone
from edje_jax.weights.captioner import from_language_model
from edje_jax.weights.folder import Model, load_model
from edje_jax.weights.mapping import to_ours, under

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssembledModel:
    """The pieces of a run, checked to fit each other."""

    config: EdjeConfig
    backbone: Backbone
    tokenizer: Path
    params: PyTree[np.ndarray]
    """Parameters that do not start fresh; may be empty."""
    teacher: Model | None
    heads: PyTree[np.ndarray] | None = None
    """Heads of the first stage that --init has, which a run hands on as they are."""
    known_frames: KnownFrames = field(default_factory=KnownFrames)
    """Parts of a model of videos that --init has trained."""

    @property
    def step_backbone(self) -> Backbone:
        """Backbone that a step runs: its vision tokens hold what the model and its teacher read."""
        return with_layers_of_both(self.backbone, self.teacher)


def assemble(config: EdjeRun, source: Source | None, workdir: Path) -> AssembledModel:
    """Load what the config names and make what it leaves out, from `source` if there is one.

    Raises:
        ValueError: nothing names a backbone, the parts do not belong together, or a teacher's
            states are asked for and there is none.
    """
    if config.loss.hidden_states > 0 and not config.teacher:
        raise ValueError(
            f"--loss.hidden-states {config.loss.hidden_states}: whose? Name a --teacher, which may"
            " be the model of --init, or set it to 0"
        )
    init = load_model(config.init) if config.init else None
    teacher = load_model(config.teacher) if config.teacher else None
    adapter = config.model.adapter.resolve(init.config.adapter if init else None)
    backbone = _with_image_recipe(config.model, _backbone(config, init, teacher))
    backbone = _with_earlier_layers(backbone, adapter)
    if teacher:
        check_scores(config, teacher)
        check_vision(config, teacher, backbone)
    captioner = captioner_config(config.model, init)
    joint, tokenizer, params = _joint_encoder(config, init, teacher, source, workdir)
    joint = _with_layers_deferred(joint, config.model, captioner is not None)
    if captioner and "joint_encoder" in params:
        params = from_language_model(params["joint_encoder"], captioner)
    whole = EdjeConfig(
        backbone.config,
        adapter,
        joint,
        backbone.image,
        config.model.max_text_length or (init.config if init else EdjeConfig).max_text_length,
        _similarity_prior(config.model, init, None if source else workdir, captioner is not None),
        init.config.first_stage if init and _keeps_heads(config, init, backbone) else None,
        _text_recipe(config.model, init or teacher),
        captioner,
        config.model.video.resolve(init.config.video if init else None),
    )
    if teacher:
        check_frames(config, teacher, whole)
    check_terms(config.loss, whole, teacher is not None)
    if "joint_encoder" in params:
        unused = JOINT_HEADS.keys() - whole.joint_heads.keys()
        kept = {name: leaf for name, leaf in params["joint_encoder"].items() if name not in unused}
        params = {**params, "joint_encoder": kept}
    whole, params = _with_rows_for_every_position(whole, params)
    if init:
        params = shared_decoders(config, init, whole, params)
        params = {**_adapter_params(config, init, whole), **params}
        if not config.model.joint_encoder:
            params = with_vision_positions(init, whole, params)
    _check_shapes(params, whole, config.init or config.model.joint_encoder or "")
    if teacher:
        check_texts(config, teacher, whole, tokenizer)
    heads = init.heads if init and whole.first_stage else None
    known = known_frames(init, whole, bool(config.model.joint_encoder))
    return AssembledModel(whole, backbone, tokenizer, params, teacher, heads, known)


def _with_earlier_layers(backbone: Backbone, adapter: AdapterConfig) -> Backbone:
    """Backbone whose vision tokens have the earlier layers beside them that an adapter reads."""
    wanted = backbone.config.layers_for(adapter.upsampling)
    config = dataclasses.replace(backbone.config, earlier_layers=wanted)
    return dataclasses.replace(backbone, config=config)


def _keeps_heads(config: EdjeRun, init: Model, backbone: Backbone) -> bool:
    """Whether the first-stage heads of --init, if it has some, go on to fit; a line of the log says
    where they do not."""
    if init.heads is None or init.config.first_stage is None:
        return False
    why = ""
    if not init.backbone.shares_params_of(backbone):
        why = "this run has another backbone"
    elif init.config.first_stage.reads_tokens:
        why = "they read compressed tokens, which this run changes"
    if why:
        log.warning(
            "the first-stage heads of --init %s stay behind, as %s; train others afterwards with"
            " edje train first_stage", config.init, why,
        )  # fmt: skip
    return not why


def _similarity_prior(
    spec: ModelSpec, init: Model | None, workdir: Path | None, is_captioner: bool
) -> SimilarityPrior | None:
    """The similarity prior of a run, if it has one: that of `init`, or the one that the run wrote
    into a `workdir`, or else one that is still to be measured.

    Raises:
        ValueError: one is asked for a captioner.
    """
    theirs = init.config.similarity_prior if init else None
    if is_captioner and spec.similarity_prior:
        raise ValueError(
            "--model.similarity-prior True: a captioner has no match head for it; leave it out"
        )
    if is_captioner and init and theirs:
        log.info(
            "the similarity prior of --init %s stays behind, as a captioner has no match head for"
            " it", init.source,
        )  # fmt: skip
        return None
    if spec.similarity_prior is False or (spec.similarity_prior is None and theirs is None):
        return None
    return theirs or (known_prior(workdir) if workdir else UNMEASURED)


def _text_recipe(spec: ModelSpec, start: Model | None) -> TextRecipe:
    return spec.text_recipe or (start.config if start else EdjeConfig).text_recipe


def _adapter_params(config: EdjeRun, init: Model, whole: EdjeConfig) -> PyTree[np.ndarray]:
    """Adapter of --init, if this run has the same; a line of the log names what starts fresh."""
    if init.config.adapter == whole.adapter:
        return {"adapter": init.params["adapter"]}
    if with_fewer := _with_fewer_tokens(init, whole):
        return {"adapter": with_fewer}
    log.warning(
        "the adapter of --init %s is another, and starts fresh: %s there, %s here",
        config.init, init.config.adapter, whole.adapter,
    )  # fmt: skip
    return {}


def _with_fewer_tokens(init: Model, whole: EdjeConfig) -> PyTree[np.ndarray] | None:
    """Adapter of an image model --init with the first of its queries, for a model of videos whose
    adapter is the same but for fewer tokens a frame; a line of the log says so."""
    theirs, ours = init.config.adapter, whole.adapter
    same = dataclasses.replace(theirs, num_tokens=ours.num_tokens) == ours
    starts_videos = whole.video and not init.config.video and ours.kind == "compress"
    if not starts_videos or not same or ours.num_tokens > theirs.num_tokens:
        return None
    log.info(
        "the adapter of --init %s goes on, for each frame, with the first %d of its %d queries",
        init.source, ours.num_tokens, theirs.num_tokens,
    )  # fmt: skip
    params = init.params["adapter"]
    return {**params, "query": params["query"][:, : ours.num_tokens]}


def _check_shapes(params: PyTree[np.ndarray], config: EdjeConfig, source: str) -> None:
    """Raise an error if loaded parameters do not fit the assembled model."""
    expected: dict[str, Any] = dict(flatten_dict(edje.expected_params(config), sep="/"))
    loaded: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    wrong = [
        f"  {path}: {leaf.shape} there, {expected[path].shape} here"
        for path, leaf in loaded.items()
        if leaf.shape != expected[path].shape
    ]
    if wrong:
        raise ValueError(
            f"{source}: was trained with another backbone or joint encoder than this run's; leave"
            " --model.backbone and --model.joint-encoder out to keep its own:\n" + "\n".join(wrong)
        )


def open_sets(data: DataConfig, image_size: int = 64) -> tuple[Source, Source | None]:
    """The training set, and the one for evaluation if there is one: opened before a run begins,
    as a wrong name would otherwise show at its end.

    Raises:
        ValueError, FileNotFoundError: see `open_captioned`.
        TooManyBadRecords: a set of which a part is taken has more bad records than `max_bad`.
    """
    # Tars are indexed and images hashed once, by the first process for all of its machine.
    with main_process_first("sets"):
        train = open_captioned(data.train, data.image_root, image_size)
        if data.exclude or data.limit:
            # What the whole set left out is not counted against a part of it.
            BadRecords.after(left_out(train), len(train), data.max_bad)
        if data.exclude:
            excluded = open_source(data.exclude, data.image_root, image_size)
            train = without(train, excluded, data, image_size)
        if data.limit or data.captions:
            kept = np.arange(len(train)) < (data.limit or len(train))
            train = Subset(train, kept, data.captions)
        val = open_captioned(data.val, data.image_root, image_size) if data.val else None
    return train, merge_by_id(val) if val else None


def train_tokenizer(
    source: Source, vocab_size: int, folder: Path, recipe: TextRecipe = "published"
) -> None:
    """Train a run's tokenizer from its captions, once and by one process."""
    if is_first() and not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train_wordpiece(some_captions(source), vocab_size, folder, recipe)
    wait_for_all("tokenizer")


def some_captions(source: Source, limit: int = 5_000) -> Iterator[str]:
    """Captions of up to `limit` images spread over a source, to train a tokenizer from."""
    for index in range(0, len(source), max(len(source) // limit, 1)):
        yield from source.captions(index)


def _backbone(config: EdjeRun, init: Model | None, teacher: Model | None) -> Backbone:
    spec = config.model
    if spec.backbone:
        backbone = load_backbone(spec.backbone)
        try:
            return backbone.with_vision_tokens(spec.token_layer, spec.class_token)
        except ValueError as error:
            # The message begins with the argument's name, which the flag's is but for its spelling.
            raise ValueError(f"--model.{error}".replace("_", "-", 1)) from None
    if init:
        return init.backbone
    if teacher:
        return teacher.backbone
    raise ValueError(
        "no backbone: give --model.backbone a Hugging Face SigLIP or CLIP folder or hub id; to make"
        " a small one of your images, run edje train tiny_backbone and give its workdir's model/"
    )


def _with_image_recipe(spec: ModelSpec, backbone: Backbone) -> Backbone:
    """Backbone with the run's settings of the image recipe, where it has some."""
    asked = {"icc_profile": spec.icc_profile, "transparency": spec.transparency}
    asked = {name: value for name, value in asked.items() if value}
    return dataclasses.replace(backbone, image=dataclasses.replace(backbone.image, **asked))


def _joint_encoder(
    config: EdjeRun,
    init: Model | None,
    teacher: Model | None,
    source: Source | None,
    workdir: Path,
) -> tuple[BertConfig, Path, PyTree]:
    """(shape, tokenizer folder, loaded parameters) of the joint encoder."""
    if config.model.joint_encoder:
        language = bert.load_language_model(config.model.joint_encoder, config.seed)
        if not language.has_head:
            log.info("%s has no masked-LM head: it starts fresh, tied", language.folder)
        return language.config, language.folder, _language_params(language)
    if init:
        own = {name: part for name, part in init.params.items() if name != "adapter"}
        _check_kind(config, init)
        return init.config.joint_encoder, init.tokenizer, own
    if teacher:
        folder = teacher.tokenizer
        if not config.model.backbone:
            log.warning(
                "the adapter and the joint encoder start fresh, beside the backbone of --teacher"
                " %s; to begin with what it has learned, name it as --init too",
                config.teacher,
            )
    else:
        folder = workdir / "tokenizer"
        if source:
            recipe = _text_recipe(config.model, None)
            train_tokenizer(source, config.model.fresh.vocab_size - 1, folder, recipe)
    pieces = JointTokenizer(folder, EdjeConfig.max_text_length)
    # One row more than words: the image placeholder's, as the published layout has it.
    shape = dataclasses.replace(
        config.model.fresh, vocab_size=pieces.vocab_size + 1, pad_token_id=pieces.pad_id
    )
    return shape, folder, {}


def _check_kind(config: EdjeRun, init: Model) -> None:
    """Refuse to start a joint encoder from a captioner, whose layers look at images otherwise."""
    if init.config.captioner and config.model.kind == "edje":
        raise ValueError(
            f"--init {config.init}: a captioner, whose decoders no joint encoder can start from;"
            " leave --init out, or --model.kind edje"
        )


def _with_layers_deferred(joint: BertConfig, spec: ModelSpec, is_captioner: bool) -> BertConfig:
    """With as many deferred layers as the run asks for, if it does; a captioner has none, whatever
    the EDJE had that it starts from."""
    layers, vision = spec.deferred_layers, spec.online_vision
    if is_captioner and layers is None and vision is None and not joint.is_published_layout:
        log.info("layers of the EDJE are not deferred any more: a captioner defers none")
        layers, vision = 0, "updated"
    try:
        return dataclasses.replace(
            joint,
            deferred_layers=joint.deferred_layers if layers is None else layers,
            online_vision=vision or joint.online_vision,
        )
    except ValueError as error:
        raise ValueError(f"--model.deferred-layers {layers}: {error}") from None


def _with_rows_for_every_position(
    config: EdjeConfig, params: PyTree[np.ndarray]
) -> tuple[EdjeConfig, PyTree[np.ndarray]]:
    """Many vision tokens lengthen the position table (published code: 640 rows for 576 tokens), and
    long captions only a fresh one.

    Raises:
        ValueError: captions are longer than the loaded table allows.
    """
    joint, rows = config.joint_encoder, config.num_positions
    if joint.max_position_embeddings >= rows:
        return config, params
    flat: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    part = "captioner" if config.captioner else "joint_encoder"
    table = f"{part}/embeddings/position/embedding"
    if table in flat:
        config.check_positions("--model.max-text-length")
    joint = dataclasses.replace(joint, max_position_embeddings=rows)
    if table in flat:
        flat[table] = bert.lengthened(flat[table], rows)
    return dataclasses.replace(config, joint_encoder=joint), unflatten_dict(flat, sep="/")


def _language_params(language: bert.LanguageModel) -> PyTree[np.ndarray]:
    rules = bert.trunk_rules(language.config)
    if language.has_head:
        rules = [*rules, *bert.head_rules()]
    rules = under("joint_encoder/", "", rules)
    wanted = {rule.ours for rule in rules}
    whole = flatten_dict(edje.expected_params(EdjeConfig(joint_encoder=language.config)), sep="/")
    expected = unflatten_dict({path: whole[path] for path in wanted}, sep="/")
    return to_ours(rules, language.tensors, expected, str(language.folder))
