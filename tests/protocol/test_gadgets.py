"""Nothing outside of the table can be named, wherever the name stands."""

import functools
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from federated_dask.errors import FederatedError, NotPermitted
from federated_dask.protocol.frames import Frame, FrameDecoder, decode_message, encode_frame
from federated_dask.protocol.graph import (
    Block,
    Call,
    Compose,
    Dictionary,
    Graph,
    List,
    Node,
    Operation,
    Partial,
    Reference,
    Same,
    Slice,
    Template,
    Tuple,
    check_graph,
    walk,
)
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import JobSubmission, Output, Result
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.trees import (
    ArrayValue,
    DictValue,
    InstanceValue,
    ListValue,
    MaskedValue,
    ObjectArrayValue,
    OperationValue,
    PartialValue,
    SliceValue,
    TupleValue,
    Value,
)
from federated_dask.protocol.values import decode_value
from tests.protocol.watching import watched

TABLE = operation_table()
PACKAGES = ("numpy", "dask", "xarray", "pandas", "flox", "scipy")
SINGLE = ("builtins", "os", "subprocess", "posix", "posixpath", "operator", "functools", "sys")
WORD = re.compile(r"[A-Za-z_]\w*")


def module_files(package: str) -> Iterator[tuple[str, Path]]:
    """Every module of a package, found without importing any but the package itself."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    for location in spec.submodule_search_locations:
        root = Path(location)
        for path in root.rglob("*"):
            if path.suffix not in (".py", ".so", ".pyi"):
                continue
            parts = path.relative_to(root).with_suffix("").parts
            stem = parts[-1].partition(".")[0]
            inner = parts[:-1] if stem == "__init__" else (*parts[:-1], stem)
            yield ".".join((package, *inner)), path


def names_in(package: str) -> Iterator[str]:
    """Every word of every module as its member, and all members of what is imported already."""
    for module, path in module_files(package):
        yield module
        if path.suffix != ".so" and not {"tests", "test"} & set(module.split(".")):
            for word in set(WORD.findall(path.read_text("utf-8", "replace"))):
                yield f"{module}.{word}"


def members_of(module: types.ModuleType) -> Iterator[str]:
    """Members of a module, and of its classes and functions."""
    for name, value in list(vars(module).items()):
        full = f"{module.__name__}.{name}"
        yield full
        if isinstance(value, type) or callable(value):
            try:
                inner = dir(value)
            except Exception:  # noqa: S112
                # Some members exist only to refuse whatever is done with them.
                continue
            for member in inner:
                yield f"{full}.{member}"


def tried() -> Iterator[str]:
    for package in PACKAGES:
        yield from names_in(package)
    for name in list(sys.modules):
        module = sys.modules[name]
        if name.partition(".")[0] in (*PACKAGES, *SINGLE) and isinstance(module, types.ModuleType):
            yield from members_of(module)
    for name in SINGLE:
        yield from dir(importlib.import_module(name))


def test_every_dotted_name_of_the_libraries_is_refused_unless_listed() -> None:
    with_names = set(tried())
    assert len(with_names) > 300_000
    accepted = {name for name in with_names if name in TABLE}
    # Nothing but the table's own names, and most of those were among what was tried.
    assert accepted <= set(TABLE.names)
    assert len(accepted) > 300
    # What is not in it is refused; asking for a part of it is enough to see that.
    for name in sorted(with_names - accepted)[::20]:
        with pytest.raises(NotPermitted):
            TABLE.lookup(name)


GADGETS = """
    os.system os.popen os.execv os.remove posix.system subprocess.Popen subprocess.run
    subprocess.check_output builtins.eval builtins.exec builtins.open builtins.getattr
    builtins.__import__ builtins.compile builtins.vars builtins.globals builtins.setattr
    builtins.type builtins.map builtins.filter builtins.breakpoint builtins.input
    importlib.import_module runpy.run_path ctypes.CDLL pickle.loads cloudpickle.loads
    marshal.loads functools.reduce functools.partial operator.attrgetter operator.methodcaller
    operator.itemgetter operator.setitem operator.call
    dask.utils.apply dask.utils.methodcaller dask.utils.import_required dask.utils.getattr
    dask.array.from_npy_stack dask.array.from_zarr dask.array.map_blocks dask.compute
    dask.array.core.load_store_chunk dask.array.core.store_chunk dask.base.unpack_collections
    dask._task_spec.Task dask._task_spec.execute_graph dask.threaded.get dask.local.get_sync
    numpy.testing.measure numpy.testing.runstring numpy.testing._private.utils.runstring
    numpy.ctypeslib.load_library numpy.f2py.crackfortran.myeval numpy.fromfile numpy.memmap
    numpy.lib.npyio.DataSource numpy.DataSource numpy.load numpy.save numpy.savez numpy.loadtxt
    numpy.genfromtxt numpy.fromregex numpy.fromstring numpy.frombuffer numpy.vectorize
    numpy.frompyfunc numpy.apply_along_axis numpy.piecewise numpy.fromfunction numpy.seterrcall
    numpy.ndarray.tofile numpy.ndarray.dump array.tofile array.dump array.__reduce__
    array.__getattribute__ array.ctypes array.setfield array.resize numpy.lib.format.read_array
    pandas.read_pickle pandas.read_csv pandas.eval pandas.DataFrame.query pandas.DataFrame.eval
    pandas.io.common.get_handle xarray.open_dataset xarray.open_zarr xarray.open_mfdataset
    xarray.apply_ufunc xarray.backends.api.open_dataset fsspec.open fsspec.core.open
    scipy.io.loadmat scipy.LowLevelCallable scipy.optimize.minimize scipy.datasets.face
    msgpack_numpy.decode joblib.load yaml.load flox.core.groupby_reduce flox.xarray.xarray_reduce
    federated_dask.protocol.operations.operation_table federated_dask.protocol.codecs.from_fields
    federated_dask.protocol.wrappers.operator federated_dask.protocol.wrappers.__import__
    federated_dask.protocol.wrappers._shared federated_dask.protocol.wrappers.np.load
    federated_dask.protocol.wrappers.attribute.__globals__
