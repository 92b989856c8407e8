"""Runs the elementwise C++ functions of ``torch.cuda.jiterator`` as PyTorch operations, on any device.

Released SpikingBrain code writes its activations as such strings when it is imported. What is understood: template
functions of scalars, declarations, assignments, ``return``, arithmetic, comparisons, ``?:``, casts and the common
functions of ``<cmath>``; every value has a C++ type, and operands meet in the wider one. Anything else is refused by
name when the function is called.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedOp

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)([fF]?)|((?:::|std::)?[A-Za-z_]\w*)|"
                    r"(<=|>=|==|!=|&&|\|\||[-+*/]=|[-+*/<>=!?:(){};,&]))")  # fmt: skip
_FUNCTION = re.compile(
    r"template\s*<\s*typename\s+(\w+)\s*>\s*(\w+)\s+(\w+)\s*\(([^)]*)\)\s*\{(.*?)\}\s*(?=template|$)", re.S
)
_TYPES = {"float": torch.float32, "double": torch.float64, "int": torch.int32, "long": torch.int64, "bool": torch.bool}
_BINARY: tuple[dict[str, Callable[[Tensor, Tensor], Tensor]], ...] = (
    {"||": torch.logical_or},
    {"&&": torch.logical_and},
    {"==": torch.eq, "!=": torch.ne},
    {"<": torch.lt, ">": torch.gt, "<=": torch.le, ">=": torch.ge},
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": lambda a, b: a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")},
)
_SAME = ("exp", "log", "log2", "exp2", "expm1", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "tanh", "sinh", "cosh",
         "erf", "erfc", "floor", "ceil", "abs", "pow", "round", "trunc", "fmin", "fmax")  # fmt: skip
_MATH: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in _SAME},
    "fabs": torch.abs,
    "min": torch.minimum,
    "max": torch.maximum,
}


def _meet(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type C++ computes in. Half types stay only among themselves, as there."""
    wide = torch.promote_types(a.dtype, b.dtype)
    return a.to(wide), b.to(wide)


class _Parser:
    """One function body, evaluated while it is read."""

    def __init__(
        self, text: str, variables: dict[str, Tensor], types: dict[str, Any], functions: dict[str, Any]
    ) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.at, self.variables, self.types, self.functions = 0, variables, types, functions
        self.device = next(iter(variables.values())).device
        position = 0
        while text[position:].strip():
            found = _TOKEN.match(text, position)
            if found is None:
                raise UnsupportedOp(f"jiterator: {text[position:].strip()[:30]!r} is not understood")
            number, suffix, word, sign = found.groups()
            self.tokens.append(
                ("number", number + suffix.lower()) if number else ("word" if word else "sign", word or sign)
            )
            position = found.end()

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, *accepted: str) -> str:
        token = self.peek()
        if accepted and token not in accepted:
            raise UnsupportedOp(f"jiterator: {token!r} is not understood where {' or '.join(accepted)} is expected")
        self.at += 1
        return token

    def run(self) -> Tensor | None:
        """The returned value, or None."""
        while self.at < len(self.tokens):
            if self.peek() == "return":
                self.take()
                value = self.expression()
                self.take(";")
                return value
            self.statement()
        return None

    def statement(self) -> None:
        while self.peek() in ("const", "constexpr"):
            self.take()
        dtype = None
        declared = self.peek() in self.types or self.peek() == "auto"
        if declared:
            dtype = self.types.get(self.take())
        name = self.take()
        if not declared and name not in self.variables:
            raise UnsupportedOp(f"jiterator: the statement that begins with {name!r} is not understood")
        sign = self.take("=", *(() if declared else ("+=", "-=", "*=", "/=")))
        value = self.expression()
        if len(sign) == 2:
            level = _BINARY[4] if sign[0] in "+-" else _BINARY[5]
            value = level[sign[0]](*_meet(self.variables[name], value))
        if not declared:
            dtype = self.variables[name].dtype
        self.variables[name] = value if dtype is None else value.to(dtype)
        self.take(";")

    def expression(self) -> Tensor:
        condition = self.binary(0)
        if self.peek() != "?":
            return condition
        self.take()
        yes = self.expression()
        self.take(":")
        return torch.where(condition.bool(), *_meet(yes, self.expression()))

    def binary(self, level: int) -> Tensor:
        if level == len(_BINARY):
            return self.unary()
        left = self.binary(level + 1)
        while self.peek() in _BINARY[level]:
            left = _BINARY[level][self.take()](*_meet(left, self.binary(level + 1)))
        return left

    def unary(self) -> Tensor:
        if self.peek() in ("-", "+", "!"):
            sign, value = self.take(), self.unary()
            return -value if sign == "-" else value if sign == "+" else ~value.bool()
        if self.peek() == "(":
            self.take()
            if self.peek() in self.types and self.tokens[self.at + 1][1] == ")":
                dtype = self.types[self.take()]
                self.take(")")
                return self.unary().to(dtype)
            value = self.expression()
            self.take(")")
            return value
        return self.primary()

    def primary(self) -> Tensor:
        kind = self.tokens[self.at][0] if self.at < len(self.tokens) else "end"
        token = self.take()
        if kind == "number":
            literal = token.rstrip("f")
            whole = literal.isdigit() and literal == token
            dtype = torch.int32 if whole else torch.float32 if token.endswith("f") else torch.float64
            return torch.tensor(float(literal), device=self.device).to(dtype)
        if self.peek() != "(":
            if token not in self.variables:
                raise UnsupportedOp(f"jiterator: {token!r} is not understood")
            return self.variables[token]
        self.take("(")
        arguments = []
        while self.peek() != ")":
            arguments.append(self.expression())
            if self.peek() != ")":
                self.take(",")
        self.take(")")
        if token in self.types:
            return arguments[0].to(self.types[token])
        name = token.removeprefix("std").removeprefix("::")
        if name in self.functions:
            result: Tensor = self.functions[name](*arguments)
            return result
        known = _MATH.get(name) or _MATH.get(name.removesuffix("f"))
        if known is None:
            raise UnsupportedOp(f"jiterator: the function {name!r} is not understood")
        if len(arguments) == 2:
            arguments = list(_meet(*arguments))
        if not arguments[0].is_floating_point() and name not in ("abs", "min", "max"):
            arguments = [x.double() for x in arguments]
        return known(*arguments)


