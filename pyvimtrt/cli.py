"""The command line. Every command is one call into the package, imported when it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pyvimtrt import __version__, defaults
from pyvimtrt.errors import UsageError, VimTrtError

DEBUG = "--debug"
MODEL_HELP = (
    "Registered name, vim:img=32,patch=4,dim=128,depth=8,classes=10,channels=3, or auto: the model of the weights."
)
Function = TypeVar("Function", bound=Callable[..., Any])
MAX_THREADS = 1024
MAX_SEED = 2**63 - 1  # of PyTorch's generators
MAX_COUNT = 1_000_000_000  # of whatever has no smaller limit
MAX_SECONDS = 1_000_000.0
MESSAGE_SHOWN = 1500  # characters of an error's sentence, which may quote what was given
EXIT_UNEXPECTED, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130


class _App(typer.Typer):
    """An application whose commands are given no path that cannot be used: see `files.check_path`."""

    def command(self, *args: Any, **kwargs: Any) -> Callable[[Function], Function]:
        """Register a command, as typer does. The list of commands has its summary, the first sentence, whole."""
        typers = super().command

        def decorate(function: Function) -> Function:
            register = typers(*args, **{"short_help": _summary(function.__doc__ or ""), **kwargs})

            @functools.wraps(function)
            def checked(**values: Any) -> None:
                from pyvimtrt.files import check_path

                for value in values.values():
                    for path in value if isinstance(value, list) else [value]:
                        if isinstance(path, Path):
                            check_path(path)
                function(**values)

            register(checked)
            return function

        return decorate


def _summary(text: str) -> str:
    """Return the first sentence of a text, on one line."""
    line = " ".join(text.split("\n\n")[0].split())
    return line if (end := line.find(". ")) < 0 else line[: end + 1]


app = _App(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]
Backend = Annotated[
    str,
    typer.Option(
        help="What runs the engine, one of those that doctor lists; default: the best that can run the file here."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, max=MAX_THREADS, help="Threads; all cores by default.")]
Weights = Annotated[Path | None, typer.Option(help="Checkpoint, .safetensors or .pth; default: the bundled one.")]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="Which set of weights to take where several in the checkpoint fit, such as model_ema."
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help=(
            "Mean of pixels in 0..1, with --std: one number, or one per channel: 0.5,0.4,0.4; default: the model's "
            "own, or ImageNet's."
        )
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="End at the first image that cannot be read, instead of leaving it out.")
]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Most pixels of an image file; default: 64 million.")]
ClassOrder = Annotated[
    str | None,
    typer.Option(
        help=(
            "What class folders are: labels, numbers, or text, sorted as torchvision does; "
            "default: the first that fits."
        )
    ),
]
Std = Annotated[
    str | None, typer.Option(help="Standard deviation of pixels, with --mean: one number, or one per channel.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pyvimtrt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
) -> None:
    """Vision Mamba in int8.

    \b
    Start with:
      pyvimtrt build --int8
      pyvimtrt infer engines/vim_demo_fashion_mnist.onnx IMAGE
    """


@app.command()
def build(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[BUILD.toml | MODEL]", help="Build file, model or auto; default: the bundled model."),
    ] = None,
    weights: Weights = None,
    weights_key: WeightsKey = None,
    calib: Annotated[Path | None, typer.Option(help="Calibration cache; default: the bundled one.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", show_default=False, help="Build in int8: the default, and the only precision.")
    ] = True,
    backend: Annotated[str | None, typer.Option(help="auto, cpu, cuda, tensorrt or tensorrt-rtx.")] = None,
    batch: Annotated[
        str | None,
        typer.Option("-b", "--batch", metavar="MIN,OPT,MAX", help="Batches of a GPU engine; a CPU engine takes any."),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="MIB", min=1, help="Memory limit of a GPU engine's intermediate results.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File of TensorRT's kernel timings, read and written back.")
    ] = None,
    separate_plugins: Annotated[
        bool, typer.Option("--separate-plugins", help="Keep the plugin library out of a GPU engine.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            help=(
                "File with the label of each class: one a line, or a class index in JSON; default: the model's own, "
                "of the registered ImageNet models ImageNet's."
            )
        ),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Engine file; default: engines/MODEL.onnx or .engine")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build an int8 engine from weights and a calibration cache.

    \b
    Examples:
      pyvimtrt build --int8
      pyvimtrt build engines/vim_demo_fashion_mnist.toml --int8
      pyvimtrt build auto --weights w.pth --calib c.safetensors --int8 -o vim.onnx
      pyvimtrt build --int8 --backend tensorrt-rtx --batch 1,8,32
    """
    del int8  # which says what is done anyway
    from pyvimtrt.api import ImageNormalization
    from pyvimtrt.backends.load import read_engine_info
    from pyvimtrt.build_file import BuildFile, read_build_file, run_build_file
    from pyvimtrt.cli_output import calibration_bar, print_fields, print_json, print_warnings
    from pyvimtrt.data.labels import read_labels

    is_file = source is not None and source.endswith(".toml")
    recipe = read_build_file(Path(source)) if is_file and source else BuildFile(**_given(model=source))
    recipe = dataclasses.replace(
        recipe,
        **_given(
            weights=weights,
            weights_key=weights_key,
            calibration=calib,
            output=output,
            backend=backend,
            labels=read_labels(labels) if labels else None,
            sources=(*recipe.sources, labels) if labels else None,
            mean=_numbers("--mean", mean),
            std=_numbers("--std", std),
            batch=_batch(batch),
            workspace_mib=workspace,
            timing_cache=timing_cache,
            separate_plugins=separate_plugins or None,
        ),
    )
    start = time.perf_counter()
    with calibration_bar() as progress:
        path = run_build_file(recipe, progress, print_warnings)
    info = read_engine_info(path)
    result = {
        "engine": str(path),
        "bytes": path.stat().st_size,
        "normalization": ImageNormalization(info.mean, info.std, "the calibration cache's"),
        "seconds": round(time.perf_counter() - start, 3),
    }
    (print_json if as_json else print_fields)(result)


