"""Prove that a grown checkpoint is what it claims, by reopening it beside its base.

Everything is read again from disk. Structure is compared tensor by tensor, the function by running
both models in float32 on the same tokens. A block that adds exactly zero to the residual stream
leaves every later number as it was, so that methods which promise the base's function are held to
a difference of exactly 0.0: x + 0 = x in floating point, for all families that deepen grows so far.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deepen.base.checkpoint import DTYPES, FolderSource, Source
from deepen.base.identity import sha256_of
from deepen.base.layers import NeuronSlice
from deepen.base.model import Model, as_model, open_model
from deepen.base.streamed import missing_and_extra
from deepen.base.weights.values import is_finite
from deepen.common import device as devices
from deepen.common.progress import Progress, silent
from deepen.growth.config import grown_config
from deepen.planning.layout import layout, origins
from deepen.planning.pattern import PERIODS
from deepen.planning.plan import Insert, Plan
from deepen.records.growth import FIELD
from deepen.records.verification import Check, VerifyRecord
from deepen.verification.claim import Claim, check_lineage, check_of, claim_of
from deepen.verification.files import (
    check_base_files,
    check_side_files,
    check_written,
    manifest_digest,
)
from deepen.verification.images import image_logits
from deepen.verification.running import (
    check_generates,
    compared,
    run_both,
    sample_tokens,
)
from deepen.verification.trained import block_digest, differs, may_differ, meaning

_MOVED = "function moved, as this method does"
_MISSING = object()


def verify(
    base: str | Path,
    grown: str | Path,
    *,
    trained: bool = False,
    manifest: str | None = None,
    text: str | None = None,
    sequences: int = 4,
    length: int = 64,
    device: str = "auto",
    progress: Progress = silent,
) -> VerifyRecord:
    """Hold a grown checkpoint to its base and to its own ``deepen`` entry.

    Of a model that was trained, everything that its trainings do not name must still be the base's,
    bit for bit. Memory stays at about one tensor in float32 and the logits, at any size of models.

    Args:
        base: The checkpoint that was grown, in the latest step or an earlier one, or trained: a
            folder or a hub id.
        grown: The grown or trained checkpoint.
        trained: Whether it was trained by other means than ``deepen train``, which no lineage
            tells: what its method trains may then differ, and files may be written anew.
        manifest: SHA-256 that the manifest must have: as ``grow`` told it, and you kept it.
        text: What to run both models on; a built-in passage by default.
        sequences: Number of token sequences.
        length: Tokens in each.
        device: Where to run them.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: A checkpoint cannot be read, or deepen did not grow ``grown``.
    """
    where, before = devices.choose(device), open_model(base, quantised=True)
    after = FolderSource(Path(grown))
    claim = claim_of(before, after, trained)
    record = _compare(before, after, claim, manifest, progress)
    if not record.passed:
        return record
    whole, checks = as_model(after), record.checks
    tokens, how = sample_tokens(before, text, sequences, length)
    if claim.trainings:
        checks = [*checks, check_generates(before, whole, tokens, where)]
    difference, moved, unsound = run_both(before, whole, tokens, where, progress)
    function = _check_function(claim, difference, moved, unsound, tokens.numel(), how)
    images = _check_image(before, whole, claim, tokens, where)
    return record.model_copy(
        update={
            "checks": [*checks, function, *images],
            "tokens": tokens.numel(),
            "max_abs_logit_difference": difference,
            "kl_nats_per_token": moved,
        }
    )


def _compare(
    base: Model, grown: FolderSource, claim: Claim, manifest: str | None, progress: Progress
) -> VerifyRecord:
    """Check everything that needs no running; tensors only where base and names are right."""
    record = VerifyRecord(
        base=base.source.name,
        grown=grown.name,
        methods=[step.method for step in claim.steps],
        trained=bool(claim.trainings),
        manifest=manifest_digest(grown.folder),
        checks=[
            _check_base(base, claim),
            _check_tensors(base, grown, claim),
            check_lineage(claim),
            check_written(grown, claim, manifest),
            *_check_beside(base, grown, claim),
        ],
    )
    if not all(check.passed for check in record.checks[:2]):
        return record
    checks = [*record.checks, *_structure(base, grown, claim, progress)]
    return record.model_copy(update={"checks": checks})


def _check_beside(base: Model, grown: FolderSource, claim: Claim) -> list[Check]:
    """Check the files beside the weights, which tools of others write anew."""
    assert isinstance(base.source, FolderSource)
    if claim.elsewhere:
        return []
    kept = check_base_files(base.source, grown, claim)
    return [check_side_files(base.source, grown, claim), *([kept] if kept else [])]


def _structure(base: Model, grown: Source, claim: Claim, progress: Progress) -> list[Check]:
    """Check config.json, and the tensors by what they hold."""
    checks = [_check_config(base, grown, claim)]
    whole = as_model(grown) if checks[0].passed else None
    differing = may_differ(whole, claim.trainings) if whole else {}
    checks.append(_check_kept(base, grown, claim.plan, differing, progress))
    if claim.steps:
        checks.append(_check_new(base, grown, claim))
    if whole and all(check.passed for check in checks):
        checks.append(_check_loads(whole))
    return checks


def _check_base(base: Model, claim: Claim) -> Check:
    """Compare the base's fingerprint, and the SHA-256 of all of it, with what was recorded."""
    given, what = base.source.fingerprint, "grown" if claim.steps else "trained"
    detail = f"fingerprint {given[:12]}"
    same = claim.base is not None and claim.base.fingerprint == given
    if claim.base is not None and not same:
        detail += f", but {claim.base.name} with {claim.base.fingerprint[:12]} was {what}"
    elif claim.base is not None and claim.base.sha256 is not None:
        digest = sha256_of(base.source)
        same, detail = digest == claim.base.sha256, f"{detail}, SHA-256 {digest[:12]}"
        detail += "" if same else f", but that with {claim.base.sha256[:12]} was {what}"
    return Check(name=f"base is the one that was {what}", passed=same, detail=detail)


