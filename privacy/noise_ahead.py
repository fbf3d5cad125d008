"""Noise for sums on a device, drawn on the CPU while the device computes the next step.

The values are those that ``DiscreteGaussian`` draws, in the same order from the same stream: what
is changed is when. How many are drawn is public, and no sum is looked at, so that drawing them
before there is a sum tells nothing.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from core.errors import PrivacyError
from privacy.discrete_gaussian import Consumer, DiscreteGaussian
from privacy.discrete_gaussian_grid import GridNoise
from privacy.random_source import RandomStream


class DrawnAhead:
    """A discrete Gaussian whose draws may be begun before they are wanted.

    Guarantees:
        ``each_block`` gives the values that ``noise`` would have given at the same place of the
        stream, and gives no value twice.

    Args:
        noise: Draws.
        device: Where the values are wanted.
    """

    def __init__(self, noise: DiscreteGaussian, device: torch.device) -> None:
        self._noise, self._device = noise, device
        self.reach, self.distance, self.dtype = noise.reach, noise.distance, noise.dtype
        self._waiting: tuple[RandomStream, int, Future[torch.Tensor]] | None = None
        self._buffers: tuple[torch.Tensor, torch.Tensor, torch.cuda.Stream] | None = None

    def begin(self, stream: RandomStream, count: int) -> None:
        """Starts drawing what the next call of ``each_block`` will give; nothing if it has.

        The stream must not be read by others until then.
        """
        if self._waiting is None:
            thread = ThreadPoolExecutor(1)
            draw = self._draw_for_gpu(count) if self._device.type == "cuda" else self._draw
            self._waiting = stream, count, thread.submit(draw, stream, count)
            thread.shutdown(wait=False)  # it ends when it has drawn

    def each_block(self, stream: RandomStream, count: int, consume: Consumer) -> None:
        """Calls ``consume(0, values)`` with ``count`` draws in one block on the device.

        Raises:
            PrivacyError: Another stream or count was begun; what it drew is never given.
        """
        self.begin(stream, count)
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            raise RuntimeError("noise that was begun is not there")
        drawn = waiting[2].result()
        if waiting[0] is not stream or waiting[1] != count:
            raise PrivacyError("expected the noise that was begun to be asked for, got another")
        consume(0, drawn)

    def _draw(self, stream: RandomStream, count: int) -> torch.Tensor:
        drawn = torch.empty(count, dtype=self.dtype, device=self._device)

        def keep(start: int, values: torch.Tensor) -> None:
            drawn[start : start + len(values)] = values

        self._noise.each_block(stream, count, keep)
        return drawn

    def _draw_for_gpu(self, count: int) -> Callable[[RandomStream, int], torch.Tensor]:
        """Copies each block as it is drawn, beside the computation, from pinned memory."""
        if self._buffers is None or len(self._buffers[0]) != count:
            host = torch.empty(count, dtype=self.dtype, pin_memory=True)
            onto = torch.empty(count, dtype=self.dtype, device=self._device)
            queue = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._buffers = host, onto, queue
        host, onto, queue = self._buffers
        # Until then the values of the step before are still being added.
        read = torch.cuda.current_stream(self._device).record_event()

        def send(start: int, values: torch.Tensor) -> None:
            end = start + len(values)
            host[start:end] = values
            with torch.cuda.stream(queue):
                onto[start:end].copy_(host[start:end], non_blocking=True)

        def draw(stream: RandomStream, count: int) -> torch.Tensor:
            queue.wait_event(read)
            self._noise.each_block(stream, count, send)
            queue.synchronize()
            return onto

        return draw


class GridNoiseAhead(GridNoise):
    """``GridNoise`` whose next noise is drawn while something else is computed.

    Guarantees:
        Those of ``GridNoise``; the same sums and stream give the same result, bit for bit.

    Args:
        noise_multiplier: See ``GridNoise``.
        sensitivity: See ``GridNoise``.
        dimension: See ``GridNoise``.
        device: Where the sums are.
    """

    def __init__(
        self,
        *,
        noise_multiplier: float,
        sensitivity: float,
        dimension: int,
        device: torch.device,
    ) -> None:
        super().__init__(
            noise_multiplier=noise_multiplier, sensitivity=sensitivity, dimension=dimension
        )
        self._ahead = DrawnAhead(self._noise, device)
        self._noise = self._ahead  # type: ignore[assignment]

    def begin(self, stream: RandomStream) -> None:
        """Starts drawing for the next ``add_``, which must take the same stream."""
        self._ahead.begin(stream, self.dimension)
