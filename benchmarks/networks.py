"""The networks that are timed: covidlib's, and ResNet50 of keras.applications as a Keras user gets it."""

CLASSES = ("covid", "viral", "normal")
APPLICATIONS = "keras.applications"


def build(name, image_size, precision="auto"):
    """A variant of covidlib by its name, for grey slices, or APPLICATIONS, which takes three channels."""
    import keras

    from covidlib.models import build_classifier
    from covidlib.models.precision import dtype_policy

    if name != APPLICATIONS:
        return build_classifier(name, CLASSES, image_size, precision=precision)
    with dtype_policy(precision):
        return keras.applications.ResNet50(weights=None, classes=len(CLASSES), input_shape=(image_size, image_size, 3))
