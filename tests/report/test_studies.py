"""Several studies: the CSV holds what the records do, and pooled pairs are those of the records."""

import csv

import pytest

import studies
from deepen.cli import main
from deepen.common.errors import DeepenError
from deepen.comparison import balance
from deepen.comparison.pooling import pooled
from deepen.report import text
from deepen.report.studies import pooled_pairs, write_csv

THREE = ["trained on", "lora", "opt-deus"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two studies on disk, the second with two texts a side and fine-tuning."""
    folder = tmp_path_factory.mktemp("studies")
    first, summary = studies.sided_study(arms=THREE, seeds=(0, 1), tasks=True)
    studies.write(folder / "one", first, summary)
    plain, _ = studies.sided_study(arms=[*THREE, "wider"], seeds=(0, 1, 2), texts=2)
    second = [
        studies.tuned(record, index % 4).model_copy(
            update={"after_fine_tuning": studies.sided_scores("t", (0.4, 0.2), 2)}
        )
        for index, record in enumerate(plain)
    ]
    given = studies.summary_of(second, [*THREE, "wider"], (0, 1, 2), pairs=[["opt-deus", "lora"]])
    studies.write(folder / "two", second, given)
    return folder, {"one": first, "two": second}


def test_every_run_is_a_line_that_pairs_can_be_made_of(folders, tmp_path):
    folder, records = folders
    write_csv([folder / "one", folder / "two"], tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(map(len, records.values()))
    by_run = {(line["study"], line["arm"], int(line["seed"])): line for line in lines}
    for study, of_study in records.items():
        gained = balance.all_changes(of_study)
        for record in of_study:
            line, run = by_run[study, record.arm, record.seed], record.train
            assert (line["role"], line["method"]) == (record.role, record.method)
            assert float(line["flops"]) == pytest.approx(run.flops_per_token * run.tokens)
            assert int(line["trainable_parameters"]) == run.trainable_parameters
            assert float(line["learning_rate"]) == run.recipe["training"]["learning_rate"]
            for stage, scores in (("before", record.before), ("after", record.after)):
                for score in scores.texts:
                    told = float(line[f"{score.side} {score.file} {stage}"])
                    assert told == pytest.approx(score.loss_nats_per_token, abs=1e-6)
            own = gained[record.arm, record.seed]
            assert float(line["learned"]) == pytest.approx(own["learned"], abs=1e-6)
            tuned = line["old manuals_1.txt fine-tuned"]
            assert (tuned == "") == (record.after_fine_tuning is None)
            assert (line["new logiqa acc after"] == "") == (study == "two")
    write_csv([folder / "one", folder / "two"], tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "runs.csv").read_bytes()


def test_pooled_pairs_are_told_with_each_study_beside(folders):
    folder, records = folders
    told = pooled_pairs([folder / "one", folder / "two"], ["opt-deus - lora"])
    header, _, row = [line for line in told.splitlines() if line.startswith("|")]
    assert "learned: all | learned: one | learned: two | forgotten: all" in header
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["opt-deus − lora", "5"]
    for name, place in (("learned", 2), ("forgotten", 5)):
        found = next(d for d in pooled(records, [("opt-deus", "lora")]) if d.score == name)
        assert cells[place].startswith(text.difference("loss_nats_per_token", found.mean))
        assert text.interval("loss_nats_per_token", found.low, found.high) in cells[place]
    assert "opt-deus − lora" in pooled_pairs([folder / "two"])
    assert "wider" not in pooled_pairs([folder / "two"]), "the study names its pairs"
    assert "after fine-tuning" in pooled_pairs([folder / "two"])


def test_texts_without_sides_are_pooled_by_their_loss(tmp_path):
    for name in ("a", "b"):
        studies.write(
            tmp_path / name, *studies.study(arms=["base", "lesa"], seeds=(0, 1), tasks=())
        )
    told = pooled_pairs([tmp_path / "a", tmp_path / "b"])
    assert "loss_nats_per_token on held_out.txt: all" in told
    assert "| lesa − base | 4 |" in told


def test_the_command_writes_a_page_or_prints_pairs_and_a_csv(folders, tmp_path, capsys):
    folder, _ = folders
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(folder / "one"), "--csv", str(tmp_path / "one.csv")])
    assert capsys.readouterr().out.strip().endswith("report.html")
    assert (tmp_path / "one.csv").read_text().count("\n") == 7
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(folder / "one"), str(folder / "two"), "--pairs", "lora - opt-deus"])
    assert "| lora − opt-deus | 5 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(folder / "one"), "--csv", str(tmp_path / "none" / "one.csv")])
    assert "make it first" in capsys.readouterr().err


def test_the_same_folder_twice_is_refused(folders):
    folder, _ = folders
    with pytest.raises(DeepenError, match="given twice"):
        pooled_pairs([folder / "one", folder / "one"])