@app.command()
def synthesize(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="File of images to write, .npz.")],
    weights: Weights = None,
    weights_key: WeightsKey = None,
    count: Annotated[int, typer.Option(min=1, help="Images to make.")] = defaults.SYNTHETIC_IMAGES,
    method: Annotated[
        str, typer.Option(help="output, ouro, entropy, natural or noise; the last two optimize nothing.")
    ] = defaults.METHOD,
    iterations: Annotated[
        int | None, typer.Option(min=0, max=MAX_COUNT, help="Steps of the optimizer; default: the method's own.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="What is optimized first: natural or gaussian noise; default: the method's own.")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Same seed, same images.")] = 0,
    gallery: Annotated[
        Path | None, typer.Option(help="HTML file for a page of the images with their classes and the loss.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="File with the label of each class, for the page; as build takes it.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to make them: auto, a GPU where PyTorch has one; cpu; cuda; cuda:1.")
    ] = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make images to calibrate on from a model's weights alone. Needs the extra torch.

    \b
    Example:
      pyvimtrt synthesize auto --weights w.pth --gallery made.html -o made.npz
    """
    from pyvimtrt import api
    from pyvimtrt.cli_output import print_fields, print_json, progress_bar
    from pyvimtrt.data.labels import read_labels

    begin = time.perf_counter()
    names = read_labels(labels) if labels is not None else ()
    _set_torch_threads(threads)
    with progress_bar("making images") as progress:
        made = api.synthesize(
            model,
            api.keyed_weights(weights, weights_key),
            count=count,
            method=method,
            iterations=iterations,
            start=start,
            mean=_numbers("--mean", mean),
            std=_numbers("--std", std),
            seed=seed,
            output=output,
            gallery=gallery,
            labels=names,
            progress=progress,
            device=device,
        )
    result = {
        "file": str(output),
        "bytes": output.stat().st_size,
        "images": len(made.images),
        "method": made.synthesis.method,
        "start": made.synthesis.start,
        "iterations": made.synthesis.iterations,
        "first loss": made.synthesis.losses[0] if made.synthesis.losses else None,
        "last loss": made.synthesis.losses[-1] if made.synthesis.losses else None,
        "seconds": round(time.perf_counter() - begin, 3),
    }
    (print_json if as_json else print_fields)(result)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Cache file to write, .safetensors.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images (with or without class folders), or .npz.")
    ] = None,
    data_free: Annotated[
        bool, typer.Option("--data-free", help="Make the images from the weights, as synthesize does; no --images.")
    ] = False,
    weights: Weights = None,
    weights_key: WeightsKey = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=(
                f"Images drawn at random, or made; default: {defaults.CALIBRATION_IMAGES}, of --data-free "
                f"{defaults.SYNTHETIC_IMAGES}."
            ),
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="How --data-free makes images; see synthesize.")] = None,
    iterations: Annotated[
        int | None, typer.Option(min=0, max=MAX_COUNT, help="Of --data-free; default: the method's own.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="default, paper or naive.")] = defaults.RECIPE,
    k: Annotated[
        str | None, typer.Option(help="Clusters of tokens, such as 4, or full; default: the recipe's.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="Type of the hidden state: int8 or fp32; default: the recipe's.")
    ] = None,
    weight_bits: Annotated[
        int | None, typer.Option(help="Bits of the layers' weights: 8 or 4; default: 8. Activations have 8.")
    ] = None,
    without: Annotated[
        str | None, typer.Option(metavar="STEP,..", help="Leave out steps of the recipe, such as smoothing,search.")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Picks the images; same seed, same cache.")] = 0,
    strict: Strict = False,
    max_pixels: MaxPixels = None,
    device: Annotated[
        str, typer.Option(help="Where to calibrate: auto, a GPU where PyTorch has one; cpu; cuda; cuda:1.")
    ] = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the scales of a model from images, or without any. Needs the extra torch.

    \b
    Examples:
      pyvimtrt calibrate auto --weights w.pth --images train/ -o c.safetensors
      pyvimtrt calibrate auto --weights w.pth --data-free -o c.safetensors
    """
    if data_free == (images is not None):
        raise UsageError("give either images (--images) to calibrate on, or --data-free to make them from the weights")
    if not data_free and not (method is None and iterations is None):
        raise UsageError("--method and --iterations say how --data-free makes images; give that, or leave them out")
    from pyvimtrt import api
    from pyvimtrt.cli_output import calibration_bar, print_fields, print_json, print_warnings, progress_bar
    from pyvimtrt.data.datasets import sample_images
    from pyvimtrt.data.reader import ImageReader
    from pyvimtrt.data.synthetic import Synthesis, read_synthesis
    from pyvimtrt.files import check_writable
    from pyvimtrt.quantization.recipes import get_recipe, parse_without

    chosen = api.keyed_weights(weights, weights_key)
    config = api.resolve_model(model, chosen)
    left_out = parse_without(without)
    get_recipe(recipe, k, state, left_out, weight_bits)
    means, stds = _numbers("--mean", mean), _numbers("--std", std)
    check_writable(output, inputs=[weights, images], made_here=True)
    start = time.perf_counter()
    reader = ImageReader(strict, max_pixels)
    synthesis: Synthesis | None
    if images is None:
        _set_torch_threads(threads)
        with progress_bar("making images") as progress:
            made = api.synthesize(
                config.spec(),
                chosen,
                mean=means,
                std=stds,
                seed=seed,
                iterations=iterations,
                progress=progress,
                device=device,
                **_given(count=count, method=method),
            )
        pixels, synthesis = made.images, made.synthesis
    else:
        pixels = sample_images(images, config, count or defaults.CALIBRATION_IMAGES, seed, reader)
        _set_torch_threads(threads)
        synthesis = read_synthesis(images) if images.suffix == ".npz" else None
    calibrating = time.perf_counter()
    with calibration_bar() as bar:
        cache = api.calibrate(
            config.spec(),
            chosen,
            pixels,
            recipe=recipe,
            k=k,
            state=state,
            weight_bits=weight_bits,
            without=left_out,
            mean=means,
            std=stds,
            seed=seed,
            output=output,
            progress=bar(config.depth, len(pixels)),
            device=device,
            synthesis=synthesis,
        )
    result = {
        "cache": str(output),
        "bytes": output.stat().st_size,
        "images": cache.info.images,
        **({} if synthesis is None else {"data-free": synthesis.method}),
        "recipe": cache.info.recipe,
        "k": cache.info.clusters,
        "state": cache.info.state,
        "weight_bits": cache.info.weight_bits,
        "images per second": round(cache.info.images / (time.perf_counter() - calibrating), 1),
        "normalization": api.choose_normalization(config, means, stds),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if reader.left_out:
        print_warnings(reader.warnings())
        result["left_out"] = list(reader.left_out)
    (print_json if as_json else print_fields)(result)


@app.command()
def infer(
    engine: Annotated[Path, typer.Argument(help="Engine file made by pyvimtrt build.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    topk: Annotated[int, typer.Option(min=1, help="Classes shown for each image.")] = defaults.TOPK,
    strict: Strict = False,
    max_pixels: MaxPixels = None,
    backend: Backend = defaults.AUTO,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Classify images.

    \b
    Example:
      pyvimtrt infer engines/vim_demo_fashion_mnist.onnx boot.png --topk 3
    """
    from pyvimtrt.backends.load import load_engine
    from pyvimtrt.cli_output import print_json, print_predictions, print_warnings
    from pyvimtrt.data.reader import ImageReader

    reader = ImageReader(strict, max_pixels)
    paths = reader.find(images)
    loaded = load_engine(engine, threads, backend)
    found = loaded.classify(paths, topk, reader)
    if not any(found):
        raise reader.nothing_read(", ".join(map(str, images)))
    print_warnings(reader.warnings())
    rows = list(zip(paths, found, strict=True))
    if as_json:
        entries = [
            {"image": str(path), "backend": loaded.backend, "predictions": [dataclasses.asdict(p) for p in predictions]}
            for path, predictions in rows
        ]
        print_json(
            [
                entry if entry["predictions"] else {**entry, "error": reader.reason(path)}
                for entry, path in zip(entries, paths, strict=True)
            ]
        )
    else:
        print_predictions(
            [str(path) for path, predictions in rows if predictions],
            [predictions for predictions in found if predictions],
        )
        print(f"backend: {loaded.backend}")


@app.command("eval")
def evaluate(
    engine_or_model: Annotated[
        str, typer.Argument(metavar="ENGINE|MODEL", help="Engine file, or a model (auto: of --weights) run in fp32.")
    ],
    data: Annotated[
        Path, typer.Argument(help="Folder with a folder per class, .npz of images and labels, or Fashion-MNIST.")
    ],
    weights: Weights = None,
    weights_key: WeightsKey = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first images.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images run at a time.")] = defaults.BATCH,
    backend: Backend = defaults.AUTO,
    threads: Threads = None,
    mean: Mean = None,
    std: Std = None,
    strict: Strict = False,
    max_pixels: MaxPixels = None,
    class_order: ClassOrder = None,
    as_json: Json = False,
) -> None:
    """Measure the top-1 and top-5 accuracy of an engine, or of the fp32 model through PyTorch; fractions from 0 to 1.

    \b
    Examples:
      pyvimtrt eval engines/vim_demo_fashion_mnist.onnx fashion-mnist/
      pyvimtrt eval auto --weights w.pth val/ --limit 1000 --json
    """
    from pyvimtrt.api import keyed_weights
    from pyvimtrt.cli_output import print_fields, print_json, print_warnings, progress_bar
    from pyvimtrt.evaluate import evaluate as run

    with progress_bar("evaluating") as progress:
        accuracy = run(
            engine_or_model,
            data,
            keyed_weights(weights, weights_key),
            limit=limit,
            batch=batch,
            threads=threads,
            mean=_numbers("--mean", mean),
            std=_numbers("--std", std),
            progress=progress,
            strict=strict,
            max_pixels=max_pixels,
            class_order=class_order,
            backend=backend,
        )
    rate = round(accuracy.images_per_second, 1)
    print_warnings(accuracy.warnings)
    if as_json:
        print_json({**dataclasses.asdict(accuracy), "images_per_second": rate})
    else:
        print_fields(
            {
                "top-1": f"{accuracy.top1:.4f}",
                "top-5": f"{accuracy.top5:.4f}",
                "images": accuracy.images,
                "images per second": rate,
                "backend": accuracy.backend,
                "normalization": str(accuracy.normalization),
                **({"class folders": accuracy.classes} if accuracy.classes else {}),
            }
        )


@app.command()
def compare(
    engine: Annotated[Path, typer.Argument(help="Engine file made by pyvimtrt build.")],
    data: Annotated[Path, typer.Option(help="Images, with or without labels: a folder, an .npz, or Fashion-MNIST.")],
    weights: Weights = None,
    weights_key: WeightsKey = None,
    calib: Annotated[
        Path | None,
        typer.Option(help="Cache the engine was built from, for what costs how much; default: the bundled one."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML file for the report with plots.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first images.")] = None,
    attribution: Annotated[
        str, typer.Option(help="What to measure the cost of: kinds, tensors (every single one), or none.")
    ] = defaults.ATTRIBUTION,
    attribution_images: Annotated[
        int, typer.Option(min=1, help="Images that costs are measured on.")
    ] = defaults.ATTRIBUTION_IMAGES,
    batch: Annotated[int, typer.Option(min=1, help="Images run at a time.")] = defaults.BATCH,
    backend: Backend = defaults.AUTO,
    threads: Threads = None,
    strict: Strict = False,
    max_pixels: MaxPixels = None,
    class_order: ClassOrder = None,
    as_json: Json = False,
) -> None:
    """Compare an engine with the fp32 model on the same images: accuracy, and where it is lost. Needs the extras torch
    and compare.

    \b
    Examples:
      pyvimtrt compare vim.onnx --weights w.pth --data val/ --report report.html
      pyvimtrt compare vim.onnx --weights w.pth --calib c.safetensors --data val/
    """
    from pyvimtrt.api import keyed_weights
    from pyvimtrt.cli_output import print_comparison, print_fields, print_json, print_warnings, progress_bars
    from pyvimtrt.compare.results import to_json
    from pyvimtrt.compare.run import Settings
    from pyvimtrt.compare.run import compare as run
    from pyvimtrt.errors import missing_extra

    if report is not None:
        try:
            from pyvimtrt.compare.report import check_report, save_report
        except ImportError as error:
            raise missing_extra(error.name or "matplotlib", "compare", "the report") from error
        check_report(report, [engine, data, weights, calib])
    settings = Settings(
        limit,
        batch,
        threads,
        attribution,
        attribution_images,
        strict=strict,
        max_pixels=max_pixels,
        class_order=class_order,
        backend=backend,
    )
    with progress_bars() as progress:
        found = run(engine, data, keyed_weights(weights, weights_key), calib, settings, progress)
    print_warnings(found.warnings)
    written = {}
    if report is not None:
        save_report(found, report)
        written["report"] = str(report)
    if as_json:
        print_json({**to_json(found), **written})
    else:
        print_comparison(found)
        print_fields(written)


@app.command()
def bench(
    engine: Annotated[Path, typer.Argument(help="Engine file made by pyvimtrt build.")],
    vs: Annotated[
        str | None,
        typer.Option(
            "--vs", metavar="PEER,..", help="Runtimes to measure beside it: all, or some of the peers named above."
        ),
    ] = None,
    weights: Weights = None,
    weights_key: WeightsKey = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images of one run.")] = defaults.BENCH_BATCH,
    backend: Backend = defaults.AUTO,
    threads: Annotated[
        str | None,
        typer.Option(metavar="N,..", help="Numbers of threads to try for each peer; default: 1 and all cores."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Runs of each peer, taking turns.")
    ] = defaults.BENCH_ROUNDS,
    plot: Annotated[Path | None, typer.Option(help="File for a picture, .svg, .png or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Measure an engine's speed, beside other runtimes in the same run, and against what the machine can do.

    Peers: torch-loop, torch, torch-compile, onnxruntime, onnxruntime-int8, openvino, openvino-int8; on a GPU
    torch-fp16-compile-graph, -compile, -graph, -eager, -mamba-ssm, -loop. Each runs in a process of its own, is checked
    for the right answer first, and is timed at its best number of threads. They need the extras torch and bench.

    \b
    Examples:
      pyvimtrt bench engines/vim_demo_fashion_mnist.onnx
      pyvimtrt bench vim.onnx --weights w.pth --vs all --batch 16 --plot b.svg
    """
    from pyvimtrt.api import keyed_weights
    from pyvimtrt.backends.registry import choose
    from pyvimtrt.bench.plot import check_plot, save_plot
    from pyvimtrt.bench.run import Settings, parse_peers
    from pyvimtrt.bench.run import bench as run
    from pyvimtrt.cli_output import print_bench, print_fields, print_json, progress_bar

    on_gpu = choose(engine, backend).needs_gpu
    settings = Settings(parse_peers(vs, on_gpu), batch, _counts("--threads", threads), rounds, backend=backend)
    if plot is not None:
        check_plot(plot, [engine, weights])
    with progress_bar("measuring") as progress:
        found = run(engine, keyed_weights(weights, weights_key), settings, progress)
    written = {}
    if plot is not None:
        save_plot(found, plot)
        written["plot"] = str(plot)
    if as_json:
        print_json({**dataclasses.asdict(found), "busy": found.busy, **written})
    else:
        print_bench(found)
        print_fields(written)


@app.command()
def serve(
    engines: Annotated[
        list[str],
        typer.Argument(metavar="ENGINE...", help="Engine files, or NAME=ENGINE; the file's name is the model's."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the server to others.")
    ] = defaults.HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP port; 0 takes a free one.")] = defaults.PORT,
    grpc_port: Annotated[
        int, typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one.")
    ] = defaults.GRPC_PORT,
    batch: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Images run at a time; default: the best, measured at start.")
    ] = None,
    deadline_ms: Annotated[
        float, typer.Option(min=0, max=60_000, help="How long an idle engine waits for more images.")
    ] = defaults.DEADLINE_MS,
    queue: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_COUNT,
            help=(
                "Images that may wait, beyond which requests are refused; default: a batch for "
                "each worker, or 10 ms of work."
            ),
        ),
    ] = None,
    backend: Backend = defaults.AUTO,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Processes of each engine; default: one for each core, at most 4; on a GPU 1."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_THREADS, help="Cores that the batches of an engine share; default: all."),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="PYVIMTRT_API_KEY", help="Key that clients must send; may be given more than once."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of such keys, one a line; read again on SIGHUP.")
    ] = None,
    max_body: Annotated[
        int, typer.Option(metavar="MIB", min=1, max=1 << 20, help="Largest request.")
    ] = defaults.BODY_MIB,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=MAX_COUNT, help="Most pixels of an encoded image.")
    ] = defaults.IMAGE_PIXELS,
    max_connections: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="HTTP connections, and gRPC calls, at a time.")
    ] = defaults.CONNECTIONS,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=MAX_SECONDS, help="Seconds from a request to its answer.")
    ] = defaults.REQUEST_SECONDS,
    header_timeout: Annotated[
        float, typer.Option(min=0.001, max=MAX_SECONDS, help="Seconds for the headers of a request.")
    ] = defaults.HEADER_SECONDS,
    drain: Annotated[
        float, typer.Option(min=0, max=MAX_SECONDS, help="Seconds that SIGTERM leaves to answer what was accepted.")
    ] = defaults.DRAIN_SECONDS,
    model_control: Annotated[bool, typer.Option(help="Let clients reload and unload models.")] = True,
    page: Annotated[bool, typer.Option(help="Show a page for people at /.")] = True,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = defaults.LOG_LEVEL,
    as_json: Json = False,
) -> None:
    """Serve engines over the Open Inference Protocol, HTTP and gRPC, for clients of KServe and Triton. Needs the extra
    serve.

    Stops on SIGTERM or Ctrl+C once what was accepted is answered; SIGHUP reloads engines and keys. Logs are JSON on
    stderr, metrics are at /metrics.

    \b
    Examples:
      pyvimtrt serve engines/vim_demo_fashion_mnist.onnx
      pyvimtrt serve clothes=vim.onnx --host 0.0.0.0 --api-key-file keys.txt
    """
    from pyvimtrt.cli_output import print_json_line, print_served
    from pyvimtrt.serve.run import serve as run
    from pyvimtrt.serve.settings import MIB, ServeSettings

    if log_level not in ("debug", "info", "warning", "error"):
        raise UsageError(f"--log-level is debug, info, warning or error; got {log_level!r}")
    for option, seconds in (
        ("--deadline-ms", deadline_ms),
        ("--timeout", timeout),
        ("--header-timeout", header_timeout),
        ("--drain", drain),
    ):
        if math.isnan(seconds):  # which lies within any bounds
            raise UsageError(f"{option} takes a number, got {seconds}")
    settings = ServeSettings(
        host=host,
        port=port,
        grpc_port=grpc_port,
        batch=batch or 0,
        deadline=deadline_ms / 1000,
        queue=queue or 0,
        workers=workers or 0,
        threads=threads or 0,
        request_timeout=timeout,
        header_timeout=header_timeout,
        drain_timeout=drain,
        body_bytes=max_body * MIB,
        bodies_bytes=max(defaults.BODIES_MIB, 8 * max_body) * MIB,
        image_pixels=max_pixels,
        connections=max_connections,
        api_keys=tuple(api_key or ()),
        key_file=api_key_file,
        model_control=model_control,
        page=page,
        backend=backend,
    )
    run(engines, settings, log_level, print_json_line if as_json else print_served)


