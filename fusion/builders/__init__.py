"""What trains a model from models and text, in one explicit table; merges, which need no training, are METHODS."""

from fusion.builders import clm, feddf, fusellm, partitioned_kl, self_distillation
from fusion.builders.builder import Builder, Role, Training

TARGET = Role("target", "model")
MEAN = Role("target", "model", default="mean of the teachers")
TEACHERS = Role("teachers", "model", many=True)
CORPUS = Role("corpus", "corpus")

BUILDERS: dict[str, Builder] = {
    "clm": Builder(
        name="clm",
        run=clm.run,
        Params=Training,
        formula=clm.FORMULA,
        paper=clm.PAPER,
        roles=(TARGET, CORPUS),
        kind="trained",
        version=1,
    ),
    "multitask": Builder(
        name="multitask",
        run=clm.run,
        Params=Training,
        formula=clm.MULTITASK_FORMULA,
        paper=clm.MULTITASK_PAPER,
        roles=(TARGET, Role("corpora", "corpus", many=True)),
        kind="trained",
        version=1,
    ),
    "self_distillation": Builder(
        name="self_distillation",
        run=self_distillation.run,
        Params=self_distillation.Params,
        formula=self_distillation.FORMULA,
        paper=self_distillation.PAPER,
        roles=(TARGET, CORPUS),
        kind="trained",
        version=1,
        control="clm",
        readings=self_distillation.readings,
    ),
    "fusellm": Builder(
        name="fusellm",
        run=fusellm.run,
        Params=fusellm.Params,
        formula=fusellm.FORMULA,
        paper=fusellm.PAPER,
        roles=(TARGET, TEACHERS, CORPUS),
        kind="fused",
        version=2,
        control="clm",
        check=fusellm.check,
        readings=fusellm.readings,
    ),
    "feddf": Builder(
        name="feddf",
        run=feddf.run,
        Params=feddf.Params,
        formula=feddf.FORMULA,
        paper=feddf.PAPER,
        roles=(MEAN, TEACHERS, CORPUS),
        kind="fused",
        version=1,
        control="clm",
        check=feddf.check,
        readings=feddf.readings,
    ),
    "partitioned_kl": Builder(
        name="partitioned_kl",
        run=partitioned_kl.run,
        Params=partitioned_kl.Params,
        formula=partitioned_kl.FORMULA,
        paper=partitioned_kl.PAPER,
        roles=(TARGET, TEACHERS, CORPUS),
        kind="fused",
        version=1,
        control="clm",
        check=partitioned_kl.check,
        readings=partitioned_kl.readings,
    ),
}
