"""The ensembles of the CPU as device code: one source of equations of motion.

An ensemble (``ase_nepcg.md.ensembles``) is made of functions of one replica, with loops over its sites and scalar
formulas between them. On the device a replica has a *team*, the threads of one block, which all run the same text:

- a loop over the sites (or the held groups) of the replica is divided among them, and its sums (``total += ...``) are
  added up afterwards, so that all have the same number;
- scalar formulas are computed by all;
- what is written to the state outside of such loops (the cell) is written by one.

:func:`for_team` rewrites the syntax tree of a function like that, and of all that it calls.
"""

from __future__ import annotations

import ast
import inspect
import textwrap

from numba.core.dispatcher import Dispatcher

from .device import device_function

__all__ = ["TeamError", "divided", "for_team"]


class TeamError(NotImplementedError):
    """A function whose loops cannot be divided."""


def _is_first(node, which: str) -> bool:
    """Whether ``node`` is ``s.first[r]``, ``s.group_first[r]`` ("begin") or the same with ``r + 1`` ("end")."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute)):
        return False
    if node.value.attr not in ("first", "group_first"):
        return False
    return isinstance(node.slice, ast.BinOp) == (which == "end")


class _Divide(ast.NodeTransformer):
    """Rewrites the body of one function."""

    def __init__(self, function: ast.FunctionDef):
        self.name = function.name
        # names that stand for the ends of the sites, for arrays of the state, and for zero
        self.ends = {"begin": set(), "end": set()}
        self.aliases, self.zeros = set(), set()
        for node in function.body:
            self._learn_all(node)
        function.body = [new for node in function.body for new in self._statement(node)]

    def _learn_all(self, node):
        """What stands outside of loops over sites or groups."""
        if isinstance(node, ast.Assign):
            self._learn(node)
        elif not (isinstance(node, ast.For) and self._over_sites(node)):
            for child in ast.iter_child_nodes(node):
                self._learn_all(child)

    def _learn(self, assign):
        target, value = assign.targets[0], assign.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        else:
            pairs = [(one, value) for one in assign.targets]
        for name, what in pairs:
            if not isinstance(name, ast.Name):
                continue
            for which in ("begin", "end"):
                if _is_first(what, which):
                    self.ends[which].add(name.id)
            if isinstance(what, ast.Subscript) and _of_state(what, set()):
                self.aliases.add(name.id)
            if isinstance(what, ast.Constant) and what.value == 0:
                self.zeros.add(name.id)

    def _over_sites(self, loop) -> bool:
        call = loop.iter
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "range" and len(call.args) == 2):
            return False
        return all(
            _is_first(node, which) or (isinstance(node, ast.Name) and node.id in self.ends[which])
            for node, which in zip(call.args, ("begin", "end"), strict=True)
        )

    def _statement(self, node):
        if isinstance(node, ast.For) and self._over_sites(node):
            return self._divided(node)
        loops_inside = isinstance(node, ast.For) and any(
            isinstance(one, ast.For) and self._over_sites(one) for one in ast.walk(node)
        )
        if isinstance(node, ast.If | ast.While) or loops_inside:
            node.body = [new for one in node.body for new in self._statement(one)]
            node.orelse = [new for one in node.orelse for new in self._statement(one)]
            return [node]
        if any(
            isinstance(one, ast.Subscript) and isinstance(one.ctx, ast.Store) and _of_state(one, self.aliases)
            for one in ast.walk(node)
        ):
            # by one thread, when nobody reads the old value any more
            return [*_parse("team_sync()"), *_parse("if team_rank() == 0:\n    pass", node), *_parse("team_sync()")]
        return [node]

    def _divided(self, loop):
        begin, end = loop.iter.args
        loop.iter.args = [
            ast.BinOp(begin, ast.Add(), _parse("team_rank()")[0].value),
            end,
            _parse("team_size()")[0].value,
        ]
        added, assigned = [], set()
        for node in ast.walk(loop):
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                added.append(node.target.id)
            elif isinstance(node, ast.Assign):
                assigned |= {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        sums = [name for name in dict.fromkeys(added) if name not in assigned]
        for name in sums:
            if name not in self.zeros:
                raise TeamError(f"{self.name}: the sum {name} must begin with zero to be divided among threads")
        new = [loop]
        for name in sums:
            new += _parse(f"{name} = team_sum({name}, s.shared)")
        return new + _parse("team_sync()")


def _of_state(node, aliases) -> bool:
    """Whether a subscript is of an array of the state ``s``."""
    while isinstance(node, ast.Subscript | ast.Attribute):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "s":
            return True
        node = node.value
    return isinstance(node, ast.Name) and node.id in aliases


def _parse(text, body=None):
    nodes = ast.parse(text).body
    if body is not None:
        nodes[0].body = [body]
    return nodes


def divided(function) -> str:
    """The source of ``function`` with its loops over sites divided among the threads of a team."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    definition.decorator_list = []
    _Divide(definition)
    return ast.unparse(ast.fix_missing_locations(tree))


def for_team(function, team: dict, done: dict | None = None):
    """Device function of a compiled ``function`` of the CPU and all it calls.

    ``team``: team_rank, team_size, team_sync, team_sum (which takes ``s.shared`` too), and functions that replace
    those of the same name.
    """
    done = {} if done is None else done
    python = getattr(function, "py_func", function)
    if python not in done:
        namespace = dict(python.__globals__)
        names = {node.id for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(python))))
                 if isinstance(node, ast.Name)}  # fmt: skip
        for name in names & namespace.keys():
            if name in team:
                namespace[name] = team[name]
            elif isinstance(namespace[name], Dispatcher):
                namespace[name] = for_team(namespace[name], team, done)
        namespace |= {name: one for name, one in team.items() if name.startswith("team_")}
        exec(compile(divided(python), f"<{python.__module__}.{python.__name__} for a team>", "exec"), namespace)
        done[python] = device_function()(namespace[python.__name__])
    return done[python]
