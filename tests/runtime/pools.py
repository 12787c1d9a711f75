"""What the tests of pools share: requests, and a hand on every step of every loop."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.runtime.denoising import Denoising
from taylorseer.runtime.generation import random_request
from taylorseer.runtime.request import Request
from taylorseer.runtime.session import LoadedModel

__all__ = ["SHORT", "Steps", "alone", "diverging", "request_of"]

SHORT = CacheConfig(steps=12, interval=3, order=2, warmup_steps=2)


def request_of(model: LoadedModel, seed: int = 0, *, steps: int = 12, order: int = 2, **changes: Any) -> Request:
    request = random_request(model.manifest, seed, cache=dataclasses.replace(SHORT, steps=steps, order=order))
    return dataclasses.replace(request, **changes)


def diverging(request: Request, step: int) -> Request:
    """Return a request whose latent is NaN after a step; the next full step or the end tells."""
    updates = request.sampler.updates.copy()
    updates[step] = np.nan
    return dataclasses.replace(request, sampler=dataclasses.replace(request.sampler, updates=updates))


def alone(model: LoadedModel, request: Request) -> NDArray[np.float32]:
    """Return the latent of a session that never served another request."""
    with model.session(request.shape.batch, steps=request.shape.steps) as session:
        latent: NDArray[np.float32] = session.denoise(**request.arguments()).latent
        return latent


class Steps:
    """Watches the steps of all loops, and holds each back until it may be done."""

    def __init__(self, patch: pytest.MonkeyPatch, *, held: bool = False) -> None:
        self.order: list[int] = []
        """Which loop each step belonged to, numbered in the order of their first steps."""
        self.permits = threading.Semaphore(0 if held else 10**6)
        self.most_at_once = 0
        self._loops: dict[int, tuple[int, Denoising]] = {}
        self._now, self._lock = 0, threading.Lock()
        self._advance: Callable[[Denoising], bool] = Denoising.advance
        patch.setattr(Denoising, "advance", lambda loop: self._one(loop))

    def allow(self, count: int) -> None:
        """Let so many steps happen."""
        for _ in range(count):
            self.permits.release()

    def allow_all(self) -> None:
        """Hold nothing back any more."""
        self.permits.release(10**6)

    def _one(self, loop: Denoising) -> bool:
        self.permits.acquire()
        with self._lock:
            number, _ = self._loops.setdefault(id(loop), (len(self._loops), loop))
            self.order.append(number)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self._advance(loop)
        finally:
            with self._lock:
                self._now -= 1
