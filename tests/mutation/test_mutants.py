"""The list of mutants stays true, and the ones that need no compiler are noticed each time."""

import pytest

from tests.mutation.mutants import MUTANTS
from tests.mutation.workshop import ROOT, Workshop

QUICK = ["success-is-one", "stop-disables", "reply-without-a-version"]


def test_there_are_forty_and_each_has_a_name_and_a_rule():
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.breaks and mutant.tests for mutant in MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_place_is_still_there(mutant):
    """A mutant that no longer applies would pass for one that was noticed."""
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    for words in mutant.tests.split():
        assert (ROOT / words).exists()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("mutants"), compiled=False)


def test_the_copy_passes_as_it_is(workshop):
    """Else every mutant would be noticed, whatever it is."""
    passed, said = workshop.tests(["tests/unit/protocol/test_states.py"])
    assert passed, said


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.name in QUICK], ids=lambda mutant: mutant.name)
def test_a_mutant_is_noticed(workshop, mutant):
    with workshop.mutated(mutant) as misbuilt:
        assert not misbuilt
        passed, _ = workshop.tests(["tests/unit/protocol"])
    assert not passed
