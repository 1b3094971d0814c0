"""Run by the python of PyORAM's own environment: reads and writes blocks as it is told, a line each, and answers "done"."""

import sys

from pyoram.oblivious_storage.tree.path_oram import PathORAM

N, B = int(sys.argv[1]), int(sys.argv[2])
with PathORAM.setup("heap", B, N, storage_type="ram", bucket_capacity=4, ignore_existing=True) as f:
    print("ready", flush=True)
    block = bytes(B)
    for line in sys.stdin:
        kind, *numbers = line.split()
        for number in numbers:
            if kind == "r":
                f.read_block(int(number))
            else:
                f.write_block(int(number), block)
        print("done", flush=True)
