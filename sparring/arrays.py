"""The array types that rooms hand to each other: plain numpy, one letter set everywhere (`T` tokens, `N` trajectories)."""

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I16 = NDArray[np.int16]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

F = F32
"""What an advantage estimator returns: f32[N], one value for each comparable trajectory."""