def _check_tensors(base: Model, grown: Source, claim: Claim) -> Check:
    """Compare names, shapes and dtypes with what the plan makes of the base."""
    name = "every tensor present, nothing extra"
    if claim.plan.base_depth != base.depth:
        return Check(name=name, passed=False, detail=f"the base has {base.depth} blocks")
    expected = {
        tensor: replace(info, dtype=claim.dtype) if claim.dtype and info.is_float else info
        for tensor, info in layout(base, claim.plan).items()
    }
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
    return check_of(name, problems, f"{len(expected)} tensors in name, shape and dtype")


def _check_config(base: Model, grown: Source, claim: Claim) -> Check:
    """Compare config.json, apart from the lineage, with what the plan makes of the base's."""
    expected = dict(base.source.config)
    if claim.steps:
        config = grown_config(base.config, base.resolved, base.family, claim.plan)
        expected = base.whole_config(config)
    if claim.dtype is not None:
        expected.pop("torch_dtype", None)
        expected["dtype"] = str(DTYPES[claim.dtype]).removeprefix("torch.")
    given = dict(grown.config)
    if claim.elsewhere:
        expected, given = meaning(expected), meaning(given)
    stale = {field for field in PERIODS if field in given and field not in expected}
    stale = {field for field in stale if given[field] == base.source.config.get(field)}
    fields = sorted((expected.keys() | given.keys()) - {FIELD, *stale})
    # A field that is not there has the class's default, which need not be null.
    problems = [
        f"{field} is {given.get(field, 'missing')!r}, not {expected.get(field, 'missing')!r}"
        for field in fields
        if given.get(field, _MISSING) != expected.get(field, _MISSING)
    ]
    detail = f"{len(fields)} fields"
    if stale:
        detail += (
            f"; {', '.join(sorted(stale))}, which earlier versions of deepen kept, is true of the "
            f"base alone: transformers does not read it, other runtimes may, so delete it"
        )
    return check_of("config.json true for the new depth", problems, detail)


def _check_kept(
    base: Model,
    grown: Source,
    plan: Plan,
    differing: Mapping[str, NeuronSlice | None],
    progress: Progress,
) -> Check:
    """Compare everything that was kept, byte by byte, but for what training may have changed."""
    new = set(plan.new_blocks)
    pairs = {
        name: origin
        for name, origin in origins(base, plan).items()
        if (place := base.family.split(name)) is None or place[0] not in new
    }
    problems, compared, trained = [], 0, []
    for done, (name, source) in enumerate(pairs.items()):
        progress("comparing kept tensors", done / len(pairs))
        ours = grown.load(name)
        if name in differing:
            trained.append(name)
            if not is_finite(ours):
                problems.append(f"{name} holds NaN or Inf")
            if differing[name] is None:
                continue
        theirs = base.source.load(source).to(ours.dtype)
        compared += theirs.nbytes
        if differs(ours, theirs, differing.get(name)):
            problems.append(f"{name} differs from the base's {source}")
    progress("comparing kept tensors", 1.0)
    if problems and not differing:
        problems.insert(0, _new_by_bits(base, grown, plan))
    whole = len(pairs) - sum(differing[name] is None for name in trained)
    detail = f"{whole} tensors, {compared / 1e6:,.1f} MB"
    if trained:
        detail += f"; training may have changed {_where(base, trained)}"
    return check_of("kept blocks bit-identical", problems, detail)


def _new_by_bits(base: Model, grown: Source, plan: Plan) -> str:
    """Say which blocks are new by the weights alone, whatever the plan says."""
    found, new = 0, list[int]()
    for index in range(plan.depth):
        stored = base.anatomy.blocks[found].stored if found < base.depth else ()
        names = [(base.family.name(index, s), base.family.name(found, s)) for s in stored]
        same = names and all(
            ours in grown.infos
            and grown.infos[ours] == base.source.infos[theirs]
            and not differs(grown.load(ours), base.source.load(theirs))
            for ours, theirs in names
        )
        found, new = (found + 1, new) if same else (found, [*new, index])
    lost = "" if found == base.depth else f", and the base's block {found} is nowhere"
    return f"by their bits {', '.join(map(str, new))} are new{lost}"


