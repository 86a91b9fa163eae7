"""How far memory grows while something runs."""

from __future__ import annotations

import gc
import threading


class PeakMemory:
    """Samples this process's memory, or what it has of the GPU's; `growth` is the peak above the start, in bytes.

    Args:
        of_gpu: The GPU's, where there is one.
    """

    def __init__(self, of_gpu: bool = True) -> None:
        import torch

        self.of_gpu = of_gpu and torch.cuda.is_available()

    def __enter__(self) -> PeakMemory:
        import psutil
        import torch

        self._process, self._ended = psutil.Process(), threading.Event()
        gc.collect()
        if self.of_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.start = self.peak = torch.cuda.memory_allocated()
            return self
        self.start = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        import torch

        if self.of_gpu:
            self.peak = torch.cuda.max_memory_allocated()
            return
        self._ended.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """Peak above the start, in bytes."""
        return self.peak - self.start
