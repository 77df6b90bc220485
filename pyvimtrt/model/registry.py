"""The models in timm: importing this module registers every model of `pyvimtrt.families.MODELS`.

import timm, pyvimtrt.model.registry
model = timm.create_model("vim_tiny_patch16_224", checkpoint_path="vim_tiny.safetensors")
"""

from pyvimtrt.families.registry import FAMILIES

for _family in FAMILIES.values():
    _family.register_in_timm()
