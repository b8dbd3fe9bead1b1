"""The gradient of a logit with respect to a feature map: Keras 3 has none of its own, so each backend is asked its way.

All networks run as in prediction here: BatchNormalization by its averages, Dropout off. No weight changes.
"""

from collections.abc import Callable

import keras
import numpy as np

# Gradients of 16-bit layers would drop below their smallest number; whoever uses them must not mind the scale.
SCALE = 256.0


def features_of(network: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixels, uint8 (batch, height, width, channels), to the network's output, float32 (batch, ...)."""
    return _ask_backend({"tensorflow": _call_tensorflow, "jax": _call_jax}, network)


def feature_gradients(network: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """A function from feature maps to how the network's logit moves with each value of them.

    Args:
        network: from a feature map, float (batch, h, w, features), to a logit, float (batch, 1).
    Returns:
        float32 (batch, h, w, features) to the same shape: `SCALE` times the gradient of each image's logit.
    Raises:
        RuntimeError: a backend other than TensorFlow and JAX.
    """
    return _ask_backend({"tensorflow": _differentiate_tensorflow, "jax": _differentiate_jax}, network)


def _ask_backend(ways: dict[str, Callable], network: keras.Model) -> Callable:
    backend = keras.backend.backend()
    if backend not in ways:
        raise RuntimeError(
            f"KERAS_BACKEND is {backend!r}, whose gradients are not known here; allowed: {', '.join(ways)}"
        )
    return ways[backend](network)


# TensorFlow, operation by operation: tracing a deep network would take longer than the few images that are asked for.


def _call_tensorflow(network: keras.Model) -> Callable:
    import tensorflow as tf

    return lambda values: tf.cast(network(tf.constant(values), training=False), tf.float32).numpy()


def _differentiate_tensorflow(network: keras.Model) -> Callable:
    import tensorflow as tf

    def run(features: np.ndarray) -> np.ndarray:
        features = tf.constant(features)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(features)
            # Images do not meet in prediction, so that the gradient of the sum holds that of each.
            total = SCALE * tf.reduce_sum(tf.cast(network(features, training=False), tf.float32))
        return tape.gradient(total, features).numpy()

    return run


# JAX, compiled; weights come in as arguments, because closed over they would be compiled in as constants.


def _call_jax(network: keras.Model) -> Callable:
    import jax

    compiled = jax.jit(lambda values, weights: _stateless(network, weights, values))
    return lambda values: np.asarray(compiled(values, _weights(network)))


def _differentiate_jax(network: keras.Model) -> Callable:
    import jax

    compiled = jax.jit(jax.grad(lambda features, weights: SCALE * _stateless(network, weights, features).sum()))
    return lambda features: np.asarray(compiled(features, _weights(network)))


def _stateless(network: keras.Model, weights: tuple[list, list], values):
    """The output alone, float32; the state that comes with it is dropped, so that nothing of the network changes."""
    output, _ = network.stateless_call(*weights, values, training=False)
    return output.astype("float32")


def _weights(network: keras.Model) -> tuple[list, list]:
    return [v.value for v in network.trainable_variables], [v.value for v in network.non_trainable_variables]
