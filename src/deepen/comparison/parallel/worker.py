"""What a process of a study runs; light to import, so that its environment is set before torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepen.common.progress import Progress


def run_arm_apart(study: str, arm: int, seed: int, progress: "Progress") -> str:
    """Run one arm.

    Args:
        study: The study as JSON.
        arm: Which of its arms.
        seed: Which of its seeds.
        progress: Called with the stage and the finished share of it.

    Returns:
        The ``ArmRecord`` as JSON.
    """
    from deepen.comparison.arms import run_arm
    from deepen.comparison.study import Study

    given = Study.model_validate_json(study)
    return run_arm(given, given.all_arms[arm], seed, progress).model_dump_json()
