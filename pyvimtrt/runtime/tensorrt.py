"""The engine for plans of TensorRT and of TensorRT for RTX."""

from __future__ import annotations

from typing import Any

from pyvimtrt.errors import BackendError
from pyvimtrt.graph.network import INPUT_NAME, OUTPUT_NAME, NetworkInfo
from pyvimtrt.runtime.gpu_engine import GpuEngine
from pyvimtrt.runtime.gpu_session import Context, Launch, Runner, Session, address_of
from pyvimtrt.runtime.plan import PlanInfo
from pyvimtrt.runtime.tensorrt_load import Plan, check_machine, load_plan, reasons

ALIGNMENT = 256  # of the addresses that TensorRT takes


class TensorRTEngine(GpuEngine):
    """Runs a plan on a GPU. Threads may share it: one call runs at a time.

    Batches above the plan's largest run in pieces, those below its smallest are filled up. ``cuda_graphs``: a batch
    that comes a second time is captured as a CUDA graph and replayed from then on.
    """

    memory_cure = "close other programs on the GPU, or build with a smaller largest --batch"

    def __init__(self, plan: bytes, info: PlanInfo, *, device: int = 0, cuda_graphs: bool = True) -> None:
        check_machine(info.backend, device)
        self.backend = info.backend
        self.plan_info = info

        def make() -> tuple[NetworkInfo, Runner]:
            return info.network, PlanRunner(load_plan(plan, info), info.batch)

        super().__init__(make, device, cuda_graphs)


class PlanRunner(Runner):
    """A plan, whose execution contexts share their scratch memory."""

    alignment = ALIGNMENT

    def __init__(self, plan: Plan, batch: tuple[int, int, int]) -> None:
        self.smallest, _, largest = batch
        super().__init__(plan.config, largest)
        self.plan: Plan | None = plan
        self.scratch: Any = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the scratch memory; TensorRT does not tell what it holds itself."""
        return 0 if self.scratch is None else int(self.scratch.size)

    def start(self, session: Session) -> None:
        session.reserve(self.largest)

    def start_call(self) -> None:
        if self.plan is not None:
            self.plan.logger.errors.clear()

    def reserve(self, batch: int, session: Session) -> int:
        assert self.plan is not None
        scratch_bytes = self.plan.engine.device_memory_size_v2
        if self.scratch is None and scratch_bytes:
            self.scratch = session.allocate(scratch_bytes)
        return self.largest

    def context(self, specialize: bool) -> Context:
        assert self.plan is not None
        return PlanContext(self.plan, self.scratch, specialize)

    def close(self) -> None:
        self.plan = None
        scratch, self.scratch = self.scratch, None
        if scratch is not None:
            scratch.close()


class PlanContext(Context):
    """An execution context of TensorRT."""

    def __init__(self, plan: Plan, scratch: Any, specialize: bool) -> None:
        self._logger, trt, engine = plan.logger, plan.trt, plan.engine
        self._image = (plan.config.channels, plan.config.img, plan.config.img)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if specialize and hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT for RTX compiles kernels for a shape in the background; a graph captured before would keep the
            # slower general ones.
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            self._context = engine.create_execution_context(config)
        else:
            self._context = engine.create_execution_context(strategy)
        if self._context is None:
            raise self._refused("cannot make an execution context")
        if scratch is not None:
            self._context.set_device_memory(address_of(scratch), scratch.size)

    def bind(self, launch: Launch) -> None:
        if not (
            self._context.set_input_shape(INPUT_NAME, (launch.batch, *self._image))
            and self._context.set_tensor_address(INPUT_NAME, launch.images)
            and self._context.set_tensor_address(OUTPUT_NAME, launch.logits)
        ):
            raise self._refused(f"does not take batch {launch.batch}")

    def enqueue(self, stream: Any) -> None:
        if not self._context.execute_async_v3(int(stream.handle)):
            raise self._refused("cannot run the engine")

    def is_capturable(self, stream: Any) -> bool:
        # Not a plan built without REQUIRE_USER_ALLOCATION, which may allocate while it runs.
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(int(stream.handle)))

    def _refused(self, what: str) -> BackendError:
        return BackendError(f"TensorRT {what}: {reasons(self._logger)}")
