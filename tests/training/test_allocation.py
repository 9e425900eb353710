from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from heliostat.training.allocation import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def step():
    # Numpy asks for huge pages from 4 MiB on.
    pieces = [np.empty(megabytes << 20, np.uint8) for megabytes in 12 * (1, 2, 3)]
    for piece in pieces:
        piece[::4096] = 1

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


def pages(how: str, **variables: str) -> int:
    """New pages that the system had to hand out in each step of 72 MiB."""
    told = {**{k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}, **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], env=told, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's malloc can be told")
def test_a_step_reuses_the_memory_of_the_one_before():
    usual = pages("usual")
    assert usual > 10000  # or there would be nothing to gain
    assert pages("kept") < usual / 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's malloc can be told")
def test_what_the_user_chose_stays():
    assert pages("kept", MALLOC_TRIM_THRESHOLD_="0", MALLOC_MMAP_THRESHOLD_="65536") > 10000
