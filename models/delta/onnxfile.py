"""Read and write ONNX files: just enough protocol buffers for graphs and their constants.

Owns the bytes of an ONNX model and nothing of its meaning; never touches a file or ONNX Runtime.
Invariant: what `read_model` accepts, `write_model` writes back with the same meaning, because
anything it cannot carry over (functions, external data, sparse constants) is refused.

Why not the `onnx` package: it is 18 MB on a device, pulls in ml_dtypes, and its parser is there
for checking; a bounded reader of the dozen messages needed is shorter than its workarounds.
Field numbers: onnx/onnx.proto, IR version 3 to 13.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.wire import ModelError

Array = npt.NDArray[np.generic]
Shape = tuple[int | str | None, ...]
_DTYPES: dict[int, type[np.generic]] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
}
_CODES = {np.dtype(kind): code for code, kind in _DTYPES.items()}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Opaque:
    """Carry an attribute that is not understood (a subgraph, say) as its own bytes."""

    data: bytes


Attribute = int | float | bytes | Array | tuple[int, ...] | tuple[float, ...] | Opaque


@dataclass(frozen=True, eq=False)
class Node:
    """One operator: `inputs` may hold "" for an omitted one."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.attributes.get(name, default)
        return int(value) if isinstance(value, int) else default

    def number(self, name: str, default: float) -> float:
        """Return a float attribute."""
        value = self.attributes.get(name, default)
        return float(value) if isinstance(value, (int, float)) else default

    def integers(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        """Return a list-of-integers attribute."""
        value = self.attributes.get(name, tuple(default))
        return tuple(int(v) for v in value) if isinstance(value, tuple) else tuple(default)

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self.attributes.get(name)
        return value.decode(errors="replace") if isinstance(value, bytes) else default


@dataclass(frozen=True)
class Value:
    """Name, element type (ONNX code, 1 = float32) and shape of a graph's value."""

    name: str
    dtype: int
    shape: Shape | None


@dataclass(frozen=True, eq=False)
class Model:
    """A graph in topological order with its constants."""

    nodes: tuple[Node, ...]
    constants: dict[str, Array]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    values: tuple[Value, ...] = ()
    opsets: dict[str, int] = field(default_factory=lambda: {"": 18})
    ir_version: int = 8


# --- reading ---------------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ModelError("not an ONNX file: a number runs past the end of its message")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield (field number, wire type, value) of one message. Raises ModelError."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            whole, at = _varint(data, at)
            yield number, wire, whole
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ModelError(f"not an ONNX file: wire type {wire} does not exist")
        if size > len(data) - at:
            raise ModelError("not an ONNX file: a field runs past the end of its message")
        yield number, wire, data[at : at + size]
        at += size


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ModelError("not an ONNX file: a number stands where a message belongs")
    return value


def _integer(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ModelError("not an ONNX file: a message stands where a number belongs")
    return _signed(value)


def _text(value: int | bytes) -> str:
    return _bytes(value).decode(errors="replace")


def _integers(wire: int, value: int | bytes) -> list[int]:
    if wire == _VARINT:
        return [_integer(value)]
    data, at, found = _bytes(value), 0, []
    while at < len(data):
        whole, at = _varint(data, at)
        found.append(_signed(whole))
    return found


def _floats(value: int | bytes) -> list[float]:
    data = _bytes(value)
    if len(data) % 4:
        raise ModelError("not an ONNX file: a list of floats ends in the middle of one")
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def _tensor(data: bytes) -> tuple[str, Array]:
    """Return (name, array) of a TensorProto. Raises ModelError."""
    dims: list[int] = []
    code, name, raw = 0, "", None
    numbers: list[int] = []
    reals: list[npt.NDArray[np.generic]] = []
    for number, wire, value in _fields(data):
        if number == 1:
            dims += _integers(wire, value)
        elif number == 2:
            code = _integer(value)
        elif number == 4:
            reals.append(np.frombuffer(_bytes(value), "<f4"))
        elif number in (5, 7, 11):
            numbers += _integers(wire, value)
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = _bytes(value)
        elif number == 10:
            reals.append(np.frombuffer(_bytes(value), "<f8"))
        elif number == 13 or (number == 14 and _integer(value) == 1):
            raise ModelError(f"constant {name!r} lies in another file: save the model as one file")
    if code not in _DTYPES:
        raise ModelError(f"constant {name!r} has element type {code}, which is not supported")
    kind = np.dtype(_DTYPES[code])
    try:
        if raw is not None:
            flat: Array = np.frombuffer(raw, kind.newbyteorder("<")).astype(kind)
        elif reals:
            flat = np.concatenate(reals).astype(kind)
        elif kind == np.float16:
            flat = np.array(numbers, np.uint16).view(np.float16)
        else:
            flat = np.array(numbers, kind)
        return name, flat.reshape(dims)
    except (ValueError, OverflowError) as error:
        raise ModelError(f"constant {name!r} of shape {dims}: {error}") from None


def _attribute(data: bytes) -> tuple[str, Attribute]:
    name, kind = "", 0
    one: Attribute | None = None
    ints: list[int] = []
    reals: list[float] = []
    for number, wire, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 20:
            kind = _integer(value)
        elif number == 2:
            one = _floats(value)[0]
        elif number == 3:
            one = _integer(value)
        elif number == 4:
            one = _bytes(value)
        elif number == 5:
            one = _tensor(_bytes(value))[1]
        elif number == 7:
            reals += _floats(value)
        elif number == 8:
            ints += _integers(wire, value)
    if kind == 7 or (kind == 0 and ints):
        return name, tuple(ints)
    if kind == 6 or (kind == 0 and reals):
        return name, tuple(reals)
    if kind in (0, 1, 2, 3, 4) and one is not None:
        return name, one
    defaults: dict[int, Attribute] = {1: 0.0, 2: 0, 3: b""}
    return name, defaults.get(kind, Opaque(data))


def _node(data: bytes) -> Node:
    inputs, outputs, attributes = [], [], {}
    name = kind = domain = ""
    for number, _, value in _fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 3:
            name = _text(value)
        elif number == 4:
            kind = _text(value)
        elif number == 5:
            key, content = _attribute(_bytes(value))
            attributes[key] = content
        elif number == 7:
            domain = _text(value)
    domain = "" if domain == "ai.onnx" else domain
    return Node(kind, tuple(inputs), tuple(outputs), attributes, name, domain)


def _value(data: bytes) -> Value:
    name, dtype, shape = "", 0, None
    for number, _, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for kind, _, inner in _fields(_bytes(value)):
                if kind != 1:
                    continue  # sequences and maps: not a tensor
                for part, _, content in _fields(_bytes(inner)):
                    if part == 1:
                        dtype = _integer(content)
                    elif part == 2:
                        shape = _shape(_bytes(content))
    return Value(name, dtype, shape)


def _shape(data: bytes) -> Shape:
    dims: list[int | str | None] = []
    for number, _, value in _fields(data):
        if number == 1:
            dim: int | str | None = None
            for part, _, content in _fields(_bytes(value)):
                dim = _integer(content) if part == 1 else _text(content) if part == 2 else dim
            dims.append(dim)
    return tuple(dims)


def _graph(data: bytes, opsets: dict[str, int], ir_version: int) -> Model:
    nodes, constants = [], {}
    inputs, outputs, values = [], [], []
    for number, _, value in _fields(data):
        if number == 1:
            nodes.append(_node(_bytes(value)))
        elif number == 5:
            name, array = _tensor(_bytes(value))
            constants[name] = array
        elif number == 11:
            inputs.append(_value(_bytes(value)))
        elif number == 12:
            outputs.append(_value(_bytes(value)))
        elif number == 13:
            values.append(_value(_bytes(value)))
        elif number == 15:
            raise ModelError("the model holds sparse constants, which are not supported")
    real_inputs = tuple(one for one in inputs if one.name not in constants)
    return Model(
        tuple(nodes), constants, real_inputs, tuple(outputs), tuple(values), opsets, ir_version
    )


def read_model(data: bytes) -> Model:
    """Return the graph in an ONNX file's bytes; constants that are also inputs are constants.

    Raises ModelError when the bytes are no ONNX file or hold what is not supported. O(bytes).
    """
    graph, opsets, ir_version = None, {}, 0
    for number, _, value in _fields(data):
        if number == 1:
            ir_version = _integer(value)
        elif number == 7:
            graph = _bytes(value)
        elif number == 8:
            domain, version = "", 0
            for part, _, content in _fields(_bytes(value)):
                domain = _text(content) if part == 1 else domain
                version = _integer(content) if part == 2 else version
            opsets["" if domain == "ai.onnx" else domain] = version
        elif number == 25:
            raise ModelError("the model holds functions of its own: inline them (onnx.inliner)")
    if graph is None or not opsets:
        raise ModelError("not an ONNX file: it has no graph or no operator set")
    return _graph(graph, opsets, ir_version)


# --- writing ---------------------------------------------------------------------------------


def _put_varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _put(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _put_varint(number << 3 | _VARINT) + _put_varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _put_varint(number << 3 | _BYTES) + _put_varint(len(data)) + data


def _put_tensor(array: Array, name: str = "") -> bytes:
    code = _CODES.get(array.dtype)
    if code is None:
        raise ValueError(f"constant {name!r}: no ONNX element type for {array.dtype}")
    out = b"".join(_put(1, int(dim)) for dim in array.shape)
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    return out + _put(2, code) + (_put(8, name) if name else b"") + _put(9, little.tobytes())


def _put_attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, Opaque):
        return value.data
    out = _put(1, name)
    if isinstance(value, bool | int):
        return out + _put(3, int(value)) + _put(20, 2)
    if isinstance(value, float):
        return out + _put_varint(2 << 3 | _FIXED32) + struct.pack("<f", value) + _put(20, 1)
    if isinstance(value, bytes):
        return out + _put(4, value) + _put(20, 3)
    if isinstance(value, tuple):
        if value and isinstance(value[0], float):
            return out + _put(7, struct.pack(f"<{len(value)}f", *value)) + _put(20, 6)
        return out + b"".join(_put(8, int(each)) for each in value) + _put(20, 7)
    return out + _put(5, _put_tensor(value)) + _put(20, 4)


def _put_node(node: Node) -> bytes:
    out = b"".join(_put(1, each) for each in node.inputs)
    out += b"".join(_put(2, each) for each in node.outputs)
    out += _put(3, node.name) + _put(4, node.kind)
    for name, value in node.attributes.items():
        out += _put(5, _put_attribute(name, value))
    return out + (_put(7, node.domain) if node.domain else b"")


def _put_value(value: Value) -> bytes:
    kind = _put(1, value.dtype)
    if value.shape is not None:
        dims = b""
        for dim in value.shape:
            inner = b"" if dim is None else _put(1 if isinstance(dim, int) else 2, dim)
            dims += _put(1, inner)
        kind += _put(2, dims)
    return _put(1, value.name) + _put(2, _put(1, kind))


def write_model(model: Model) -> bytes:
    """Return the model as the bytes of an ONNX file. Raises ValueError for odd constants."""
    graph = [_put(1, _put_node(node)) for node in model.nodes] + [_put(2, "graph")]
    graph += [_put(5, _put_tensor(array, name)) for name, array in model.constants.items()]
    graph += [_put(11, _put_value(value)) for value in model.inputs]
    graph += [_put(12, _put_value(value)) for value in model.outputs]
    graph += [_put(13, _put_value(value)) for value in model.values]
    out = _put(1, model.ir_version) + _put(7, b"".join(graph))
    for domain, version in model.opsets.items():
        out += _put(8, _put(1, domain) + _put(2, version))
    return out
