"""Choosing a precision, and keeping it from leaking."""

import keras
import pytest

from covidlib.models import precision


def test_a_named_precision_is_taken_as_it_is():
    assert precision.resolve_precision("float32") == "float32"
    assert precision.resolve_precision("mixed_bfloat16") == "mixed_bfloat16"


@pytest.mark.parametrize(
    ("capability", "flags", "expected"),
    [
        (0, ["sse2"], "float32"),
        (0, ["avx512_bf16"], "mixed_bfloat16"),
        (0, ["amx_bf16"], "mixed_bfloat16"),
        (0, ["GenuineIntel", "avx512_bf16"], "mixed_bfloat16"),
        (0, ["GenuineIntel", "avx512_bf16", "avx512_fp16"], "float32"),
        (0, ["GenuineIntel", "avx512_bf16", "avx512_fp16", "amx_bf16"], "mixed_bfloat16"),
        (0, ["AuthenticAMD", "avx512_bf16", "avx512_fp16"], "mixed_bfloat16"),
        (7, ["amx_bf16"], "float32"),
        (8, ["sse2"], "mixed_bfloat16"),
        (9, [], "mixed_bfloat16"),
    ],
)
def test_auto_follows_the_hardware(monkeypatch, capability, flags, expected):
    monkeypatch.setattr(precision, "_gpu_capability", lambda: capability)
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    assert precision.resolve_precision("auto") == expected


def test_auto_works_on_this_machine():
    assert precision.resolve_precision() in ("float32", "mixed_bfloat16")


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="must be one of.*Received: precision='float8'"):
        precision.resolve_precision("float8")


def test_the_policy_ends_with_the_block_even_after_an_error():
    before = keras.config.dtype_policy()
    with pytest.raises(RuntimeError), precision.dtype_policy("mixed_bfloat16"):
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        raise RuntimeError
    assert keras.config.dtype_policy() is before
