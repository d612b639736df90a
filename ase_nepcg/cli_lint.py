"""``nepcg lint``: what is wrong or risky about a mapping of a structure, before time is spent on sampling."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict

from .cli_mapping import add_mapping_arguments, make_mapping, read_structure

__all__ = ["Lint"]

_WIDTH = 100


class Lint:
    """Check which atoms of a structure make which bead: overlaps, cut or endless molecules, labels, mirror images, …

    Prints one finding per paragraph, worst first. The exit status is 1 if there is an error among them, else 0.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument(
            "structure",
            metavar="STRUCTURE",
            help="file that ASE reads; FILE@INDEX for one of several (default last)",
        )
        add_mapping_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    @staticmethod
    def run(args) -> int:
        from .lint import lint

        atoms = read_structure(args.structure)
        mapping = make_mapping(args, atoms)
        findings = lint(mapping, atoms)
        counts = Counter(finding.severity for finding in findings)
        labels = Counter(mapping.labels.tolist())
        if args.json:
            report = {
                "file": args.structure,
                "n_atoms": len(atoms),
                "n_sites": len(mapping),
                "labels": dict(labels),
                "errors": counts["error"],
                "warnings": counts["warning"],
                "notes": counts["note"],
                "findings": [asdict(finding) for finding in findings],
            }
            print(json.dumps(report, indent=2))
        else:
            sites = ", ".join(f"{count} {label}" for label, count in labels.items())
            print(f"{args.structure}: {len(atoms)} atoms, {len(mapping)} sites: {sites}")
            for finding in findings:
                print(textwrap.fill(str(finding), _WIDTH, subsequent_indent="    ", break_on_hyphens=False))
            print(", ".join(_counted(counts[name], name) for name in ("error", "warning", "note")))
        return 1 if counts["error"] else 0


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'s' * (count != 1)}"