def _where(base: Model, names: list[str]) -> str:
    """Say where tensors stand: the blocks, and what is outside them by name."""
    places = {name: base.family.split(name) for name in names}
    blocks = sorted({place[0] for place in places.values() if place})
    outside = [name for name, place in places.items() if place is None]
    listed = [f"blocks {', '.join(map(str, blocks))}"] if blocks else []
    return f"{len(names)} others: {', '.join([*listed, *outside])}"


def _check_new(base: Model, grown: Source, claim: Claim) -> Check:
    """Look for NaN and Inf in the new blocks, and hold each to what it must be.

    One that was not trained has zeros where they are promised; one that was is no longer what it
    was before.
    """
    problems: list[str] = []
    silenced, trained, copied = 0, 0, 0
    for index, block in enumerate(claim.plan.blocks):
        if not isinstance(block, Insert):
            continue
        if (base.source.quantisation or claim.copies) and not claim.trains(index):
            problems += _not_copied(base, grown, index, block.nearest, whole=claim.copies_whole)
            copied += 1
        anatomy, changed = base.anatomy.blocks[block.nearest], False
        for name, spec in anatomy.block.items():
            place = anatomy.places[name]
            full = base.family.name(index, place.suffix)
            tensor = place.read(grown.load(full), anatomy.sizes)
            if not is_finite(tensor):
                problems.append(f"{full} holds NaN or Inf")
            if not claim.preserves_function or spec.silent is None:
                continue
            moved = bool(torch.ne(tensor.float(), spec.silent).any())
            silenced, changed = silenced + (not moved), changed or moved
            if moved and not claim.trains(index):
                problems.append(
                    f"{full} is not {spec.silent:g}, and no training is recorded (pass --trained "
                    f"if it was trained by other means)"
                )
        if claim.trains(index):
            trained += 1
            if start := claim.start_of(index):
                digest = block_digest(base.family, index, anatomy, grown)
                changed = digest != start[0]
            if not changed and (start or claim.preserves_function):
                problems.append(f"block {index} is what it was before training")
    told = f", {copied} of them copies bit for bit" if copied else ""
    told += ", but for what they write" if copied and not claim.copies_whole else ""
    return _new_blocks(problems, len(claim.plan.new_blocks), told, silenced, trained)


def _not_copied(
    base: Model, grown: Source, index: int, parent: int, *, whole: bool
) -> Iterator[str]:
    """Yield what of a copied block is not its parent's; unless ``whole``, outputs may be."""
    for suffix, spec in base.anatomy.blocks[parent].stored.items():
        name, origin = (base.family.name(block, suffix) for block in (index, parent))
        if not whole and any(part.writes_residual for part in spec.parts):
            continue
        ours = grown.load(name)
        if differs(ours, base.source.load(origin).to(ours.dtype)):
            yield f"{name} differs from the base's {origin}, which it copies"


def _new_blocks(problems: list[str], count: int, told: str, silenced: int, trained: int) -> Check:
    """Say what new blocks are."""
    detail = f"{count} blocks{told}"
    detail += f", {trained} of them no longer what they were" if trained else ""
    detail += f", {silenced} tensors silent" if silenced else ""
    name = "new blocks trained and finite" if trained else "new blocks finite"
    return check_of(name, problems, detail)


def _check_loads(grown: Model) -> Check:
    """Compare the tensors with those that transformers' own class has."""
    missing, extra = missing_and_extra(grown)
    problems = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is extra" for name in extra),
    ]
    return check_of("loads without custom code", problems, grown.family.model_type)


def _check_function(
    claim: Claim, difference: float, moved: float, unsound: int, tokens: int, how: str
) -> Check:
    """Hold the logits to the method's promise; after training, say how far they moved.

    Where the base itself computes no numbers, a method that moves its function promises nothing.
    """
    sample = f"{tokens} {how}"
    if unsound:
        sample += (
            f"; the base's own logits are not finite at {unsound} of them, so nothing is told "
            f"there: look for NaN, Inf or too large weights in the base"
        )
    if claim.preserves_function and not claim.trainings:
        return Check(
            name="computes what the base computes",
            passed=difference == 0.0,
            detail=f"max |Δlogit| = {difference!r} on {sample}, expected 0.0",
        )
    return Check(
        name="function moved, by training" if claim.trainings else _MOVED,
        passed=moved == moved and moved >= -1e-6,
        detail=f"KL = {moved:.4g} nats per token, max |Δlogit| = {difference:.3g} on {sample}",
    )


def _check_image(
    base: Model, grown: Model, claim: Claim, tokens: Tensor, device: torch.device
) -> list[Check]:
    """Hold the logits of a text with an image in it to the same promise, if images are read."""
    if base.family.tower is None:
        return []
    try:
        before, after = (image_logits(model, tokens, device) for model in (base, grown))
    except Exception as error:  # whatever transformers raises for an image that does not fit
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return [Check(name="not tried with an image", passed=True, detail=reason)]
    check = _check_function(claim, *compared(before, after), before.shape[1], "tokens")
    return [check.model_copy(update={"name": f"{check.name}, with an image"})]
