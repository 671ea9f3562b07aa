"""Evaluate a model in both directions, base beside reranked.

Examples:
    {program} runs/demo/model --data shapes:test
    {program} runs/coco --data blip:val.json --k 20 --out runs/coco/eval
    {program} runs/coco --data blip:test.json --folds 5 --k-sweep 1,5,10,20,50,100 --out eval
    {program} runs/coco --data blip:test.json --pool blip:train.json
    {program} runs/coco --compositional sugarcrepe/swap_obj.json --image-root val2017
    {program} runs/coco --data blip:test.json --first-stage codes --bits 256 --k 50
    {program} runs/coco --data blip:test.json --k 50 --then runs/captioner --choose-on blip:val.json
    {program} --compare runs/a/eval runs/b/eval
"""

import math
import sys
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from edje_jax.cli.commands.search import FirstStageName
from edje_jax.cli.program import UsageError
from edje_jax.cli.second_options import check_then
from edje_jax.config.captioner import CaptionScore

if TYPE_CHECKING:
    from edje_jax.cli.evaluate import SecondChoice
    from edje_jax.evaluate.first_stage import StageChoice


@dataclass(frozen=True)
class Options:
    """Options of `edje eval` and of `eval.py`."""

    model: tyro.conf.Positional[str | None] = None
    """Model folder, training workdir, or hub id."""
    data: str | None = None
    """SPEC to evaluate on, as `kind:path[#split]`."""
    k: int = 10
    """Candidates reranked per query."""
    out: str | None = None
    """Folder for metrics.json, TREC files, per_query.csv and report.html (default:
    nothing is written)."""
    image_root: str | None = None
    """Folder that relative image paths start from (default: the JSON's own)."""
    similarity_weight: float | None = None
    """Weight of the first stage's cosine, which is added to the match logit (default: the model's
    own, which `edje tune` chose, or else 0)."""
    max_bad: float = 0.01
    """Share of the set's images, and of the pool's, that may turn out unreadable before the
    evaluation stops."""
    folds: int | None = None
    """Parts of the gallery to evaluate as well, each on its own; 5 is COCO's 1k protocol (default:
    none)."""
    pool: str | None = None
    """SPEC whose images join the gallery as distractors; its captions are not read (default:
    none)."""
    k_sweep: str | None = None
    """Depths to measure as well, with their cost, such as 1,5,10,20,50,100; scored once (default:
    none)."""
    similarity_weights: str | None = None
    """Weights of the first stage to measure as well, such as 0,1,3,10; scored once (default:
    none)."""
    eccv: str | None = None
    """COCO's captions_val2014.json: judge COCO's test set by CxC and ECCV Caption as well (default:
    by its own captions alone)."""
    first_stage: FirstStageName | None = None
    """First stage whose candidates are reranked, and whose own recalls are told (default: exact
    search by embeddings)."""
    bits: int | None = None
    """Length of the codes that --first-stage compares (default: the longest of the model)."""
    by_codes: int | None = None
    """Candidates that a first stage of codes finds, of which those that are nearest by embedding
    are reranked (default: as many as are reranked, the nearest codes themselves)."""
    by_projection: int | None = None
    """Candidates that are kept of these by the query's projection against codes (default: all)."""
    categories: str | None = None
    """Labels of the images: COCO's instances_*.json, or JSON {id: [label, ...]}; mean average
    precision by categories as well (default: none)."""
    caption_score: CaptionScore | None = None
    """Score of MODEL, a captioner: sum, mean or pmi (default: its own). The score pmi
    means nothing of a model trained with --loss.unconditional-captioning 0."""
    then: str | None = None
    """Second model, which reranks the best candidates of the first one's order (default: none)."""
    then_k: int = 20
    """Candidates that --then reranks; as many as --k make an ensemble."""
    then_weight: float | None = None
    """Weight of the scores of --then beside the first model's, from 0 to 1 (default: 1, which
    leaves the first model's aside)."""
    then_caption_score: CaptionScore | None = None
    """Score of the model of --then, a captioner: sum, mean or pmi (default: its own)."""
    choose_on: str | None = None
    """SPEC of other images to choose that weight on (default: none)."""
    compositional: tuple[str, ...] = ()
    """Files in SugarCrepe's, ARO's or Winoground's form: text, image and group scores instead."""
    compare: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="A B")] = None
    """Folders of two evaluations: paired differences of their measures, second less first."""