""".split()

NUMBER = Same(0)


def op(name: str) -> Operation:
    return Operation(name)


def in_call(node: Node) -> Node:
    return Call(op("numpy.sum"), (node,))


NODES: dict[str, Callable[[str], Node]] = {
    "function": lambda name: Call(op(name)),
    "nested call": lambda name: in_call(Call(op(name))),
    "argument": lambda name: in_call(op(name)),
    "keyword": lambda name: Call(op("numpy.sum"), (Reference(),), (("dtype", op(name)),)),
    "partial": lambda name: Call(Partial(op(name))),
    "partial of a partial": lambda name: Call(Partial(Partial(op(name), ("x",)))),
    "argument of a partial": lambda name: Call(Partial(op("numpy.sum"), (op(name),))),
    "keyword of a partial": lambda name: Call(
        Partial(op("numpy.sum"), (), (("dtype", op(name)),)), (Reference(),)
    ),
    "first of a composition": lambda name: Call(Compose((op("numpy.sum"), op(name)))),
    "last of a composition": lambda name: Call(Compose((op(name), op("numpy.sum")))),
    "partial in a composition": lambda name: Call(Compose((Partial(op(name)), op("numpy.sum")))),
    "step": lambda name: op(name),
    "list": lambda name: in_call(List((op(name),))),
    "tuple": lambda name: in_call(Tuple((Tuple((op(name),)),))),
    "key of a dict": lambda name: in_call(Dictionary(((op(name), None),))),
    "item of a dict": lambda name: in_call(Dictionary((("a", op(name)),))),
    "slice": lambda name: in_call(Slice(op(name), None, None)),
    "called operation": lambda name: Call(
        op("dask.array.reductions.mean_chunk"), (Reference(),), (("sum", op(name)),)
    ),
    "called partial": lambda name: Call(
        op("dask.array.reductions.mean_chunk"), (Reference(),), (("numel", Partial(op(name))),)
    ),
    "enforced": lambda name: Call(
        op("dask.array.core._enforce_dtype"),
        (Reference(),),
        (("enforce_dtype_function", op(name)),),
    ),
    "forwarded": lambda name: Call(op("dask.array.core._pass_extra_kwargs"), (op(name), List(()))),
    "along an axis": lambda name: Call(
        op("federated_dask.protocol.wrappers.along_axis"), (op(name), None, Reference())
    ),
    "step of flox": lambda name: Call(
        op("flox.dask._aggregate"), (Reference(),), (("combine", op(name)),)
    ),
    "text for flox": lambda name: Call(
        Partial(op("flox.core.chunk_reduce"), (), (("func", Tuple((name,))),)), (Reference(),)
    ),
}


def graph_of(node: Node) -> Graph:
    holes = sum(isinstance(part, Reference) for part in walk(node))
    return Graph(
        values=(1,), templates=(Template((node,)),), blocks=(Block(0, 1, (NUMBER,) * holes),)
    )


def arrived(graph: Graph) -> Graph:
    """The graph as an endpoint gets it."""
    pieces = encode_frame(JobSubmission(graph=graph, outputs=(Output(task=0),)))
    [frame] = FrameDecoder().feed(b"".join(bytes(piece) for piece in pieces))
    return decode_message(frame, JobSubmission).graph


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """Once before anything is watched: decoders are made of annotations on first use."""
    arrived(graph_of(None))
    [frame] = FrameDecoder().feed(
        b"".join(bytes(p) for p in encode_frame(Result(output=0, value=1)))
    )
    decode_message(frame, Result)
    with pytest.raises(FederatedError):
        decode_value(InstanceValue("", {}), [], TABLE)


def test_the_positions_are_those_in_which_operations_may_stand() -> None:
    """Else the refusals below would say nothing: what is refused is the name."""
    passes = {"function", "nested call", "called operation", "along an axis", "enforced"}
    for position in passes:
        check_graph(graph_of(NODES[position]("numpy.max")), TABLE, Limits())
    check_graph(graph_of(NODES["keyword"]("numpy.float64")), TABLE, Limits())


@pytest.mark.parametrize("position", NODES)
def test_gadgets_are_refused_in_every_position_of_a_graph(position: str) -> None:
    graphs = [graph_of(NODES[position](name)) for name in GADGETS]
    check_graph(graph_of(Call(op("numpy.sum"), (Reference(),))), TABLE, Limits())
    with watched():
        for graph in graphs:
            with pytest.raises(FederatedError):
                check_graph(arrived(graph), TABLE, Limits())


VALUES: dict[str, Callable[[str], Value]] = {
    "bare": lambda name: OperationValue(name),
    "list": lambda name: ListValue((OperationValue(name),)),
    "tuple": lambda name: TupleValue((TupleValue((OperationValue(name),)),)),
    "key": lambda name: DictValue(((OperationValue(name), 1),)),
    "item": lambda name: DictValue((("a", OperationValue(name)),)),
    "slice": lambda name: SliceValue(OperationValue(name), None, None),
    "partial": lambda name: PartialValue(OperationValue(name), (), {}),
    "partial's argument": lambda name: PartialValue(
        OperationValue("numpy.sum"), (OperationValue(name),), {}
    ),
    "partial's keyword": lambda name: PartialValue(
        OperationValue("numpy.sum"), (), {"dtype": OperationValue(name)}
    ),
    "object array": lambda name: ObjectArrayValue((1,), (OperationValue(name),)),
    "mask": lambda name: MaskedValue(OperationValue(name), OperationValue(name), None),
    "codec": lambda name: InstanceValue(name, {}),
    "codec's field": lambda name: InstanceValue(
        "flox.Aggregation", {"finalize": OperationValue(name)}
    ),
    "codec's partial": lambda name: InstanceValue(
        "flox.Aggregation", {"preprocess": PartialValue(OperationValue(name), (), {})}
    ),
    "index of pandas": lambda name: InstanceValue(
        "pandas.Index", {"values": OperationValue(name), "dtype": "", "name": None}
    ),
    "field in a field": lambda name: InstanceValue(
        "flox.Dim", {"values": InstanceValue(name, {}), "name": None}
    ),
    "dtype of an array": lambda name: ArrayValue(name, (1,), (1,), False, 0),
}


def taken(graph: Graph, frame: Frame) -> Any:
    """Take a graph and its only value as an endpoint does."""
    check_graph(arrived(graph), TABLE, Limits())
    return decode_value(graph.values[0], frame.buffers, TABLE)


@pytest.mark.parametrize("position", VALUES)
def test_gadgets_are_refused_in_every_position_of_a_value(position: str) -> None:
    with pytest.raises(FederatedError):
        decode_value(VALUES[position](GADGETS[0]), [bytearray(8)], TABLE)
    with watched():
        for name in GADGETS:
            pieces = encode_frame(Result(output=0, value=VALUES[position](name)), [b"12345678"])
            [frame] = FrameDecoder().feed(b"".join(bytes(piece) for piece in pieces))
            value = decode_message(frame, Result).value
            # As a value of a graph …
            graph = msgspec.structs.replace(graph_of(in_call(Reference())), values=(value,))
            with pytest.raises(FederatedError):
                taken(graph, frame)
            # … and as a result that a site sends.
            with pytest.raises(FederatedError):
                decode_value(value, frame.buffers, TABLE)
            with pytest.raises(FederatedError):
                decode_value(value, frame.buffers)


class Gadget:
    """What pickle would call."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def pickles() -> Iterator[bytes]:
    import pickle

    import cloudpickle

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(Gadget(), protocol)
    yield cloudpickle.dumps(lambda: 1)
    yield b"\x80\x04cos\nsystem\n(S'id'\ntR."
    array = np.array([Gadget()], dtype=object)
    yield array.dumps()


