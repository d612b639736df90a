"""Optimisers that use the gradient: L-BFGS for data that fit into one batch, Adam for more.

Both keep their whole state in arrays, so that a run that was stopped goes on with the same numbers.

L-BFGS: Liu and Nocedal, Math. Program. 45, 503 (1989); line search for the strong Wolfe conditions: Nocedal and Wright,
Numerical Optimization, 2nd ed. (2006), algorithms 3.5 and 3.6. Adam: Kingma and Ba, arXiv:1412.6980; learning rate
(warm-up and half a cosine) and clipping (by the running average of the norm) as in Comput. Phys. Commun. (2026) 109994.
"""

from __future__ import annotations

import numpy as np

from ..errors import NepCGError

__all__ = ["LBFGS", "Adam", "OptimizerError"]


class OptimizerError(NepCGError, ArithmeticError):
    """The loss is not finite, so that no step can be taken."""


class LBFGS:
    """Minimise ``function(z) -> (value, gradient)`` from ``z`` (n,); :meth:`step` is one iteration.

    ``memory``: pairs of steps and gradient changes that are kept.
    """

    ARMIJO, CURVATURE, MOST_TRIALS = 1e-4, 0.9, 25

    def __init__(self, function, z, *, memory: int = 50, state: dict | None = None):
        self.function = function
        self.memory = memory
        if state is not None:
            self.z, self.gradient = state["z"].copy(), state["gradient"].copy()
            self.value, self.evaluations = float(state["value"]), int(state["evaluations"])
            self._pairs = [(s, y) for s, y in zip(state["steps"], state["changes"], strict=True)]
            return
        self.z = np.array(z, float)
        self.value, self.gradient = self._evaluate(self.z)
        if not np.isfinite(self.value):
            raise OptimizerError(f"the loss of the start is {self.value}: are two sites very close to each other?")
        self.evaluations = 1
        self._pairs = []

    def state(self) -> dict:
        """Arrays that continue this run exactly."""
        n = len(self.z)
        return {
            "z": self.z,
            "gradient": self.gradient,
            "value": np.array(self.value),
            "evaluations": np.array(self.evaluations),
            "steps": np.array([s for s, _ in self._pairs]).reshape(-1, n),
            "changes": np.array([y for _, y in self._pairs]).reshape(-1, n),
        }

    def _evaluate(self, z):
        value, gradient = self.function(z)
        finite = np.isfinite(value) and np.isfinite(gradient).all()
        return (float(value), gradient) if finite else (np.inf, gradient)

    def _direction(self) -> np.ndarray:
        """``-H g`` with the inverse Hessian H of the last pairs (two-loop recursion)."""
        d = -self.gradient
        factors = []
        for s, y in reversed(self._pairs):
            rho = 1 / (s @ y)
            a = rho * (s @ d)
            factors.append((rho, a))
            d = d - a * y
        if self._pairs:
            s, y = self._pairs[-1]
            d *= (s @ y) / (y @ y)
        for (s, y), (rho, a) in zip(self._pairs, reversed(factors), strict=True):
            d = d + (a - rho * (y @ d)) * s
        return d

    def step(self) -> bool:
        """One iteration; False if no lower value was found along the steepest descent either: converged."""
        while True:
            d = self._direction()
            slope = self.gradient @ d
            if not slope < 0:
                found = None
            else:
                first = 1.0 if self._pairs else min(1.0, 0.1 * np.sqrt(len(d)) / np.linalg.norm(d))
                found = self._line_search(d, slope, first)
            if found is not None:
                break
            if not self._pairs:
                return False
            self._pairs = []
        step, value, gradient = found
        s, y = step * d, gradient - self.gradient
        self.z, self.value, self.gradient = self.z + s, value, gradient
        if s @ y > 1e-12 * np.linalg.norm(s) * np.linalg.norm(y):
            self._pairs = [*self._pairs, (s, y)][-self.memory :]
        return True

    def _line_search(self, d, slope: float, step: float):
        """Step length, value and gradient that satisfy the strong Wolfe conditions along ``d``; None if there is no
        lower value."""
        low = (0.0, self.value, slope, self.gradient)
        high, best = None, None
        for _ in range(self.MOST_TRIALS):
            value, gradient = self._evaluate(self.z + step * d)
            self.evaluations += 1
            here = (step, value, gradient @ d, gradient)
            if value < self.value + self.ARMIJO * step * slope and (best is None or value < best[1]):
                best = here
            if value > self.value + self.ARMIJO * step * slope or value >= low[1]:
                high = here
            elif abs(here[2]) <= -self.CURVATURE * slope:
                return step, value, gradient
            else:
                if here[2] * ((high[0] if high else np.inf) - low[0]) >= 0:
                    high = low
                low = here
            if high is None:
                step *= 3.0
                continue
            step = _between(low, high)
            if abs(high[0] - low[0]) * np.abs(d).max() < 1e-14:
                break
        # rounding decides near a minimum: any decrease will do
        return None if best is None else (best[0], best[1], best[3])