def main(arguments: list[str], program: str = "edje eval") -> int:
    """Parse and check the options, and run the evaluation that they ask for."""
    described = (__doc__ or "").format(program=program)
    options = tyro.cli(Options, args=arguments, prog=program, description=described)
    check(options)
    protocol_numbers = (
        _numbers("--k-sweep", options.k_sweep, int, least=1),
        _numbers("--similarity-weights", options.similarity_weights, float),
    )
    out = Path(options.out).expanduser() if options.out else None
    eccv = Path(options.eccv).expanduser() if options.eccv else None
    if eccv and not (eccv.is_file() and find_spec("eccv_caption")):
        raise UsageError(
            f"--eccv {eccv}: needs COCO's captions_val2014.json and pip install 'edje-jax[eval]'"
        )
    categories = Path(options.categories).expanduser() if options.categories else None
    # Imported late, so that a mistyped option is reported at once.
    from edje_jax.cli import evaluate

    if options.compare:
        a, b = (Path(folder).expanduser() for folder in options.compare)
        evaluate.compare_evaluations(a, b, out)
    elif options.model and options.compositional:
        evaluate.evaluate_compositional(
            options.model,
            [Path(file).expanduser() for file in options.compositional],
            out=out,
            image_root=options.image_root,
            similarity_weight=options.similarity_weight,
        )
    elif options.model and options.data:
        evaluate.evaluate_model(
            options.model,
            options.data,
            evaluate.Protocol(
                options.k,
                options.similarity_weight,
                options.folds,
                *protocol_numbers,
                _stage(options),
                categories,
                eccv,
                options.caption_score,
            ),
            pool=options.pool,
            out=out,
            image_root=options.image_root,
            max_bad=options.max_bad,
            then=_second(options),
        )
    sys.stdout.flush()
    return 0


def _stage(options: Options) -> "StageChoice | None":
    """First stage that the options name.

    Raises:
        UsageError: options of codes for a first stage without, numbers below 1, or the model has no
            codes of that length.
    """
    from edje_jax.cli.first_stage_options import check_codes, screening_of
    from edje_jax.evaluate.first_stage import StageChoice

    if options.first_stage is None or options.model is None:
        return None
    screening = screening_of(
        options.first_stage, options.bits, options.by_codes, options.by_projection
    )
    choice = StageChoice(options.first_stage, options.bits, screening)
    check_codes(options.model, [choice])
    return choice


def _second(options: Options) -> "SecondChoice | None":
    """Second model that the options name."""
    from edje_jax.cli.evaluate import SecondChoice

    if options.then is None:
        return None
    weight = 1.0 if options.then_weight is None else options.then_weight
    return SecondChoice(
        options.then, options.then_k, weight, options.choose_on, options.then_caption_score
    )


def check(options: Options) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: some do not.
    """
    o = options
    if o.compare:
        if others := _others(o, "compare", "out"):
            raise UsageError(f"--compare takes two folders of --out, and no {others}")
    elif not o.model or bool(o.data) == bool(o.compositional):
        raise UsageError(
            "name a MODEL, and --data or --compositional to evaluate it on; see --help"
        )
    if o.compositional:
        taken = ("model", "compositional", "out", "image_root", "similarity_weight")
        if others := _others(o, *taken):
            raise UsageError(f"--compositional takes no {others}")
    if o.k < 1:
        raise UsageError(f"--k {o.k}: the least is 1")
    if o.folds and (o.folds < 2 or o.pool):
        raise UsageError("--folds takes 2 or more parts, of a gallery without a --pool")
    if o.first_stage is None and (o.bits, o.by_codes, o.by_projection) != (None, None, None):
        raise UsageError("--bits, --by-codes and --by-projection go with a --first-stage of codes")
    if o.folds and o.first_stage:
        raise UsageError("--folds takes no --first-stage: each fold is searched exactly")
    if o.eccv and o.first_stage:
        raise UsageError("--eccv takes no --first-stage: its lists are those of exact search")
    if o.folds and o.then:
        raise UsageError("--folds takes no --then: the second model reranks the whole gallery")
    if o.similarity_weight is not None and not math.isfinite(o.similarity_weight):
        raise UsageError(f"--similarity-weight {o.similarity_weight}: give a finite number")
    check_then(o, "choose_on")
    if o.then_weight is not None and o.choose_on is not None:
        raise UsageError("--then-weight gives the weight that --choose-on would choose; take one")
    if not 0 <= o.max_bad <= 1:
        raise UsageError(f"--max-bad {o.max_bad:g}: a share from 0 to 1")


def _others(options: Options, *taken: str) -> str:
    """Names of the options that were given and are not in `taken`, as they are typed."""
    given = [f.name for f in fields(options) if getattr(options, f.name) != f.default]
    names = ("MODEL" if x == "model" else "--" + x.replace("_", "-") for x in given)
    return ", ".join(name for x, name in zip(given, names, strict=True) if x not in taken)


def _numbers(flag: str, text: str | None, kind: type, least: float = float("-inf")) -> tuple:
    """Parse comma-separated numbers into a rising tuple, each number once."""
    try:
        values = sorted({kind(part) for part in text.split(",")} if text else ())
    except ValueError as error:
        raise UsageError(f"{flag} {text}: numbers with commas between, such as 1,5,10") from error
    if not all(math.isfinite(value) and value >= least for value in values):
        raise UsageError(f"{flag} {text}: every number must be finite and at least {least:g}")
    return tuple(values)
