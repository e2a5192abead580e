"""Compiled kernels are forgotten when any kernel changes."""

import importlib
import pkgutil

from numba.core.dispatcher import Dispatcher

from automl.executors import kernels
from automl.executors.kernels import options


def test_a_change_of_any_kernel_is_another_source(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("x = 1")
    first = options.sources(tmp_path)
    options.sources.cache_clear()
    (tmp_path / "b.py").write_text("x = 2")
    assert options.sources(tmp_path) != first


def test_every_kernel_is_stamped_with_all_sources():
    found = []
    for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        functions = vars(importlib.import_module(module.name)).values()
        found += [one for one in functions if isinstance(one, Dispatcher)]
    assert len(found) > 30
    for one in found:
        assert options.sources() in one._cache._cache_file._source_stamp
