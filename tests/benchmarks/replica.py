"""A replica in a process of its own, so that its memory can be read from outside.

Run as a program with settings as JSON: prints a line when the model is loaded, starts at the first line of standard
input, and stops at its end.
"""

from __future__ import annotations

import json
import os
import sys


def main(arguments: str) -> None:
    os.environ |= {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    from twinlens.replica.replica import new_replica
    from twinlens.settings import Settings

    torch.set_num_threads(1)
    replica = new_replica(Settings.load(json.loads(arguments)), "measured")
    print("loaded", flush=True)
    sys.stdin.readline()
    replica.start()
    sys.stdin.read()
    replica.check_health()
    replica.stop()


if __name__ == "__main__":
    main(sys.argv[1])