@app.command()
def score(
    engine: Annotated[Path, typer.Argument(help="Engine file made by pyvimtrt build.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="Folder of images, of .tar shards or of .parquet files, or one such file."
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for the results, Parquet files.")],
    topk: Annotated[int, typer.Option(min=1, help="Classes kept for each image.")] = defaults.TOPK,
    column: Annotated[
        str | None, typer.Option(help="Column of Parquet files that holds the images, or their paths.")
    ] = None,
    max_pixels: MaxPixels = None,
    use_ray: Annotated[
        bool, typer.Option("--ray", help="Run on a Ray cluster, one engine for each worker. Needs the extra ray.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help=(
                "Which cluster: its address, auto for RAY_ADDRESS or one running here (the "
                "default), local for one of its own."
            )
        ),
    ] = None,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, max=MAX_THREADS, help="Cores of each of the cluster's workers; default: 1.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Workers of the cluster; default: as many as fit.")
    ] = None,
    gpus: Annotated[
        int, typer.Option(min=1, max=1024, help="GPUs of this machine, each with an engine of its own.")
    ] = 1,
    backend: Backend = defaults.AUTO,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Classify any number of images into Parquet files. Run again, it goes on where it was cut off.

    Columns: image, class, label, probability, classes and probabilities (the best, in order), error where an image
    cannot be read. On a cluster INPUT and OUTPUT lie on a file system that all its machines share.

    \b
    Examples:
      pyvimtrt score vim.onnx photos/ results/
      pyvimtrt score vim.onnx shards/ results/ --ray --cpus-per-worker 4
    """
    from pyvimtrt.cli_output import print_fields, print_json, print_warnings, progress_bar
    from pyvimtrt.score.run import score as run
    from pyvimtrt.score.settings import ScoreSettings

    if ray_address and not use_ray:
        raise UsageError("--ray-address names a cluster; give --ray with it")
    settings = ScoreSettings(
        topk,
        column,
        threads,
        (ray_address or "auto") if use_ray else None,
        cpus_per_worker,
        workers,
        max_pixels,
        backend,
        gpus,
    )
    # Ray tells on stdout of workers that were lost.
    with contextlib.redirect_stdout(sys.stderr), progress_bar("scoring") as progress:
        found = run(engine, source, output, settings, progress)
    if found.errors:
        print_warnings([f"{found.errors} of {found.images} images could not be read; the column error says why"])
    (print_json if as_json else print_fields)(dataclasses.asdict(found))


export_app = _App(help="Write a model for other systems.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(export_app, name="export", short_help="Write a model for other systems.")


@export_app.command("onnx")
def export_onnx(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write, .onnx.")],
    weights: Weights = None,
    weights_key: WeightsKey = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help=(
                "File with the label of each class: one a line, or a class index in JSON; default: the model's own, "
                "of the registered ImageNet models ImageNet's."
            )
        ),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    as_json: Json = False,
) -> None:
    """Write the fp32 model as plain ONNX, for any runtime. Input: normalized fp32 images [batch, C, H, W]; output:
    logits.

    \b
    Example:
      pyvimtrt export onnx auto --weights w.pth -o fp32.onnx
    """
    from pyvimtrt.api import keyed_weights
    from pyvimtrt.cli_output import print_fields, print_json
    from pyvimtrt.data.labels import read_labels
    from pyvimtrt.export.onnx_fp32 import export_model
    from pyvimtrt.files import check_writable

    check_writable(output, inputs=[labels, weights])
    normalization = export_model(
        model,
        keyed_weights(weights, weights_key),
        output,
        _numbers("--mean", mean),
        _numbers("--std", std),
        read_labels(labels) if labels else None,
    )
    result = {"file": str(output), "bytes": output.stat().st_size, "normalization": normalization}
    (print_json if as_json else print_fields)(result)


@export_app.command("kserve")
def export_kserve(
    engine: Annotated[Path, typer.Argument(help="Engine file made by pyvimtrt build.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to make.")],
    name: Annotated[str | None, typer.Option(help="Name of the service and the model; default: the file's.")] = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="Name of the image to build, such as registry.example/vim:1; default: the service's, version 1."
        ),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Namespace of the service.")] = "",
    cpu: Annotated[int, typer.Option(min=1, max=MAX_THREADS, help="Cores of each replica.")] = defaults.REPLICA_CPUS,
    memory: Annotated[str, typer.Option(help="Memory of each replica; default: 2Gi, 8Gi for a GPU engine.")] = "",
    gpus: Annotated[
        int, typer.Option(min=1, max=1024, help="GPUs of each replica of a GPU engine.")
    ] = defaults.REPLICA_GPUS,
    min_replicas: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Fewest replicas; 0 for GPU engines alone.")
    ] = defaults.MIN_REPLICAS,
    max_replicas: Annotated[int, typer.Option(min=1, max=1_000_000, help="Most replicas.")] = defaults.MAX_REPLICAS,
    key_secret: Annotated[str, typer.Option(help="Secret whose entry api-keys holds the API keys, one a line.")] = "",
    backend: Annotated[str, typer.Option(help="What runs a network (.onnx): cpu, or cuda on a GPU.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Write an InferenceService manifest and a Dockerfile for KServe on Kubernetes. Needs the extra serve.

    \b
    Example:
      pyvimtrt export kserve vim.onnx -o deploy --image registry.example/vim:1
      docker build -t registry.example/vim:1 deploy
      kubectl apply -f deploy/inferenceservice.yaml
    """
    from pyvimtrt.cli_output import print_fields, print_json
    from pyvimtrt.export.kserve import Deployment
    from pyvimtrt.export.kserve import export_kserve as run

    name = name or engine.stem.lower().replace("_", "-").replace(".", "-")
    deployment = Deployment(
        name=name,
        image=image or f"{name}:1",
        namespace=namespace,
        cpu=cpu,
        memory=memory,
        gpus=gpus,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        key_secret=key_secret,
        backend=backend,
    )
    files = [str(path) for path in run(engine, output, deployment)]
    if as_json:
        print_json({"files": files})
    else:
        print_fields(
            {
                "files": files,
                "image": f"docker build -t {deployment.image} {output}",
                "start": f"kubectl apply -f {files[0]}",
            }
        )