class JittedFunction:
    """What ``_create_jit_fn`` gives: called with tensors, it computes the string's last function for every element.

    Args:
        code: One or several ``template <typename T>`` functions.
        outputs: How many results it returns by reference; 0 if it returns one by value.
        defaults: Values of parameters that may be left out.
    """

    def __init__(self, code: str, outputs: int, defaults: dict[str, Any]) -> None:
        self.code, self.outputs, self.defaults = code, outputs, defaults

    def __call__(self, *tensors: Tensor, **values: Any) -> Tensor | tuple[Tensor, ...]:
        """The results, in the dtype in which the tensors meet.

        Raises:
            UnsupportedOp: The code holds something that is not understood.
            KeyError: A value is given that the code has no default for.
        """
        for name in values.keys() - self.defaults.keys():
            raise KeyError(f"{name} is not declared in function definition")
        found = _FUNCTION.findall(re.sub(r"//[^\n]*|/\*.*?\*/", "", self.code, flags=re.S).strip())
        if not found:
            raise UnsupportedOp(f"jiterator: no template function found in {self.code.strip()[:60]!r}")
        dtype = tensors[0].dtype
        for x in tensors[1:]:
            dtype = torch.promote_types(dtype, x.dtype)
        functions: dict[str, Callable[..., Any]] = {}
        for template, returned, name, parameters, body in found:
            names = [part.replace("&", " ").split()[-1] for part in parameters.split(",")]
            functions[name] = self._function(template, returned, names, body, functions)
        extra = [tensors[0].new_tensor(v, dtype=dtype) for v in {**self.defaults, **values}.values()]
        result = functions[found[-1][2]](*(x.to(dtype) for x in tensors), *extra)
        return tuple(x.to(dtype) for x in result) if self.outputs else result.to(dtype)

    def _function(
        self, template: str, returned: str, names: list[str], body: str, functions: dict[str, Any]
    ) -> Callable[..., Any]:
        def run(*arguments: Tensor) -> Any:
            outputs = names[len(arguments) :]
            shape = torch.broadcast_shapes(*(x.shape for x in arguments))
            variables = dict(zip(names, arguments, strict=False))
            types = {**_TYPES, template: arguments[0].dtype}
            variables |= {name: arguments[0].new_zeros(shape) for name in outputs}
            value = _Parser(body, variables, types, functions).run()
            if outputs:
                return tuple(variables[name].expand(shape) for name in outputs)
            if value is None:
                raise UnsupportedOp("jiterator: a function returns nothing")
            return value.to(types.get(returned, value.dtype)).expand(shape)

        return run


def create_jit_fn(code_string: str, **kwargs: Any) -> JittedFunction:
    """``torch.cuda.jiterator._create_jit_fn``."""
    return JittedFunction(code_string, 0, kwargs)


def create_multi_output_jit_fn(code_string: str, num_outputs: int, **kwargs: Any) -> JittedFunction:
    """``torch.cuda.jiterator._create_multi_output_jit_fn``."""
    return JittedFunction(code_string, num_outputs, kwargs)
