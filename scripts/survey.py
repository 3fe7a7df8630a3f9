"""Grow a tiny model of every causal language model family that transformers has, with every method.

    python scripts/survey.py            # the summary
    python scripts/survey.py --write    # and the tables of docs/architectures.md
    python scripts/survey.py --method repeat --write   # of one method alone
    python scripts/survey.py --tables   # what the page says of tables alone; its verdicts stay

Every parameter of a tiny model is random, norms and biases too. A growth by a method that promises
the base's function is *exact* if float32 logits are equal to the last bit, else *wrong*; by any
other method it is *grown* if the result passes ``deepen verify`` and loads with no key missing or
left over, else *wrong*. What deepen refuses is listed with its reason. What families align, what
silences their blocks and what grows in their configs is read from their tables.
"""

import argparse
import collections
import json
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import deepen  # noqa: E402
import shrink  # noqa: E402
from cases import CASES, whole  # noqa: E402
from deepen import methods  # noqa: E402
from deepen.base.anatomy import FAMILIES, REFUSED  # noqa: E402
from deepen.base.anatomy.freedom import FREEDOMS, freedoms  # noqa: E402
from deepen.base.anatomy.towers import TOWERS  # noqa: E402
from deepen.base.checkpoint import ModuleSource  # noqa: E402
from deepen.base.model import as_model  # noqa: E402
from deepen.common.errors import DeepenError  # noqa: E402
from deepen.common.quiet import quiet_transformers  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
BEGIN, END = "<!-- survey: begin -->", "<!-- survey: end -->"
REASON = "refused: "
IDS = torch.randint(1, shrink.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Finding:
    """What became of one family."""

    model_type: str
    """The family."""
    verdicts: dict[str, str]
    """Method → exact, grown, wrong: …, or refused: …; empty if the family is refused."""
    refused: str | None = None
    """Why the family is refused."""


def survey(model_type: str, tried: Sequence[str]) -> Finding:
    """Try some methods on one family: on all its test cases."""
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    if model_type not in FAMILIES:
        return Finding(model_type, {}, refusal(model_type))
    verdicts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        for number, settings in enumerate(cases(model_type)):
            base = Path(scratch) / f"base-{number}"
            shrink.model(model_type, **settings).save_pretrained(base)
            for method in tried:
                verdict = attempt(base, Path(scratch) / f"{method}-{number}", method)
                before = verdicts.get(method, verdict)
                verdicts[method] = verdict if before in ("exact", "grown") else before
    return Finding(model_type, verdicts)


def cases(model_type: str) -> list[dict[str, Any]]:
    """Return the settings of a family's tiny test models."""
    return [settings for family, settings in CASES.values() if family == model_type] or [{}]


def refusal(model_type: str) -> str:
    """Return why deepen refuses a family, from what it says to a default config."""
    if model_type in REFUSED:
        return REFUSED[model_type]
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]().to_dict()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        save_file({"x": torch.zeros(1)}, Path(folder) / "model.safetensors")
        try:
            deepen.plan(folder)
        except DeepenError as error:
            return str(error).partition(" is ")[2].rstrip(".")
    raise AssertionError(f"{model_type} was not refused")


def attempt(base: Path, out: Path, method: str) -> str:
    """Grow with one method and hold the result to what it promises."""
    try:
        deepen.grow(base, out, method=method)
    except DeepenError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {error}"
    try:
        before, after = logits(base), logits(out)
        record = deepen.verify(base, out, sequences=1, length=16)
    except Exception as error:
        return f"wrong: {type(error).__name__}: {error}"
    failed = [check.detail for check in record.checks if not check.passed]
    if failed:
        return f"wrong: {failed[0]}"
    if methods.get(method).preserves_function:
        difference = float((after - before).abs().max())
        same = torch.equal(after, before)
        return "exact" if same else f"wrong: logits differ by {difference:.2g}"
    return "grown" if torch.isfinite(after).all() else "wrong: NaN"


def logits(folder: Path) -> torch.Tensor:
    """Load a checkpoint as any user would, with no key missing or left over, and run it."""
    from transformers import AutoModelForCausalLM

    model: Any
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise ValueError(f"{problem}: {sorted(map(str, report[problem]))[:3]}")
    # Shards are mapped from odd places of their files, where products can round otherwise.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


def aligned_by(model_type: str) -> str:
    """Say what ``opt-deus`` aligns in the blocks of a family: FFNs, then attention."""
    words: set[str] = set()
    with quiet_transformers():
        for settings in cases(model_type):
            model = shrink.model(model_type, **settings)
            anatomy = as_model(ModuleSource(model, model.config.to_dict())).anatomy
            words |= {word for block in anatomy.blocks for word in freedoms(block)}
    listed = [word for word in FREEDOMS if word in words]
    inside = FREEDOMS.index("groups")
    parts = [[w for w in listed if w in part] for part in (FREEDOMS[:inside], FREEDOMS[inside:])]
    return " · ".join(", ".join(part) for part in parts if part) or "–"


def silenced_by(model_type: str) -> str:
    """Say which tensors of a family are silenced, and at what value where it is not 0."""
    values: dict[str, float] = {}
    for table in FAMILIES[model_type].kinds.values():
        for name, stored in table.items():
            for part in stored.parts:
                if part.silent is not None and not part.bias:
                    values[name.removesuffix(".weight")] = part.silent
    return ", ".join(f"`{n}`" + (f" = {v:g}" if v else "") for n, v in values.items())


