"""The list of mutations is true, and each has been noticed; run.py tries them."""

from __future__ import annotations

import re

import pytest
from mutations.run import ROOT, load, read_results

MUTATIONS = load()


def test_there_are_enough_and_each_has_its_name():
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_applies_and_was_noticed(mutation):
    mutation.applied((ROOT / mutation.file).read_text("utf-8"))
    for test in mutation.tests:
        path, name, *_ = f"{test}::".split("::")
        assert re.search(rf"^(class |def )?{name}\b", (ROOT / path).read_text("utf-8"), re.M)
    result = read_results()[mutation.name]
    assert result["mutation"] == mutation.digest, "it has changed since it was tried"
    assert result["result"].startswith("noticed by ")


def test_no_result_is_of_another_mutation():
    assert set(read_results()) == {mutation.name for mutation in MUTATIONS}
