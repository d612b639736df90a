"""The record that the linter reports."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from ase_nepcg.lint.findings import Finding, plural, shown, uncommon, worst_first


def test_text_shows_place_and_severity():
    finding = Finding("error", "empty-groups", "no atoms; remove them", sites=(3,), atoms=range(20))
    assert str(finding) == (
        "error [empty-groups]: no atoms; remove them (sites 3; atoms 0, 1, 2, 3, 4, 5, 6, 7 and 12 more)"
    )
    assert str(Finding("note", "no-virial", "none")) == "note [no-virial]: none"


def test_indices_are_plain_integers():
    finding = Finding("note", "x", "y", np.array([1, 2]), np.array([3]))
    assert finding == Finding("note", "x", "y", (1, 2), (3,))
    assert hash(finding) == hash(Finding("note", "x", "y", (1, 2), (3,)))
    assert json.loads(json.dumps(asdict(finding)))["sites"] == [1, 2]


def test_unknown_severity_is_refused():
    with pytest.raises(ValueError, match="severity: expected one of error, warning, note, got 'fatal'"):
        Finding("fatal", "x", "y")


def test_order():
    findings = [
        Finding(severity, code, "")
        for severity, code in zip(("note", "error", "warning", "error"), "abcd", strict=True)
    ]
    assert [finding.code for finding in worst_first(findings)] == ["b", "d", "c", "a"]


def test_uncommon():
    odd, counts = uncommon(np.array([7, 3, 3, 5, 3]))
    assert odd.tolist() == [True, False, False, True, False]
    assert counts == [3, 1, 1]
    # the first of equally frequent ones is the common one, whatever its value
    assert uncommon([9, 1, 1, 9])[0].tolist() == [False, True, True, False]


def test_words():
    assert plural(1, "atom") == "1 atom"
    assert plural(0, "atom") == "0 atoms"
    assert shown([1, 2, 3], limit=2) == "1, 2 and 1 more"
    assert shown([1, 2], limit=2) == "1, 2"
