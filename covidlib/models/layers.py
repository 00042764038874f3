"""Batch normalisation through TensorFlow's fused kernel.

Keras 3 composes it from single operations, each of which reads and writes a whole feature map. The fused kernel gains a
third in float32 on a Xeon without AMX (`benchmarks.training`).
"""

import keras


@keras.saving.register_keras_serializable(package="covidlib")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with a faster way through TensorFlow.

    Arguments, weights, outputs, gradients and moving statistics are those of Keras's own layer. The fused kernel
    returns the variance of the batch with Bessel's correction, n / (n - 1); it is undone before the moving variance
    is updated, for Keras has none there. On other backends, and for what the kernel does not take (anything but
    (B, H, W, C) with the channels last, masks, renorm, synchronisation), Keras's own code runs.

    With `frozen_statistics` (an attribute, False at first) training, too, normalises with the moving statistics and
    leaves them as they are, while gamma and beta learn: small batches then do not disturb a pre-trained network.
    """

    frozen_statistics = False

    def call(self, inputs, training=None, mask=None):
        training = training and not self.frozen_statistics
        if not self._has_kernel_for(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        channels = inputs.shape[-1:]
        learn = bool(training and self.trainable)
        unused = tf.zeros([0], tf.float32)
        normalised = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.ones(channels) if self.gamma is None else tf.convert_to_tensor(self.gamma),
            offset=tf.zeros(channels) if self.beta is None else tf.convert_to_tensor(self.beta),
            mean=unused if learn else tf.convert_to_tensor(self.moving_mean),
            variance=unused if learn else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=learn,
        )
        if learn:
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32)
            biased = normalised.batch_variance * (tf.maximum(count - 1.0, 1.0) / count)
            for moving, value in ((self.moving_mean, normalised.batch_mean), (self.moving_variance, biased)):
                moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
        return normalised.y

    def _has_kernel_for(self, inputs, mask):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and mask is None
            and not (self.renorm or self.synchronized)
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "bfloat16", "float16")
        )
