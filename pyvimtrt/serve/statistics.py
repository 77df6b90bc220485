"""What has been done for a model since the server began, as the statistics of Triton's extension count it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

_NANO = 1_000_000_000


@dataclass
class Total:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.seconds += seconds

    def as_dict(self) -> dict[str, int]:
        """Return the protocol's form."""
        return {"count": self.count, "ns": round(self.seconds * _NANO)}


@dataclass
class Statistics:
    """Of one model. A request's time is that of the queue, of the engine, and of the rest, which counts as input:
    reading, decoding and writing the answer.
    """

    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    infer: Total = field(default_factory=Total)
    rest: Total = field(default_factory=Total)
    images: int = 0
    last_ms: int = 0
    batches: dict[int, Total] = field(default_factory=dict)  # by their number of images

    def answered(self, seconds: float, images: int, queue_seconds: float, engine_seconds: float) -> None:
        """Count a request that got its result."""
        self.success.add(seconds)
        self.queue.add(queue_seconds)
        self.infer.add(engine_seconds)
        self.rest.add(max(0.0, seconds - queue_seconds - engine_seconds))
        self.images += images
        self.last_ms = int(1000 * time.time())

    def failed(self, seconds: float) -> None:
        """Count a request that got none."""
        self.fail.add(seconds)

    def ran(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.setdefault(images, Total()).add(seconds)

    def as_dict(self, name: str, version: str) -> dict[str, Any]:
        """Return the protocol's form."""
        none = Total().as_dict()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.images,
            "execution_count": sum(total.count for total in self.batches.values()),
            "inference_stats": {
                "success": self.success.as_dict(),
                "fail": self.fail.as_dict(),
                "queue": self.queue.as_dict(),
                "compute_input": self.rest.as_dict(),
                "compute_infer": self.infer.as_dict(),
                "compute_output": none,
                "cache_hit": none,
                "cache_miss": none,
            },
            "batch_stats": [
                {"batch_size": size, "compute_input": none, "compute_infer": total.as_dict(), "compute_output": none}
                for size, total in sorted(self.batches.items())
            ],
        }
