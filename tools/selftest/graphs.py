"""Part graphs: every case captured in a CUDA graph and replayed, and on two streams at once; whole networks
likewise.
"""

from __future__ import annotations

from operator_case import assert_same_bits
from plugin_run import build, check_captured, check_two_streams
from program_run import NetworkProgram, ProgramOnWorld
from worlds import World, settings

from selftest.cases import run_cases
from selftest.network import changes_of, pixels_of
from selftest.networks import DEMO, SMALL, prepare
from selftest.operators import all_cases, dry
from selftest.options import Options, Part, world_of

REPLAYS = 3


def run(options: Options) -> Part:
    """Compare everything."""
    world = world_of(options)
    every = (dry(all_cases()) if options.is_double else all_cases()) if world.has_plugins else {}
    cases = {name: make for name, make in every.items() if "no image" not in name}
    models = (SMALL,) if options.is_double else (DEMO, options.models[0])
    batch = 1 if options.is_double else 8

    def check(name: str) -> int:
        if name.startswith("network "):
            return check_network(world, options, name.removeprefix("network "), batch)
        operator = cases[name]()
        if operator.batch == 0:
            return 1
        arrays, expected = list(operator.inputs.values()), operator.reference()
        constant = [key not in operator.activations for key in operator.inputs]
        plugin = build(world, operator.op, operator.node.attributes, arrays, constant)
        check_captured(world, name, plugin, arrays, expected, "random")
        check_two_streams(world, name, plugin, arrays, expected, "ascending")
        return 5 * sum(array.size for array in expected)

    names = [*(f"network {name}" for name in models), *cases]
    return run_cases(world, names, check, options.folder / "state_graphs.json")


def check_network(world: World, options: Options, name: str, batch: int) -> int:
    """Capture a network twice, replay both at once on two streams, with other images each time."""
    from pyvimtrt.graph.network import load_network

    prepared = prepare(options, name, REPLAYS * 2 * batch)
    chosen = settings(world.kernels, "ascending", name, **changes_of(options))
    shared = NetworkProgram(world, load_network(prepared.path), chosen)
    runs, graphs, streams = [], [], []
    for _ in range(2):
        runs.append(ProgramOnWorld(shared, batch, chosen))
        streams.append(world.kernels.Stream())
        streams[-1].begin_capture()
        runs[-1].enqueue(streams[-1])
        graphs.append(streams[-1].end_capture())
    parts = [slice(i * batch, (i + 1) * batch) for i in range(REPLAYS * 2)]
    for replay in range(REPLAYS):
        now = parts[2 * replay : 2 * replay + 2]
        for run, part in zip(runs, now, strict=True):
            run.poison(0x30 + replay)
            run.write(pixels_of(prepared.images[part]))
        for stream, graph in zip(streams, graphs, strict=True):
            stream.launch(graph)
        for stream, run, part in zip(streams, runs, now, strict=True):
            stream.wait()
            assert_same_bits(run.read(), prepared.logits[part], f"network {name}, replay {replay + 1}")
    world.kernels.finish()
    return REPLAYS * 2 * batch * int(prepared.logits.shape[1])
