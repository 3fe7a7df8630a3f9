"""What a process of a study runs; light to import, so that its environment is set before torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepen.common.progress import Progress
    from deepen.training.recipe import Stage


def run_arm_apart(study: str, arm: int, seed: int, rates: str, progress: "Progress") -> str:
    """Run one arm.

    Args:
        study: The settled study as JSON.
        arm: Which of its arms.
        seed: Which of its seeds.
        rates: The learning rates that were chosen for it, by stage, as JSON.
        progress: Called with the stage and the finished share of it.

    Returns:
        The ``ArmRecord`` as JSON.
    """
    import json

    from deepen.comparison.arms import run_arm
    from deepen.comparison.study import Study

    given = Study.model_validate_json(study)
    record = run_arm(given, given.all_arms[arm], seed, progress, json.loads(rates))
    return record.model_dump_json()


def search_apart(
    study: str, arm: int, stage: "Stage", rate: float | None, progress: "Progress"
) -> str:
    """Try learning rates for one arm.

    Args:
        study: The settled study as JSON.
        arm: Which of its arms.
        stage: Whose rate is chosen.
        rate: For fine-tuning, the rate that was chosen for pre-training, if it was.
        progress: Called with the stage and the finished share of it.

    Returns:
        Learning rate → loss, as JSON.
    """
    import json

    from deepen.comparison.rates import search
    from deepen.comparison.study import Study

    given = Study.model_validate_json(study)
    return json.dumps(search(given, given.all_arms[arm], stage, progress, rate))
