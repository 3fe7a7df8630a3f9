"""Pipeline parallelism: whether a deeper stack still divides into equal stages."""

_USUAL = (2, 4, 8)
"""How many stages pipelines usually have."""


def uneven_stages(base_depth: int, depth: int) -> list[str]:
    """Say that a grown stack no longer divides into stages that its base divided into.

    Args:
        base_depth: Number of blocks of the base.
        depth: Number of blocks of the grown model.

    Returns:
        One sentence, or none where every usual number of stages that divided the base divides it.
    """
    lost = [stages for stages in _USUAL if base_depth % stages == 0 and depth % stages]
    if not lost:
        return []
    most = max(stages for stages in _USUAL if base_depth % stages == 0)
    down, up = depth // most * most - base_depth, -(-depth // most) * most - base_depth
    near = " or ".join(str(new) for new in (down, up) if new > 0)
    stages = " or ".join(map(str, lost))
    return [
        f"{depth} blocks do not divide into {stages} equal pipeline stages, as the base's "
        f"{base_depth} do; with {near} new layers they would."
    ]
