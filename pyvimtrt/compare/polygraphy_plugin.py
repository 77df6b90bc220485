"""Options of `polygraphy run`, found through the entry point polygraphy.run.plugins.

Imports Polygraphy alone: everything else is imported by the script that `run` writes and executes, so a missing package
matters only where it is used.

    polygraphy run net.onnx --vimtrt-cpu --vimtrt-ref --vimtrt-images --atol 0 --rtol 0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polygraphy.logger import G_LOGGER
from polygraphy.tools.args import (
    DataLoaderArgs,
    ModelArgs,
    OnnxLoadArgs,
    PluginRefRunnerArgs,
    RunnerSelectArgs,
    TrtLoadPluginsArgs,
)
from polygraphy.tools.args import util as args_util
from polygraphy.tools.args.base import BaseArgs, BaseRunnerArgs
from polygraphy.tools.script import make_invocable

RUNNERS = "pyvimtrt.compare.runners"


class CpuRunnerArgs(BaseRunnerArgs):  # type: ignore[misc]
    """
    pyvimtrt CPU Engine: running quantized networks of pyvimtrt with its CPU engine.

    Depends on:

        - ModelArgs
        - OnnxLoadArgs: for --onnx-outputs
        - RunnerSelectArgs
    """

    def get_name_opt_impl(self) -> tuple[str, str]:
        return "pyvimtrt's CPU engine", "vimtrt-cpu"

    def add_parser_args_impl(self) -> None:
        self.group.add_argument(
            "--vimtrt-isa",
            help=(
                "Instruction set of each --vimtrt-cpu in turn, the last for those that follow: amx, "
                "avx512, avxvnni, avx2, generic. Default: the best here"
            ),
            nargs="+",
            default=[],
        )
        self.group.add_argument(
            "--vimtrt-threads",
            help="Threads of each CPU runner of pyvimtrt. Default: all cores",
            type=int,
            default=None,
        )

    def parse_impl(self, args: Any) -> None:
        """Attributes: isas (List[str]), threads (int)."""
        self.isas, self.threads = args_util.get(args, "vimtrt_isa"), args_util.get(args, "vimtrt_threads")
        count = list(self.arg_groups[RunnerSelectArgs].runners.keys()).count("vimtrt-cpu")
        if len(self.isas) > count:
            G_LOGGER.critical(
                f"--vimtrt-isa names {len(self.isas)} instruction sets for {count} CPU runners; give --vimtrt-cpu "
                "once for each of them"
            )
        self._remaining = list(self.isas)

    def add_to_script_impl(self, script: Any) -> None:
        isa = None
        if self._remaining:
            isa = self._remaining.pop(0) if len(self._remaining) > 1 else self._remaining[0]
        _add_runner(self, script, "CpuRunner", outputs=_outputs(self, script), isa=isa, threads=self.threads)


class ReferenceRunnerArgs(BaseRunnerArgs):  # type: ignore[misc]
    """
    pyvimtrt Reference: running quantized networks of pyvimtrt with its NumPy reference.

    Depends on:

        - ModelArgs
        - OnnxLoadArgs: for --onnx-outputs
    """

    def get_name_opt_impl(self) -> tuple[str, str]:
        return "pyvimtrt's NumPy reference", "vimtrt-ref"

    def add_to_script_impl(self, script: Any) -> None:
        _add_runner(self, script, "ReferenceRunner", outputs=_outputs(self, script))


class TorchRunnerArgs(BaseRunnerArgs):  # type: ignore[misc]
    """
    pyvimtrt fp32 Model: running the PyTorch model that a quantized network was made from.

    Depends on:

        - ModelArgs
        - CpuRunnerArgs
    """

    def get_name_opt_impl(self) -> tuple[str, str]:
        return "the fp32 PyTorch model", "vimtrt-torch"

    def add_parser_args_impl(self) -> None:
        self.group.add_argument(
            "--vimtrt-weights",
            help="Checkpoint that the network was built from. Default: the bundled one",
            default=None,
        )
        self.group.add_argument(
            "--vimtrt-weights-key", help="Which set of weights in it, where several fit", default=None
        )

    def parse_impl(self, args: Any) -> None:
        """Attributes: weights (str), weights_key (str)."""
        self.weights = args_util.get(args, "vimtrt_weights")
        self.weights_key = args_util.get(args, "vimtrt_weights_key")

    def add_to_script_impl(self, script: Any) -> None:
        _add_runner(
            self,
            script,
            "TorchRunner",
            weights=self.weights,
            threads=self.arg_groups[CpuRunnerArgs].threads,
            weights_key=self.weights_key,
        )


class PluginsArgs(BaseArgs):  # type: ignore[misc]
    """
    pyvimtrt TensorRT Plugins: registering the operators of quantized networks with TensorRT and with the plugin
    reference runner.

    Depends on:

        - TrtLoadPluginsArgs
        - PluginRefRunnerArgs
    """

    def add_parser_args_impl(self) -> None:
        self.group.add_argument(
            "--vimtrt-plugins",
            help=(
                "Register pyvimtrt's plugin library with TensorRT before a network is parsed or an engine "
                "is loaded. Default path: the installed library"
            ),
            metavar="PATH",
            nargs="?",
            const="",
            default=None,
        )

    def parse_impl(self, args: Any) -> None:
        """Attributes: library (str): path, empty for the installed one, None where no library is asked for."""
        self.library = args_util.get(args, "vimtrt_plugins")
        if self.library is not None:
            _extend(self.arg_groups[TrtLoadPluginsArgs], self._add_plugins)
        _extend(self.arg_groups[PluginRefRunnerArgs], _add_references)

    def _add_plugins(self, add_to_script: Callable[..., Any], script: Any, loader_name: Any) -> Any:
        script.add_import(imports=["LoadVimtrtPlugins"], frm="pyvimtrt.compare.tensorrt_plugins")
        loader = make_invocable(
            "LoadVimtrtPlugins", library=self.library or None, obj=add_to_script(script, loader_name)
        )
        return script.add_loader(loader, "load_vimtrt_plugins")


class ImagesArgs(BaseArgs):  # type: ignore[misc]
    """
    pyvimtrt Images: feeding images to quantized networks of pyvimtrt.

    Depends on:

        - DataLoaderArgs
        - ModelArgs
    """

    def add_parser_args_impl(self) -> None:
        self.group.add_argument(
            "--vimtrt-images",
            help=(
                "Run on images of a folder or an .npz file, drawn with --seed. Without PATH: the sample "
                "images of pyvimtrt's demo model"
            ),
            metavar="PATH",
            nargs="?",
            const="",
            default=None,
        )
        self.group.add_argument("--vimtrt-batch", help="Images in a batch. Default: 8", type=int, default=None)
        self.group.add_argument("--vimtrt-count", help="Number of images. Default: 32", type=int, default=None)

    def parse_impl(self, args: Any) -> None:
        """Attributes: images (str): path, empty for the bundled samples, None where Polygraphy's own data loader is
        used; batch (int), count (int).
        """
        self.images = args_util.get(args, "vimtrt_images")
        self.batch, self.count = args_util.get(args, "vimtrt_batch"), args_util.get(args, "vimtrt_count")
        loader = self.arg_groups[DataLoaderArgs]
        if self.images is None:
            if self.batch is not None or self.count is not None:
                G_LOGGER.critical(
                    "--vimtrt-batch and --vimtrt-count go with --vimtrt-images; Polygraphy's own data takes "
                    "--input-shapes and --iterations"
                )
            return
        if not loader.is_using_random_data():
            G_LOGGER.critical(
                "--vimtrt-images cannot be combined with --load-inputs or --data-loader-script; give one of them"
            )
        _extend(loader, self._add_images)
        loader.is_using_random_data = lambda: False

    def _add_images(self, _: Callable[..., Any], script: Any, user_input_metadata_str: Any = None) -> Any:
        script.add_import(imports=["feed_dicts"], frm="pyvimtrt.compare.data")
        seed = self.arg_groups[DataLoaderArgs].seed
        loader = make_invocable(
            "feed_dicts", _network(self), self.images or None, batch=self.batch, count=self.count, seed=seed
        )
        return script.set_data_loader(loader)


def get_arg_groups() -> list[BaseArgs]:
    """Return the groups of options: the function that the entry point names."""
    return [CpuRunnerArgs(), ReferenceRunnerArgs(), TorchRunnerArgs(), PluginsArgs(), ImagesArgs()]


def _network(group: Any) -> Any:
    model = group.arg_groups[ModelArgs]
    if model.model_type is None or not model.model_type.is_onnx():
        G_LOGGER.critical(
            "pyvimtrt's runners and images take a quantized network, an .onnx file made by pyvimtrt build --backend "
            f"cpu; got {model.path}"
        )
    return model.path


def _outputs(group: Any, script: Any) -> Any:
    return args_util.get_outputs_for_script(script, group.arg_groups[OnnxLoadArgs].outputs)


def _add_runner(group: Any, script: Any, runner: str, **settings: Any) -> None:
    script.add_import(imports=[runner], frm=RUNNERS)
    script.add_runner(make_invocable(runner, _network(group), **settings))


def _extend(group: Any, function: Callable[..., Any]) -> None:
    """Let ``function`` add a group's part of the script; it gets the group's own way first. Polygraphy has no hook for
    that, and one object of each group.
    """
    add_to_script = group.add_to_script_impl
    group.add_to_script_impl = lambda *args, **kwargs: function(add_to_script, *args, **kwargs)


def _add_references(add_to_script: Callable[..., Any], script: Any) -> Any:
    script.add_import(imports=["OPERATORS"], frm="pyvimtrt.compare.references")  # importing registers
    return add_to_script(script)