@export_app.command("triton")
def export_triton(
    engine: Annotated[Path, typer.Argument(help="Plan of TensorRT, or a network (.onnx).")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to make, the model repository.")
    ],
    name: Annotated[str, typer.Option(help="Name of the model; default: the file's.")] = "",
    instances: Annotated[int, typer.Option(min=1, max=1024, help="Instances on each GPU.")] = defaults.TRITON_INSTANCES,
    as_json: Json = False,
) -> None:
    """Write a model repository for Triton Inference Server.

    A plan is for its TensorRT backend. A network is for its Python backend, which runs the CUDA engine and needs this
    package in the server's image.

    \b
    Examples:
      pyvimtrt export triton vim.engine -o repository
      pyvimtrt export triton vim.onnx -o repository
    """
    from pyvimtrt.cli_output import print_fields, print_json
    from pyvimtrt.export.triton import export_triton as run
    from pyvimtrt.export.triton import start_command

    files = [str(path) for path in run(engine, output, name, instances)]
    if as_json:
        print_json({"files": files})
    else:
        print_fields({"files": files, "start": start_command(engine, output)})


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Engine, calibration cache or checkpoint.")], as_json: Json = False
) -> None:
    """Show what is in a file: an engine (.onnx, .engine), a calibration cache, or a checkpoint with its sets of
    weights.

    \b
    Example:
      pyvimtrt inspect engines/vim_demo_fashion_mnist.onnx
    """
    from pyvimtrt.cli_output import print_file, print_json
    from pyvimtrt.inspect_file import describe

    (print_json if as_json else print_file)(describe(file))


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that have a name.

    \b
    Example:
      pyvimtrt models --json
    """
    from pyvimtrt.cli_output import print_json, print_table
    from pyvimtrt.inspect_file import registered_models

    rows = registered_models()
    if as_json:
        print_json(rows)
    else:
        print_table(
            "", list(rows[0]), [["yes" if v is True else "" if v is False else v for v in row.values()] for row in rows]
        )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine can do, and how to install what is missing.

    \b
    Example:
      pyvimtrt doctor
    """
    from pyvimtrt.cli_output import print_doctor, print_json
    from pyvimtrt.doctor import examine

    (print_json if as_json else print_doctor)(examine())


