"""Prove that a grown checkpoint is what it claims, by reopening it beside its base.

Everything is read again from disk. Structure is compared tensor by tensor, the function by running
both models in float32 on the same tokens. A block that adds exactly zero to the residual stream
leaves every later number as it was, so that methods which promise the base's function are held to
a difference of exactly 0.0: x + 0 = x in floating point, for all families that deepen grows so far.
"""

from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from deepen.base.checkpoint import FolderSource, Source, as_bytes, is_finite
from deepen.base.model import Model, as_model, open_model
from deepen.base.streamed import logits, missing_and_extra
from deepen.base.text import PASSAGE
from deepen.common import device as devices
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.growth.config import grown_config
from deepen.growth.fuse import layout, origins
from deepen.planning.plan import Insert, Plan
from deepen.records.growth import FIELD, Step, read_lineage
from deepen.records.verification import Check, VerifyRecord


def verify(
    base: str | Path,
    grown: str | Path,
    *,
    text: str | None = None,
    sequences: int = 4,
    length: int = 64,
    device: str = "auto",
    progress: Progress = silent,
) -> VerifyRecord:
    """Hold a grown checkpoint to its base and to its own ``deepen`` entry.

    Memory stays at about one tensor in float32 and the logits, whatever the models' size.

    Args:
        base: The checkpoint that was grown, in the latest step or an earlier one: a folder or a
            hub id.
        grown: The grown checkpoint.
        text: What to run both models on; a built-in passage by default.
        sequences: Number of token sequences.
        length: Tokens in each.
        device: Where to run them.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: A checkpoint cannot be read, or deepen did not grow ``grown``.
    """
    where, before, after = devices.choose(device), open_model(base), FolderSource(Path(grown))
    steps = _steps_from(before, after)
    plan = reduce(Plan.then, (Plan.from_json(step.plan) for step in steps))
    promised = all(step.preserves_function for step in steps)
    checks = [_check_base(before, steps), _check_tensors(before, after, plan)]
    record = VerifyRecord(
        base=before.source.name,
        grown=after.name,
        methods=[step.method for step in steps],
        checks=checks,
    )
    if not record.passed:
        return record
    checks.append(_check_config(before, after, plan))
    checks.append(_check_kept(before, after, plan, progress))
    checks.append(_check_new(before, after, plan, promised))
    if all(check.passed for check in checks):
        whole = as_model(after)
        checks.append(_check_loads(whole))
    if not all(check.passed for check in checks):
        return record.model_copy(update={"checks": checks})
    tokens, how = sample_tokens(before, text, sequences, length)
    difference, moved = _run_both(before, whole, tokens, where, progress)
    checks.append(_check_function(promised, difference, moved, f"{tokens.numel()} {how}"))
    return record.model_copy(
        update={
            "checks": checks,
            "tokens": tokens.numel(),
            "max_abs_logit_difference": difference,
            "kl_nats_per_token": moved,
        }
    )


def _run_both(
    base: Model, grown: Model, tokens: Tensor, device: torch.device, progress: Progress
) -> tuple[float, float]:
    """Return the largest difference of two models' logits, and KL(base ‖ grown) per token."""
    progress("running the base", 0.0)
    before = logits(base, tokens, device)
    progress("running the grown model", 0.5)
    after = logits(grown, tokens, device)
    progress("compared", 1.0)
    return float((after - before).abs().max()), kl_nats_per_token(before, after)


def kl_nats_per_token(base_logits: Tensor, grown_logits: Tensor) -> float:
    """Return the mean over tokens of KL(base ‖ grown) of logits ``[batch, length, vocabulary]``."""
    total = 0.0
    for base, grown in zip(base_logits, grown_logits, strict=True):  # one sequence at a time
        log_p, log_q = base.double().log_softmax(-1), grown.double().log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total / base_logits.shape[:-1].numel()


