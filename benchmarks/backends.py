"""A network as a compiled function on each of Keras's backends, and its device's memory. Needs Keras and NumPy.

All three take uint8 images (B, S, S, C) and one-hot labels (B, classes) that `put` brought to the device from where
`host` had them, and answer before the device is done. The training step is that of `training.loop`, but
with Keras's own AdamW on all three: cross-entropy, dropout and moving statistics, too.

float32 is what each framework makes of it by default, on GPUs since Ampere convolutions in TF32; PyTorch is told to
take it for matrix products as well, as the others do.
"""

import keras


def current():
    """The one that Keras runs on."""
    return {"tensorflow": Tensorflow, "jax": Jax, "torch": Torch}[keras.backend.backend()]()


def _optimizer(model):
    optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.05)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(model.trainable_variables)
    return optimizer


def _loss(labels, probabilities):
    return keras.ops.mean(keras.losses.categorical_crossentropy(labels, probabilities))


class Backend:
    """gpu: name of the device, None for a CPU. compiles: whether it may compile what it need not, see below."""

    compiles = False

    def host(self, array):
        return array

    def forget_memory(self):
        pass


class Tensorflow(Backend):
    """tf.function, whose fused kernels take channels last as they are; `compiles`: through XLA."""

    def __init__(self):
        import tensorflow as tf

        self.tf = tf
        found = tf.config.list_physical_devices("GPU")
        self.gpu = tf.config.experimental.get_device_details(found[0])["device_name"] if found else None

    def put(self, array):
        with self.tf.device("GPU:0" if self.gpu else "CPU:0"):
            return self.tf.constant(array)

    def predictor(self, model):
        return self.tf.function(lambda x: model(self.tf.cast(x, "float32"), training=False), jit_compile=self.compiles)

    def trainer(self, model):
        optimizer = _optimizer(model)

        def step(x, y):
            with self.tf.GradientTape() as tape:
                loss = _loss(y, model(self.tf.cast(x, "float32"), training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        return self.tf.function(step, jit_compile=self.compiles)

    def forget_memory(self):
        if self.gpu:
            self.tf.config.experimental.reset_memory_stats("GPU:0")

    def memory(self, function):
        """Peak of the device since `forget_memory`, MiB; None where nobody knows."""
        return self.tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20 if self.gpu else None


class Jax(Backend):
    """jax.jit, the state of training donated. XLA chooses the layout of each convolution itself."""

    def __init__(self):
        import jax

        self.jax = jax
        device = jax.devices()[0]
        self.gpu = device.device_kind if device.platform == "gpu" else None

    def put(self, array):
        return self.jax.device_put(array)

    def predictor(self, model):
        state = self._values(model.trainable_variables, model.non_trainable_variables)
        function = self.jax.jit(lambda state, x: model.stateless_call(*state, x.astype("float32"), training=False)[0])
        return _Compiled(function, state, keeps_state=False)

    def trainer(self, model):
        optimizer = _optimizer(model)

        def loss(trained, others, x, y):
            probabilities, others = model.stateless_call(trained, others, x.astype("float32"), training=True)
            return _loss(y, probabilities), others

        def step(state, x, y):
            trained, others, moments = state
            (value, others), gradients = self.jax.value_and_grad(loss, has_aux=True)(trained, others, x, y)
            trained, moments = optimizer.stateless_apply(moments, gradients, trained)
            return (trained, others, moments), value

        state = self._values(model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        state = self.jax.tree.map(lambda array: array.copy(), state)  # the model's own stay valid
        return _Compiled(self.jax.jit(step, donate_argnums=0), state, keeps_state=True)

    def memory(self, function):
        """What the compiled function needs on its device as its compiler counts it, MiB."""
        found = function.memory_analysis()
        return (found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
                - found.alias_size_in_bytes) / 2**20

    def _values(self, *groups):
        return tuple([variable.value for variable in group] for group in groups)


class _Compiled:
    """A jitted function with its state, compiled ahead of time at its first call."""

    def __init__(self, function, state, keeps_state):
        self.function, self.state, self.keeps_state, self.compiled = function, state, keeps_state, None

    def __call__(self, *arrays):
        self.compiled = self.compiled or self.function.lower(self.state, *arrays).compile()
        result = self.compiled(self.state, *arrays)
        if self.keeps_state:
            self.state, result = result
        return result

    def memory_analysis(self):
        return self.compiled.memory_analysis()


class Torch(Backend):
    """Eager, or torch.compile (`compiles`), which Keras's layers break into many small graphs.

    Keras's convolutions and poolings on PyTorch copy (B, H, W, C) to (B, C, H, W) and, for convolutions, back to
    channels last. Here they get the permuted view, which is channels last already: the same numbers, no copy.
    """

    def __init__(self):
        import torch
        from keras.src.backend.torch import nn

        self.torch = torch
        self.gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        torch.set_float32_matmul_precision("high")
        nn._transpose_spatial_inputs = lambda x: x.movedim(-1, 1)

    def host(self, array):
        tensor = self.torch.from_numpy(array)
        return tensor.pin_memory() if self.gpu else tensor

    def put(self, tensor):
        return tensor.to("cuda", non_blocking=True) if self.gpu else tensor

    def predictor(self, model):
        function = self._compile(lambda x: model(x.float(), training=False))

        def call(x):
            with self.torch.inference_mode():
                return function(x)

        return call

    def trainer(self, model):
        optimizer, variables = _optimizer(model), model.trainable_variables
        function = self._compile(lambda x, y: _loss(y, model(x.float(), training=True)))

        def step(x, y):
            model.zero_grad()
            loss = function(x, y)
            loss.backward()
            with self.torch.no_grad():
                optimizer.apply([variable.value.grad for variable in variables], variables)
            return loss.detach()

        return step

    def _compile(self, function):
        if not self.compiles:
            return function
        self.torch.compiler.reset()  # shapes of the network before are no reason to compile for any shape
        self.torch._dynamo.config.recompile_limit = 1024  # one function of Keras's meets every layer's shape
        return self.torch.compile(function, dynamic=False)

    def forget_memory(self):
        if self.gpu:
            self.torch.cuda.reset_peak_memory_stats()

    def memory(self, function):
        """Peak of the device since `forget_memory`, MiB; None where nobody knows."""
        return self.torch.cuda.max_memory_allocated() / 2**20 if self.gpu else None
