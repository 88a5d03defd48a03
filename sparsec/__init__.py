"""sparsec: declare a sparse-memory attention layer, get checked and tuned kernels.

Everything here loads when it is first used, so that ``import sparsec`` needs neither torch nor a compiler.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsec import compat, lang, nn
    from sparsec.frontends.flex import from_flex
    from sparsec.frontends.preset import Preset, preset, presets
    from sparsec.frontends.python import variant
    from sparsec.frontends.text import load, parse
    from sparsec.ir.error import DeclarationError, InputError, TextError
    from sparsec.ir.variant import Variant
    from sparsec.runtime.compiled import Compiled, compile
    from sparsec.runtime.inputs import inputs

__version__ = "0.1.0"

_HOMES = {
    "Compiled": "sparsec.runtime.compiled",
    "DeclarationError": "sparsec.ir.error",
    "InputError": "sparsec.ir.error",
    "Preset": "sparsec.frontends.preset",
    "TextError": "sparsec.ir.error",
    "Variant": "sparsec.ir.variant",
    "compat": "sparsec.compat",
    "compile": "sparsec.runtime.compiled",
    "from_flex": "sparsec.frontends.flex",
    "inputs": "sparsec.runtime.inputs",
    "lang": "sparsec.lang",
    "load": "sparsec.frontends.text",
    "nn": "sparsec.nn",
    "oracle": "sparsec.oracle",
    "parse": "sparsec.frontends.text",
    "preset": "sparsec.frontends.preset",
    "presets": "sparsec.frontends.preset",
    "variant": "sparsec.frontends.python",
}
_MODULES = {"compat", "lang", "nn", "oracle"}  # the oracle module can be called like its function

__all__ = [
    "Compiled",
    "DeclarationError",
    "InputError",
    "Preset",
    "TextError",
    "Variant",
    "__version__",
    "compat",
    "compile",
    "from_flex",
    "inputs",
    "lang",
    "load",
    "nn",
    "oracle",
    "parse",
    "preset",
    "presets",
    "variant",
]


def __getattr__(name: str) -> object:
    """A public name, loaded when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sparsec' has no attribute {name!r}; it has {', '.join(__all__)}")
    module = import_module(_HOMES[name])
    found = module if name in _MODULES else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
