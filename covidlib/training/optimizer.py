"""AdamW and its schedule, with Adam's update as one kernel on TensorFlow."""

import keras

WARM_UP = 0.1


def scheduled_adamw(steps, peak, weight_decay):
    """AdamW with weight decay on kernels alone, and a learning rate that rises to `peak` and falls again.

    It rises over the first tenth of the steps and falls along a cosine (https://arxiv.org/abs/1608.03983).
    """
    rise = max(1, round(WARM_UP * steps))
    rate = keras.optimizers.schedules.CosineDecay(0.0, max(1, steps - rise), alpha=0.01, warmup_target=peak,
                                                  warmup_steps=rise)
    optimizer = AdamW(rate, weight_decay=weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


@keras.saving.register_keras_serializable(package="covidlib")
class AdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` (https://arxiv.org/abs/1711.05101) with the same arguments, variables and numbers.

    Keras composes the update of a variable from about a dozen operations, each of which reads and writes all of it: for
    ResNet-50 a twentieth of a training step on a CPU. On TensorFlow the kernel `ResourceApplyAdam` does it in one. On
    other backends, with `amsgrad` and in a tf.distribute.Strategy Keras's own code runs.

    `factors`: path of a variable -> what its learning rate is multiplied by, for variables that learn at another rate.
    """

    factors = {}

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        learning_rate = learning_rate * self.factors.get(self._trainable_variables[index].path, 1.0)
        if keras.backend.backend() != "tensorflow" or self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        if tf.distribute.has_strategy():
            return super().update_step(gradient, variable, learning_rate)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=self._momentums[index].value.handle, v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step, beta2_power=self.beta_2**step, lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon, grad=gradient,
        )
