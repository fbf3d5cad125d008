"""fp16 under DP-SGD: one record at a time, or not at all.

A record that overflows in fp16 is dropped, and dropping is a jump: just below 65504 its clipped
gradient is in the sum, just above it is not. In a batch with others, the length to which it is
padded and its place in a product follow from them, and so does the last bit of a number at the
edge. Weights that a coordinator chose could hold many records there, and one record more would
then move the sum by many times the clip.
"""

from typing import Final

from core.errors import PrivacyError
from core.train import TrainConfig

_WITH_A_CLIFF: Final = "fp16"  # bf16 ends where fp32 ends


def check_half_precision(config: TrainConfig) -> None:
    """Refuses fp16 with more than one record in a forward pass.

    Guarantees:
        After a return, either no number format in use has an end that gradients come near, or
        what one record adds to the sum, and whether it does, is computed from that record and the
        weights alone.

    Raises:
        PrivacyError: Names the settings.
    """
    if config.autocast == _WITH_A_CLIFF and config.micro_batch_size != 1:
        raise PrivacyError(
            'expected train.micro_batch_size = 1 with DP-SGD and train.autocast = "fp16", got '
            f"{config.micro_batch_size}: rounding beside other records would decide whether a "
            "record overflows",
            hint='set train.autocast = "bf16", which has no such edge',
        )