def fields(model_type: str) -> str:
    """Name the config fields of a family that grow with the stack."""
    family = FAMILIES[model_type]
    names = [*family.per_layer_lists, *family.index_lists, *family.prefix_counts]
    return ", ".join(f"`{name}`" for name in names) or "–"


def tables(findings: list[Finding], heading: str) -> Iterator[str]:
    """Yield the lines of the page's generated part."""
    names = methods.names()
    yield heading
    yield ""
    columns = [
        "family",
        *(f"`{name}`" for name in names),
        "aligned",
        "silenced",
        "per-layer config",
    ]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    notes: dict[str, int] = {}
    for finding in findings:
        if finding.verdicts:
            yield row(finding, notes)
    yield ""
    for text, note in notes.items():
        yield f"({note}) {text}  "
    yield ""
    yield "Some configs of these families are refused:"
    yield ""
    for model_type, family in FAMILIES.items():
        for refused in family.refusals:
            yield f"- `{model_type}`: {refused.reason}."
    yield ""
    yield "### Models that read images"
    yield ""
    for model_type in TOWERS:
        tried = [f"`{case[1]}`" for case in whole.CASES.values() if case[0] == model_type]
        yield f"- `{model_type}`: tried with {', '.join(dict.fromkeys(tried))}."
    yield ""
    yield "### Refused families"
    yield ""
    reasons = collections.defaultdict(list)
    for finding in findings:
        if finding.refused:
            reasons[finding.refused].append(f"`{finding.model_type}`")
    yield "| why | families |"
    yield "|---|---|"
    for reason, families in sorted(reasons.items(), key=lambda item: -len(item[1])):
        yield f"| {reason} | {', '.join(families)} |"


def row(finding: Finding, notes: dict[str, int]) -> str:
    """Return a family's row of the first table; reasons become notes, numbered as they come."""
    cells = [f"`{finding.model_type}`"]
    for name in methods.names():
        verdict = finding.verdicts[name]
        if verdict.startswith(REASON):
            note = notes.setdefault(verdict.removeprefix(REASON), len(notes) + 1)
            verdict = f"refused ({note})"
        cells.append(verdict)
    read = (aligned_by, silenced_by, fields)
    return f"| {' | '.join([*cells, *(say(finding.model_type) for say in read)])} |"


def recorded(page: str) -> tuple[list[Finding], str]:
    """Read the findings that the page shows, and its heading."""
    lines = generated(page)
    rows = [re.split(r" \| ", line[2:-2]) for line in lines if line.startswith("| ")]
    notes = dict(re.findall(r"^\((\d+)\) (.*?)  $", "\n".join(lines), re.MULTILINE))
    names = [cell.strip("`") for cell in rows[0]]
    findings = []
    for cells in rows[1:]:
        if cells[0].startswith("`"):
            known = (name for name in methods.names() if name in names)
            verdicts = {name: cells[names.index(name)] for name in known}
            for name, verdict in verdicts.items():
                if note := re.fullmatch(r"refused \((\d+)\)", verdict):
                    verdicts[name] = REASON + notes[note[1]]
            findings.append(Finding(cells[0].strip("`"), verdicts))
        elif cells[0] != "why":
            findings += [Finding(name.strip("`"), {}, cells[0]) for name in cells[1].split(", ")]
    return sorted(findings, key=lambda finding: finding.model_type), lines[0]


def generated(page: str) -> list[str]:
    """Return the lines of the page's generated part."""
    return page.split(BEGIN)[1].split(END)[0].strip("\n").split("\n")


def summary(findings: list[Finding]) -> str:
    """Count what is right, refused and wrong."""
    wrong = [f for f in findings if any(v.startswith("wrong") for v in f.verdicts.values())]
    right = sum(bool(f.verdicts) for f in findings) - len(wrong)
    refused = sum(f.refused is not None for f in findings)
    text = (
        f"Of the {len(findings)} causal language model families of transformers "
        f"{version('transformers')}: **{right} grown right, {refused} refused, {len(wrong)} "
        f"wrong**."
    )
    for finding in wrong:
        text += f"\n- {finding.model_type}: {finding.verdicts}"
    return text


def main() -> None:
    """Run the survey."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", help="only these; by default all")
    parser.add_argument(
        "--method", action="append", help="only this one; what the page says of others stays"
    )
    parser.add_argument("--write", action="store_true", help="rewrite docs/architectures.md")
    parser.add_argument("--tables", action="store_true", help="rewrite what tables alone say there")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    asked = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    if asked.tables:
        findings, heading = recorded(text)
    else:
        causal = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *FAMILIES} - TOWERS.keys()
        names = asked.families or sorted(causal)
        with ProcessPoolExecutor(asked.jobs) as pool:
            findings = list(pool.map(partial(survey, tried=asked.method or methods.names()), names))
        if asked.method:
            before = {finding.model_type: finding.verdicts for finding in recorded(text)[0]}
            findings = [
                replace(found, verdicts=before.get(found.model_type, {}) | found.verdicts)
                for found in findings
            ]
        heading = summary(findings)
        print("\n".join(tables(findings, heading)) if asked.families else heading)
    if asked.write or asked.tables:
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        body = "\n".join([BEGIN, *tables(findings, heading), END])
        PAGE.write_text(before + body + after, encoding="utf-8")


if __name__ == "__main__":
    main()
