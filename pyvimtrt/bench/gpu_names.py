"""The peers on a GPU by what `bench --vs` calls them, after "torch-fp16-": their names in `gpu_peers`, which imports
PyTorch, and what they are.
"""

from __future__ import annotations

GPU_PEERS = {
    "compile-graph": (
        "torch.compile + cuda graph",
        "PyTorch fp16, layers by torch.compile, the scan one Triton kernel, all in one CUDA graph",
    ),
    "compile": ("torch.compile", "PyTorch fp16, layers by torch.compile, the scan one Triton kernel"),
    "graph": ("cuda graph", "PyTorch fp16, the scan one Triton kernel, all in one CUDA graph"),
    "eager": ("eager", "PyTorch fp16, the scan one Triton kernel"),
    "mamba-ssm": ("eager, mamba-ssm", "PyTorch fp16, mamba-ssm's selective_scan_fn"),
    "loop": ("eager, pytorch loop", "PyTorch fp16 without any kernel of its own, a step a token"),
}