def sample_tokens(base: Model, text: str | None, sequences: int, length: int) -> tuple[Tensor, str]:
    """Make token sequences that the model could meet.

    Returns:
        Ids ``[sequences, length]``, and what they are. Without a tokenizer beside the weights they
        are random.
    """
    shape = (sequences, min(length, base.positions or length))
    given = PASSAGE if text is None else text
    try:
        ids = base.tokenizer()(given, add_special_tokens=False)["input_ids"]
    except Exception:  # whatever is wrong with a tokenizer, the proof can do without it
        ids = None
    if ids is None:
        generator = torch.Generator().manual_seed(0)
        vocabulary = int(base.resolved["vocab_size"])
        return torch.randint(vocabulary, shape, generator=generator), "random tokens (no tokenizer)"
    if not ids:
        raise DeepenError("The text to verify with holds no tokens; give another one.")
    # Each sequence starts elsewhere in the text, which is repeated if it is too short.
    starts = [index * len(ids) // sequences for index in range(sequences)]
    return torch.tensor(
        [[ids[(start + i) % len(ids)] for i in range(shape[1])] for start in starts]
    ), "tokens of text"


def _steps_from(base: Model, grown: Source) -> list[Step]:
    """Return the growths that start at a base; the latest one if it is not in the lineage.

    Raises:
        DeepenError: deepen did not grow the model.
    """
    lineage = read_lineage(grown.config)
    if lineage is None:
        raise DeepenError(
            f"{grown.name!r} has no deepen entry in its config.json; "
            f"there is no claim to verify, because deepen did not grow it."
        )
    bases = [step.base.fingerprint for step in lineage.steps]
    known = base.source.fingerprint in bases
    return lineage.steps[bases.index(base.source.fingerprint) if known else -1 :]


def _check_base(base: Model, steps: list[Step]) -> Check:
    """Compare the base's fingerprint with the one that was recorded."""
    recorded, given = steps[0].base, base.source.fingerprint
    detail = f"fingerprint {given[:12]}"
    if given != recorded.fingerprint:
        detail += f", but {recorded.name} with {recorded.fingerprint[:12]} was grown"
    return Check(
        name="base is the one that was grown",
        passed=given == recorded.fingerprint,
        detail=detail,
    )


def _check_tensors(base: Model, grown: Source, plan: Plan) -> Check:
    """Compare names, shapes and dtypes with what the plan makes of the base."""
    name = "every tensor present, nothing extra"
    if plan.base_depth != base.depth:
        return Check(name=name, passed=False, detail=f"the base has {base.depth} blocks")
    expected = layout(base, plan)
    problems = [
        *(f"{tensor} is missing" for tensor in expected if tensor not in grown.infos),
        *(f"{tensor} is extra" for tensor in grown.infos if tensor not in expected),
        *(
            f"{tensor} is {info.dtype} {info.shape}, not {expected[tensor].dtype} "
            f"{expected[tensor].shape}"
            for tensor, info in grown.infos.items()
            if tensor in expected and info != expected[tensor]
        ),
    ]
    return _check(name, problems, f"{len(expected)} tensors in name, shape and dtype")


def _check_config(base: Model, grown: Source, plan: Plan) -> Check:
    """Compare config.json, apart from the lineage, with what the plan makes of the base's."""
    expected = grown_config(base.source.config, base.resolved, base.family, plan)
    fields = sorted((expected.keys() | grown.config.keys()) - {FIELD})
    problems = [
        f"{field} is {grown.config.get(field)!r}, not {expected.get(field)!r}"
        for field in fields
        if grown.config.get(field) != expected.get(field)
    ]
    return _check("config.json true for the new depth", problems, f"{len(fields)} fields")


def _check_kept(base: Model, grown: Source, plan: Plan, progress: Progress) -> Check:
    """Compare everything that was kept, byte by byte."""
    new = set(plan.new_blocks)
    pairs = {
        name: origin
        for name, origin in origins(base, plan).items()
        if (place := base.family.split(name)) is None or place[0] not in new
    }
    problems, compared = [], 0
    for done, (name, source) in enumerate(pairs.items()):
        progress("comparing kept tensors", done / len(pairs))
        ours, theirs = grown.load(name), base.source.load(source)
        compared += theirs.nbytes
        # Bytes and not numbers: NaN equals NaN, and 0.0 does not equal -0.0.
        if not torch.equal(as_bytes(ours), as_bytes(theirs)):
            problems.append(f"{name} differs from the base's {source}")
    progress("comparing kept tensors", 1.0)
    return _check(
        "kept blocks bit-identical", problems, f"{len(pairs)} tensors, {compared / 1e6:,.1f} MB"
    )


def _check_new(base: Model, grown: Source, plan: Plan, promised: bool) -> Check:
    """Look for NaN and Inf in the new blocks, and for zeros where they are promised."""
    problems, silenced = [], 0
    for index, block in enumerate(plan.blocks):
        if not isinstance(block, Insert):
            continue
        anatomy = base.anatomy.blocks[block.nearest]
        for name, spec in anatomy.block.items():
            place = anatomy.places[name]
            full = base.family.name(index, place.suffix)
            tensor = place.read(grown.load(full), anatomy.sizes)
            if not is_finite(tensor):
                problems.append(f"{full} holds NaN or Inf")
            if promised and spec.silent is not None:
                silenced += 1
                if torch.ne(tensor, spec.silent).any():
                    problems.append(f"{full} is not {spec.silent:g} (has the model been trained?)")
    detail = f"{len(plan.new_blocks)} blocks"
    return _check(
        "new blocks finite", problems, detail + (f", {silenced} tensors silent" if silenced else "")
    )


def _check_loads(grown: Model) -> Check:
    """Compare the tensors with those that transformers' own class has."""
    missing, extra = missing_and_extra(grown)
    problems = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is extra" for name in extra),
    ]
    return _check("loads without custom code", problems, grown.family.model_type)


def _check_function(promised: bool, difference: float, moved: float, sample: str) -> Check:
    """Hold the logits to the method's promise."""
    if promised:
        return Check(
            name="computes what the base computes",
            passed=difference == 0.0,
            detail=f"max |Δlogit| = {difference!r} on {sample}, expected 0.0",
        )
    return Check(
        name="function moved, as this method does",
        passed=moved == moved and moved >= -1e-6,
        detail=f"KL = {moved:.4f} nats per token, max |Δlogit| = {difference:.3g} on {sample}",
    )


def _check(name: str, problems: list[str], detail: str) -> Check:
    """Make a check of a list of problems, naming the first few."""
    if not problems:
        return Check(name=name, passed=True, detail=detail)
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return Check(name=name, passed=False, detail="; ".join(problems[:3]) + more)
