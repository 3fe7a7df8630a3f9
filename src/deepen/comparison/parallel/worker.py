"""What a process of a study runs; light to import, so that its environment is set before torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepen.common.progress import Progress


def run_arm_apart(study: str, arm: int, seed: int, rate: float | None, progress: "Progress") -> str:
    """Run one arm.

    Args:
        study: The settled study as JSON.
        arm: Which of its arms.
        seed: Which of its seeds.
        rate: The learning rate that was chosen for it, if it was.
        progress: Called with the stage and the finished share of it.

    Returns:
        The ``ArmRecord`` as JSON.
    """
    from deepen.comparison.arms import run_arm
    from deepen.comparison.study import Study

    given = Study.model_validate_json(study)
    return run_arm(given, given.all_arms[arm], seed, progress, rate).model_dump_json()


def search_apart(study: str, arm: int, progress: "Progress") -> str:
    """Try learning rates for one arm.

    Args:
        study: The settled study as JSON.
        arm: Which of its arms.
        progress: Called with the stage and the finished share of it.

    Returns:
        Learning rate → loss, as JSON.
    """
    import json

    from deepen.comparison.rates import search
    from deepen.comparison.study import Study

    given = Study.model_validate_json(study)
    return json.dumps(search(given, given.all_arms[arm], progress))
