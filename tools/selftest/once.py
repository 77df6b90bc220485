"""One batch of a network, its nodes enqueued one by one: what a profiler is put around. The modules must be built:
--only build.

ncu --set full --clock-control none --launch-skip 40 --launch-count 18 python tools/selftest/once.py
vim_tiny_patch16_224 1
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selftest.build import environment
from selftest.options import ROOT, Options, open_paths, world_of


def main(model: str, batch: int, build: Path = ROOT / "build" / "device") -> int:
    """Run it; 0 where the logits are the CPU engine's."""
    options = Options(device="device", folder=build, build=build, models=(model,), batches=(batch,))
    os.environ.update(environment(options))
    open_paths(options)
    from selftest.networks import prepare
    from selftest.speed import Ours

    ours = Ours(world_of(options), options, prepare(options, model, batch), batch)
    ours.run.enqueue(ours.stream)
    ours.stream.wait()
    return 0 if ours.is_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