def _given(**values: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return the comma separated numbers of --mean and --std."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes one number, or one per channel as 0.5,0.4,0.4; got {text!r}") from None


def _counts(option: str, text: str | None) -> tuple[int, ...]:
    """Return the comma separated counts of an option."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 10 and 1 <= int(part) <= MAX_THREADS for part in parts):
        raise UsageError(f"{option} takes numbers from 1 to {MAX_THREADS} with commas between them; got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _batch(text: str | None) -> tuple[int, ...] | None:
    """Return the three numbers of --batch."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--batch takes three rising whole numbers MIN,OPT,MAX such as 1,8,32; got {text!r}") from None


def _set_torch_threads(threads: int | None) -> None:
    if threads is None:
        return
    from pyvimtrt.errors import missing_extra

    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "torch", "calibration") from error
    torch.set_num_threads(threads)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0; 2 for an error of use; 130 when interrupted; 1 for the rest."""
    for stream in (sys.stdout, sys.stderr):  # names of files and labels may hold what the terminal's encoding lacks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in arguments  # taken wherever it stands, so that it can be added to the end of a line
    arguments = [a for a in arguments if a != DEBUG]
    try:
        _print_notes()
        code = app(arguments or ["--help"], prog_name="pyvimtrt", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except VimTrtError as error:
        return _fail(str(error), EXIT_ERROR, debug)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _close_pipe()
    except OSError as error:  # of whatever the command is given: the system's own word for what is wrong, and with what
        name = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else None
        where = "" if name is None else f"{os.fsdecode(name)}: "
        return _fail(f"{where}{error.strerror or error}", EXIT_ERROR, debug)
    except MemoryError:
        return _fail("this machine has too little memory for that; try smaller numbers or files", EXIT_ERROR, debug)
    except SystemExit as error:  # how typer ends when the reader of stdout is gone
        return error.code if isinstance(error.code, int) else EXIT_UNEXPECTED
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong option, in whichever version of click typer carries
            return _fail(f"{error.format_message()} (see pyvimtrt --help)", EXIT_ERROR, debug)
        hint = f"run the same line with {DEBUG} for the traceback, and report it"
        return _fail(f"unexpected {type(error).__name__}: {error}; {hint}", EXIT_UNEXPECTED, debug)


def _print_notes() -> None:
    """Print what this package says beside its work as a line on stderr, and other warnings as they are."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        kind = {"CheckpointNote": "note", "LabelsNote": "note", "CalibrationWarning": "warning"}.get(category.__name__)
        if kind is not None:
            print(f"{kind}:", " ".join(str(message).split()), file=sys.stderr)
        else:
            usual(message, category, *rest, **more)

    warnings.showwarning = show


def _fail(message: str, code: int, debug: bool) -> int:
    """Print one line on stderr, after the traceback where it is wanted."""
    with contextlib.suppress(OSError):
        if debug:
            traceback.print_exc()
        print("error:", _sentence(message), file=sys.stderr)
    return code


def _sentence(message: str) -> str:
    """Return a message as one line that a terminal shows as it is, and not the thousands of characters it may quote."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    return line if len(line) <= MESSAGE_SHOWN else f"{line[: MESSAGE_SHOWN // 2]} ... {line[-MESSAGE_SHOWN // 2 :]}"


def _close_pipe() -> int:
    """Give stdout somewhere to go, so that the interpreter's last flush is silent too."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_UNEXPECTED


if __name__ == "__main__":
    sys.exit(main())
