"""A request becomes everything that determines the grown model; nothing is written."""

import pytest

import deepen
from deepen.base import model as opened
from deepen.common.errors import DeepenError
from deepen.growth.preview import requested
from deepen.records.growth import GrowRequest


def test_keywords_are_a_request(llama):
    by_keyword = deepen.plan(llama, method="llama-pro", new_layers=2, seed=3)
    request = GrowRequest(method="llama-pro", new_layers=2, seed=3)
    assert deepen.plan(llama, request) == by_keyword
    assert by_keyword.growth.step.plan == [0, 1, 2, [2, 2, 0.0], 3, 4, 5, [5, 5, 0.0]]


def test_keywords_go_over_the_request():
    request = GrowRequest(method="lesa", seed=3)
    assert requested(request, {"seed": 4}) == GrowRequest(method="lesa", seed=4)
    assert requested(None, {"options": None}) == GrowRequest()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"new_layer": 2}, "Unknown key 'new_layer' in the request; did you mean 'new_layers'"),
        ({"new_layers": "many"}, "'new_layers' in the request cannot be 'many'"),
        ({"method": "opt-deu"}, "Unknown method 'opt-deu'; did you mean 'opt-deus'"),
        ({"placement": "topp"}, "Unknown placement 'topp'; did you mean 'top'"),
        ({"options": {"fidelty": "published"}}, "Unknown option of opt-deus 'fidelty'"),
    ],
)
def test_what_does_not_fit_is_named(llama, tmp_path, how, sentence):
    for call in (
        lambda: deepen.plan(llama, **how),
        lambda: deepen.grow(llama, tmp_path / "out", **how),
    ):
        with pytest.raises(DeepenError) as refused:
            call()
        assert sentence in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_plan_opens_the_base_once(llama, monkeypatch):
    count = []
    monkeypatch.setattr(
        opened, "open_checkpoint", lambda *a, **k: count.append(a) or original(*a, **k)
    )
    deepen.plan(llama)
    assert len(count) == 1


original = opened.open_checkpoint


def test_the_record_lists_only_the_options_that_were_chosen(llama):
    assert deepen.plan(llama).growth.chosen_options == {}
    options = {"upper_share": 0.75, "fidelity": "normalised", "match_norms": "false"}
    chosen = deepen.plan(llama, options=options).growth.chosen_options
    assert chosen == {"upper_share": 0.75, "fidelity": "normalised"}
