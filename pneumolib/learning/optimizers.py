"""Optimizers and learning rates, as `training` asks for them."""

import keras
import numpy as np

from pneumolib.params import TrainingParams

_OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop,
}


def make_optimizer(
    training: TrainingParams, steps_per_epoch: int, slow: list | None = None, factor: float = 1.0
) -> keras.optimizers.Optimizer:
    """The optimizer with its rate; rates that change by epoch are left to `rate_callbacks`.

    Args:
        training: optimizer, rate, schedule, weight decay, moving average.
        steps_per_epoch: optimizer steps.
        slow: variables whose rate is multiplied by `factor` (discriminative rates). AdamW's decay keeps the full rate.
    """
    options = {}
    if training.optimizer == "adamw":
        options["weight_decay"] = training.weight_decay
    if training.ema_momentum:
        options |= {"use_ema": True, "ema_momentum": training.ema_momentum}
    kind = _OPTIMIZERS[training.optimizer]
    rate = _rate(training, steps_per_epoch)
    if slow and factor < 1:
        return _with_slow_part(kind, {id(v) for v in slow}, factor)(rate, **options)
    return kind(rate, **options)


def _rate(training: TrainingParams, steps_per_epoch: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """A schedule over steps, or the first rate of one over epochs."""
    start, schedules = training.learning_rate, keras.optimizers.schedules
    if training.schedule == "cosine":
        warmup = round(training.warmup_epochs * steps_per_epoch)
        falling = max(1, training.epochs * steps_per_epoch - warmup)
        share = training.lowest_rate / start
        if not warmup:
            return schedules.CosineDecay(start, falling, alpha=share)
        return schedules.CosineDecay(0.0, falling, alpha=share, warmup_target=start, warmup_steps=warmup)
    if training.schedule == "exponential_steps":
        return _floored(schedules.ExponentialDecay, training.lowest_rate)(
            start, training.decay_every, training.decay_rate, staircase=True
        )
    return start


def _floored(kind: type, lowest: float) -> type:
    """The schedule, never below `lowest`."""
    if not lowest:
        return kind

    class Floored(kind):
        def __call__(self, step):
            return keras.ops.maximum(super().__call__(step), lowest)

    return Floored


def _with_slow_part(kind: type, slow: set[int], factor: float) -> type:
    """The optimizer class with smaller updates for the variables of these ids.

    The rate is scaled, not the gradient: Adam and RMSprop divide by the gradient's size, so a scaled gradient would
    change nothing.
    """

    class Discriminative(kind):
        def build(self, variables):
            super().build(variables)
            self.factors = [factor if id(v) in slow else 1.0 for v in variables]

        def update_step(self, gradient, variable, learning_rate):
            scaled = learning_rate * self.factors[self._get_variable_index(variable)]
            super().update_step(gradient, variable, scaled)

    return Discriminative


def rate_callbacks(training: TrainingParams) -> list[keras.callbacks.Callback]:
    """Callbacks for rates that change from epoch to epoch; epochs are counted from 0, as published ones are."""
    if training.schedule == "plateau":
        best_is_low = training.plateau_metric == "loss"
        return [
            keras.callbacks.ReduceLROnPlateau(
                f"val_{training.plateau_metric}",
                factor=training.decay_rate,
                patience=training.decay_every,
                min_lr=training.lowest_rate,
                min_delta=0.0001,  # Keras's own
                mode="min" if best_is_low else "max",
            )
        ]
    if training.schedule in ("exponential_epochs", "step_epochs"):
        return [keras.callbacks.LearningRateScheduler(lambda epoch: epoch_rate(training, epoch))]
    return []


def epoch_rate(training: TrainingParams, epoch: int) -> float:
    """The rate of one epoch, counted from 0, under `exponential_epochs` and `step_epochs`."""
    turns = epoch / training.decay_every
    turns = np.floor(turns) if training.schedule == "step_epochs" else turns
    return max(training.lowest_rate, float(training.learning_rate * training.decay_rate**turns))


def current_rate(model: keras.Model) -> float:
    """The rate of the next step."""
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
