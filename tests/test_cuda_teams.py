"""Functions of the CPU, divided among threads."""

import ast

import pytest
from ase_nepcg_cuda.teams import TeamError, divided


def kinetic(s, r):
    total = 0.0
    for i in range(s.first[r], s.first[r + 1]):
        half = 0.5 * s.m[i]
        total += half * s.v[i, 0] ** 2
    return total


def named_ends(s, r):
    begin, end = s.first[r], s.first[r + 1]
    for i in range(begin, end):
        s.v[i, 0] *= 2.0


def groups(s, r):
    for g in range(s.group_first[r], s.group_first[r + 1]):
        begin, end = s.start[g], s.start[g + 1]
        mean = 0.0
        for k in range(begin, end):
            mean += s.share[k]
        s.held[g, 0] = mean


def one_writes(s, r, a):
    c = s.cell[r]
    if a > 0.0:
        for k in range(3):
            c[k, 0] = a * c[k, 0]
    s.virial[r, 0, 0] = 0.0


def not_from_zero(s, r):
    total = 1.0
    for i in range(s.first[r], s.first[r + 1]):
        total += s.m[i]
    return total


def same(function, text):
    assert divided(function) == ast.unparse(ast.parse(text))


def test_loops_over_sites_are_divided_and_their_sums_added():
    same(
        kinetic,
        """
def kinetic(s, r):
    total = 0.0
    for i in range(s.first[r] + team_rank(), s.first[r + 1], team_size()):
        half = 0.5 * s.m[i]
        total += half * s.v[i, 0] ** 2
    total = team_sum(total, s.shared)
    team_sync()
    return total
""",
    )


def test_ends_may_have_names():
    same(
        named_ends,
        """
def named_ends(s, r):
    begin, end = s.first[r], s.first[r + 1]
    for i in range(begin + team_rank(), end, team_size()):
        s.v[i, 0] *= 2.0
    team_sync()
""",
    )


def test_a_group_belongs_to_one_thread():
    same(
        groups,
        """
def groups(s, r):
    for g in range(s.group_first[r] + team_rank(), s.group_first[r + 1], team_size()):
        begin, end = s.start[g], s.start[g + 1]
        mean = 0.0
        for k in range(begin, end):
            mean += s.share[k]
        s.held[g, 0] = mean
    team_sync()
""",
    )


def test_what_belongs_to_all_is_written_by_one():
    same(
        one_writes,
        """
def one_writes(s, r, a):
    c = s.cell[r]
    if a > 0.0:
        team_sync()
        if team_rank() == 0:
            for k in range(3):
                c[k, 0] = a * c[k, 0]
        team_sync()
    team_sync()
    if team_rank() == 0:
        s.virial[r, 0, 0] = 0.0
    team_sync()
""",
    )


def test_a_sum_that_does_not_begin_with_zero_cannot_be_divided():
    with pytest.raises(TeamError, match="not_from_zero: the sum total must begin with zero"):
        divided(not_from_zero)
