"""Alignment in the report: what the records say, each pair of parents once."""

import re

import pytest

import studies
from deepen.report import report, text
from deepen.report.alignment import LEVELS, alignment

FUSING = ["opt-deus", "avg-deus", "lesa"]


@pytest.fixture(scope="module")
def records():
    """Two seeds of arms that fuse, of copies, and of the base; fused ones with alignments."""
    plain, _ = studies.study(arms=["base", "solar", *FUSING, "llama-pro"], seeds=(0, 1))
    return [studies.aligned(record) if record.arm in FUSING else record for record in plain]


def arms_of(records):
    return list(dict.fromkeys(record.arm for record in records))


def test_arms_with_the_same_parents_are_shown_together_as_the_first_seed_of_the_first(records):
    shown = alignment(records, arms_of(records))
    (parents,) = shown.parents
    assert parents.arms == [(2, "opt-deus"), (3, "avg-deus"), (4, "lesa")]
    first = next(r for r in records if (r.arm, r.seed) == ("opt-deus", 0))
    blocks = first.alignment.blocks
    assert [name for name, _ in parents.table.rows] == [
        f"{pair}: {part}" for pair in pairs(first) for part in ("heads", "neurons")
    ]
    for block, heads, neurons in zip(
        blocks, parents.table.rows[::2], parents.table.rows[1::2], strict=True
    ):
        cells = [[cell.text for cell in row[1]] for row in (heads, neurons)]
        assert cells[0][0] == str(block.block)
        assert cells[1][0] == ""
        assert cells[0][-3:] == ["4e−07", "", f"{block.cka:.2f}"]
        assert cells[1][-3:] == ["", text.fixed(block.effective_matches, 1), ""]
        for part, row in zip(block.parts, cells, strict=True):
            assert row[1] == str(part.units)
            wanted = [part.similarity_before, part.similarity_after, part.similarity_by_chance]
            numbers = [float(value.replace("−", "-")) for value in row[2:5]]
            assert numbers == pytest.approx(wanted, abs=5e-4)
            assert float(row[5].split()[0]) == pytest.approx(100 * part.in_place, abs=0.05)


def pairs(record):
    return [
        f"{below} and {above}"
        for below, above, _ in (e for e in record.grow.step.plan if isinstance(e, list))
    ]


def test_other_parents_are_a_set_of_their_own(records):
    fewer = [
        r.model_copy(
            update={"alignment": r.alignment.model_copy(update={"blocks": r.alignment.blocks[:-1]})}
        )
        if r.arm == "avg-deus"
        else r
        for r in records
    ]
    shown = alignment(fewer, arms_of(fewer))
    assert [[arm for _, arm in p.arms] for p in shown.parents] == [
        ["opt-deus", "lesa"],
        ["avg-deus"],
    ]
    assert len(shown.parents[1].maps) == len(shown.parents[0].maps) - 1


def test_two_new_blocks_in_a_gap_have_one_picture(records):
    record = next(r for r in records if r.arm == "opt-deus")
    plan = [*range(8), [7, 8, 1 / 3], [7, 8, 2 / 3], *range(8, 16)]
    step = record.grow.step.model_copy(update={"plan": plan, "new_blocks": [8, 9]})
    first, second = record.alignment.blocks[:2]
    blocks = [first.model_copy(update={"block": 8}), second.model_copy(update={"block": 9})]
    twice = record.model_copy(
        update={
            "grow": record.grow.model_copy(update={"step": step}),
            "alignment": record.alignment.model_copy(update={"blocks": blocks}),
        }
    )
    (parents,) = alignment([twice], ["opt-deus"]).parents
    assert [(m.title, m.new) for m in parents.maps] == [("7 and 8", "new: 8–9")]
    assert [row[0] for row in parents.table.rows] == ["7 and 8: heads", "7 and 8: neurons"]


def test_a_picture_covers_every_cell_once_in_its_shade(records):
    drawn = alignment(records, arms_of(records)).parents[0].maps
    blocks = next(r for r in records if r.alignment).alignment.blocks
    for picture, block in zip(drawn, blocks, strict=True):
        shades = {}
        for shade, path in picture.paths:
            runs = re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path)
            assert "".join(f"M{x} {y}h{w}v1h-{back}z" for x, y, w, back in runs) == path
            for x, y, width, back in runs:
                assert width == back
                for column in range(int(x), int(x) + int(width)):
                    assert (int(y), column) not in shades
                    shades[int(y), column] = shade
        assert len(shades) == picture.rows * picture.columns
        for (y, x), shade in shades.items():
            low = LEVELS[shade - 1][0] if shade else 0.0
            assert low <= block.heat_map[y][x] < LEVELS[shade][0]
    assert len({shade for picture in drawn for shade, _ in picture.paths}) == len(LEVELS)


def test_norm_ratios_are_told_for_arms_that_fuse(records):
    table = alignment(records, arms_of(records)).norm_ratios
    assert table.header == ["arm", "query", "key", "value", "gate", "up"]
    assert [arm for arm, _ in table.rows] == FUSING
    assert all(0.4 < float(cell.text) < 1.1 for _, cells in table.rows for cell in cells)


def test_a_block_without_an_ffn_or_a_text_has_no_picture_and_no_cka(records):
    bare = [
        r.model_copy(
            update={
                "alignment": r.alignment.model_copy(
                    update={
                        "calibration": None,
                        "blocks": [
                            b.model_copy(
                                update={
                                    "parts": b.parts[:1],
                                    "effective_matches": None,
                                    "cka": None,
                                    "heat_map": [],
                                    "norm_ratios": {"query": 0.5},
                                }
                            )
                            for b in r.alignment.blocks
                        ],
                    }
                )
            }
        )
        for r in records
        if r.arm == "opt-deus"
    ]
    shown = alignment(bare, ["opt-deus"])
    assert shown.parents[0].maps == []
    assert {tuple(cell.text for cell in row[1][-2:]) for row in shown.parents[0].table.rows} == {
        ("", "")
    }


def test_the_page_and_markdown_hold_the_section_only_if_it_was_measured(tmp_path, records):
    heading = "Alignment of neighbouring blocks"
    plain, summary = studies.study(arms=arms_of(records), seeds=(0, 1))
    page = report(studies.write(tmp_path, plain, summary)).read_text(encoding="utf-8")
    assert heading not in page + (tmp_path / "report.md").read_text(encoding="utf-8")
    page = report(studies.write(tmp_path, records, summary)).read_text(encoding="utf-8")
    section = page.split(f">{heading}<")[1].split("</section>")[0]
    assert section.count('<figure class="map">') == len(records[2].alignment.blocks)
    assert all(name in section for _, name in LEVELS)
    assert "held_out.txt" in section
    assert "learning rate" in section
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    section = markdown.split(f"## {heading}")[1].split("\n## ")[0]
    assert "| 7 and 8: neurons |" in section
    assert "<svg" not in markdown
    for arm in FUSING:
        assert f"\n| {arm} |" in section
    assert "solar" not in section
