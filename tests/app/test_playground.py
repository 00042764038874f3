import io

import numpy as np
import pytest
from PIL import Image

from covidlib.app.playground import Playground
from covidlib.preprocessing import augmentation


@pytest.fixture
def page():
    rng = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).resize((200, 200)))
    page = Playground(lambda: picture)
    page.refresh()
    assert page._painter.wait()
    return page


def shown(picture):
    return np.asarray(Image.open(io.BytesIO(picture.png)))


@pytest.mark.parametrize("name", list(augmentation.OPERATIONS))
def test_every_operation_has_a_control_that_does_it(page, name):
    before = shown(page.picture)
    control = page.controls[name]
    control.value = True if name.endswith("_flip") else control.max
    assert page._painter.wait()
    wanted = augmentation.apply(name, before, control.value)
    assert np.array_equal(shown(page.picture), wanted) and name.replace("_", " ") in page.picture.alt
    assert np.array_equal(wanted, before) == (name in ("hue", "saturation"))
    assert ("change nothing" in page.message.value) == (name in ("hue", "saturation"))
    page.reset.click()
    assert page._painter.wait() and np.array_equal(shown(page.picture), before)


def test_the_grid_follows_seed_and_set(page):
    first = shown(page.grid)
    page.seed.value = 1
    assert page._painter.wait() and not np.array_equal(shown(page.grid), first)
    page.seed.value = 0
    assert page._painter.wait() and np.array_equal(shown(page.grid), first)
    page.names.value = "mild"
    assert page._painter.wait() and not np.array_equal(shown(page.grid), first)


def test_without_a_scan_a_phantom_is_taken():
    page = Playground(lambda: None)
    page.refresh()
    assert page._painter.wait() and shown(page.picture).std() > 20
