"""Options that name a first stage, checked before an index is opened or a model loaded."""

from collections.abc import Sequence

from edje_jax.cli.program import UsageError
from edje_jax.evaluate.first_stage import StageChoice
from edje_jax.first_stage.registry import MILVUS, find_first_stage
from edje_jax.first_stage.screening import Screening
from edje_jax.weights.folder import model_folder, read_model_config


def screening_of(
    first_stage: str, bits: int | None, by_codes: int | None, by_projection: int | None
) -> Screening:
    """Numbers of candidates that --by-codes and --by-projection name.

    Raises:
        UsageError: the first stage reads no codes, or a number is below 1.
    """
    given = by_codes is not None or by_projection is not None
    in_milvus = first_stage.startswith(MILVUS)
    reads_codes = bits if in_milvus else find_first_stage(first_stage).reads == "codes"
    if given and not reads_codes:
        raise UsageError(
            f"--by-codes and --by-projection: the first stage {first_stage!r} reads no codes;"
            " choose --first-stage codes"
        )
    try:
        return Screening(by_codes, by_projection)
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('_', '-', 1)}") from None


def check_codes(model: str, stages: Sequence[StageChoice]) -> None:
    """Check that a model has the codes that first stages compare; its weights are not read.

    Raises:
        UsageError: it has none, or none of that length.
        FileNotFoundError, ValueError: the model cannot be opened.
    """
    config = read_model_config(model_folder(model))
    lengths = config.get("first_stage", {}).get("code_lengths", ())
    try:
        for stage in stages:
            stage.resolved(lengths)
    except ValueError as error:
        raise UsageError(f"{model}: {error}") from None
