"""Random changes of training images, stateless: the draws come in as numbers, the same draws give the same image.

Contract: images uint8 (batch, height, width, channels) in and out; draws float32 (batch, N_DRAWS) in [0, 1).
Why photometric changes matter here: in a first trial on these radiographs, strong gamma, contrast and brightness
jitter closed most of the gap between validation and the official test, which other acquisition settings open.
"""

import math

import numpy as np
import tensorflow as tf

from pneumolib.params import AugmentParams

# One column of draws for each decision; margins take four: top, bottom, left, right.
FLIP, ROTATION, SHIFT_X, SHIFT_Y, ZOOM, GAMMA, CONTRAST, BRIGHTNESS, SHEAR, SHARPNESS, NOISE, NOISE_PLACE = range(12)
STRETCH, MARGINS = 12, slice(13, 17)
N_DRAWS = 17
_NOISE_RANGE = 4096  # heights that a window of noise can start from


def augment_batch(images: tf.Tensor, draws: tf.Tensor, params: AugmentParams) -> tf.Tensor:
    """Change geometry, then exposure, then texture; steps whose parameters leave the image as it is are left out.

    Geometry comes first because the pivot of the contrast is the mean of the pixels that remain in view.
    """
    turned = params.flip or params.rotation_deg or params.shear_deg
    scaled = params.zoom_fraction or params.stretch_factor > 1 or params.crop_area != [1, 1]
    if turned or scaled or params.shift_fraction:
        images = _transform_geometry(images, draws, params)
    if params.margin_fraction:
        images = _blacken_margins(images, draws, params.margin_fraction)
    if params.gamma_factor > 1 or params.contrast_factor > 1 or params.brightness_fraction:
        images = _transform_exposure(images, draws, params)
    if params.sharpness or params.noise_sd:
        images = _transform_texture(images, draws, params)
    return images


def _transform_geometry(images: tf.Tensor, draws: tf.Tensor, params: AugmentParams) -> tf.Tensor:
    """Flip, shear, rotate, zoom, stretch (or crop) and shift in one bilinear resampling: faster than a pass for each, and it blurs once.

    The transform maps an output position to the input position it is read from; outside is black, as the film is. The
    shear is that of Keras's ImageDataGenerator: the upright axis stays, the level one turns by the angle.
    """
    size = tf.shape(images)[1:3]
    height, width = tf.cast(size[0], tf.float32), tf.cast(size[1], tf.float32)
    angle = _symmetric(draws[:, ROTATION]) * (params.rotation_deg * math.pi / 180)
    scale = 1 + _symmetric(draws[:, ZOOM]) * params.zoom_fraction  # above 1 shows more of the outside
    aspect = params.stretch_factor ** (_symmetric(draws[:, STRETCH]) / 2)  # half across, half along: the area stays
    crops = params.crop_area != [1, 1]
    across, along = _crop(draws, params) if crops else (scale * aspect, scale / aspect)
    mirror = tf.where(draws[:, FLIP] < 0.5, -1.0, 1.0) if params.flip else tf.ones_like(scale)
    turned = angle + _symmetric(draws[:, SHEAR]) * (params.shear_deg * math.pi / 180)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    shift_x = _symmetric(draws[:, SHIFT_X]) * params.shift_fraction * width
    shift_y = _symmetric(draws[:, SHIFT_Y]) * params.shift_fraction * height
    if crops:  # anywhere within the film, or the film anywhere within the view
        shift_x += _symmetric(draws[:, SHIFT_X]) * tf.abs(1 - across) * centre_x
        shift_y += _symmetric(draws[:, SHIFT_Y]) * tf.abs(1 - along) * centre_y
    x_from_x, y_from_x = mirror * across * tf.cos(turned), along * tf.sin(turned)
    x_from_y, y_from_y = -mirror * across * tf.sin(angle), along * tf.cos(angle)
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


def _crop(draws: tf.Tensor, params: AugmentParams) -> tuple[tf.Tensor, tf.Tensor]:
    """Shares of width and height that are in view, by the draws of zoom and stretch.

    A random resized crop (Szegedy et al., CVPR 2015). The aspect is held so near to 1 that neither share crosses 1: a crop lies
    within the film, and a film within a larger view.
    """
    low, high = params.crop_area
    area = low + draws[:, ZOOM] * (high - low)
    most = tf.abs(tf.math.log(area))
    narrow, wide = params.crop_aspect
    narrow, wide = tf.maximum(math.log(narrow), -most), tf.minimum(math.log(wide), most)
    aspect = narrow + draws[:, STRETCH] * (wide - narrow)
    return tf.sqrt(area * tf.exp(aspect)), tf.sqrt(area / tf.exp(aspect))


def _blacken_margins(images: tf.Tensor, draws: tf.Tensor, fraction: float) -> tf.Tensor:
    """Four strips of an image black, each of a width of its own: collimators and scanned film end where they like."""
    height, width = images.shape[1:3]
    top, bottom, left, right = tf.unstack(draws[:, MARGINS] * fraction, axis=1)
    y, x = (tf.range(length, dtype=tf.float32)[None, :] / length for length in (height, width))
    seen_y = (y >= top[:, None]) & (y < 1 - bottom[:, None])
    seen_x = (x >= left[:, None]) & (x < 1 - right[:, None])
    return images * tf.cast(seen_y[:, :, None, None] & seen_x[:, None, :, None], tf.uint8)


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


def _transform_texture(images: tf.Tensor, draws: tf.Tensor, params: AugmentParams) -> tf.Tensor:
    """Blur or sharpen, then add noise: what a detector and its software do to the finest grain of an image."""
    changed = tf.cast(images, tf.float32)
    if params.sharpness:
        amount = params.sharpness * _symmetric(draws[:, SHARPNESS])[:, None, None, None]
        changed += amount * (_blurred(changed) - changed)
    if params.noise_sd:
        sd = params.noise_sd * draws[:, NOISE][:, None, None, None]
        changed += sd * _noise(images, draws)
    return tf.cast(tf.round(tf.clip_by_value(changed, 0, 255)), tf.uint8)


def _blurred(images: tf.Tensor) -> tf.Tensor:
    """The 3 x 3 binomial blur by sums of shifted images: a convolution of one channel is five times slower on a CPU."""
    edged = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    rows = (edged[:, :-2] + 2 * edged[:, 1:-1] + edged[:, 2:]) / 4
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4


def _noise(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Normal noise, the same in all channels: windows of one tall constant field, at heights that the draws give.

    Noise drawn for each image from its own key would need a generator's call an image, the windows need one gather.
    """
    height, width = images.shape[1:3]
    field = np.random.default_rng(0).standard_normal((_NOISE_RANGE + height, width), np.float32)
    top = tf.cast(draws[:, NOISE_PLACE] * _NOISE_RANGE, tf.int32)
    return tf.gather(tf.constant(field), top[:, None] + tf.range(height))[..., None]


def _symmetric(draw: tf.Tensor) -> tf.Tensor:
    """[0, 1) to [-1, 1)."""
    return 2 * draw - 1
