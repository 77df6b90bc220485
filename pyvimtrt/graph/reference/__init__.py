"""NumPy references of the four operators: the numeric contract (docs/numerics.md) in its plainest form, one file each."""

from pyvimtrt.graph.reference.add_rms_norm_quant import add_rms_norm_quant_ref
from pyvimtrt.graph.reference.bidirectional_scan import bidirectional_scan_ref
from pyvimtrt.graph.reference.kscaled_linear import kscaled_linear_ref
from pyvimtrt.graph.reference.quant_conv1d_silu import quant_conv1d_silu_ref

__all__ = ["add_rms_norm_quant_ref", "bidirectional_scan_ref", "kscaled_linear_ref", "quant_conv1d_silu_ref"]
