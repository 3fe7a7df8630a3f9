"""The tensors of the new stack: what they are called, and which of the base's they are like."""

from collections.abc import Iterable

from deepen.base.anatomy import Family
from deepen.base.checkpoint import TensorInfo
from deepen.base.model import Model
from deepen.planning.plan import Plan


def origins(base: Model, plan: Plan) -> dict[str, str]:
    """Map the name of every tensor of the grown model to the base's tensor that it is laid out as.

    For everything that is kept this is the tensor that it must equal; a new block's tensors are
    laid out as those of its nearest parent.
    """
    family, anatomy = base.family, base.anatomy
    embeddings, *rest = anatomy.outside
    names = {embeddings: embeddings}
    for index, parent in enumerate(plan.type_parents):
        for suffix in anatomy.blocks[parent].stored:
            names[family.name(index, suffix)] = family.name(parent, suffix)
    for name, (after, suffix) in anatomy.trailing.items():
        names[family.name(plan.depth + after, suffix)] = name
    return names | {name: name for name in rest}


def new_tensors(family: Family, blocks: Iterable[int], names: Iterable[str]) -> list[str]:
    """Name the tensors of some blocks.

    Args:
        family: The model's.
        blocks: Indices of its new blocks.
        names: All of its tensors.
    """
    new = set(blocks)
    return [name for name in names if (place := family.split(name)) and place[0] in new]


def layout(base: Model, plan: Plan) -> dict[str, TensorInfo]:
    """Say what tensors the grown model has, before any is made.

    A new block takes the dtypes of its nearest parent.
    """
    return {name: base.source.infos[origin] for name, origin in origins(base, plan).items()}
