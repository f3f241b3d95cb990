#!/usr/bin/env python3
"""Build every mutant, hold it against the tests and `vhostd check`, and write what noticed it (./run mutation).

Ends with 1 when one was noticed by nobody. Takes about half an hour; names on the command line choose a few.
"""

import argparse
import datetime as dt
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.mutation.mutants import MUTANTS
from tests.mutation.workshop import ROOT, Workshop
from vhostd.cli.main import VERBS

RESULTS = Path(__file__).with_name("results.md")
HEAD = """# Mutants and what noticed them

Each row is a mistake seeded into the device side (`mutants.py`), built, and held against the tests of its room and
against `vhostd check`. Made by `./run mutation` on {day}, at revision {revision}: {count} mutants, {tests} noticed by
the tests, {check} by `vhostd check`, {nobody} by nobody.

| mutant | what it breaks | noticed by the tests | noticed by `vhostd check` |
| --- | --- | --- | --- |
"""


def check(shop, folder):
    """Hold the copy's disk and card against `vhostd check`; return (whether it conforms, what did not)."""
    if "check" not in VERBS:
        return True, "there is no `vhostd check`"
    from tests.mutation.conformance import conforms

    return conforms(shop, folder)


def first_line(text):
    return text.strip().splitlines()[-1][:160].replace("|", "\\|") if text.strip() else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants (all)")
    parser.add_argument("--no-check", action="store_true", help="the tests alone")
    parser.add_argument("--list", action="store_true", help="print the names")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not args.names or mutant.name in args.names]
    if args.list:
        for mutant in chosen:
            print(f"{mutant.name:36} {mutant.breaks}")
        return 0
    rows, survivors, by_tests, by_check = [], [], 0, 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        print("building the copy", flush=True)
        shop = Workshop(Path(folder))
        for tests in sorted({mutant.tests for mutant in chosen}):
            passed, said = shop.tests(tests.split())
            if not passed:
                sys.exit(f"the tree itself does not pass {tests}: {said}")
        if not args.no_check:
            passed, said = check(shop, Path(folder))
            if not passed:
                sys.exit(f"the tree itself does not conform: {said}")
        for number, mutant in enumerate(chosen, 1):
            began = time.monotonic()
            with shop.mutated(mutant) as misbuilt:
                if misbuilt:
                    sys.exit(f"{mutant.name} does not build:\n{misbuilt}")
                passed, said = shop.tests(mutant.tests.split())
                conforms, found = (True, "not asked") if args.no_check else check(shop, Path(folder))
            by_tests += not passed
            by_check += not conforms
            if passed and conforms:
                survivors.append(mutant.name)
            said = f"`{first_line(said)}`" if not passed else "no"
            found = f"`{first_line(found)}`" if not conforms else "no"
            rows.append(f"| {mutant.name} | {mutant.breaks} | {said} | {found} |")
            seconds = time.monotonic() - began
            print(
                f"{number:3}/{len(chosen)} {mutant.name:36} {seconds:4.0f} s  tests: {said}  check: {found}", flush=True
            )
    if len(chosen) == len(MUTANTS) and not args.no_check:
        revision = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        head = HEAD.format(
            day=dt.datetime.now(dt.UTC).date(), revision=revision, count=len(rows),
            tests=by_tests, check=by_check, nobody=len(survivors),
        )  # fmt: skip
        RESULTS.write_text(head + "\n".join(rows) + "\n")
    if survivors:
        print(f"noticed by nobody: {', '.join(survivors)}")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
