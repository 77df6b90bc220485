"""`pyvimtrt bench`: what it counts, that peers are checked before they are timed, what it says of what is missing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import TINY, vim_config

from pyvimtrt.bench import limits
from pyvimtrt.bench import run as module
from pyvimtrt.bench.limits import kind, operator_times, work
from pyvimtrt.bench.peers import ENGINE, PEERS
from pyvimtrt.bench.plot import check_plot, save_plot
from pyvimtrt.bench.results import Bench, OperatorTime, PeerResult
from pyvimtrt.bench.run import Settings, bench, parse_peers
from pyvimtrt.cli import main
from pyvimtrt.cli_output import print_bench
from pyvimtrt.errors import BackendError, OutputError, UsageError
from pyvimtrt.graph.network import load_network
from pyvimtrt.native import require_native

pytestmark = pytest.mark.alone  # it measures
PEERS_TIMED = ("torch-loop", "torch", "onnxruntime", "onnxruntime-int8", "openvino")


@pytest.fixture(scope="module")
def found(tiny_engine_file: Path, tiny_weights_file: Path) -> Bench:
    return bench(tiny_engine_file, tiny_weights_file, Settings(PEERS_TIMED, batch=3, threads=(1, 2), rounds=4))


@pytest.mark.slow
def test_every_peer_is_timed_and_right(found: Bench) -> None:
    assert [peer.peer for peer in found.peers] == [ENGINE, *PEERS_TIMED] and all(
        peer.problem is None for peer in found.peers
    ), found.peers
    for peer in found.peers:
        assert 0 < peer.p10_ms <= peer.median_ms <= peer.p90_ms
        assert peer.images_per_second == pytest.approx(3e3 / peer.median_ms)
        assert peer.threads in peer.median_ms_by_threads and set(peer.median_ms_by_threads) == {1, 2}
        assert peer.load_s > 0
        assert (
            peer.memory_bytes > 0
            and peer.ratio > 0
            and peer.cosine > (0.9999 if PEERS[peer.peer].precision == "fp32" else 0.9)
        )
    assert found.peers[0].ratio == 1 and found.peers[1].ratio > 1
    assert (found.batch, found.rounds, found.model) == (3, 4, vim_config(TINY).spec())


def test_the_work_is_counted_by_hand(tiny_engine_file: Path) -> None:
    config, network = vim_config(TINY), load_network(tiny_engine_file)
    L, D, E, N, R = config.tokens, config.dim, config.inner, config.state, config.rank
    amounts = work(network, 3)
    assert amounts["layers.0.in_proj"] == ("int8 multiply-adds", 3 * L * D * 2 * E)
    assert amounts["layers.0.backward.x_proj"] == ("int8 multiply-adds", 3 * L * E * (R + 2 * N))
    assert amounts["layers.0.forward.dt_proj"] == ("int8 multiply-adds", 3 * L * R * E)
    assert amounts["layers.0.scan"] == ("state updates", 3 * 2 * L * E * N)
    assert amounts["head"] == ("int8 multiply-adds", 3 * D * 3)


@pytest.mark.slow
def test_operators_add_up_and_stay_below_their_limits(found: Bench, tiny_engine_file: Path) -> None:
    assert sum(o.share for o in found.operators) == pytest.approx(1)
    times = [o.milliseconds for o in found.operators]
    assert times == sorted(times, reverse=True)
    assert {"in_proj", "scan", "conv", "norm"} <= {o.operator for o in found.operators}
    amounts, by_name = work(load_network(tiny_engine_file), 3), {o.operator: o for o in found.operators}
    for name in ("in_proj", "scan"):
        o = by_name[name]
        total = sum(amount for node, (_, amount) in amounts.items() if kind(node) == name)
        assert o.per_second == pytest.approx(total / o.milliseconds * 1e3) and o.share_of_limit < 1.1
        assert o.limit > 0 or found.isa == "generic"


def test_a_run_without_peers_needs_no_weights(tiny_engine_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_fp32_model", lambda *_: pytest.fail("no peers, no fp32 model"))
    monkeypatch.setattr(limits, "RUNS", 2)
    alone = bench(tiny_engine_file, None, Settings(rounds=2, threads=(1,)))
    assert [peer.peer for peer in alone.peers] == [ENGINE] and alone.peers[0].threads == 1


def test_rates_are_those_of_the_instruction_set() -> None:
    native = require_native()
    for isa in native.available_isas():
        dot, vector = native.measure_rates(isa)
        assert (dot > 1e9 and vector > 1e9) or (isa == "generic" and dot == vector == 0)
    with pytest.raises(ValueError, match="cannot run here"):
        native.measure_rates("sse9")


def test_generic_kernels_have_no_limit(tiny_engine_file: Path) -> None:
    network = load_network(tiny_engine_file)
    pixels = np.zeros((1, 1, 8, 8), np.int8)
    assert all(o.limit == 0 and o.share_of_limit == 0 for o in operator_times(network, pixels, "generic"))


# Answers


def worker(peer: str, logits: list[list[float]], problem: str | None = None) -> Any:
    """Return what stands for a peer's process."""
    return SimpleNamespace(
        request=SimpleNamespace(peer=peer, threads=1), logits=np.array(logits, np.float32), problem=problem, times=[1.0]
    )


