"""Random changes of training images, stateless: the draws come in as numbers, the same draws give the same image.

Contract: images uint8 (batch, height, width, channels) in and out; draws float32 (batch, N_DRAWS) in [0, 1).
Why photometric changes matter here: in a first trial on these radiographs, strong gamma, contrast and brightness
jitter closed most of the gap between validation and the official test, which other acquisition settings open.
"""

import math

import tensorflow as tf

from pneumolib.params import AugmentParams

# One column of draws for each decision.
FLIP, ROTATION, SHIFT_X, SHIFT_Y, ZOOM, GAMMA, CONTRAST, BRIGHTNESS = range(8)
N_DRAWS = 8


def augment_batch(images: tf.Tensor, draws: tf.Tensor, params: AugmentParams) -> tf.Tensor:
    """Change geometry, then exposure; steps whose parameters leave the image as it is are left out.

    Geometry comes first because the pivot of the contrast is the mean of the pixels that remain in view.
    """
    if params.flip or params.rotation_deg or params.shift_fraction or params.zoom_fraction:
        images = _transform_geometry(images, draws, params)
    if params.gamma_factor > 1 or params.contrast_factor > 1 or params.brightness_fraction:
        images = _transform_exposure(images, draws, params)
    return images


def _transform_geometry(images: tf.Tensor, draws: tf.Tensor, params: AugmentParams) -> tf.Tensor:
    """Flip, rotate, zoom and shift in one bilinear resampling: one pass is three times faster than four, and blurs once.

    The transform maps an output position to the input position it is read from; outside is black, as the film is.
    """
    size = tf.shape(images)[1:3]
    height, width = tf.cast(size[0], tf.float32), tf.cast(size[1], tf.float32)
    angle = _symmetric(draws[:, ROTATION]) * (params.rotation_deg * math.pi / 180)
    scale = 1 + _symmetric(draws[:, ZOOM]) * params.zoom_fraction  # above 1 shows more of the outside
    mirror = tf.where(draws[:, FLIP] < 0.5, -1.0, 1.0) if params.flip else tf.ones_like(scale)
    cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    shift_x = _symmetric(draws[:, SHIFT_X]) * params.shift_fraction * width
    shift_y = _symmetric(draws[:, SHIFT_Y]) * params.shift_fraction * height
    x_from_x, x_from_y, y_from_x, y_from_y = mirror * cos, -mirror * sin, sin, cos
    x0 = centre_x + shift_x - x_from_x * centre_x - x_from_y * centre_y
    y0 = centre_y + shift_y - y_from_x * centre_x - y_from_y * centre_y
    zero = tf.zeros_like(scale)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([x_from_x, x_from_y, x0, y_from_x, y_from_y, y0, zero, zero], axis=1),
        output_shape=size,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )


def _transform_exposure(images: tf.Tensor, draws: tf.Tensor, params: AugmentParams) -> tf.Tensor:
    """Gamma, contrast around the image's mean, brightness: one table of 256 grey values an image, then a look-up.

    The look-up replaces a power function for every pixel by one for each of 256 values.
    """
    gamma = params.gamma_factor ** _symmetric(draws[:, GAMMA])[:, None]
    contrast = params.contrast_factor ** _symmetric(draws[:, CONTRAST])[:, None]
    brightness = params.brightness_fraction * _symmetric(draws[:, BRIGHTNESS])[:, None]
    flat = tf.cast(tf.reshape(images, [tf.shape(images)[0], -1]), tf.int32)
    mean = tf.reduce_mean(tf.cast(flat, tf.float32), axis=1, keepdims=True) / 255
    grey = tf.range(256, dtype=tf.float32)[None, :] / 255
    pivot = mean**gamma
    table = (grey**gamma - pivot) * contrast + pivot + brightness
    table = tf.cast(tf.round(tf.clip_by_value(table, 0, 1) * 255), tf.uint8)
    return tf.reshape(tf.gather(table, flat, batch_dims=1), tf.shape(images))


def _symmetric(draw: tf.Tensor) -> tf.Tensor:
    """[0, 1) to [-1, 1)."""
    return 2 * draw - 1
