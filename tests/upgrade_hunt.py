"""Runs the scenarios, then random upgrades, until one shows a fault: `python upgrade_hunt.py SCRIPTS`.

It prints what shows it, and ends with 1.

A program of its own, so that a test can run it on a copy of the package into which a fault was put.
"""

from __future__ import annotations

import itertools
import logging
import random
import sys

import structlog
from upgrade_scripts import SCENARIOS, random_script
from upgrade_sim import run

PARTS = 5


def main(count: int) -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    drawn = (random_script(random.Random(number), number % PARTS) for number in range(count))
    for number, script in enumerate(itertools.chain(SCENARIOS.values(), drawn)):
        try:
            run(script)
        except Exception as error:
            sys.stdout.write(f"{number}: {type(error).__name__}: {str(error)[:400]}\n{script}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