def test_pickles_are_refused_wherever_bytes_are_taken() -> None:
    samples = list(pickles())
    with watched():
        for sample in samples:
            with pytest.raises(FederatedError):
                FrameDecoder().feed(sample.ljust(64, b"."))
            with pytest.raises(FederatedError):
                decode_message(Frame(msgspec.Raw(sample), []), JobSubmission)
            for value in (
                ArrayValue("|O", (1,), (1,), False, 0),
                ArrayValue("<f8", (10**6,), (10**6,), False, 0),
                InstanceValue("pickle", {"data": ArrayValue("|V1", (1,), (1,), False, 0)}),
            ):
                with pytest.raises(FederatedError):
                    decode_value(value, [bytearray(sample)], TABLE)
            # As data they are bytes and stay bytes.
            whole = ArrayValue("|V1", (len(sample),), (len(sample),), False, 0)
            assert decode_value(whole, [bytearray(sample)], TABLE).tobytes() == sample


def test_look_alikes_of_functions_do_not_become_operations() -> None:
    """Names are found by identity: what compares equal or is called the same is another object."""

    class Equal:
        __name__, __module__ = "sum", "numpy"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash(np.sum)

        def __call__(self) -> None: ...

    for function in (Equal(), functools.wraps(np.sum)(lambda *_: None), functools.partial(np.sum)):
        assert TABLE.name_of(function) is None
