"""Import of a module right after another one, which may never be imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(name: str, follower: str) -> None:
    """Import a module after another has been imported; at once if it has been."""
    if name in sys.modules:
        importlib.import_module(follower)
    else:
        sys.meta_path.insert(0, _Finder(name, follower))


class _Finder(MetaPathFinder):
    """Finds one module as usual, and has its loader import another."""

    def __init__(self, name: str, follower: str):
        self.name, self.follower = name, follower

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the module's specification; None for other modules."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.follower)
        return spec


class _Loader(Loader):
    """A loader that imports another module after it has run its own."""

    def __init__(self, loader: Loader, follower: str):
        self.loader, self.follower = loader, follower

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, with its own loader in place, then import the other."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module(self.follower)
