import builtins
import functools
import importlib
import inspect
import operator
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import dask.array
import dask.utils
import flox
import numpy as np
import pandas as pd
import pytest
import scipy
import xarray as xr

from federated_dask.errors import NotPermitted
from federated_dask.protocol import operation_names as names
from federated_dask.protocol.operations import OperationTable, _most_positional, operation_table
from federated_dask.protocol.wrappers import STANDING_IN

TABLE = operation_table()
METHODS = {
    f"numpy.{ufunc}.{method}"
    for ufunc in names.UFUNCS.split()
    for method in names.UFUNC_METHODS
    if getattr(np, ufunc).nin == 2 and getattr(np, ufunc).nout == 1
}
SPECIAL = METHODS | {"array.reshape", "dask.array.wrap._broadcast_trick_inner"}


def test_every_name_is_exactly_the_object_that_it_names() -> None:
    for name in set(TABLE.names) - SPECIAL:
        module, _, member = name.rpartition(".")
        original = vars(importlib.import_module(module))[member]
        called = TABLE.lookup(name)
        assert called is STANDING_IN.get(name, original)
        assert callable(called)


def without(name: str) -> OperationTable:
    return TABLE.only(set(TABLE.names) - {name})


@pytest.mark.parametrize("table", [TABLE, TABLE.only(STANDING_IN), without("numpy.add")])
def test_what_stands_in_is_called_and_both_have_the_name(table: OperationTable) -> None:
    for name, ours in STANDING_IN.items():
        module, _, member = name.rpartition(".")
        original = vars(importlib.import_module(module))[member]
        assert original is not ours
        assert table.lookup(name) is ours
        assert table.name_of(original) == table.name_of(ours) == name
        assert pickle.loads(pickle.dumps(ours)) is ours
        assert table.most_positional(name) == _most_positional(name, original)
    assert without("operator.pow").name_of(operator.pow) is None


def test_every_listed_name_exists_in_the_tested_versions() -> None:
    listed = {f"{module}.{name}" for module, found in names.NAMES.items() for name in found.split()}
    assert set(TABLE.names) == listed | SPECIAL
    assert len(listed) == sum(len(found.split()) for found in names.NAMES.values())


def test_methods_of_ufuncs_are_those_that_write_nowhere() -> None:
    assert set(names.UFUNC_METHODS) == {"accumulate", "outer"}
    for name in METHODS:
        _, ufunc, method = name.split(".")
        assert TABLE.lookup(name).__self__ is getattr(np, ufunc)
        assert TABLE.lookup(name).__name__ == method
        assert TABLE.name_of(getattr(getattr(np, ufunc), method)) == name


def test_a_name_leads_back_to_itself_or_to_another_name_of_the_same_object() -> None:
    for name in TABLE.names:
        function = TABLE.lookup(name)
        again = TABLE.name_of(function)
        assert again is not None
        assert TABLE.lookup(again) is function


def test_the_rules_speak_of_operations_that_exist() -> None:
    ruled = {*names.READS, *names.TEXTS, *names.POSITIONAL, *names.CALLS, *names.CALLED_BY}
    ruled |= {*names.IN_PLACE, *(each for found in names.IN_PLACE.values() for each in found)}
    assert ruled <= set(TABLE.names)


def test_no_operation_with_a_rule_has_another_name() -> None:
    ruled = {*names.READS, *names.TEXTS, *names.POSITIONAL, *names.CALLS, *names.IN_PLACE}
    for name in ruled:
        function = TABLE.lookup(name)
        assert [other for other in TABLE.names if TABLE.lookup(other) is function] == [name]


def test_the_rules_on_what_is_called_fit_the_signatures() -> None:
    for name, called in names.CALLS.items():
        parameters = list(inspect.signature(TABLE.lookup(name)).parameters)
        for keyword, position in called.items():
            if position is not None:
                assert parameters[position] == keyword, name


def test_what_calls_an_argument_has_a_rule() -> None:
    """Parameters that are called, by their names in the libraries."""
    telling = {"func", "function", "argfunc", "binop", "reduction", "combine", "numel", "callback"}
    for name in TABLE.names:
        try:
            parameters = set(inspect.signature(TABLE.lookup(name)).parameters)
        except ValueError:
            continue
        if parameters & telling:
            assert name in names.CALLS or name in names.TEXTS, name


def test_no_call_reaches_an_output_argument() -> None:
    for name in TABLE.names:
        function = TABLE.lookup(name)
        most = TABLE.most_positional(name)
        if isinstance(function, np.ufunc):
            assert most == function.nin
            continue
        try:
            parameters = list(inspect.signature(function).parameters)
        except ValueError:
            continue
        assert not {"out", "overwrite_input"} & set(parameters[:most]), name


FORBIDDEN = [
    *(eval, exec, open, getattr, setattr, delattr, __import__, compile, vars, globals, input),
    *(breakpoint, type, memoryview, map, filter, iter, next, print, super, property),
    *(np.load, np.fromfile, np.save, np.savez, np.savetxt, np.loadtxt, np.genfromtxt, np.memmap),
    *(np.lib.npyio.DataSource, np.frombuffer, np.fromstring, np.fromregex, np.require),
    *(np.vectorize, np.apply_along_axis, np.apply_over_axes, np.frompyfunc, np.piecewise),
    *(np.fromfunction, np.pad, np.select, np.fromiter, np.put, np.place, np.copyto, np.putmask),
    *(np.ctypeslib.load_library, np.testing.measure, np.seterrcall, np.dtype, np.nditer),
    *(dask.utils.apply, dask.utils.methodcaller, dask.utils.import_required, dask.utils.typename),
    *(dask.array.from_npy_stack, dask.array.from_zarr, dask.array.map_blocks, dask.compute),
    *(functools.reduce, functools.partial, operator.attrgetter, operator.methodcaller),
    *(operator.itemgetter, operator.setitem, operator.delitem, operator.iadd, operator.call),
    *(xr.open_dataset, xr.open_zarr, xr.open_mfdataset, xr.load_dataset, xr.apply_ufunc),
    *(pd.read_pickle, pd.read_csv, pd.read_parquet, pd.eval, pd.DataFrame.query, pd.DataFrame.eval),
    *vars(os).values(),
    *vars(subprocess).values(),
]