TRUTH = np.array([[1.0, -2.0, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("peer", "logits", "said"),
    [
        ("onnxruntime", [[1.0, -2.0, 0.5003]], None),
        ("onnxruntime", [[1.0, -2.0, 0.51]], "differ from fp32's by 0.01, 0.5% of the largest"),
        ("onnxruntime", [[1.0, -2.0]], "wrong shape"),
        ("openvino-int8", [[1.2, -1.9, 0.1]], None),
        ("openvino-int8", [[1.0, 1.0, 1.0]], "cosine"),
        (ENGINE, [[float("nan"), 0, 0]], "not finite"),
    ],
)
def test_wrong_logits_are_a_problem(peer: str, logits: list[list[float]], said: str | None) -> None:
    checked = worker(peer, logits)
    module._check(checked, TRUTH)
    assert (checked.problem is None) if said is None else (checked.problem is not None and said in checked.problem)


def test_a_peer_with_a_problem_is_neither_timed_nor_in_the_way(
    tiny_engine_file: Path, tiny_weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "modules=('a_package_that_is_not_there',)"
    code = (
        "import dataclasses, pyvimtrt.bench.peers as p; "
        f"p.PEERS['torch-loop'] = dataclasses.replace(p.PEERS['torch-loop'], {missing})"
    )
    popen: Any = subprocess.Popen

    def start(command: list[str], **options: object) -> object:
        return popen(
            [command[0], "-c", f"{code}; import runpy; runpy.run_module('pyvimtrt.bench.worker', run_name='__main__')"],
            **options,
        )

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(limits, "RUNS", 2)
    found = bench(tiny_engine_file, tiny_weights_file, Settings(("torch-loop",), threads=(1,), rounds=2))
    assert found.peers[0].problem is None and found.peers[0].median_ms > 0
    assert found.peers[1].problem == (
        "it needs the package a_package_that_is_not_there, which is not installed; run: pip "
        "install 'pyvimtrt[torch,bench]'"
    )


def test_a_package_in_the_working_directory_is_not_what_runs(
    tiny_engine_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyvimtrt").mkdir()
    (tmp_path / "pyvimtrt" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(limits, "RUNS", 2)
    assert bench(tiny_engine_file, None, Settings(rounds=1, threads=(1,))).peers[0].median_ms > 0


def test_a_worker_that_dies_has_its_last_words(tiny_engine_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    popen: Any = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **options: popen([command[0], "-c", "import sys; sys.exit('out of everything')"], **options),
    )
    with pytest.raises(BackendError, match="the engine cannot be measured: its process ended: out of everything"):
        bench(tiny_engine_file, None, Settings(threads=(1,)))


def test_weights_of_another_engine_are_refused(tiny_engine_file: Path, tmp_path: Path, tiny_weights_file: Path) -> None:
    import safetensors.numpy

    other = safetensors.numpy.load_file(tiny_weights_file)
    other["head.bias"] = other["head.bias"] + 1
    safetensors.numpy.save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"was not built from .*other\.safetensors"):
        bench(tiny_engine_file, tmp_path / "other.safetensors", Settings(("torch",)))


# The command line


def test_names_of_peers() -> None:
    assert parse_peers(None) == () and parse_peers("all") == tuple(
        name for name, peer in PEERS.items() if peer.on_gpu is False
    )
    assert parse_peers("torch, onnxruntime,torch") == ("torch", "onnxruntime")
    for text in ("tensorflow", "torch,,onnxruntime", ENGINE):
        with pytest.raises(UsageError, match="the peers on a CPU are torch-loop, torch"):
            parse_peers(text)


@pytest.mark.slow
def test_the_command_prints_tables_or_json(
    tiny_engine_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "RUNS", 2)
    line = ["bench", str(tiny_engine_file), "--rounds", "2", "--threads", "1"]
    assert main([*line, "--plot", str(tmp_path / "plot.svg")]) == 0
    printed = capsys.readouterr().out
    assert "pyvimtrt" in printed and "where its time goes" in printed and "in_proj" in printed
    assert (tmp_path / "plot.svg").read_text().lstrip().startswith("<?xml")
    assert main([*line, "--json"]) == 0
    parsed = json.loads(capsys.readouterr().out)
    assert parsed["peers"][0]["peer"] == ENGINE and {"operator", "milliseconds", "limit"} <= set(parsed["operators"][0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "--threads takes numbers"),
        (["--vs", "x"], "unknown peer 'x'"),
        (["--plot", "a.txt"], ".svg"),
    ],
)
def test_bad_options(
    arguments: list[str], said: str, tiny_engine_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tiny_engine_file), *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_plots(found: Bench, tmp_path: Path) -> None:
    for suffix in (".png", ".pdf"):
        save_plot(found, tmp_path / f"plot{suffix}")
        assert (tmp_path / f"plot{suffix}").stat().st_size > 1000
    with pytest.raises(OutputError):
        check_plot(tmp_path / "nowhere" / "plot.png")


# What is printed


def longest(gpu: str) -> str:
    """Return the longest name of a peer that is measured there."""
    return max((name for name, peer in PEERS.items() if peer.on_gpu in (bool(gpu), None)), key=len)


def peer(name: str, ms: float, engine_ms: float, **more: Any) -> PeerResult:
    times: dict[str, Any] = {"median_ms": ms, "p10_ms": 0.97 * ms, "p90_ms": 1.1 * ms, "images_per_second": 1e3 / ms}
    settled = {"threads": 2, "load_s": 1.5, "memory_bytes": 123_456_789, "cosine": 0.99987, **more}
    return PeerResult(name, "", None, ratio=ms / engine_ms, **times, **settled)


def made_up(gpu: str = "", **more: Any) -> Bench:
    peers = (peer(ENGINE, 5.3127, 5.3127), peer(longest(gpu), 12345.678, 5.3127), peer("torch", 0.012345, 5.3127))
    operators = (OperatorTime("bidirectional_scan", 1.0, 0.5, "state updates", 6.6e9, 2.7e10),)
    return Bench("e.onnx", TINY, "avx512", 2, 1, 30, peers, operators, gpu=gpu, **{"load_average": 0.1, **more})


@pytest.mark.parametrize("gpu", ["", "NVIDIA H100 80GB HBM3"])
def test_the_tables_fit_80_columns_and_no_cell_is_folded(
    gpu: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_bench(made_up(gpu))
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80 and err == ""
    assert len([line for line in lines if line.split() and line.split()[0] == longest(gpu)]) == 2
    (row,) = [line.split() for line in lines if longest(gpu) in line and ".." in line]
    assert row == [longest(gpu), *([] if gpu else ["2"]), "12,346", "11,975", "..", "13,580", "0.081", "2323.80"]
    assert "H100" in out if gpu else "avx512, 2 cores" in out


@pytest.mark.parametrize("gpu", ["", "a GPU"])
def test_shown_ratios_are_those_of_the_shown_milliseconds(
    gpu: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_bench(made_up(gpu))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " .. " in line and "p10" not in line]
    times = {row[0]: float(row[1 if gpu else 2].replace(",", "")) for row in rows}
    for row in rows:
        expected = times[row[0]] / times[ENGINE]
        assert float(row[-1]) == pytest.approx(expected, rel=1e-3, abs=0.006)


def test_ratios_are_quotients_of_medians() -> None:
    """The median of the rounds' quotients was another number than the quotient that a reader makes."""

    def ran(name: str, times: list[float]) -> Any:
        return SimpleNamespace(
            request=SimpleNamespace(peer=name, threads=1), problem=None, times=times, logits=TRUTH,
            started={"load_s": 1}, end=lambda: (1, 0.0),
        )  # fmt: skip

    best = {ENGINE: ran(ENGINE, [1.0, 2.0, 9.0]), "torch": ran("torch", [8.0, 4.0, 10.0])}
    results = module._results(best, {ENGINE: {1: 2.0}, "torch": {1: 8.0}}, TRUTH, 1)
    assert [result.ratio for result in results] == [1.0, 4.0]


def test_a_busy_machine_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert made_up().busy == "" and made_up(load_average=None).busy == ""
    loaded = made_up(load_average=3.71)
    assert loaded.busy == (
        "the machine is busy (a load average of 3.7 on 2 cores before the start): measure again when it is quiet"
    )
    restless = dataclasses.replace(made_up(), peers=(dataclasses.replace(made_up().peers[0], p90_ms=10.0),))
    assert "the engine's p90 is 1.9 times its p10" in restless.busy
    print_bench(loaded)
    assert capsys.readouterr().err == f"warning: {loaded.busy}\n"


def test_what_is_written_is_said(
    tmp_path: Path, tiny_engine_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "bench", lambda *_, **__: made_up())
    command = ["bench", str(tiny_engine_file), "--plot", str(tmp_path / "b.svg")]
    assert main(command) == 0
    assert str(tmp_path / "b.svg") in "".join(capsys.readouterr().out.split())
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plot"] == str(tmp_path / "b.svg") and found["busy"] == "" and found["load_average"] == 0.1
