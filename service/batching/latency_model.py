"""How long a batch of N pictures takes: sizes and seconds of batches in, a table of predictions out. One per model.

The model is a straight line, a*N + b, times a correction per size. The line is fitted by least squares whose samples
lose weight with age. The corrections are for accelerators that pad batches to a few sizes, so that the true times have
steps. On a CPU they stay near one.

Changes of speed are told from noise in two ways, at sizes inside the range that was seen, where the line is reliable:

* A batch that is slower than predicted by more than the factor `_DEVIANT` is held back. If the next batch agrees, all
  predictions are scaled by the smaller of the two ratios. So a machine that becomes slow is followed after two batches,
  and a single outlier changes nothing.
* A batch that is faster by that factor counts at once, because chance never makes a machine faster than it is.

Never reads a clock, and knows no queues and no deadlines.
"""

from collections.abc import Sequence

_KEEP = 0.95  # weight a sample keeps per newer sample: the last twenty or so count
_DEVIANT = 2.0  # ratio of seen to predicted seconds; beyond it a sample is an outlier or a change
_PRIOR_PICTURES2 = 0.5  # weight of the assumption that half of the time is fixed, until sizes differ
_CORRECTION_GAIN = 0.2
_CORRECTION_TRUST = 3.0  # this many samples of a size weigh as much as the line
_ERROR_GAIN = 0.1
_FIRST_ERROR = 0.1  # assumed share of the time that is noise, until more than one batch was seen


class LatencyModel:
    """Predicted seconds per batch size: `table[N]`, N from 0 to `max_batch`. Never falls with N. All 0 at first.

    `samples`: batches learned from. `error_seconds`: running mean of |seen - predicted|; an outlier counts as one whole
    batch.
    """

    def __init__(self, max_batch: int) -> None:
        self.table: Sequence[float] = [0.0] * (max_batch + 1)
        self.samples = 0
        self.error_seconds = 0.0
        self._weight = 0.0
        self._mean_size = 0.0
        self._mean_seconds = 0.0
        self._size_variance = 0.0  # weighted sums of squares and products about the means
        self._covariance = 0.0
        self._smallest, self._largest = max_batch + 1, 0
        self._correction = [1.0] * (max_batch + 1)
        self._seen = [0] * (max_batch + 1)
        self._held_back: float | None = None

    def observe(self, size: int, seconds: float) -> None:
        """Learn from a batch of `size` pictures that took `seconds`."""
        predicted = self.table[size]
        if self._smallest <= size <= self._largest and predicted > 0.0:
            ratio = seconds / predicted
            if ratio > _DEVIANT and self._held_back is None:
                self._held_back = ratio
                # A machine that is slow now and then may never be slow twice in a row. The error must show it.
                self.error_seconds += (predicted - self.error_seconds) * _ERROR_GAIN
                return
            if ratio > _DEVIANT or ratio < 1.0 / _DEVIANT:
                self._rescale(ratio if self._held_back is None else min(ratio, self._held_back))
        self._held_back = None
        error_seconds = abs(seconds - self.table[size]) if self.samples else _FIRST_ERROR * seconds
        self.error_seconds += (error_seconds - self.error_seconds) * (_ERROR_GAIN if self.samples else 1.0)
        self._fit(size, seconds)
        self._correct(size, seconds)
        self.samples += 1
        self._tabulate()

    def _rescale(self, ratio: float) -> None:
        self._mean_seconds *= ratio
        self._covariance *= ratio
        self.error_seconds *= ratio
        self._tabulate()

    def _fit(self, size: int, seconds: float) -> None:
        # West's weighted running means and moments: exact, and stable where sums of squares are not.
        weight = self._weight * _KEEP
        self._weight = weight + 1.0
        size_step, seconds_step = size - self._mean_size, seconds - self._mean_seconds
        self._mean_size += size_step / self._weight
        self._mean_seconds += seconds_step / self._weight
        self._size_variance = self._size_variance * _KEEP + size_step * size_step * weight / self._weight
        self._covariance = self._covariance * _KEEP + size_step * seconds_step * weight / self._weight
        self._smallest, self._largest = min(self._smallest, size), max(self._largest, size)

    def _line(self) -> tuple[float, float]:
        """(a, b): seconds per picture and per batch, neither below zero."""
        most = self._mean_seconds / self._mean_size
        slope = (self._covariance + _PRIOR_PICTURES2 * most / 2) / (self._size_variance + _PRIOR_PICTURES2)
        slope = min(max(slope, 0.0), most)
        return slope, self._mean_seconds - slope * self._mean_size

    def _correct(self, size: int, seconds: float) -> None:
        slope, fixed = self._line()
        self._seen[size] += 1
        gain = max(_CORRECTION_GAIN, 1.0 / self._seen[size])
        ratio = seconds / max(slope * size + fixed, 1e-9)
        self._correction[size] += (min(max(ratio, 1.0 / _DEVIANT), _DEVIANT) - self._correction[size]) * gain

    def _tabulate(self) -> None:
        slope, fixed = self._line()
        table, before = [0.0], 0.0
        for size in range(1, len(self._correction)):
            trust = self._seen[size] / (self._seen[size] + _CORRECTION_TRUST)
            before = max(before, (slope * size + fixed) * (1.0 + trust * (self._correction[size] - 1.0)))
            table.append(before)
        self.table = table