def identity(function: Any) -> list[Any]:
    """The object, and what it wraps."""
    found = [function]
    for attribute in ("func", "__wrapped__", "__func__", "__self__", "pyfunc"):
        inner = inspect.getattr_static(function, attribute, None)
        if inner is not None and not isinstance(inner, ModuleType) and callable(inner):
            found.append(getattr(function, attribute))
    return found


def test_nothing_dangerous_is_in_the_table_or_wrapped_by_what_is() -> None:
    forbidden = {id(function): function for function in FORBIDDEN if callable(function)}
    # `os` holds some types for its own use.
    for harmless in (bool, int, float, str, list, tuple, dict, slice, complex):
        forbidden.pop(id(harmless), None)
    for name in TABLE.names:
        for function in identity(TABLE.lookup(name)):
            assert id(function) not in forbidden, name


def test_only_listed_types_of_builtins() -> None:
    members = {id(value): name for name, value in vars(builtins).items() if callable(value)}
    found = {
        members[id(TABLE.lookup(name))] for name in TABLE.names if id(TABLE.lookup(name)) in members
    }
    types = {"bool", "complex", "dict", "float", "int", "list", "object", "slice", "tuple"}
    assert found == types | {"max", "min", "sum"}


def test_methods_are_pinned() -> None:
    called = [TABLE.lookup(name) for name in TABLE.names]
    methods = [each.method for each in called if isinstance(each, dask.utils.methodcaller)]
    assert methods == ["reshape"]
    assert not [
        each for each in called if isinstance(each, operator.methodcaller | operator.attrgetter)
    ]


def test_vectorised_functions_are_of_dask() -> None:
    found = [name for name in TABLE.names if isinstance(TABLE.lookup(name), np.vectorize)]
    assert found == ["dask.array.routines._isnonzero_vec"]


ATTRIBUTES_OF_FIXED_NAMES = {
    "dask.array.core.concatenate3",
    "numpy.isclose",
    "numpy.ma.getmaskarray",
}


def test_no_source_of_the_table_evaluates_or_opens() -> None:
    """Reads the code of every Python function of the table."""
    for name in TABLE.names:
        function = inspect.unwrap(TABLE.lookup(name))
        code = getattr(function, "__code__", None)
        if code is None:
            continue
        called = set(code.co_names)
        assert not called & {"eval", "exec", "open", "compile", "__import__", "import_module"}, name
        assert not called & {"setattr", "globals", "load", "fromfile", "system", "Popen"}, name
        if "getattr" in called:
            assert name in ATTRIBUTES_OF_FIXED_NAMES, name


def dotted() -> Iterator[str]:
    modules = [np, dask.array, xr, pd, scipy, flox, builtins, os, subprocess, operator, functools]
    inner = [np.lib, np.linalg, np.random, np.testing, dask, dask.utils, pd.io, scipy.special]
    for module in [
        *modules,
        *inner,
        *(m for n, m in sys.modules.items() if n.startswith("dask.array.")),
    ]:
        for member in dir(module):
            yield f"{module.__name__}.{member}"
            yield member


def test_every_other_name_is_refused() -> None:
    tried = set(dotted())
    assert len(tried) > 4000
    for name in tried - set(TABLE.names):
        assert name not in TABLE
        with pytest.raises(NotPermitted):
            TABLE.lookup(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "numpy",
            "numpy.",
            ".numpy.sum",
            "numpy..sum",
            "numpy.sum.",
            "numpy.sum\0",
            " numpy.sum",
        ),
        *("numpy.sum ", "numpy:sum", "numpy.sum.__globals__", "numpy.core._multiarray_umath.add"),
        *(
            "Numpy.sum",
            "numpy.\u0455um",
            "array.__reduce__",
            "array.tofile",
            "array.dump",
            "array.reshape.x",
        ),
        *("numpy.add.reduce", "numpy.add.at", "x" * 100_000),
    ],
)
def test_near_misses_are_refused(name: str) -> None:
    with pytest.raises(NotPermitted) as caught:
        TABLE.lookup(name)
    assert len(str(caught.value)) < 300


def test_bound_methods_and_look_alikes_have_no_name() -> None:
    for function in (
        np.add.reduce,
        np.add.at,
        np.ndarray.tofile,
        lambda x: x,
        functools.partial(np.sum),
    ):
        assert TABLE.name_of(function) is None


def test_tables_can_be_narrowed() -> None:
    less = without("numpy.sum")
    assert "numpy.sum" not in less
    assert less.name_of(np.cumsum) == "numpy.cumsum"
    assert less.digest != TABLE.digest
    only = TABLE.only(["numpy.sum", "os.system"])
    assert only.names == ("numpy.sum",)
    assert OperationTable({"numpy.sum": np.sum}).digest == only.digest


def test_the_table_is_frozen() -> None:
    with pytest.raises(TypeError):
        TABLE._operations["os.system"] = os.system  # type: ignore[index]
