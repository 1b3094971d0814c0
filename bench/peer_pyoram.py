"""Run by the python of PyORAM's own environment: prints its accesses a second."""

import random
import time

from pyoram.oblivious_storage.tree.path_oram import PathORAM

N, B, COUNT = 1 << 16, 1024, 300
with PathORAM.setup("heap", B, N, storage_type="ram", bucket_capacity=4, ignore_existing=True) as f:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(COUNT):
            f.read_block(random.randrange(N))
        best = min(best, time.perf_counter() - start)
    print("accesses/s", COUNT / best)
