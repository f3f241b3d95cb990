#!/usr/bin/env python3
"""Build every mutant, hold it against the tests and `vhostd check`, and write what noticed it (./run mutation).

Ends with 1 when one was noticed by nobody. Takes about half an hour; names on the command line choose a few.
"""

import argparse
import datetime as dt
import re
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
against `vhostd check`. Made by `./run mutation`, last on {day}, at revision {revision}: {count} mutants, {tests} of
them noticed by the tests, {check} by `vhostd check`, {nobody} by nobody.

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


def known():
    """The rows of the last runs, whose mutants are still there: what noticed each."""
    names = {mutant.name for mutant in MUTANTS}
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("| ")]
    return {row[0]: (row[2], row[3]) for row in cells if row[0] in names}


def write(rows):
    """Write the page: a row for each mutant that has been tried, in the order of the list."""
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    head = HEAD.format(
        day=dt.datetime.now(dt.UTC).date(), revision=revision, count=len(rows),
        tests=sum(said != "no" for said, _ in rows.values()), check=sum(found != "no" for _, found in rows.values()),
        nobody=sum(row == ("no", "no") for row in rows.values()),
    )  # fmt: skip
    tried = [mutant for mutant in MUTANTS if mutant.name in rows]
    lines = [f"| {mutant.name} | {mutant.breaks} | {' | '.join(rows[mutant.name])} |" for mutant in tried]
    RESULTS.write_text(head + "\n".join(lines) + "\n")


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
    rows, survivors = known(), []
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
            if passed and conforms:
                survivors.append(mutant.name)
            said = f"`{first_line(said)}`" if not passed else "no"
            found = f"`{first_line(found)}`" if not conforms else "no"
            if not args.no_check:
                rows[mutant.name] = said, found
                write(rows)
            seconds = time.monotonic() - began
            print(
                f"{number:3}/{len(chosen)} {mutant.name:36} {seconds:4.0f} s  tests: {said}  check: {found}", flush=True
            )
    if survivors:
        print(f"noticed by nobody: {', '.join(survivors)}")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
