"""What a benchmark found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PeerResult:
    """One peer at its best number of threads; milliseconds are of one batch. ``problem`` says why there are no figures.

    ``ratio``: this peer's ``median_ms`` by the engine's. ``memory_bytes``: the
    most memory held, without what the interpreter took before the model was loaded; a GPU's where it runs on one.
    ``joules``: of a batch, by the GPU's counter; 0 where there is none.
    """

    peer: str
    description: str
    problem: str | None = None
    threads: int = 0
    median_ms: float = 0.0
    p10_ms: float = 0.0
    p90_ms: float = 0.0
    images_per_second: float = 0.0
    load_s: float = 0.0
    memory_bytes: int = 0
    cosine: float = 0.0
    ratio: float = 1.0
    median_ms_by_threads: dict[int, float] = field(default_factory=dict)
    joules: float = 0.0


@dataclass(frozen=True)
class OperatorTime:
    """One kind of operator, of one thread or of a GPU: share of the time, what it does a second, and the measured limit
    of that; 0: not counted. ``floor_ms``, on a GPU: the least time it can take there, by ``bound``.
    """

    operator: str
    milliseconds: float
    share: float
    unit: str = ""
    per_second: float = 0.0
    limit: float = 0.0
    floor_ms: float = 0.0
    bound: str = ""

    @property
    def share_of_limit(self) -> float:
        """Return what is reached of the limit, 0 where none is known."""
        if self.floor_ms:
            return self.floor_ms / self.milliseconds if self.milliseconds else 0.0
        return self.per_second / self.limit if self.limit else 0.0


BUSY_SHARE = 0.25  # of the cores, that others take on average, which moves figures
SPREAD = 1.25  # of the 90th percentile by the 10th: a quiet machine's runs lie closer together


@dataclass(frozen=True)
class Bench:
    """A run of the benchmark. ``load_average``: processes that ran in the minute before it, None where no system tells
    them.
    """

    engine: str
    model: str
    isa: str
    cores: int
    batch: int
    rounds: int
    peers: tuple[PeerResult, ...]
    operators: tuple[OperatorTime, ...]
    backend: str = "cpu"
    gpu: str = ""  # its name, where the engine runs on one
    load_average: float | None = None

    @property
    def busy(self) -> str:
        """Return a sentence where the figures were measured on a busy machine, by its load or their spread."""
        own = self.peers[0]
        signs = []
        if self.load_average is not None and self.load_average > BUSY_SHARE * max(self.cores, 2):
            signs.append(f"a load average of {self.load_average:.1f} on {self.cores} cores before the start")
        if own.problem is None and own.p90_ms > SPREAD * own.p10_ms:
            signs.append(f"the engine's p90 is {own.p90_ms / own.p10_ms:.1f} times its p10")
        return f"the machine is busy ({'; '.join(signs)}): measure again when it is quiet" if signs else ""
