"""Which arithmetic a trainer uses."""

import torch


def precision(choice: str) -> str:
    """Lightning's precision for "auto": bfloat16 where the processor multiplies it fast.

    A CPU without AMX emulates bfloat16 and is slower with it than with float32.
    """
    if choice != "auto":
        return choice
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16-mixed" if amx else "32-true"