def _between(low, high) -> float:
    """Minimum of the cubic through values and slopes of two trial steps, kept away from both."""
    a, fa, ga = low[:3]
    b, fb, gb = high[:3]
    width = b - a
    middle = a + 0.5 * width
    if not (np.isfinite(fb) and np.isfinite(gb)):
        return a + 0.1 * width
    t1 = ga + gb - 3 * (fa - fb) / (a - b)
    root = t1 * t1 - ga * gb
    if root < 0:
        return middle
    t2 = np.sign(width) * np.sqrt(root)
    denominator = gb - ga + 2 * t2
    if denominator == 0:
        return middle
    step = b - width * (gb + t2 - t1) / denominator
    edges = sorted((a + 0.1 * width, b - 0.1 * width))
    return float(np.clip(step, *edges)) if np.isfinite(step) else middle


class Adam:
    """Stochastic steps from gradients of minibatches: :meth:`step` takes one, ``steps`` in all.

    The learning rate rises linearly from ``low`` to ``high`` during ``warmup`` steps, then falls along half a cosine
    back to ``low``. Gradients longer than their running average are cut to it.
    """

    BETA1, BETA2, EPSILON, KEEP = 0.9, 0.999, 1e-8, 0.9

    def __init__(self, z, *, steps: int, warmup: int, high: float = 1e-2, low: float = 1e-6, state: dict | None = None):
        self.steps, self.warmup, self.high, self.low = steps, warmup, high, low
        if state is not None:
            self.z, self._mean, self._square = (state[name].copy() for name in ("z", "mean", "square"))
            self.count, self._norm = int(state["count"]), float(state["norm"])
            return
        self.z = np.array(z, float)
        self._mean, self._square = np.zeros_like(self.z), np.zeros_like(self.z)
        self.count, self._norm = 0, 0.0

    def state(self) -> dict:
        """Arrays that continue this run exactly."""
        return {
            "z": self.z,
            "mean": self._mean,
            "square": self._square,
            "count": np.array(self.count),
            "norm": np.array(self._norm),
        }

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        if self.count < self.warmup:
            return self.low + (self.high - self.low) * (self.count + 1) / self.warmup
        progress = min(1.0, (self.count - self.warmup) / max(1, self.steps - self.warmup))
        return self.low + 0.5 * (self.high - self.low) * (1 + np.cos(np.pi * progress))

    def step(self, gradient: np.ndarray) -> None:
        """Move ``z`` by one step."""
        norm = float(np.linalg.norm(gradient))
        if not np.isfinite(norm):
            raise OptimizerError("the gradient is not finite: use a smaller learning rate")
        self._norm = norm if self.count == 0 else self.KEEP * self._norm + (1 - self.KEEP) * norm
        if norm > self._norm:
            gradient = gradient * (self._norm / norm)
        rate = self.learning_rate
        self.count += 1
        self._mean = self.BETA1 * self._mean + (1 - self.BETA1) * gradient
        self._square = self.BETA2 * self._square + (1 - self.BETA2) * gradient**2
        mean = self._mean / (1 - self.BETA1**self.count)
        square = self._square / (1 - self.BETA2**self.count)
        self.z = self.z - rate * mean / (np.sqrt(square) + self.EPSILON)
