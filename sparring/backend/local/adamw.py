"""AdamW (arXiv 1711.05101, as torch has it) on flat numbers. Letter: `P` how many."""

import math

from torch import Tensor

from sparring.backend.training import Adam
from sparring.errors import NonFinite


def clipped_norm(grad: Tensor, adam: Adam, step: int) -> float:
    """The norm of a gradient f32[P], which is scaled to the bound where it is longer. Raises `NonFinite`."""
    norm = float(grad.norm())
    if not math.isfinite(norm):
        raise NonFinite(f"optim_step {step}: the gradient's norm is {norm!r}; nothing was changed")
    if adam.grad_clip_norm > 0:
        grad.mul_(min(1.0, adam.grad_clip_norm / (norm + 1e-6)))
    return norm


def adamw(master: Tensor, mean: Tensor, square: Tensor, grad: Tensor, adam: Adam, step: int) -> None:
    """Step number `step`, from 1 on, in place: weights and both moments, f32[P]."""
    mean.lerp_(grad, 1 - adam.beta1)
    square.mul_(adam.beta2).addcmul_(grad, grad, value=1 - adam.beta2)
    root = (square / (1 - adam.beta2**step)).sqrt_().add_(adam.eps)
    master.mul_(1 - adam.learning_rate * adam.weight_decay)
    master.addcdiv_(mean, root, value=-adam.learning_rate / (1 - adam.beta1**step))
